"""A stretch behaves as the whole that it is cut from, and leaves the rest alone."""

import dataclasses
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import toy_problems

from hwmodel.latency import op_latency_s
from jax_malloc import problem as problem_lib
from jax_malloc import validator
from jax_malloc.compiled import placing, stays
from jax_malloc.mapping import Mapping
from jax_malloc.solvers import greedy, ruin_recreate, side_by_side, stretches
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.polish import polish
from jax_malloc.solvers.worth import Worth

DMA = {
    "one queue": {},
    "two queues": {"full_duplex": True},
    "three in flight": {"max_in_flight": 3},
}


def problem_of(seed, dma="one queue", num_ops=90):
    problem = toy_problems.random_problem(
        seed, num_ops=num_ops, fast_mib=24, loops=seed % 2, pressure=4.0
    )
    accelerator = problem.accelerator
    accelerator = dataclasses.replace(
        accelerator, dma=dataclasses.replace(accelerator.dma, **DMA[dma])
    )
    return problem_lib.build(problem.program, accelerator)


class Whole:
    """An allocation from greedy, perturbed, and what it takes to cut it."""

    def __init__(self, problem, seed=0):
        self.problem = problem
        self.allocation = Allocation.from_mapping(problem, greedy.solve(problem))
        self.tables, self.state = self.allocation.tables, self.allocation.state
        self.worth = Worth(problem, self.allocation.lives)
        self.values = ruin_recreate.values_of(self.allocation, self.worth)
        # From where it was there is something left to gain.
        hot = 0.05 * self.allocation.latency_s
        search = ruin_recreate.RuinRecreate(self.allocation, self.worth, seed)
        search.run(20, None, 0.0, lambda share: hot)
        every = list(self.allocation.all_stays())
        self.allocation.remove(every[:: 4 + seed % 3])

    @property
    def latency_s(self):
        return self.allocation.latency_s

    def cut(self, begin, end):
        return stretches.cut(self.tables, self.values, self.state, begin, end)

    def checked(self):
        """The exact latency of the allocation, whose mapping is valid."""
        mapping = self.allocation.to_mapping()
        violations = validator.find_violations(self.problem, mapping)
        assert not violations, violations[:3]
        return self.problem.evaluate(mapping).latency_s


def searched(stretch, steps=60, seed=0):
    ruin_recreate.run(
        stretch.tables,
        stretch.values,
        stretch.state,
        np.random.default_rng(seed),
        steps,
        None,
    )
    return stretch


