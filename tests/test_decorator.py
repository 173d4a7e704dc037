"""`optimize`: the values and manners of `jax.jit`, and a plan for the asking."""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_problems

import jax_malloc
from jax_malloc import decorator, planner

optimize = functools.partial(jax_malloc.optimize, solver="greedy", lowering="stablehlo")

FOUR = np.arange(4, dtype=np.float32)


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    directory = tmp_path / "plans"
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", str(directory))
    return directory


@pytest.fixture
def solved(monkeypatch):
    """The programs that were solved, in order."""
    programs, solve = [], planner.solve

    def recording(program, *args, **kwargs):
        programs.append(program)
        return solve(program, *args, **kwargs)

    monkeypatch.setattr(planner, "solve", recording)
    return programs


def layer(params, x):
    """One layer."""
    return jnp.tanh(x @ params["w"] + params["b"])


def arguments(batch=8):
    w, x = np.linspace(-1, 1, 16 * 16), np.linspace(0, 1, batch * 16)
    params = {"w": jnp.asarray(w, jnp.float32).reshape(16, 16), "b": jnp.ones(16)}
    return params, jnp.asarray(x, jnp.float32).reshape(batch, 16)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "decorate",
    [
        optimize,
        optimize(),
        optimize(accelerator="tpu_v5p", seed=3),
        functools.partial(optimize, accelerator="tpu_v5p"),
    ],
    ids=["bare", "called", "with options", "by call"],
)
def test_a_call_gives_the_values_of_jit(decorate, solved):
    f = decorate(layer)
    assert isinstance(f, jax_malloc.OptimizedFunction)
    assert_same(f(*arguments()), jax.jit(layer)(*arguments()))
    assert solved == []


def test_it_looks_like_the_function():
    f = optimize(layer)
    assert f.__name__ == "layer"
    assert f.__doc__ == "One layer."
    assert f.__wrapped__ is layer
    assert inspect.signature(f) == inspect.signature(layer)
    assert "layer" in repr(f)
    assert isinstance(f, jax.stages.Wrapped)


def test_trees_and_keywords_pass_through():
    @optimize
    def f(tree, *, scale=2.0, shift=None):
        out = jax.tree.map(lambda x: x * scale, tree)
        return out if shift is None else (out, shift["by"])

    tree = {"a": (jnp.ones(3), None), "b": [jnp.zeros((2, 2))]}
    assert_same(f(tree), jax.tree.map(lambda x: x * 2, tree))
    assert_same(
        f(tree, scale=3.0, shift={"by": jnp.ones(1)}),
        (jax.tree.map(lambda x: x * 3, tree), jnp.ones(1)),
    )
    assert f.plan(tree, scale=3.0).latency_s > 0


@pytest.mark.parametrize(
    ("options", "args", "kwargs"),
    [
        ({"static_argnums": 1}, (FOUR, 3), {}),
        ({"static_argnums": (1,)}, (FOUR, 3), {}),
        ({"static_argnames": "n"}, (FOUR,), {"n": 3}),
        ({"static_argnames": ("n",)}, (FOUR, 3), {}),
        ({"static_argnums": (1,)}, (FOUR,), {"n": 3}),
    ],
)
def test_static_arguments(options, args, kwargs):
    @optimize(**options)
    def f(x, n):
        assert isinstance(n, int)
        return x * sum(range(n + 1))

    assert_same(f(*args, **kwargs), FOUR * 6)
    program = f.program(*args, **kwargs)
    # 16 bytes, in a tile of 128 lanes.
    assert [b.size_bytes for b in program.buffers if b.is_input][:1] == [512]
    assert f.plan(*args, **kwargs).program.fingerprint == program.fingerprint


def test_arrays_are_padded_as_the_accelerator_does():
    sizes = {}
    for accelerator in ("tpu_v5e", "gpu_h100_host"):
        program = optimize(lambda x: x + 1, accelerator=accelerator).program(FOUR)
        sizes[accelerator] = program.buffers[0].size_bytes
    assert sizes == {"tpu_v5e": 512, "gpu_h100_host": 16}


def test_an_argument_may_have_any_name():
    @optimize(static_argnames=("name", "static_argnums"))
    def f(x, *, name, static_argnums):
        return {name: x * static_argnums}

    assert_same(f(FOUR, name="y", static_argnums=2), {"y": FOUR * 2})
    assert f.plan(FOUR, name="y", static_argnums=2).latency_s > 0


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnames": "x"}])
def test_donated_arguments_are_donated_by_a_call_and_not_by_a_plan(options):
    f = optimize(lambda x: x + 1, **options)
    x = jnp.arange(1024.0)
    f.plan(x)
    assert not x.is_deleted()
    assert_same(f(x), jnp.arange(1024.0) + 1)
    assert x.is_deleted()


