"""The networks that only the corpus has, on small arrays."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corpus_families
import flow_networks
import graph_networks
import networks
import recommender_networks
import vision_networks

# Small enough to run all of them in seconds.
TINY = {
    "dlrm": {"batch": 4, "fields": 3, "rows": 10, "features": 8},
    "graph_network": {"nodes": 6, "edges": 9, "rounds": 1, "hidden": 8},
    "neural_ode": {"batch": 2, "width": 8, "hidden": 16, "steps": 3},
    "normalising_flow": {"batch": 2, "image": 8, "levels": 1, "steps": 1, "hidden": 8},
}


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)

    def draw(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.asarray(rng.integers(0, 2, x.shape), x.dtype)
        return jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)

    return jax.tree.map(draw, tree)


@pytest.mark.parametrize("family", TINY)
def test_a_step_in_place_changes_the_parameters_and_gives_a_loss(family):
    step, arguments = corpus_families.FAMILIES[family](**TINY[family], training=True)
    params, state, optimizer, *batch = random_like(arguments)
    optimizer = jax.tree.map(jnp.zeros_like, optimizer)
    state = jax.tree.map(jnp.ones_like, state)  # variances are positive
    before = jax.tree.map(np.asarray, params)
    params, _, _, loss = step(params, state, optimizer, *batch)
    assert np.isfinite(loss)
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), params, before)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (vision_networks.MobileNet(), 3.5),
        (vision_networks.ViT(), 86.5),  # 86.6 with biases in the attention
    ],
)
def test_defaults_have_as_many_parameters_as_published(model, millions):
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    )
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_mobilenet_block_adds_its_input_where_shapes_allow():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    block = functools.partial(
        vision_networks.InvertedBottleneck,
        expansion=6,
        kernel=3,
        dtype=jnp.float32,
        squeeze=False,
        activation=nn.relu6,
    )

    def without_scale(channels, stride):
        """The block with every normalisation's scale at 0: its branch gives 0."""
        model = block(channels=channels, stride=stride)
        variables = jax.jit(model.init)(jax.random.key(1), x)
        assert not any("Dense" in name for name in variables["params"])
        zero = jax.tree.map(jnp.zeros_like, variables["params"])
        return jax.jit(model.apply)({**variables, "params": zero}, x)

    np.testing.assert_allclose(without_scale(8, 1), x)
    np.testing.assert_allclose(without_scale(16, 1), 0)
    np.testing.assert_allclose(without_scale(8, 2), 0)


def test_a_graph_network_does_not_mind_the_order_of_nodes_and_edges():
    rng = np.random.default_rng(0)
    nodes, edges = rng.standard_normal((6, 5)), rng.standard_normal((9, 4))
    senders, receivers = rng.integers(0, 6, (2, 9))
    model = graph_networks.GraphNetwork(rounds=2, hidden=8, dtype=jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), nodes, edges, senders, receivers)
    apply = jax.jit(model.apply)
    out = apply(variables, nodes, edges, senders, receivers)
    assert out.shape == (6, 3)
    new_of_old, order = rng.permutation(6), rng.permutation(9)
    shuffled = apply(
        variables,
        nodes[np.argsort(new_of_old)],
        edges[order],
        new_of_old[senders[order]],
        new_of_old[receivers[order]],
    )
    np.testing.assert_allclose(shuffled[new_of_old], out, atol=1e-5)


def test_messages_reach_as_far_as_there_are_rounds():
    nodes, edges = jnp.ones((4, 2)), jnp.ones((3, 4))
    ends = jnp.array([0, 1, 2]), jnp.array([1, 2, 3])  # 0 -> 1 -> 2 -> 3
    model = graph_networks.GraphNetwork(rounds=2, hidden=8, dtype=jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), nodes, edges, *ends)
    apply = jax.jit(model.apply)
    other = nodes.at[0].set(jnp.array([2.0, -1.0]))
    change = apply(variables, other, edges, *ends)
    change -= apply(variables, nodes, edges, *ends)
    np.testing.assert_array_equal(np.any(change != 0, 1), [True, True, True, False])


def test_dlrm_multiplies_every_pair_of_vectors_once():
    model = recommender_networks.Dlrm(
        rows=5, features=4, bottom=(6,), top=(3,), dtype=jnp.float32
    )
    dense, ids = jnp.ones((2, 13)), jnp.array([[0, 1, 2], [3, 4, 0]])
    variables = jax.jit(model.init)(jax.random.key(0), dense, ids)
    top = variables["params"]["Perceptron_1"]["Dense_0"]["kernel"]
    assert top.shape == (4 + 4 * 3 // 2, 3)
    assert model.apply(variables, dense, ids).shape == (2, 2)


def test_the_wide_part_is_linear_in_the_crosses():
    model = recommender_networks.WideAndDeep(
        rows=5, features=4, buckets=7, widths=(6,), dtype=jnp.float32
    )
    dense, ids = jnp.ones((1, 13)), jnp.zeros((1, 2), int)
    variables = jax.jit(model.init)(jax.random.key(0), dense, ids, ids)
    table = variables["params"]["Embed_2"]["embedding"]
    out = [
        model.apply(variables, dense, ids, jnp.array([pair]))[0]
        for pair in ((1, 2), (1, 5))
    ]
    np.testing.assert_allclose(out[1] - out[0], table[5] - table[2], atol=1e-5)


def test_glow_gives_the_density_of_its_own_jacobian():
    x = 0.3 * jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    step = flow_networks.FlowStep(hidden=4, dtype=jnp.float32)
    _, shapes = jax.eval_shape(step.init_with_output, jax.random.key(1), x)
    variables = random_like(shapes)
    _, log_det = jax.jit(step.apply)(variables, x)
    jacobian = jax.jit(jax.jacobian(lambda x: step.apply(variables, x)[0]))(x)
    sign, expected = np.linalg.slogdet(np.asarray(jacobian).reshape(32, 32))
    assert abs(sign) == 1
    assert float(log_det[0]) == pytest.approx(expected, abs=1e-3)


def test_glow_without_steps_is_the_normal_distribution():
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    glow = flow_networks.Glow(levels=2, steps=0)
    expected = jax.scipy.stats.norm.logpdf(x).sum((1, 2, 3))
    np.testing.assert_allclose(glow.apply({}, x), expected, rtol=1e-5)


def test_the_ode_is_solved_to_the_fourth_order():
    x = 0.5 * jax.random.normal(jax.random.key(0), (2, 3))
    make = functools.partial(flow_networks.NeuralOde, hidden=8, dtype=jnp.float32)
    variables = jax.jit(make(1).init)(jax.random.key(1), x)
    exact = make(64).apply(variables, x)
    errors = [
        float(jnp.abs(make(steps).apply(variables, x) - exact).max())
        for steps in (1, 2, 4)
    ]
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 8


def test_gru_layers_follow_the_sequence():
    x = jax.random.normal(jax.random.key(0), (1, 5, 4))
    model = networks.Gru(2, dtype=jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    apply = jax.jit(model.apply)
    change = apply(variables, x.at[0, 2].add(1.0)) - apply(variables, x)
    np.testing.assert_array_equal(
        np.any(change[0] != 0, -1), [False, False, True, True, True]
    )
