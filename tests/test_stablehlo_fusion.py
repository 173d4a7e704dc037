"""Which operations become one op, and what that touches, worked by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from stablehlo_helpers import BF16, F32, arg, buffer, opcodes, touched

from frontends import stablehlo
from frontends.program import BufferKind


def test_matmul_bias_relu_is_one_op():
    def f(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"])

    params = {"w": arg(32, 64), "b": arg(64)}
    program = stablehlo.from_jax(f, params, arg(16, 32))
    (op,) = program.ops
    assert op.name == "dot_general_fusion.1"
    assert op.opcode == "stablehlo.dot_general"
    assert op.matmul_flops == 2 * 16 * 32 * 64
    assert op.matmul_dtype == "f32"
    assert op.vector_flops == 2 * 16 * 64  # add and max
    assert touched(program, op) == (
        {"x": 16 * 32 * F32, "params['w']": 32 * 64 * F32, "params['b']": 64 * F32},
        {"dot_general_fusion.1": 16 * 64 * F32},
    )
    assert program.name == "f"
    assert program.source == "stablehlo"
    out = buffer(program, "dot_general_fusion.1")
    assert (out.kind, out.is_output, out.size_bytes) == (
        BufferKind.OUTPUT,
        True,
        16 * 64 * F32,
    )


def test_diamond_writes_the_value_that_two_products_read():
    """h is a product's result, so it is not repeated; sin and cos of it are."""

    def f(x, w, u, v):
        h = x @ w
        return jnp.sin(h) @ u + jnp.cos(h) @ v

    square = arg(32, 32)
    program = stablehlo.from_jax(f, square, square, square, square)
    size = 32 * 32 * F32
    assert [touched(program, op) for op in program.ops] == [
        ({"x": size, "w": size}, {"dot_general.1": size}),
        ({"dot_general.1": size, "u": size}, {"dot_general_fusion.1": size}),
        (
            {"dot_general.1": size, "dot_general_fusion.1": size, "v": size},
            {"dot_general_fusion.2": size},
        ),
    ]
    assert [op.transcendentals for op in program.ops] == [0, 32 * 32, 32 * 32]
    assert buffer(program, "dot_general.1").live.end == 3


def test_epilogue_stops_where_elements_are_narrowest():
    def f(x, w):
        y = (x @ w).astype(jnp.float32) * 2.0
        return jnp.sin(y), jnp.sum(y, 0)

    program = stablehlo.from_jax(
        f, arg(256, 64, dtype=jnp.bfloat16), arg(64, 128, dtype=jnp.bfloat16)
    )
    assert buffer(program, "dot_general_fusion.1", 0).size_bytes == 256 * 128 * F32
    (op,) = program.ops  # sine and sum join the product, the bfloat16 is not needed
    assert op.matmul_dtype == "bf16"

    def g(x, w, u):
        y = (x @ w).astype(jnp.float32)
        return jnp.sin(y) @ u, jnp.cos(y) @ u

    program = stablehlo.from_jax(
        g,
        arg(256, 64, dtype=jnp.bfloat16),
        arg(64, 128, dtype=jnp.bfloat16),
        arg(128, 128),
    )
    assert buffer(program, "dot_general.1").size_bytes == 256 * 128 * BF16


def test_two_products_that_meet():
    def f(x, h, w, u):
        return jnp.tanh(x @ w + h @ u)

    program = stablehlo.from_jax(f, *[arg(64, 64)] * 4)
    assert [op.name for op in program.ops] == ["dot_general.1", "dot_general_fusion.1"]
    assert [op.transcendentals for op in program.ops] == [0, 64 * 64]


def test_what_needs_several_operands_is_repeated_only_while_that_is_cheaper():
    def f(gate, up, *weights):
        h = jax.nn.silu(gate) * up
        return tuple(h @ w for w in weights)

    def ops_with(num_readers):
        weights = [arg(64, 64)] * num_readers
        return opcodes(stablehlo.from_jax(f, arg(64, 64), arg(64, 64), *weights))

    # n readers: 2n reads against 2 reads, a write and n reads.
    assert ops_with(3) == ["dot_general"] * 3
    assert ops_with(4) == ["exponential"] + ["dot_general"] * 4


def test_random_bits_are_computed_once():
    def f(key, x, u, v):
        mask = jax.random.bernoulli(key, 0.9, x.shape)
        x = jnp.where(mask, x, 0)
        return x @ u, x @ v, jnp.where(mask, x @ u, 0)

    args = (arg(2, dtype=jnp.uint32), *[arg(64, 64)] * 3)
    lowered = jax.jit(f).trace(*args).lower(lowering_platforms=("tpu",))
    program = stablehlo.from_lowered(lowered)
    # The generator's rounds are unrolled for a TPU: some 130 operations per number.
    assert 100 < sum(op.vector_flops for op in program.ops) / 64**2 < 200


def test_a_broadcast_vector_is_never_written():
    def f(x, b):
        y = jnp.broadcast_to(b, (64, 64))
        return jnp.sort(x + y), x * y, x @ y

    program = stablehlo.from_jax(f, arg(64, 64), arg(64))
    assert "broadcast_in_dim" not in opcodes(program)
    # One sweep for what sort reads and for the second result.
    assert opcodes(program) == ["multiply", "sort", "dot_general"]


