"""The compiled places and windows agree with those in Python, which stand alone."""

import random

import numpy as np
import pytest
import toy_problems

from jax_malloc.compiled import queues, stays
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.packing import FitRule, Packing
from jax_malloc.solvers.timing import Change, Timing

RULES = {
    FitRule.BEST: stays.BEST,
    FitRule.BEST_TOP: stays.BEST_TOP,
    FitRule.LOWEST: stays.LOWEST,
    FitRule.HIGHEST: stays.HIGHEST,
}


@pytest.fixture(params=range(4))
def some(request):
    """An allocation with stays, a packing and a timing of the same, and a generator."""
    problem = toy_problems.random_problem(
        request.param, num_ops=40, fast_mib=32, loops=request.param % 2, pressure=3.0
    )
    rng = random.Random(request.param)
    allocation = Allocation(problem)
    for _ in range(60):
        b = rng.choice(list(allocation.lives))
        k = rng.randrange(len(allocation.lives[b].uses))
        allocation.try_place(b, k, k, rng.choice(list(FitRule)))
    packing, timing = Packing(problem.op_capacity_granules), Timing(problem)
    for stay in allocation.all_stays():
        life = allocation.lives[stay.buffer_id]
        packing.add(stay.key, life.granules, stay.offset, stay.begin, stay.end)
        for use in life.uses[stay.first_use : stay.last_use + 1]:
            moved = [(t, -n) for t, n in use.accesses]
            timing.apply(Change(moved, (), ()))
        timing.apply(Change((), stay.copies, ()))
    assert list(allocation.all_stays())
    return allocation, packing, timing, rng


def test_places(some):
    allocation, packing, _, rng = some
    num_ops = len(allocation.problem.program.ops)
    nothing = np.empty(0, np.int64)
    capacity = int(allocation.problem.op_capacity_granules.max())
    found = 0
    for _ in range(300):
        begin = rng.randrange(num_ops)
        end = rng.randint(begin + 1, num_ops)
        size, rule = rng.randint(1, capacity), rng.choice(list(FitRule))
        expected = packing.find(size, begin, end, rule)
        offset = stays.find(
            allocation.tables, allocation.state, size, begin, end, RULES[rule], nothing
        )
        assert offset == (-1 if expected is None else expected)
        found += expected is not None
    assert 0 < found < 300


def test_unused_copy_time(some):
    allocation, _, timing, rng = some
    assert timing.latency_s == pytest.approx(allocation.latency_s, rel=1e-12)
    num_ops = len(allocation.problem.program.ops)
    state, between = allocation.state, 0
    for _ in range(300):
        low, high = sorted((rng.randrange(num_ops + 1), rng.randrange(num_ops + 1)))
        seconds = rng.random() * allocation.latency_s / 20
        starts = queues.latest_start(state, 0, low, high, seconds)
        dones = queues.earliest_done(state, 0, low, high, seconds)
        assert [starts] == timing.latest_starts(low, high, [seconds])
        assert [dones] == timing.earliest_dones(low, high, [seconds])
        between += low < starts < high
    assert between
