"""Padding by tiles: arrays against layouts that the TPU compiler chose, products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from stablehlo_helpers import arg, buffer, matmul_flops, opcodes, touched

from frontends import hlo_types, stablehlo
from frontends.tiling import Tiling

TPU = Tiling()


@pytest.mark.parametrize(
    "layout",
    [
        "f32[1000,64]{1,0:T(8,128)}",
        "f32[1000,64]{0,1:T(8,128)}",
        "bf16[16,64,64,64]{3,0,2,1:T(8,128)(2,1)}",
        "bf16[16,128,128,3]{0,3,2,1:T(4,128)(2,1)}",
        "f32[4,14,14,1024]{3,0,2,1:T(4,128)}",
        "bf16[3,3,3,64]{3,2,1,0:T(4,128)(2,1)}",
        "pred[32,8,8,512]{3,0,2,1:T(8,128)(4,1)}",
        "pred[2,256]{1,0:T(4,128)(4,1)}",
        "s32[2,256]{1,0:T(2,128)}",
    ],
)
def test_sizes_are_those_of_the_compiler(layout):
    array = hlo_types.parse_array_type(layout)
    order = [int(d) for d in layout.partition("{")[2].partition(":")[0].split(",")]
    tile_rows = int(layout.partition("T(")[2].partition(",")[0])
    bits = hlo_types.element_bits(array.dtype)
    padded = TPU.size_bytes(array.dims, bits, (order[0], order[1]))
    assert padded <= array.size_bytes
    # Exactly that, if the other order of the two does not pad less.
    if array.dims[order[0]] >= array.dims[order[1]] or tile_rows < 8:
        assert padded == array.size_bytes


@pytest.mark.parametrize(
    "layout",
    [
        "f32[64]{0:T(128)}",
        "f32[300]{0:T(512)}",
        "f32[5000]{0:T(1024)}",
        "bf16[64]{0:T(256)(128)(2,1)}",
        "bf16[2048]{0:T(1024)(128)(2,1)}",
        "pred[12]{0:T(512)(128)(4,1)}",
    ],
)
def test_vectors_are_padded_to_powers_of_two(layout):
    array = hlo_types.parse_array_type(layout)
    bits = hlo_types.element_bits(array.dtype)
    assert TPU.size_bytes(array.dims, bits) == array.size_bytes
    assert TPU.size_bytes((1, *array.dims, 1), bits) == array.size_bytes


@pytest.mark.parametrize(
    ("dims", "elements"),
    [
        ((1000, 64), 1024 * 64),  # 1000 in the lanes, not 64
        ((2, 3, 128, 40), 2 * 3 * 128 * 40),  # 40 rows of 128 lanes
        ((0, 128), 0),
        ((), 128),
    ],
)
def test_minor_dimensions_are_those_that_pad_least(dims, elements):
    assert TPU.size_bytes(dims, 32) == 4 * elements


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_padding_never_shrinks_and_without_tiles_is_none(bits):
    plain = Tiling(rows=1, lanes=1, matrix=1)
    for dims in ((7,), (1000, 64), (3, 5, 7), (16, 128, 128, 3)):
        logical = jnp.prod(jnp.array(dims)).item() * bits // 8
        assert TPU.size_bytes(dims, bits) >= logical
    assert plain.size_bytes((1000, 64), 32) == 4 * 64000
    assert plain.product_padding(3, 5, 7) == 1.0


@pytest.mark.parametrize(
    ("m", "k", "n", "padding"),
    [
        (1024, 512, 256, 1.0),
        (4096, 64, 256, 2.0),  # half of the rows of the matrix unit are idle
        (4096, 128, 3, 8 / 3),  # 3 columns stream through as 8 rows
        (200, 128, 200, 256 / 200),  # 200 is 25 x 8
        (0, 128, 128, 1.0),
    ],
)
def test_products_are_padded_to_the_matrix_unit(m, k, n, padding):
    assert TPU.product_padding(m, k, n) == pytest.approx(padding)
    assert TPU.product_padding(n, k, m) == pytest.approx(padding)


def test_a_larger_matrix_unit_pads_more():
    assert Tiling(matrix=256).product_padding(512, 128, 512) == 2.0


@pytest.mark.parametrize("field", ["rows", "lanes", "matrix"])
def test_tiles_are_at_least_one(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        Tiling(**{field: 0})


@pytest.mark.parametrize("passes", [-1.0, float("nan"), float("inf")])
def test_passes_are_a_finite_number(passes):
    with pytest.raises(ValueError, match="image_passes is"):
        Tiling(image_passes=passes)


# Programs ---------------------------------------------------------------------------


def test_buffers_accesses_and_flops_of_a_padded_product():
    f = lambda x, w: x @ w  # noqa: E731
    args = (arg(1000, 64), arg(64, 256))
    logical = stablehlo.from_jax(f, *args)
    padded = stablehlo.from_jax(f, *args, tiling=TPU)
    assert matmul_flops(logical) == 2 * 1000 * 64 * 256
    # 64 is padded to 128 in the matrix unit, and 1000 x 64 to 1024 x 64 in memory.
    assert matmul_flops(padded) == 2 * matmul_flops(logical)
    (op,) = padded.ops
    assert touched(padded, op)[0] == {"x": 4 * 1024 * 64, "w": 4 * 64 * 256}
    assert buffer(padded, "x").size_bytes == 4 * 1024 * 64
    assert padded.notes != logical.notes


def test_batched_products_are_padded_one_by_one():
    f = lambda a, b: jnp.einsum("bik,bkj->bij", a, b)  # noqa: E731
    args = (arg(6, 256, 64), arg(6, 64, 128))
    padded = stablehlo.from_jax(f, *args, tiling=TPU)
    assert matmul_flops(padded) == 2 * 6 * 256 * 128 * 128


def convolution(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_activations_of_a_convolution_have_batch_and_features_minor():
    def f(x, w):
        return jax.nn.relu(convolution(x, w))

    program = stablehlo.from_jax(
        f,
        arg(16, 32, 32, 64, dtype=jnp.bfloat16),
        arg(3, 3, 64, 128, dtype=jnp.bfloat16),
        tiling=TPU,
    )
    (op,) = program.ops
    reads, writes = touched(program, op)
    assert reads["x"] == 2 * 16 * 32 * 32 * 128  # features padded, not the image
    # The result, and what is computed of it element by element.
    assert list(writes.values()) == [2 * 16 * 32 * 32 * 128]


def test_a_convolution_over_few_images_moves_them_more_often():
    args = (arg(4, 32, 32, 128), arg(3, 3, 128, 128))
    few = stablehlo.from_jax(convolution, *args, tiling=TPU)
    assert any("fewer images" in note for note in few.notes)
    (op,) = few.ops
    image, kernel = 4 * args[0].size, 4 * args[1].size
    once = 2 * image + kernel
    total = sum(op.touched_bytes().values())
    assert total == pytest.approx(once + TPU.image_passes * 2 * image, abs=4)
    # In proportion, and as many bytes in memory as before.
    assert touched(few, op)[0]["x"] == pytest.approx(total * image / once, abs=4)
    assert buffer(few, "x").size_bytes == image
    enough = stablehlo.from_jax(convolution, arg(8, 32, 32, 128), args[1], tiling=TPU)
    assert not any("fewer images" in note for note in enough.notes)
    pointwise = stablehlo.from_jax(
        convolution, args[0], arg(1, 1, 128, 128), tiling=TPU
    )
    assert not any("fewer images" in note for note in pointwise.notes)


@pytest.mark.parametrize("images", [4, 8])
def test_the_gradient_of_a_kernel_is_over_as_many_images(images):
    # Its batch dimension is that of the features, 3 of them.
    gradient = jax.grad(lambda w, x: (convolution(x, w) ** 2).sum())
    args = (arg(3, 3, 3, 64), arg(images, 32, 32, 3))
    program = stablehlo.from_jax(gradient, *args, tiling=TPU)
    assert any("fewer images" in note for note in program.notes) is (images < 8)


def test_a_part_that_is_updated_is_padded_as_the_whole():
    def f(cache, new, position):
        return lax.dynamic_update_slice(cache, new, (position, 0, 0))

    program = stablehlo.from_jax(
        f,
        arg(64, 32, 100),
        arg(1, 32, 100),
        arg(dtype=jnp.int32),
        donate_argnums=0,
        tiling=TPU,
    )
    (op,) = program.ops
    (written,) = touched(program, op)[1].values()
    assert written == 4 * 32 * 100 * buffer(program, "cache").size_bytes // (
        4 * 64 * 32 * 100
    )


def test_names_and_annotations_do_not_depend_on_the_tiling():
    def f(x, w):
        return convolution(x, w).sum(), convolution(x * 2, w)

    args = (arg(8, 16, 16, 3), arg(3, 3, 3, 5))
    plain = stablehlo.from_jax(f, *args)
    program = stablehlo.from_jax(f, *args, tiling=TPU)
    assert [op.name for op in program.ops] == [op.name for op in plain.ops]
    assert opcodes(program) == opcodes(plain)
    text = stablehlo.annotate(program, {op.name: "fast" for op in program.ops})
    assert 'jax_malloc.placement = "fast"' in text