def test_statistics_of_one_array_are_one_sweep():
    def f(x):
        return x.sum(1), (x * x).sum(1), x.max(0)

    program = stablehlo.from_jax(f, arg(64, 128))
    (op,) = program.ops
    assert touched(program, op) == (
        {"x": 64 * 128 * F32},
        {
            "reduce_fusion.1{0}": 64 * F32,
            "reduce_fusion.1{1}": 64 * F32,
            "reduce_fusion.1{2}": 128 * F32,
        },
    )


def test_softmax_needs_three_sweeps():
    program = stablehlo.from_jax(jax.nn.softmax, arg(64, 128))
    assert opcodes(program) == ["reduce", "reduce", "exponential"]
    assert buffer(program, "x").live.end == 3


def test_softmax_takes_its_maximum_along_with_the_product():
    def f(q, k, v):
        return jax.nn.softmax(q @ k.T) @ v

    program = stablehlo.from_jax(f, *[arg(64, 64)] * 3)
    assert opcodes(program) == ["dot_general", "reduce", "dot_general"]
    reads, writes = touched(program, program.ops[0])
    assert set(reads) == {"q", "k"}
    assert sorted(writes.values()) == [64 * F32, 64 * 64 * F32]


def test_adam_is_one_op_per_parameter():
    def f(p, m, v, g):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        return p - 0.1 * m / (jnp.sqrt(v) + 1e-8), m, v

    program = stablehlo.from_jax(f, *[arg(64, 64)] * 4, donate_argnums=(0, 1, 2))
    (op,) = program.ops
    assert [len(op.reads), len(op.writes)] == [4, 3]
    groups = [b.alias_group for b in program.buffers]
    assert groups[:4] == [0, 1, 2, None]  # p, m, v, g
    assert sorted(groups[4:]) == [0, 1, 2]


def test_gradient_is_fused_with_its_update_and_runs_where_it_is_ready():
    def f(params, x):
        def loss(params):
            h = x
            for w in params:
                h = jnp.tanh(h @ w)
            return (h**2).sum()

        grads = jax.grad(loss)(params)
        return [w - 0.1 * g for w, g in zip(params, grads, strict=True)]

    program = stablehlo.from_jax(f, [arg(64, 64)] * 4, arg(32, 64))
    updates = [
        t
        for t, op in enumerate(program.ops)
        if any(program.buffers[a.buffer_id].is_output for a in op.writes)
    ]
    assert len(updates) == 4
    assert all(program.ops[t].matmul_flops for t in updates)
    # Not all at the end: the last layer's before the others' backward pass.
    assert updates[0] < len(program.ops) - 4


def test_gather_reads_what_it_gathers():
    def f(table, ids):
        return table[ids] * 2.0

    program = stablehlo.from_jax(f, arg(1000, 64), arg(8, dtype=jnp.int32))
    (op,) = program.ops
    reads, writes = touched(program, op)
    assert reads == {"table": 8 * 64 * F32, "ids": 8 * 4}
    assert list(writes.values()) == [8 * 64 * F32]


def test_slices_read_their_part():
    def f(x):
        a, b = jnp.split(jnp.sin(x), 2)
        return a @ b.T

    program = stablehlo.from_jax(f, arg(64, 32))
    (op,) = program.ops
    assert touched(program, op)[0] == {"x": 64 * 32 * F32}
    assert op.transcendentals == 64 * 32
    program = stablehlo.from_jax(lambda x: x[:16] + 1, arg(64, 32))
    assert touched(program, program.ops[0])[0] == {"x": 16 * 32 * F32}


def test_a_product_that_is_only_read_transposed_is_one():
    def f(x, dy, w, m, v):
        grad = (dy.T @ x).T
        m, v = 0.9 * m + grad, 0.9 * v + grad * grad
        return w - m * lax.rsqrt(v), m, v

    program = stablehlo.from_jax(f, arg(32, 64), arg(32, 128), *[arg(64, 128)] * 3)
    assert opcodes(program) == ["dot_general"]


def test_a_product_that_is_also_read_as_it_is_is_transposed():
    def f(x, y):
        product = x @ y
        return product, product.T

    program = stablehlo.from_jax(f, arg(64, 64), arg(64, 64))
    assert opcodes(program) == ["dot_general", "transpose"]


def test_what_a_conversion_makes_larger_is_computed_anew():
    # Both products compute z of two bf16 arrays themselves, though on the way there are
    # two float32 arrays that several ops read.
    def f(x, w, v):
        def centred(y):
            wide = y.astype(jnp.float32)
            return wide - wide.mean(-1, keepdims=True)

        z = (centred(x @ w) * centred(x @ v)).astype(jnp.bfloat16)
        return z @ v, z.T @ v

    program = stablehlo.from_jax(f, *[arg(256, 256, dtype=jnp.bfloat16)] * 3)
    sizes = [b.size_bytes for b in program.buffers if b.kind is BufferKind.TEMPORARY]
    assert [size for size in sizes if size >= 256 * 256] == [BF16 * 256 * 256] * 2