def thirds(whole):
    """Three stretches that do not overlap."""
    num_ops = len(whole.tables.capacity)
    return list(itertools.pairwise([0, num_ops // 3, 2 * num_ops // 3, num_ops]))


@pytest.mark.parametrize("dma", DMA)
@pytest.mark.parametrize("seed", range(8))
def test_a_stretch_can_be_searched_and_put_back(seed, dma):
    whole = Whole(problem_of(seed, dma), seed)
    gained = 0
    for begin, end in thirds(whole):
        before_s, kept = whole.latency_s, stays.copy(whole.state)
        stretch = whole.cut(begin, end)
        if stretch is None:
            continue
        own_s = stays.latency_s(stretch.state)
        searched(stretch)
        own_s -= stays.latency_s(stretch.state)
        outside = {s for s in unkeyed(whole) if not lies_in(s, begin, end)}
        stretches.paste(whole.tables, whole.state, stretch)
        after = unkeyed(whole)
        assert outside <= after
        assert all(lies_in(s, begin, end) for s in after - outside)
        assert whole.checked() == pytest.approx(whole.latency_s, rel=1e-9)
        gained += own_s > 0
        if dma == "one queue" and own_s > 0:
            # What comes after the stretch can wait longer or less for its copies.
            assert before_s - whole.latency_s >= 0.5 * own_s
        if whole.latency_s > before_s:
            stays.assign(whole.state, kept)
    assert gained


def unkeyed(whole):
    """All stays but for their rows, which are given anew."""
    return {dataclasses.replace(s, key=0) for s in whole.allocation.all_stays()}


def lies_in(stay, begin, end):
    return begin <= stay.begin and stay.end <= end


@pytest.mark.parametrize("dma", DMA)
@pytest.mark.parametrize("seed", range(4))
def test_cut_and_put_back_is_the_same(seed, dma):
    whole = Whole(problem_of(seed, dma), seed)
    before, before_s = whole.allocation.to_mapping(), whole.latency_s
    for begin, end in thirds(whole):
        stretch = whole.cut(begin, end)
        if stretch is not None:
            stretches.paste(whole.tables, whole.state, stretch)
    assert whole.allocation.to_mapping() == before
    assert whole.latency_s == pytest.approx(before_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_stretch_of_everything_is_the_whole(seed):
    whole = Whole(problem_of(seed), seed)
    num_ops = len(whole.problem.program.ops)
    stretch = whole.cut(0, num_ops)
    np.testing.assert_allclose(stretch.state.numbers, whole.state.numbers, rtol=1e-12)
    searched(stretch)
    stretches.paste(whole.tables, whole.state, stretch)
    assert whole.latency_s == pytest.approx(stays.latency_s(stretch.state), rel=1e-9)
    assert whole.checked() == pytest.approx(whole.latency_s, rel=1e-9)


def test_ops_wait_in_a_stretch_as_they_do_in_the_whole():
    """From its begin on; also where a copy was due ahead of its own deadline."""
    queued_behind = 0
    for seed in range(12):
        whole = Whole(problem_of(seed), seed)
        num_ops = len(whole.problem.program.ops)
        number = whole.state.counts[stays.COPIES]
        copies, times = whole.state.copies[0, :number], whole.state.times[0, :number]
        for begin in range(1, num_ops, 3):
            stretch = whole.cut(begin, num_ops)
            if stretch is None:
                continue
            over = copies[:, stays.DUE] <= begin
            later = ~over | (copies[:, stays.START] >= begin)
            waits_s = times[later, stays.WAIT].sum()
            assert stretch.state.numbers[1] == pytest.approx(waits_s, abs=1e-12)
            behind = over & (copies[:, stays.DONE] > begin)
            queued_behind += bool(times[behind, stays.WAIT].any())
    assert queued_behind


def test_a_stretch_without_a_use_is_none():
    whole = Whole(problem_of(0))
    assert whole.cut(5, 5) is None


@pytest.mark.parametrize("number", [1, 3, 50])
def test_chosen_spans_do_not_overlap(number):
    whole, rng = Whole(problem_of(1)), np.random.default_rng(0)
    num_ops = len(whole.problem.program.ops)
    weights = np.zeros(num_ops)
    weights[20:70] = 1.0
    for _ in range(20):
        spans = side_by_side.choose(whole.tables, weights, 30.0, number, rng)
        assert 1 <= len(spans) <= number
        if number == 50:  # until all that has a weight is in one of them
            covered = {t for span in spans for t in range(*span)}
            assert covered >= set(range(20, 70))
        assert all(0 <= begin < end <= num_ops for begin, end in spans)
        assert all(begin < 70 and end > 20 for begin, end in spans)
        ordered = sorted(spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))


def test_spans_are_as_long_as_they_should_be():
    """In uses that begin in them, where nothing else is in the way."""
    whole, rng = Whole(problem_of(1)), np.random.default_rng(0)
    weights = np.zeros(len(whole.problem.program.ops))
    weights[45] = 1.0
    begins = whole.tables.uses[:, stays.USE_BEGIN]
    at_one_op = np.bincount(begins).max()
    seen = set()
    for _ in range(20):
        ((begin, end),) = side_by_side.choose(whole.tables, weights, 40.0, 2, rng)
        number = np.count_nonzero((begins >= begin) & (begins < end))
        assert 40 - 2 * at_one_op <= number <= 40 + 2 * at_one_op
        assert begin <= 45 < end
        seen.add((begin, end))
    assert len(seen) > 3  # the op is not always in the middle


def test_nothing_is_chosen_where_nothing_is_lost():
    whole, rng = Whole(problem_of(1)), np.random.default_rng(0)
    weights = np.zeros(len(whole.problem.program.ops))
    assert side_by_side.choose(whole.tables, weights, 30.0, 2, rng) == []


@pytest.mark.parametrize("dma", DMA)
@pytest.mark.parametrize("seed", range(4))
def test_losses_are_those_against_fast_memory_alone(seed, dma):
    whole = Whole(problem_of(seed, dma), seed)
    losses_s = side_by_side.losses_s(whole.tables, whole.state)
    timeline = whole.problem.evaluate(whole.allocation.to_mapping())
    fastest_s = op_latency_s(whole.problem.latency, np.zeros(len(losses_s)))
    stall_s = timeline.stall_s.copy()
    stall_s[-2] += stall_s[-1]  # that at the program's end counts for the last op
    expected_s = timeline.op_duration_s - fastest_s + stall_s[:-1]
    np.testing.assert_allclose(losses_s, expected_s, atol=1e-12)
    assert losses_s.any()


@pytest.fixture
def short_stretches(monkeypatch):
    monkeypatch.setattr(side_by_side, "_ACCESSES", 60)
    monkeypatch.setattr(side_by_side, "_LONG", 120)
    monkeypatch.setattr(side_by_side, "_LEAST_STEPS", 50)


@pytest.mark.parametrize("dma", DMA)
def test_polish_searches_stretches(short_stretches, monkeypatch, dma):
    problem = problem_of(2, dma)
    cuts = []
    monkeypatch.setattr(
        stretches, "cut", lambda *a, cut=stretches.cut: cuts.append(a[-2:]) or cut(*a)
    )
    start = greedy.solve(problem)
    plans = []
    for threads in (1, 3):
        monkeypatch.setattr(side_by_side, "num_threads", lambda n=threads: n)
        plans.append(polish(problem, start, seed=1, steps=2_000))
    assert plans[0] == plans[1]  # the number of threads does not matter
    assert len(cuts) > 8
    violations = validator.find_violations(problem, plans[0])
    assert not violations, violations[:3]
    latency_s = problem.evaluate(plans[0]).latency_s
    assert latency_s < problem.evaluate(start).latency_s


def test_a_long_program_without_a_choice(short_stretches):
    problem = problem_of(2)
    problem = dataclasses.replace(problem, eligible=np.zeros_like(problem.eligible))
    assert polish(problem, Mapping(), steps=40) == Mapping()


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupt_ends_all_searches(number):
    """Ctrl-C reaches the thread that waits, and through it the others."""
    problem = problem_of(2)
    wholes = [Whole(problem) for _ in range(number)]

    def searched(i, is_stopped):
        whole = wholes[i]
        ruin_recreate.run(
            whole.tables,
            whole.values,
            whole.state,
            np.random.default_rng(i),
            None,
            time.monotonic() + 60.0,
            is_stopped=is_stopped,
        )

    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    # Where tests run in the background, the shell has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    start_s = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side.run_all(searched, number, 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start_s < 30.0  # far from the deadline


def test_an_error_of_one_search_is_raised():
    def searched(i, is_stopped):
        if i == 1:
            raise RuntimeError("one of them")
        while not is_stopped():
            time.sleep(0.01)

    with pytest.raises(RuntimeError, match="one of them"):
        side_by_side.run_all(searched, 2, 2)


def test_what_makes_the_whole_slower_is_left_out(monkeypatch):
    whole = Whole(problem_of(3))
    good, bad = (whole.cut(*span) for span in thirds(whole)[:2])
    searched(good)
    # A search that went wrong.
    rows = np.arange(bad.state.counts[stays.USED])
    rows = rows[bad.state.stays[rows, stays.BUFFER] != stays.FROZEN]
    placing.remove(bad.tables, bad.state, rows)
    before_s = whole.latency_s
    pasted = side_by_side.paste_faster(whole.tables, whole.state, [bad, good])
    assert [stretch.begin for stretch in pasted] == [good.begin]
    assert whole.latency_s < before_s
    assert whole.checked() == pytest.approx(whole.latency_s, rel=1e-9)
