"""The pressured programs and their networks, from shapes and on small arrays."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import language_networks
import pressured_programs
import vision_networks
from frontends import stablehlo
from hwmodel import presets

IMAGES = jnp.linspace(-1, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)


@pytest.mark.parametrize("name", pressured_programs.PRESSURED)
def test_working_set_exceeds_fast_memory(name):
    function, arguments = pressured_programs.PRESSURED[name]()
    leaves = jax.tree.leaves(arguments)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    jax.eval_shape(function, *arguments)
    working_set_bytes = sum(x.size * x.dtype.itemsize for x in leaves)
    fast_bytes = presets.get("tpu_v5e").fast.capacity_bytes
    if working_set_bytes <= fast_bytes:  # not by its arguments alone
        program = stablehlo.from_jax(function, *arguments)
        touched = {buffer_id for _, buffer_id, *_ in program.accesses()}
        working_set_bytes = sum(program.buffers[b].size_bytes for b in touched)
    assert working_set_bytes > fast_bytes


def small_llama(**fields):
    return language_networks.Llama(
        **{
            "layers": 1,
            "width": 32,
            "heads": 4,
            "kv_heads": 2,
            "hidden": 48,
            "vocabulary": 50,
            "dtype": jnp.float32,
            **fields,
        }
    )


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence():
    model = small_llama()
    tokens = jax.random.randint(jax.random.key(0), (2, 4), 0, 50)
    expected, variables = jax.jit(model.init_with_output)(jax.random.key(1), tokens)
    cache = ((jnp.full((2, 5, 2, 8), 7.0),) * 2,)  # what is not yet written
    step = jax.jit(model.apply)
    for t in range(4):
        logits, cache = step(variables, tokens[:, t : t + 1], cache, t)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-4)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(i, j):
        at_i = language_networks.rotate(q, jnp.array([i]))
        return float((at_i * language_networks.rotate(k, jnp.array([j]))).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_equal_experts_are_one_mlp_and_full_ones_drop_tokens():
    x = jax.random.normal(jax.random.key(0), (2, 8, 16))
    experts = language_networks.ExpertsMlp(
        experts=4, hidden=24, capacity_factor=4.0, dtype=jnp.float32
    )
    params = jax.jit(experts.init)(jax.random.key(1), x)["params"]
    for name in ("gate", "up", "down"):
        params[name] = jnp.broadcast_to(params[name][:1], params[name].shape)
    one = language_networks.GatedMlp(24, dtype=jnp.float32)
    kernels = {name: {"kernel": params[name][0]} for name in ("gate", "up", "down")}
    expected = one.apply({"params": kernels}, x)
    np.testing.assert_allclose(
        experts.apply({"params": params}, x), expected, atol=1e-5
    )
    # Every token ties for the same two experts, which have two seats each per group.
    params["router"]["kernel"] = jnp.zeros_like(params["router"]["kernel"])
    crowded = experts.clone(capacity_factor=0.5).apply({"params": params}, x)
    np.testing.assert_allclose(crowded[:, :2], expected[:, :2], atol=1e-5)
    np.testing.assert_array_equal(crowded[:, 2:], 0)


@pytest.mark.parametrize("causal", [False, True])
def test_t5_bias_depends_on_the_distance_in_buckets(causal):
    layer = language_networks.DistanceBias(2, causal=causal, dtype=jnp.float32)
    bias, _ = jax.jit(functools.partial(layer.init_with_output, time=300))(
        jax.random.key(0)
    )
    assert bias.shape == (2, 300, 300)
    np.testing.assert_array_equal(bias[:, 5, 2], bias[:, 105, 102])  # key before query
    np.testing.assert_array_equal(bias[:, 299, 0], bias[:, 250, 50])  # all far away
    assert not np.array_equal(bias[:, 5, 2], bias[:, 5, 3])
    same = np.array_equal(bias[:, 2, 5], bias[:, 2, 2])
    assert same == causal  # a causal layer never looks ahead, and has no buckets for it


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (vision_networks.ConvNeXt(), 28.6),
        (vision_networks.EfficientNet(), 5.3),
        (vision_networks.DenseNet(), 8.0),
        (vision_networks.DiffusionUNet(), 35.7),
        (language_networks.T5(), 247.6),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_defaults_have_as_many_parameters_as_published(model, millions):
    if isinstance(model, language_networks.T5):
        inputs = (jnp.zeros((1, 4), jnp.int32),) * 2
    elif isinstance(model, vision_networks.DiffusionUNet):
        inputs = (IMAGES, jnp.zeros(2))
    else:
        inputs = (IMAGES,)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
