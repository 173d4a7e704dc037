"""Mappings with a known flaw, and what must hold for all of them."""

import dataclasses
import time

import pytest
import toy_problems
from random_mappings import random_mapping
from toy_problems import KIB

from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.solvers import greedy
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.polish import (
    affordable_searches,
    drop_losers,
    polish,
    retime,
    search,
)
from jax_malloc.solvers.ruin_recreate import RuinRecreate
from jax_malloc.solvers.worth import Worth


def latency_of(problem, mapping):
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


def prefetched(problem, label, start, done, end):
    """A mapping of one prefetched stay at offset 0."""
    labels = [b.label for b in problem.program.buffers]
    b = labels.index(label)
    stay = Segment(buffer_id=b, offset_bytes=0, begin=start, first=done, end=end)
    prefetch = Copy(
        buffer_id=b,
        direction=Direction.PREFETCH,
        size_bytes=problem.program.buffers[b].size_bytes,
        start=start,
        done=done,
    )
    return Mapping((stay,), (prefetch,))


def knapsack():
    """Three buffers of one lifetime in 10 KiB: large alone, or both the small ones.

    op     0    1
           make y
    x      =             1 KiB, parameter
    large  W----=        6 KiB
    left   W----=        5 KiB, of which 4.5 KiB are read
    right  W----=        5 KiB, of which 4.5 KiB are read
    y           W        1 KiB, output
    """
    draft = Draft("knapsack")
    x = draft.parameter(KIB, "x")
    large, left, right = draft.op(
        "fusion", [x], [6 * KIB, 5 * KIB, 5 * KIB], name="make"
    )
    part = KIB * 9 // 2
    reads = [large, (left, part), (right, part)]
    (y,) = draft.op("fusion", reads, [KIB], name="y")
    return toy_problems.problem(draft.build([y]), toy_problems.toy(fast_kib=10))


def test_a_late_prefetch_is_started_earlier():
    problem = toy_problems.problem("weight_reused")
    late = prefetched(problem, "w", start=1, done=1, end=4)
    allocation = Allocation.from_mapping(problem, late)
    assert allocation.stall_s == pytest.approx(8)
    retime(allocation)
    # Of op 0 the reading of x and the writing of a leave 8 of 10 s.
    assert allocation.stall_s == pytest.approx(0, abs=1e-6)
    assert latency_of(problem, polish(problem, late)) == pytest.approx(21)


def test_a_stay_that_costs_more_than_it_saves_is_dropped():
    problem = toy_problems.problem("diamond")
    loser = prefetched(problem, "x", start=0, done=0, end=1)
    allocation = Allocation.from_mapping(problem, loser)
    allocation.try_place(1, 0, 2)  # a, which is worth its place
    drop_losers(allocation)
    kept = [s.buffer_id for s in allocation.all_stays()]
    assert 1 in kept
    assert latency_of(problem, polish(problem, loser)) == pytest.approx(4)


def test_free_space_is_filled():
    problem = toy_problems.problem("chain")
    assert latency_of(problem, polish(problem, Mapping())) == pytest.approx(8)


def test_the_search_leaves_a_local_optimum():
    problem = knapsack()
    assert problem.all_slow_latency_s == pytest.approx(33)
    mapping = greedy.solve(problem)
    assert latency_of(problem, mapping) == pytest.approx(21)  # large, 12 s saved
    assert polish(problem, mapping) == mapping
    found = polish(problem, mapping, steps=50)
    assert latency_of(problem, found) == pytest.approx(14)  # left and right, 19 s


@pytest.mark.parametrize("seed", range(8))
def test_valid_and_never_worse(seed):
    problem = toy_problems.random_problem(
        seed,
        num_ops=40,
        fast_mib=32,
        loops=seed % 2 == 0,
        pressure=3.0,
    )
    for mapping in (
        Mapping(),
        random_mapping(problem, seed),
        greedy.solve(problem),
    ):
        before_s = latency_of(problem, mapping)
        polished = polish(problem, mapping)
        after_s = latency_of(problem, polished)
        assert after_s <= before_s
        searched = polish(problem, polished, seed=seed, steps=20)
        assert latency_of(problem, searched) <= after_s


