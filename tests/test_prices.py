"""Prices of fast memory and of copying: what they buy, and what they cost."""

import itertools

import numpy as np
import pytest
import toy_problems
from toy_problems import KIB

from jax_malloc import board as board_lib
from jax_malloc import observation, validator
from jax_malloc.compiled import annealing, prices
from jax_malloc.compiled.tables import neighbours, tables
from jax_malloc.generate.draft import Draft
from jax_malloc.solvers import greedy, guides, hybrid

SLOTS = 64


def relaxed(problem):
    board = board_lib.build(problem)
    t = tables(board, SLOTS)
    saving = np.asarray(observation.outlook(board).saving)[: len(t.op)].astype(float)
    following, before = neighbours(t)
    return t, prices.relax(t, saving, before, following)


def shares_of(problem, t, shares, label):
    labels = [b.label for b in problem.program.buffers]
    row = np.flatnonzero(board_lib.rows(problem).buffer == labels.index(label))
    return shares[t.buffer == row].tolist()


def rivals(sizes=(10, 10), reads=(10, 6)):
    """Results that live side by side, of which 16 KiB hold only one."""
    draft = Draft("rivals")
    x = draft.parameter(KIB, "x")
    made = draft.op("fusion", [x], [s * KIB for s in sizes], name="make")
    pairs = [(b, r * KIB) for b, r in zip(made, reads, strict=True)]
    (y,) = draft.op("fusion", pairs, [KIB], name="y")
    return toy_problems.problem(draft.build([y]))


def test_what_fits_is_free():
    problem = toy_problems.problem(toy_problems.chain())
    t, shares = relaxed(problem)
    for label in "ab":
        assert shares_of(problem, t, shares.fast, label) == pytest.approx([1, 1])
        assert shares_of(problem, t, shares.kept, label) == pytest.approx([1, 0])
        assert shares_of(problem, t, shares.keep_cost, label) == [0, 0]


def test_of_rivals_the_one_that_saves_more_wins():
    problem = rivals()
    t, shares = relaxed(problem)
    made = problem.program.ops[0].writes
    wins, loses = (
        float(shares.kept[(t.buffer == row) & t.defines][0])
        for row in np.searchsorted(
            board_lib.rows(problem).buffer, [a.buffer_id for a in made]
        )
    )
    # The better one all the time, the other as far as there is room: 10 and 6 of 16.
    assert wins == pytest.approx(1, abs=0.02)
    assert loses == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(("flops", "fetched"), [(10.0, 1.0), (0.5, 0.0)])
def test_a_prefetch_is_bought_where_ops_hide_it(flops, fetched):
    """A weight of 8 s is read once; the op before it computes for so long."""
    draft = Draft("weight")
    x, w = draft.parameter(KIB, "x"), draft.parameter(8 * KIB, "w")
    (a,) = draft.op(
        "fusion", [x], [KIB], name="a", matmul_flops=flops, matmul_dtype="f32"
    )
    (y,) = draft.op("dot", [a, w], [KIB], name="y")
    problem = toy_problems.problem(draft.build([y]))
    t, shares = relaxed(problem)
    assert shares_of(problem, t, shares.fetched, "w") == pytest.approx([fetched])
    if fetched:
        assert shares_of(problem, t, shares.fetch_cost, "w") == pytest.approx([0])


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_is_scarce_the_plan_is_the_best_game(seed):
    """With room for everything, buffers do not meet, and nor do their plans."""
    problem = toy_problems.random_problem(seed, num_ops=8, pressure=0.05)
    t, shares = relaxed(problem)
    n = len(t.op)
    if n > 9:
        n = 9  # brute force over the first decisions, the rest as the plan has it
    planned = np.where(shares.fast < 0.5, 2, np.where(shares.kept > 0.5, 0, 1))
    best = -np.inf
    for actions in itertools.product(range(3), repeat=n):
        game = planned.astype(np.int32)
        game[:n] = actions
        best = max(best, annealing.start(t, game).saved[0])
    found = annealing.start(t, planned.astype(np.int32)).saved[0]
    assert found >= 0.9 * best


def test_a_guide_has_a_factor_for_every_use():
    problem = toy_problems.random_problem(2, num_ops=30)
    guide = guides.of_prices(problem)
    mapping = greedy.solve(problem, guide=guide)
    plain = greedy.solve(problem)
    for b, factors in guide.items():
        assert len(factors) >= 1
        assert all(0 < f <= 1 for f in factors), b
    slow_s = problem.all_slow_latency_s
    for m in (mapping, plain):
        assert problem.evaluate(m).latency_s <= slow_s


def test_an_op_that_needs_all_of_fast_memory_for_itself():
    draft = Draft("reserved")
    machine = toy_problems.toy(fast_kib=8)
    x = draft.parameter(KIB, "x")
    (y,) = draft.op("a", [x], [KIB], scoped_bytes=machine.fast.capacity_bytes)
    (z,) = draft.op("b", [y], [KIB])
    problem = toy_problems.problem(draft.build([z]), machine)
    mapping = hybrid.solve(problem)
    assert validator.find_violations(problem, mapping) == []
    assert problem.evaluate(mapping).latency_s <= problem.all_slow_latency_s
