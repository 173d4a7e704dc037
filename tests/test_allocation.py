"""Whatever is placed, moved or taken back, the mapping is valid and its time exact."""

import random

import pytest
import toy_problems
from random_mappings import random_mapping
from toy_problems import KIB

from jax_malloc import problem as problem_lib
from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Direction, Mapping
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.uses import lives


def on(problem, **changes):
    """The same program on a changed machine."""
    return problem_lib.build(problem.program, problem.accelerator.replace(**changes))


def assert_exact(allocation):
    mapping = allocation.to_mapping()
    violations = validator.find_violations(allocation.problem, mapping)
    assert not violations, violations[:3]
    timeline = allocation.problem.evaluate(mapping)
    assert allocation.latency_s == pytest.approx(timeline.latency_s, rel=1e-12)
    assert allocation.stall_s == pytest.approx(timeline.stall_s.sum(), abs=1e-12)


def place_at_random(allocation, rng, tries):
    for _ in range(tries):
        b = rng.choice(list(allocation.lives))
        uses = len(allocation.lives[b].uses)
        first, last = sorted((rng.randrange(uses), rng.randrange(uses)))
        before_s = allocation.latency_s
        placed = allocation.try_place(b, first, last, rng.choice(list(FitRule)))
        assert (allocation.latency_s < before_s) == placed


def id_of(problem, label):
    return [b.label for b in problem.program.buffers].index(label)


MACHINES = {
    "shared_queue": {},
    "duplex": {"dma_full_duplex": True},
    "slow_dma": {"dma_latency_s": 2e-6, "dma_bandwidth_share": 0.3},
    "few_copies": {"dma_max_in_flight": 2},
}


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(3))
def test_every_state_is_valid_and_exact(seed, machine, loops):
    problem = toy_problems.random_problem(
        seed, num_ops=40, fast_mib=32, loops=loops, pressure=3.0
    )
    allocation = Allocation(on(problem, **MACHINES[machine]))
    rng = random.Random(seed)
    for _ in range(6):
        place_at_random(allocation, rng, 30)
        assert_exact(allocation)
        snapshot, before_s = allocation.save(), allocation.latency_s
        stays = list(allocation.all_stays())
        some = rng.sample(stays, min(len(stays), 3))
        if some:
            expected_s = allocation.latency_without(some[0])
            allocation.remove(some[:1])
            assert allocation.latency_s == pytest.approx(expected_s, rel=1e-12)
            allocation.remove(some[1:])
        assert_exact(allocation)
        if rng.random() < 0.5:
            allocation.restore(snapshot)
            assert allocation.latency_s == before_s
        for stay in allocation.blocking_stays():
            before_s = allocation.latency_s
            moved = allocation.retime(stay)
            assert (allocation.latency_s < before_s) == moved
        assert_exact(allocation)


@pytest.mark.parametrize("seed", range(10))
def test_adopts_any_valid_mapping(seed):
    problem = toy_problems.random_problem(seed, num_ops=30, loops=seed % 2 == 0)
    mapping = random_mapping(problem, seed)
    allocation = Allocation.from_mapping(problem, mapping)
    assert_exact(allocation)
    # Copies that nothing needs are left out, and what is not eligible.
    eligible = {s for s in mapping.segments if problem.eligible[s.buffer_id]}
    places = {(s.buffer_id, s.offset_bytes, s.begin) for s in eligible}
    adopted = allocation.to_mapping().segments
    assert {(s.buffer_id, s.offset_bytes, s.begin) for s in adopted} == places
    assert Allocation.from_mapping(problem, Mapping()).to_mapping() == Mapping()


