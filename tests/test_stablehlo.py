"""From JAX functions to programs and back to text: arguments, names, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from stablehlo_helpers import (
    CACHE_ARGS,
    F32,
    arg,
    buffer,
    cache_update,
    matmul_flops,
    opcodes,
    rnn,
)

from frontends import stablehlo
from frontends.program import BufferKind, Program


def test_static_keyword_and_nested_arguments():
    def f(params, depth, *, scale, mode):
        x = params["layers"][0][1]
        for _ in range(depth):
            x = x @ params["w"]
        return {"y": x * scale if mode == "scaled" else x}

    params = {"w": arg(16, 16), "layers": [(arg(3), arg(8, 16))]}
    program = stablehlo.from_jax(
        f,
        params,
        3,
        static_argnums=1,
        static_argnames=("mode",),
        scale=arg(),
        mode="scaled",
    )
    assert matmul_flops(program) == 3 * 2 * 8 * 16 * 16
    names = [b.name for b in program.buffers if b.kind is BufferKind.PARAMETER]
    assert set(names) == {"params['layers'][0][1]", "params['w']", "scale"}


def test_a_function_that_is_jitted_already():
    jitted = jax.jit(cache_update, donate_argnums=0)
    assert (
        stablehlo.from_jax(jitted, *CACHE_ARGS).ops
        == stablehlo.from_jax(cache_update, *CACHE_ARGS, donate_argnums=0).ops
    )
    partial = functools.partial(cache_update, position=0)
    assert stablehlo.from_jax(partial, *CACHE_ARGS[:2]).name == "cache_update"


def test_parameters_as_results():
    program = stablehlo.from_jax(lambda x: (x + 1, x + 1, x), arg(8, 8))
    outputs = [b for b in program.buffers if b.is_output]
    assert len(outputs) == 3
    assert not buffer(program, "x").is_output
    program = stablehlo.from_jax(lambda x: x, arg(8, 8), donate_argnums=0)
    assert not program.ops
    assert buffer(program, "x").is_output


def test_unused_parameter():
    lowered = jax.jit(lambda x, y: x * 2, keep_unused=True).lower(arg(8), arg(9))
    program = stablehlo.from_lowered(lowered)
    assert buffer(program, "y").live.end == 0


def test_no_ops_at_all():
    program = stablehlo.from_jax(lambda: ())
    assert (program.ops, program.buffers) == ((), ())


def test_constants_as_results():
    table = np.arange(4096, dtype=np.float32)
    program = stablehlo.from_jax(lambda: (jnp.ones((8, 8)), table, 1.0))
    assert sorted(b.size_bytes for b in program.buffers if b.is_output) == [
        F32,
        8 * 8 * F32,
        4096 * F32,
    ]
    (constant,) = [b for b in program.buffers if b.kind is BufferKind.CONSTANT]
    assert constant.name == "constant.1"


def test_empty_arrays_and_scalars():
    program = stablehlo.from_jax(lambda x: (jnp.sin(x), x.sum()), arg(0, 4))
    assert buffer(program, "x").pinned_slow == "holds no bytes"
    program = stablehlo.from_jax(lambda a, b: a * b + 1, arg(), arg())
    (op,) = program.ops
    assert "scalar" in buffer(program, op.name).pinned_slow


def test_tokens():
    def f(x):
        jax.debug.print("{}", x.sum(), ordered=True)
        jax.debug.print("{}", x.max(), ordered=True)
        return x * 2

    program = stablehlo.from_jax(f, arg(8, 8))
    assert opcodes(program) == ["reduce", "custom_call", "custom_call"]
    assert all(b.size_bytes for b in program.buffers)
    assert sum("custom_call" in note for note in program.notes) == 1


def test_complex_constants_can_be_read():
    program = stablehlo.from_jax(lambda x: (x * 1j) @ x, arg(8, 8))
    (op,) = program.ops
    assert (op.matmul_flops, op.matmul_dtype) == (8 * 8**3, "c64")


@pytest.mark.parametrize("donate", [(0, 1), ()])
def test_donated_arguments_share_with_the_output_that_replaces_them(donate):
    def f(a, b):
        return a * 2, b @ b

    program = stablehlo.from_jax(f, arg(8, 8), arg(8, 8), donate_argnums=donate)
    a, b, *rest = program.buffers
    group = 0 if donate else None
    assert [a.alias_group, rest[0].alias_group] == [group, group]
    # The product reads b to the end, so it cannot be written over it.
    assert [b.alias_group, rest[1].alias_group] == [None, None]


@jax.jit
def helper(x):
    return jnp.sin(x) @ x


def twice(x, y):
    return helper(x), helper(y)


def test_two_calls_of_one_helper():
    program = stablehlo.from_jax(twice, arg(8, 8), arg(8, 8))
    assert [op.name for op in program.ops] == [
        "dot_general_fusion.1",
        "dot_general_fusion.2",
    ]
    assert program.ops[0].op_name == "jit(helper)/dot_general"
    text = stablehlo.annotate(
        program, {"dot_general_fusion.1": "fast", "dot_general_fusion.2": "slow"}
    )
    assert text.count('jax_malloc.placement = "fast; slow"') == 2  # sine and product
    assert 'jax_malloc.op = "dot_general_fusion.1; dot_general_fusion.2"' in text


def test_named_scopes_name_the_ops():
    def f(x):
        with jax.named_scope("encoder"):
            return lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0]

    program = stablehlo.from_jax(f, arg(8, 8))
    (sine,) = [op for op in program.ops if op.opcode == "stablehlo.sine"]
    assert sine.op_name.startswith("encoder/while/body")
    assert sine.op_name.endswith("sin")


def test_annotation_can_be_parsed_and_names_the_same_ops():
    program = stablehlo.from_jax(rnn, arg(8, 32), arg(32, 32), arg(10, 8, 32))
    placements = {op.name: f"place of {op.name}" for op in program.ops}
    for module in (program, program.text):
        text = stablehlo.annotate(module, placements)
        again = stablehlo.from_module(text)
        assert [op.name for op in again.ops] == list(placements)
        assert again.regions == program.regions
        for op in program.ops:
            in_module = op.opcode != "copy"  # which the frontend inserts
            assert (f'jax_malloc.op = "{op.name}"' in text) == in_module
            assert (f'placement = "place of {op.name}"' in text) == in_module
    assert "jax_malloc" not in stablehlo.annotate(program, {})


def test_large_constants_are_in_the_annotated_module_only():
    table = np.arange(4096, dtype=np.float32).reshape(64, 64)
    other = table[::-1].copy()
    lowered = jax.jit(lambda x: x @ table @ other).lower(arg(8, 64))
    program = stablehlo.from_lowered(lowered)
    assert len(program.text) < 2000
    names = [op.name for op in program.ops]
    module = lowered.compiler_ir("stablehlo")
    assert len(stablehlo.annotate(module, {names[0]: "fast"})) > 8 * 4096
    assert "jax_malloc" not in str(module)
    again = stablehlo.from_module(program.text)
    assert [op.name for op in again.ops] == names
    constants = [b for b in again.buffers if b.kind is BufferKind.CONSTANT]
    assert [b.size_bytes for b in constants] == [4096 * F32] * 2


def test_annotation_refuses_what_it_does_not_know():
    program = stablehlo.from_jax(twice, arg(8, 8), arg(8, 8))
    with pytest.raises(ValueError, match=r"'dot.9', and 0 more, which are no ops"):
        stablehlo.annotate(program, {"dot.9": "fast"})
    without_text = Program.from_json(program.to_json())
    with pytest.raises(ValueError, match="no StableHLO text to annotate"):
        stablehlo.annotate(without_text, {})


def test_programs_are_repeatable():
    first, second = (
        stablehlo.from_jax(rnn, arg(8, 32), arg(32, 32), arg(10, 8, 32))
        for _ in range(2)
    )
    assert first == second
    assert first.fingerprint == second.fingerprint


def test_a_function_that_does_not_trace():
    def branching(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(
        ValueError, match=r"(?s)'branching' cannot be traced.*static_arg"
    ) as e:
        stablehlo.from_jax(branching, arg(3))
    assert isinstance(e.value.__cause__, jax.errors.TracerBoolConversionError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module @m { oops }", "cannot be parsed"),
        ("module @m { }", r"functions \[\] and no 'main'"),
        ("HloModule jit_f", "cannot be parsed"),
    ],
)
def test_text_that_is_no_module(text, message):
    with pytest.raises(ValueError, match=message):
        stablehlo.from_module(text)


def test_symbolic_dimensions():
    (n,) = export.symbolic_shape("n,")
    exported = export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((n,), jnp.float32))
    with pytest.raises(ValueError, match="dimension that is not known"):
        stablehlo.from_module(exported.mlir_module())