def loss(params, x):
    return layer(params, x).sum()


@pytest.mark.parametrize(
    "transform",
    [
        jax.grad,
        jax.value_and_grad,
        jax.jit,
        jax.checkpoint,
        lambda f: jax.vmap(f, in_axes=(None, 0)),
        lambda f: jax.jit(jax.vmap(jax.grad(f), in_axes=(None, 0))),
        lambda f: lambda p, x: jax.jvp(f, (p, x), (p, x)),
        lambda f: lambda p, x: jax.lax.map(functools.partial(f, p), x),
        lambda f: lambda p, x: jax.eval_shape(f, p, x).shape,
    ],
    ids=[
        "grad",
        "value_and_grad",
        "jit",
        "checkpoint",
        "vmap",
        "all",
        "jvp",
        "map",
        "-",
    ],
)
def test_it_composes_as_jit_does(transform, solved):
    f = optimize(loss)
    assert_same(transform(f)(*arguments()), transform(jax.jit(loss))(*arguments()))
    assert solved == []


def test_a_transformed_function_can_be_optimized():
    grad = jax.grad(loss)
    f = optimize(jax.vmap(grad, in_axes=(None, 0)))
    assert_same(f(*arguments()), jax.jit(jax.vmap(grad, (None, 0)))(*arguments()))
    assert f.plan(*arguments()).latency_s > 0


def test_optimized_functions_may_contain_each_other():
    inner = optimize(layer)
    outer = optimize(lambda p, x: inner(p, inner(p, x)))
    assert outer.plan(*arguments()).latency_s > inner.plan(*arguments()).latency_s


class Model:
    """A model whose width is part of what it is."""

    def __init__(self, scale):
        self.scale = scale

    @optimize(static_argnums=0)
    def step(self, x, *, shift=0.0):
        """Scales."""
        return x * self.scale + shift

    @staticmethod
    @optimize
    def twice(x):
        return 2 * x


def test_a_method_is_bound_to_its_instance():
    x, two, three = jnp.ones(4), Model(2.0), Model(3.0)
    assert_same(two.step(x), x * 2)
    assert_same(three.step(x, shift=1.0), x * 3 + 1)
    assert_same(Model.step(two, x), x * 2)
    assert_same(Model.twice(x), x * 2)
    assert two.step.__name__ == "step"
    assert list(inspect.signature(two.step).parameters) == ["x", "shift"]
    assert two.step.plan(x).program == two.step.program(x)
    assert_same(two.step.lower(x).compile()(x), x * 2)
    assert_same(jax.vmap(two.step)(x), x * 2)


def test_a_bound_method_can_be_optimized():
    class Plain:
        scale = 5.0

        def step(self, x):
            return x * self.scale

    f = optimize(Plain().step)
    assert_same(f(jnp.ones(4)), 5 * jnp.ones(4))
    assert f.plan(jnp.ones(4)).latency_s > 0


def test_a_partial_can_be_optimized():
    f = optimize(functools.partial(layer, arguments()[0]))
    assert_same(f(arguments()[1]), jax.jit(layer)(*arguments()))
    assert "partial" in repr(f)


def test_a_jitted_function_keeps_its_own_options():
    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def f(x, n):
        return x * range(n)[-1]

    g, x = optimize(f), jnp.ones(1024)
    assert g.plan(x, 3).latency_s > 0
    assert_same(g(x, 3), 2 * jnp.ones(1024))
    assert x.is_deleted()


def test_an_optimized_function_can_be_optimized_for_another_machine():
    f = optimize(layer, accelerator="tpu_v5e", seed=1)
    g = optimize(f, accelerator="tpu_v6e", seed=2)
    assert_same(g(*arguments()), f(*arguments()))
    for h, name, seed in ((f, "tpu_v5e", 1), (g, "tpu_v6e", 2)):
        plan = h.plan(*arguments())
        assert (plan.accelerator.name, plan.seed) == (name, seed)


def test_lower_and_trace_are_those_of_jit():
    f = optimize(layer)
    assert (
        f.lower(*arguments()).as_text() == jax.jit(layer).lower(*arguments()).as_text()
    )
    assert str(f.trace(*arguments()).jaxpr) == str(
        jax.jit(layer).trace(*arguments()).jaxpr
    )


