"""Who shares a place with whom: updates in place, loops, branches, donation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from stablehlo_helpers import (
    CACHE_ARGS,
    F32,
    arg,
    buffer,
    cache_update,
    matmul_flops,
    opcodes,
    rnn,
    touched,
)
from stablehlo_replay import replay

from frontends import stablehlo
from frontends.program import BufferKind


def test_donated_cache_is_updated_in_place():
    program = stablehlo.from_jax(cache_update, *CACHE_ARGS, donate_argnums=0)
    (op,) = program.ops
    assert touched(program, op) == (
        {"cache": 0, "new": 64 * F32, "position": 4},
        {"cache": 64 * F32},
    )
    cache = buffer(program, "cache")
    assert (cache.kind, cache.is_output) == (BufferKind.PARAMETER, True)
    assert cache.aliases == ((op.name, ()),)
    assert cache.live.end == len(program.ops)


def test_cache_that_is_not_donated_is_copied_first():
    program = stablehlo.from_jax(cache_update, *CACHE_ARGS)
    copy, update = program.ops
    size = 512 * 64 * F32
    assert touched(program, copy) == ({"cache": size}, {"copy.1": size})
    assert touched(program, update)[1] == {"copy.1": 64 * F32}
    assert not buffer(program, "cache").is_output
    assert buffer(program, "copy.1").is_output


def test_cache_that_is_read_first_is_still_updated_in_place():
    def f(cache, new, position):
        return cache_update(cache, new, position), cache.sum(0)

    program = stablehlo.from_jax(f, *CACHE_ARGS, donate_argnums=0)
    assert opcodes(program) == ["reduce", "dynamic_update_slice"]


def test_cache_that_is_read_later_is_copied():
    def f(cache, new, position):
        updated = cache_update(cache, new, position)
        return updated, updated.T @ cache

    program = stablehlo.from_jax(f, *CACHE_ARGS, donate_argnums=0)
    assert opcodes(program) == ["copy", "dynamic_update_slice", "dot_general"]
    assert all(b.alias_group is None for b in program.buffers)
    assert any("donated" in note for note in program.notes)


def test_scatter_add_touches_its_updates():
    def f(x, ids, values):
        return x.at[ids].add(values)

    program = stablehlo.from_jax(
        f, arg(512, 64), arg(8, dtype=jnp.int32), arg(8, 64), donate_argnums=0
    )
    (op,) = program.ops
    reads, writes = touched(program, op)
    assert (reads["x"], writes) == (8 * 64 * F32, {"x": 8 * 64 * F32})
    assert op.vector_flops >= 8 * 64


def test_scan():
    program = stablehlo.from_jax(rnn, arg(8, 32), arg(32, 32), arg(10, 8, 32))
    size = 8 * 32 * F32
    assert opcodes(program) == [
        "broadcast_in_dim",  # zeros for the stacked results
        "copy",  # of h, which the caller keeps
        "dot_general",
        "dynamic_update_slice",
        "copy",  # the product still read the old h
        "while",
    ]
    entry, body = program.regions
    assert (body.name, body.start, body.end, body.parent) == ("while.1", 2, 5, 0)
    assert body.trip_count == 10
    assert entry.end == 6
    assert [op.count for op in program.ops] == [1, 1, 10, 10, 10, 1]
    assert [op.region for op in program.ops] == [0, 0, 1, 1, 1, 0]
    product = program.ops[2]
    assert product.matmul_flops == 2 * 8 * 32 * 32
    reads, _ = touched(program, product)
    assert reads == {"w": 32 * 32 * F32, "xs": size, "copy.1": size}
    # What the loop reads in every iteration lives until its end.
    assert buffer(program, "w").live.end == body.end
    state = buffer(program, "copy.1")
    assert state.live.start == 1
    assert state.is_output
    assert ("while.1", (1,)) in state.aliases
    stacked = buffer(program, "broadcast_in_dim.1")
    assert stacked.is_output
    assert touched(program, program.ops[3])[1] == {"broadcast_in_dim.1": size}
    assert all(a.touched_bytes == 0 for a in program.ops[5].reads)


def test_accumulator_needs_no_copy_in_the_loop():
    def f(a, x):
        return lax.fori_loop(0, 7, lambda i, c: c + x @ x, a)

    program = stablehlo.from_jax(f, arg(32, 32), arg(32, 32), donate_argnums=0)
    assert opcodes(program) == ["dot_general", "while"]
    assert touched(program, program.ops[0])[1] == {"a": 32 * 32 * F32}
    assert buffer(program, "a").is_output


def test_two_values_that_change_places():
    def f(a, b):
        return lax.fori_loop(0, 3, lambda i, c: (c[1], c[0]), (a, b))

    program = stablehlo.from_jax(f, arg(8, 8), arg(8, 8))
    assert opcodes(program) == ["copy"] * 2 + ["copy"] * 3 + ["while"]


def test_trip_count_that_the_module_does_not_say():
    def f(x, n):
        return lax.fori_loop(0, n, lambda i, c: c * 2, x)

    program = stablehlo.from_jax(f, arg(8, 8), arg(dtype=jnp.int32))
    assert program.regions[1].trip_count == 5
    assert any("executions assumed" in note for note in program.notes)

    def g(x):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, x)

    program = stablehlo.from_jax(g, arg(8, 8))
    assert program.regions[1].trip_count == 5
    # Condition and body read the state in one sweep.
    assert opcodes(program) == ["copy", "reduce", "while"]


@pytest.mark.parametrize(
    ("start", "stop", "step", "trips"), [(0, 7, 1, 7), (3, 3, 1, 0), (1, 10, 4, 3)]
)
def test_counted_loops(start, stop, step, trips):
    def f(x):
        return lax.while_loop(
            lambda c: c[0] < stop, lambda c: (c[0] + step, c[1] * 2), (start, x)
        )[1]

    program = stablehlo.from_jax(f, arg(8, 8))
    assert program.regions[1].trip_count == trips
    assert not any("assumed" in note for note in program.notes)


def test_nested_loops_multiply():
    def f(x, w):
        def inner(c):
            return lax.fori_loop(0, 5, lambda i, d: jnp.sin(d @ w), c)

        return lax.fori_loop(0, 3, lambda i, c: inner(c), x)

    program = stablehlo.from_jax(f, arg(16, 16), arg(16, 16))
    assert matmul_flops(program) == 15 * 2 * 16**3
    assert [r.parent for r in program.regions] == [-1, 0, 1]


def test_cond():
    def f(p, x):
        return lax.cond(p, lambda x: x @ x, lambda x: x, x)

    program = stablehlo.from_jax(f, arg(dtype=jnp.bool_), arg(32, 32))
    assert opcodes(program) == ["copy", "dot_general", "case"]
    assert [(r.name, r.start, r.end, r.trip_count) for r in program.regions[1:]] == [
        ("case.1", 0, 1, 0.5),
        ("case.1", 1, 2, 0.5),
    ]
    assert [op.count for op in program.ops] == [0.5, 0.5, 1]
    out = buffer(program, "case.1", 0)
    assert set(out.aliases) == {("copy.1", ()), ("dot_general.1", ())}
    assert out.is_output
    assert any("branches" in note for note in program.notes)


def test_remat_computes_again():
    def f(x, w):
        def block(x):
            return jnp.sin(jnp.sin(x @ w) @ w)

        return jax.grad(lambda x: jax.checkpoint(block)(x).sum())(x)

    program = stablehlo.from_jax(f, arg(32, 32), arg(32, 32))
    assert matmul_flops(program) == 4 * 2 * 32**3  # two again, two backward


SQUARE = arg(16, 16)
ROW = arg(1, 16)
INDEX = arg(dtype=jnp.int32)


def branchy(p, a):
    return lax.cond(p, lambda a: (a @ a, a), lambda a: (a, a + 1), a)


def outside_update(a, same=lambda b: b):
    b = jnp.sin(a @ a)

    def body(i, c):
        return c @ lax.dynamic_update_slice(same(b), c[:1], (i, 0))

    return lax.fori_loop(0, 3, body, a)


TRICKY = {
    "swap": (lambda a, b: lax.fori_loop(0, 7, lambda i, c: c[::-1], (a, b)), 2),
    "rotate": (
        lambda a, b, c: lax.fori_loop(0, 7, lambda i, c: (*c[1:], c[0]), (a, b, c)),
        3,
    ),
    "fibonacci": (
        lambda a, b: lax.fori_loop(0, 7, lambda i, c: (c[1], c[0] + c[1]), (a, b)),
        2,
    ),
    "one value twice": (
        lambda a: lax.fori_loop(0, 7, lambda i, c: (c[0] @ c[1], c[1] + 1), (a, a)),
        1,
    ),
    "nested": (
        lambda a: lax.fori_loop(
            0, 3, lambda i, c: lax.fori_loop(0, 4, lambda j, d: d @ a, c) + c, a
        ),
        1,
    ),
    "switch in a loop": (
        lambda a: lax.fori_loop(
            0,
            6,
            lambda i, c: lax.switch(
                i % 3, [lambda c: c @ c, lambda c: c + 1, lambda c: c], c
            ),
            a,
        ),
        1,
    ),
    "loop in a branch": (
        lambda a: lax.cond(
            a.sum() > 0,
            lambda a: lax.fori_loop(0, 4, lambda i, c: c @ c, a),
            lambda a: a,
            a,
        ),
        1,
    ),
    "branch results": (lambda a: branchy(a[0, 0] > 0, a), 1),
    "update of what is read": (
        lambda a: lax.fori_loop(0, 5, lambda i, c: c.at[i].set(c[i - 1] * 2), a),
        1,
    ),
    "shifted onto itself": (lambda a: lax.dynamic_update_slice(a, a[1:], (0, 0)), 1),
    "read, changed, written back": (
        lambda a: lax.dynamic_update_slice(
            a, lax.dynamic_slice(a, (2, 0), (1, 16)) * 2, (2, 0)
        ),
        1,
    ),
    "updates of one value": (lambda a: (a.at[0].set(1.0), a.at[1].set(2.0), a @ a), 1),
    "invariant result": (
        lambda a, b: lax.fori_loop(0, 3, lambda i, c: (c[0] @ c[1], c[1]), (a, b)),
        2,
    ),
    "two loops": (
        lambda a: lax.fori_loop(
            0, 3, lambda i, c: c * 2, lax.fori_loop(0, 3, lambda i, c: jnp.sin(c), a)
        ),
        1,
    ),
    "update of what a loop finds": (outside_update, 1),
    "and by another name": (lambda a: outside_update(a, lax.optimization_barrier), 1),
    "barrier": (lambda a: lax.optimization_barrier((a, a * 2)), 1),
    "crossed donation": (lambda a, b: (b * 2, a * 3), 2),
}


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("name", TRICKY)
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_every_value_is_where_it_is_read(name, donate):
    f, arity = TRICKY[name]
    donated = range(arity) if donate else ()
    _, missing = replay(jax.jit(f, donate_argnums=donated).lower(*[SQUARE] * arity))
    assert not missing


def random_function(seed: int):
    """A function of three squares, and the products that its results need."""
    random = np.random.default_rng(seed)
    steps = []
    needs: list[set[int]] = [set(), set(), set()]  # products behind each value
    for k in range(int(random.integers(3, 40))):
        kind = random.choice(["dot", "unary", "binary", "reduce", "mask", "slice"])
        i, j = (int(n) for n in random.integers(0, len(needs), 2))
        steps.append((kind, i, j))
        uses_both = kind in ("dot", "binary", "mask")
        needs.append(needs[i] | (needs[j] if uses_both else set()))
        if kind == "dot":
            needs[-1] = needs[-1] | {k}
    results = sorted({len(needs) - 1, *random.integers(3, len(needs), 3).tolist()})

    def f(*values):
        values = list(values)
        for kind, i, j in steps:
            a, b = values[i], values[j]
            match kind:
                case "dot":
                    c = a @ b
                case "unary":
                    c = jnp.tanh(a) * 2
                case "binary":
                    c = a + b.T
                case "reduce":
                    c = a - a.sum(1, keepdims=True)
                case "mask":
                    c = jnp.where(jnp.tri(16, dtype=bool), a, b)
                case "slice":
                    c = jnp.concatenate([a[8:], a[:8]])
            values.append(c)
        return [values[k] for k in results]

    # Equal products are computed once.
    distinct = {steps[k][1:] for r in results for k in needs[r]}
    return f, len(distinct) * 2 * 16**3


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed):
    f, flops = random_function(seed)
    program, missing = replay(jax.jit(f).lower(*[SQUARE] * 3))
    assert matmul_flops(program) == flops
    assert not missing
    text = jax.jit(f).lower(*[SQUARE] * 3).as_text()
    again = stablehlo.from_module(text)
    assert [op.name for op in again.ops] == [op.name for op in program.ops]


@pytest.mark.parametrize("seed", range(20))
def test_random_loops(seed):
    """A loop that carries four values, each computed from some of the old and new."""
    random = np.random.default_rng(seed)
    picks = random.integers(0, 4, (4, 2)).tolist()
    kinds = random.integers(0, 6, 4).tolist()

    def body(i, c):
        new = list(c)
        for k, (kind, (a, b)) in enumerate(zip(kinds, picks, strict=True)):
            from_new = random_order[k]
            x, y = (new if from_new else c)[a], c[b]
            new[k] = [
                lambda x=x: x,
                lambda x=x, y=y: x + y,
                lambda x=x, y=y: x @ y,
                lambda x=x, y=y: lax.dynamic_update_slice(x, y[:1], (i, 0)),
                lambda x=x, y=y: lax.cond(i > 1, lambda: x + 1, lambda: y),
                lambda x=x: lax.fori_loop(0, 2, lambda j, d: jnp.sin(d), x),
            ][kind]()
        return tuple(new)

    random_order = random.integers(0, 2, 4).tolist()

    def f(*args):
        return lax.fori_loop(0, 3, body, args)

    for donated in ((), (0, 1, 2, 3)):
        lowered = jax.jit(f, donate_argnums=donated).lower(*[SQUARE] * 4)
        assert not replay(lowered)[1]


def random_updates(seed: int):
    """A function of three squares that updates, reads, sorts and branches at random."""
    random = np.random.default_rng(seed)
    num_steps = int(random.integers(3, 25))
    steps = [
        (int(random.integers(0, 8)), *random.integers(0, 3 + k, 2).tolist())
        for k in range(num_steps)
    ]
    results = random.integers(0, 3 + num_steps, 3).tolist()

    def f(*args):
        values = list(args)
        for kind, a, b in steps:
            values.append(step(kind, values[a], values[b]))
        return [values[k] for k in results]

    def step(kind, x, y):
        match kind:
            case 0:
                return x @ y
            case 1:
                return x + y
            case 2:
                return lax.dynamic_update_slice(x, y[:2], (3, 0))
            case 3:
                return x.at[jnp.array([1, 5])].add(y[:2])
            case 4:
                return lax.optimization_barrier((x, y))[0]
            case 5:
                return jnp.sort(x)
            case 6:
                return lax.cond(y[0, 0] > 0, lambda: x.at[2].set(y[2]), lambda: y)
        return lax.fori_loop(0, 3, lambda i, c: c.at[i].set(y[i]), x)

    return f


@pytest.mark.parametrize("donate", [(), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_random_updates(seed, donate):
    lowered = jax.jit(random_updates(seed), donate_argnums=donate).lower(*[SQUARE] * 3)
    assert not replay(lowered)[1]