def test_a_run_that_meets_a_stay_replaces_it():
    problem = toy_problems.problem("weight_reused")
    allocation, w = Allocation(problem), id_of(problem, "w")
    assert allocation.try_place(w, 0, 0)
    assert allocation.try_place(w, 1, 1)
    assert len(allocation.stays[w]) == 2
    assert allocation.slow_runs(w) == []
    assert not allocation.try_place(w, 0, 1)  # no faster: both prefetches are hidden
    # Without time to hide the second prefetch, one stay is better than two.
    slow = on(problem, dma_bandwidth_share=0.5)
    allocation = Allocation(slow)
    assert allocation.try_place(w, 1, 1)
    assert allocation.try_place(w, 0, 1)
    assert len(allocation.stays[w]) == 1
    assert_exact(allocation)


def test_a_prefetch_starts_as_late_as_it_can_be_hidden():
    problem = toy_problems.problem("weight_reused")
    allocation, w = Allocation(problem), id_of(problem, "w")
    assert allocation.try_place(w, 1, 1)
    (prefetch,) = allocation.to_mapping().copies
    assert (prefetch.direction, prefetch.start, prefetch.done) == (
        Direction.PREFETCH,
        2,
        3,
    )


def test_an_output_is_evicted_beside_later_ops():
    """y, 4 KiB, could be stored while op 1 computes for 3 s: one second is exposed."""
    draft = Draft("store")
    x = draft.parameter(KIB, "x")
    (y,) = draft.op("fusion", [x], [4 * KIB], name="y")
    draft.op("fusion", [], matmul_flops=3.0, matmul_dtype="f32")
    problem = toy_problems.problem(draft.build([y]))
    allocation = Allocation(problem)
    assert allocation.try_place(y, 0, 0)
    (evict,) = allocation.to_mapping().copies
    assert (evict.direction, evict.start, evict.done) == (Direction.EVICT, 1, 2)
    assert allocation.stall_s == pytest.approx(1.0)
    assert_exact(allocation)


def test_nothing_is_stored_that_is_faster_written():
    problem = toy_problems.problem("two_outputs")
    allocation = Allocation(problem)
    assert not allocation.try_place(id_of(problem, "a{1}"), 0, 0)
    assert allocation.to_mapping() == Mapping()


def test_uses_of_one_loop_are_one_use():
    problem = toy_problems.problem("loop")
    found = lives(problem)
    state = found[id_of(problem, "init")].uses
    assert [(u.begin, u.end, u.reads, u.writes) for u in state] == [
        (0, 1, False, True),
        (1, 4, True, True),
        (4, 5, True, False),
    ]
    assert [t for t, _ in state[1].accesses] == [1, 2]
    inside = found[id_of(problem, "h")].uses
    assert [(u.begin, u.end) for u in inside] == [(1, 2), (2, 3)]


def test_a_store_goes_on_while_ops_read_what_it_stores():
    """y, 4 KiB, is read by the op after the one that makes it, which takes 6 s."""
    draft = Draft("read_on")
    x = draft.parameter(KIB, "x")
    (y,) = draft.op("fusion", [x], [4 * KIB], name="y")
    compute = {"matmul_flops": 6.0, "matmul_dtype": "f32"}
    draft.op("fusion", [y], name="read", **compute)
    problem = toy_problems.problem(draft.build([y]))
    allocation = Allocation(problem)
    assert allocation.try_place(y, 0, 1)
    (evict,) = allocation.to_mapping().copies
    assert (evict.direction, evict.start, evict.done) == (Direction.EVICT, 1, 2)
    assert allocation.stall_s == 0
    assert_exact(allocation)


def test_a_stay_is_placed_as_asked_for_or_not_at_all():
    problem = toy_problems.problem("weight_reused")
    allocation, w = Allocation(problem), id_of(problem, "w")
    assert allocation.place(w, 0, 1, start=0, done=4)
    (stay,) = allocation.all_stays()
    assert (stay.begin, stay.end, stay.prefetch.start) == (0, 4, 0)
    assert_exact(allocation)
    # Nothing else of 10 KiB fits beside its 8 KiB; what does not pay goes in, too.
    small = Allocation(on(problem, fast_capacity_bytes=8 * KIB))
    assert small.place(w, 0, 0, start=1, done=2)
    assert not small.place(id_of(problem, "a"), 0, 1, start=0, done=2)
    assert_exact(small)