def test_the_same_seed_finds_the_same():
    problem = toy_problems.random_problem(5, num_ops=40, pressure=4.0)
    first, again = (polish(problem, Mapping(), seed=1, steps=15) for _ in range(2))
    assert first == again


def test_the_search_obeys_its_deadline():
    problem = toy_problems.random_problem(2, num_ops=60, pressure=3.0)
    start = time.monotonic()
    mapping = polish(problem, Mapping(), deadline_s=start + 0.5, steps=None)
    assert 0.5 <= time.monotonic() - start < 5.0
    assert latency_of(problem, mapping) < problem.all_slow_latency_s


def test_a_deadline_that_is_over_keeps_the_mapping():
    problem = toy_problems.random_problem(2, num_ops=60, pressure=3.0)
    mapping = greedy.solve(problem)
    over_s = time.monotonic()
    assert polish(problem, mapping, deadline_s=over_s, steps=None) == mapping


def test_an_endless_search_is_refused():
    problem = toy_problems.problem("chain")
    allocation = Allocation(problem)
    search = RuinRecreate(allocation, Worth(problem, allocation.lives), seed=0)
    with pytest.raises(ValueError, match="number of steps or a deadline"):
        search.run(None, None)


def test_a_search_from_several_mappings_is_no_slower_than_any():
    problem = toy_problems.random_problem(6, num_ops=40, pressure=3.0)
    starts = [random_mapping(problem, seed) for seed in range(3)]
    starts += [Mapping(), greedy.solve(problem)]
    found = search(problem, starts, seed=0, deadline_s=None)
    assert latency_of(problem, found) <= min(latency_of(problem, m) for m in starts)
    again = search(problem, starts, seed=0, deadline_s=None)
    assert again == found


def test_of_two_mappings_that_differ_in_copies_alone_the_faster_counts():
    problem = toy_problems.problem("weight_reused")
    fast = greedy.solve(problem)
    copies = list(fast.copies)
    k = next(i for i, c in enumerate(copies) if c.start < c.done)
    copies[k] = dataclasses.replace(copies[k], start=copies[k].done)
    slow = Mapping(fast.segments, tuple(copies))
    assert latency_of(problem, slow) > latency_of(problem, fast)
    for deadline_s in (None, time.monotonic()):
        for mappings in ([fast, slow], [slow, fast]):
            found = search(problem, mappings, seed=0, deadline_s=deadline_s)
            assert latency_of(problem, found) <= latency_of(problem, fast)


def test_a_search_ends_in_time():
    problem = toy_problems.random_problem(6, num_ops=40, pressure=3.0)
    begin_s = time.monotonic()
    search(
        problem, [Mapping(), greedy.solve(problem)], seed=0, deadline_s=begin_s + 0.5
    )
    assert 0.3 < time.monotonic() - begin_s < 5
    assert search(problem, [Mapping()], seed=0, deadline_s=begin_s) == Mapping()


def test_a_guide_changes_what_comes_first():
    """Two equals that do not fit together: the guide picks."""
    draft = Draft("equals")
    x = draft.parameter(KIB, "x")
    made = draft.op("fusion", [x], [10 * KIB, 10 * KIB], name="make")
    (y,) = draft.op("fusion", made, [KIB], name="y")
    problem = toy_problems.problem(draft.build([y]))
    for favourite in made:
        guide = {b: [1.0 if b == favourite else 0.1] * 2 for b in made}
        guide |= {b: [1.0] for b in (x, y)}
        mapping = greedy.solve(problem, guide=guide)
        assert mapping.segments_of(favourite)
        (other,) = set(made) - {favourite}
        assert not mapping.segments_of(other)


def test_how_many_searches_there_is_time_for():
    problem = toy_problems.random_problem(6, num_ops=40, pressure=3.0)
    assert affordable_searches(problem, None) > 1000
    assert affordable_searches(problem, time.monotonic() - 1) == 1
    counts = [
        affordable_searches(problem, time.monotonic() + left_s)
        for left_s in (0.1, 1.0, 10.0, 100.0)
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 10 * counts[0]