def test_a_plan_says_what_was_asked_for():
    plan = optimize(layer, accelerator="tpu_v5p", seed=2).plan(*arguments())
    assert isinstance(plan, jax_malloc.Plan)
    assert plan.accelerator.name == "tpu_v5p"
    assert (plan.solver, plan.seed) == ("greedy", 2)
    assert plan.latency_s <= plan.baselines["all_slow"]


def test_shapes_do_for_arrays(solved):
    f = optimize(layer)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments())
    assert f.plan(*shapes) is f.plan(*arguments())
    assert len(solved) == 1


def test_each_program_is_solved_once(solved):
    f = optimize(layer)
    plans = [f.plan(*arguments(batch)) for batch in (8, 16, 8, 16)]
    assert plans[0] is plans[2]
    assert plans[1] is plans[3]
    assert plans[0].program != plans[1].program
    assert len(solved) == 2


def test_a_plan_is_found_on_disk_by_another_function(solved, cache_directory):
    first = optimize(layer).plan(*arguments())
    second = optimize(layer).plan(*arguments())
    assert len(solved) == 1
    assert len(list(cache_directory.iterdir())) == 1
    assert second is not first
    assert second.mapping == first.mapping
    assert second.latency_s == pytest.approx(first.latency_s, rel=1e-12)
    assert second.baselines == pytest.approx(first.baselines, rel=1e-12)
    assert (second.solver, second.seed) == (first.solver, first.seed)
    assert str(second) == str(first)


def test_another_question_is_not_answered_from_disk(solved):
    for options in ({}, {"seed": 1}, {"time_limit_s": 60}, {"accelerator": "tpu_v6e"}):
        optimize(layer, **options).plan(*arguments())
    assert len(solved) == 4


@pytest.mark.parametrize("off", [False, ""])
def test_the_cache_can_be_off(off, solved, cache_directory):
    for _ in range(2):
        optimize(layer, cache_dir=off).plan(*arguments())
    assert len(solved) == 2
    assert not cache_directory.exists()


def test_the_cache_can_be_elsewhere(tmp_path, cache_directory):
    optimize(layer, cache_dir=tmp_path / "mine").plan(*arguments())
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert not cache_directory.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: toy_problems.chain().to_json(),
    ],
    ids=["cut", "empty", "list", "version", "program"],
)
def test_a_damaged_plan_on_disk_is_made_again(damage, solved, cache_directory):
    first = optimize(layer).plan(*arguments())
    (entry,) = cache_directory.iterdir()
    entry.write_text(damage(entry.read_text()))
    with pytest.warns(RuntimeWarning, match="damaged and will be made again"):
        second = optimize(layer).plan(*arguments())
    assert second.mapping == first.mapping
    assert len(solved) == 2
    # And the next process finds it whole again.
    assert optimize(layer).plan(*arguments()).mapping == first.mapping
    assert len(solved) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowering": "ptx"}, "'ptx'; choose one of auto, tpu, stablehlo"),
        ({"solver": "gredy"}, "unknown solver 'gredy'.* choose one of all_slow"),
        ({"accelerator": "tpu_v99"}, "tpu_v99"),
        ({"time_limit_s": -1}, "time_limit_s is -1"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_wrong_option_is_found_where_it_is_written(options, message):
    with pytest.raises(ValueError, match=message):
        optimize(layer, **options)
    with pytest.raises(ValueError, match=message):
        optimize(**options)(layer)


@pytest.mark.parametrize("not_a_function", ["tpu_v5e", 3, np.ones(1000)])
def test_options_by_position_are_explained(not_a_function):
    kind = type(not_a_function).__name__
    with pytest.raises(TypeError, match=rf"takes a function, not a {kind}; .* by name"):
        optimize(not_a_function)


def test_a_function_that_does_not_trace_says_so():
    @optimize
    def branches_on_a_value(x):
        return x if x > 0 else -x

    with pytest.raises(ValueError, match=r"branches_on_a_value.*cannot be traced"):
        branches_on_a_value.plan(jax.ShapeDtypeStruct((), jnp.float32))


def test_what_type_checkers_are_told_is_the_signature():
    told = typing.get_overloads(jax_malloc.optimize)
    assert len(told) == 2
    options = typing.get_type_hints(decorator._Options)
    assert ["f", *options] == list(inspect.signature(jax_malloc.optimize).parameters)
