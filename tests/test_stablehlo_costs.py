"""Arithmetic against XLA's count, and models whole."""

from __future__ import annotations

import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from stablehlo_helpers import F32, arg, matmul_flops
from stablehlo_replay import replay

from frontends import stablehlo
from frontends.program import BufferKind


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 4)]
)
def test_convolution_flops(padding, stride, dilation, groups):
    def f(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
        )

    args = (arg(2, 8, 14, 15), arg(16, 8 // groups, 3, 3))
    for function in (f, jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))):
        lowered = jax.jit(function).lower(*args)
        expected = lowered.cost_analysis()["flops"]
        program = stablehlo.from_lowered(lowered)
        found = matmul_flops(program) + sum(op.vector_flops for op in program.ops)
        assert found == pytest.approx(expected, rel=0.03)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (256, 256, 10):
            x = nn.relu(nn.Dense(width)(x))
        return x


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(10)(x.mean((1, 2)))


MODELS = [
    (MLP(), arg(64, 784)),
    (Attention(), arg(4, 64, 128)),
    (ConvNet(), arg(8, 32, 32, 3)),
]


def train_step(model, variables, x):
    def loss(variables):
        y, _ = model.apply(variables, x, mutable=["batch_stats"])
        return (y**2).mean()

    grads = jax.grad(loss)(variables)
    return jax.tree.map(lambda p, g: p - 0.1 * g, variables, grads)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("model", "x"), MODELS, ids=["mlp", "attention", "convnet"])
def test_flops_of_models_are_those_that_xla_counts(model, x, train):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    function = (
        train_step if train else lambda m, v, x: m.apply(v, x, mutable=["batch_stats"])
    )
    lowered = jax.jit(functools.partial(function, model)).lower(variables, x)
    program = stablehlo.from_lowered(lowered)
    expected = lowered.cost_analysis()["flops"]
    flops = matmul_flops(program)
    assert flops <= expected
    # Element-wise work is counted again where it is repeated.
    assert flops + sum(op.vector_flops for op in program.ops) == pytest.approx(
        expected, rel=0.05
    )
    assert not replay(lowered)[1]


def test_lstm():
    model = nn.RNN(nn.OptimizedLSTMCell(64))
    x = arg(16, 20, 32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    program = stablehlo.from_jax(model.apply, variables, x)
    assert program.regions[1].trip_count == 20
    assert matmul_flops(program) == 20 * 2 * 16 * (32 + 64) * 4 * 64
    state = [op for op in program.ops if op.opcode == "copy" and op.region == 1]
    assert not state  # h and c are computed over the old ones
    grad = jax.grad(lambda v: (model.apply(v, jnp.ones(x.shape)) ** 2).sum())
    program, missing = replay(jax.jit(grad).lower(variables))
    assert not missing
    assert [r.trip_count for r in program.regions[1:]] == [20, 20]


def transformer_step(num_layers: int):
    model = nn.Sequential([Attention() for _ in range(num_layers)])
    x = arg(4, 48, 128)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return functools.partial(train_step, model), variables, x


def test_transformer_step_has_about_as_many_ops_as_compiled_ones():
    """The TPU compiler makes 40 to 80 ops of a layer's training step."""
    program = stablehlo.from_jax(*transformer_step(2))
    assert 60 <= len(program.ops) <= 160
    kinds = {b.kind for b in program.buffers}
    assert kinds == {BufferKind.PARAMETER, BufferKind.TEMPORARY, BufferKind.OUTPUT}
    # Scores are written once forward; the probabilities are not written.
    scores = 4 * 4 * 48 * 48 * F32
    written = [b for b in program.buffers if b.size_bytes == scores]
    assert 4 <= len(written) <= 6


def test_a_deep_transformer_takes_seconds():
    step, variables, x = transformer_step(12)
    lowered = jax.jit(step).lower(variables, x)
    start = time.perf_counter()
    program = stablehlo.from_lowered(lowered)
    assert time.perf_counter() - start < 10
    assert len(program.ops) > 300
