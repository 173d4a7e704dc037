"""The queue against a plain walk over ops, and its answers about unused time."""

import itertools

import numpy as np
import pytest

from hwmodel import queue as reference
from jax_malloc.solvers.copy_queue import CopyQueue, QueuedCopy, duplex_stall_s


def copy(start, done, seconds, size_bytes=1, is_eviction=False):
    return QueuedCopy(start, done, size_bytes, is_eviction, seconds)


def queue_of(copies, spare):
    queue = CopyQueue(same_s=1e-12)
    clock = clock_of(spare)
    queue.apply(queue.patch(clock, (0, len(spare)), copies))
    return queue, clock


def clock_of(spare):
    return [0.0, *itertools.accumulate(spare)]


def stall_of(copies, spare):
    rows = [(c.start, c.done, c.seconds) for c in copies]
    return reference.total_stall_s(spare, rows)


def random_copies(rng, number, num_ops):
    copies = []
    for _ in range(number):
        start, done = sorted(rng.integers(0, num_ops + 1, 2).tolist())
        seconds = float(rng.integers(1, 6))
        copies.append(copy(start, done, seconds, size_bytes=int(seconds)))
    return copies


def test_a_copy_that_fits_beside_the_ops_stalls_nothing():
    queue, _ = queue_of([copy(0, 2, 5.0)], [3.0, 2.0, 1.0])
    assert queue.stall_s == 0


def test_what_is_left_at_the_deadline_is_waited_for():
    queue, _ = queue_of([copy(0, 1, 5.0), copy(0, 3, 4.0)], [3.0, 2.0, 1.0])
    assert queue.waits_s == [2.0, 1.0]


def test_a_copy_behind_forces_those_ahead():
    # The first would have until 3, but the second is due at 1 and is served after it.
    queue, clock = queue_of([copy(0, 3, 2.0), copy(0, 1, 2.0)], [3.0, 2.0, 1.0])
    assert queue.stall_s == stall_of(queue.copies, [3.0, 2.0, 1.0])
    queue, clock = queue_of([copy(0, 3, 2.0, 0), copy(1, 1, 2.0)], [1.0, 2.0, 1.0])
    assert queue.dues == [1, 1]
    assert queue.stall_s == 3.0
    assert [c.start for c in queue.blocking(clock)] == [1, 0]


@pytest.mark.parametrize("seed", range(30))
def test_patches_agree_with_the_reference(seed):
    rng = np.random.default_rng(seed)
    num_ops = 25
    spare = [float(x) for x in rng.integers(0, 5, num_ops)]
    queue, clock = queue_of([], spare)
    for _ in range(40):
        added = random_copies(rng, int(rng.integers(0, 3)), num_ops)
        count = min(len(queue.copies), int(rng.integers(0, 3)))
        chosen = rng.choice(len(queue.copies), count, replace=False) if count else []
        removed = [queue.copies[i] for i in chosen]
        changed = (0, 0)
        if rng.random() < 0.7:
            first = int(rng.integers(num_ops))
            last = min(num_ops, first + int(rng.integers(1, 5)))
            spare[first:last] = rng.integers(0, 5, last - first).astype(float).tolist()
            clock, changed = clock_of(spare), (first, last)
        patch = queue.patch(clock, changed, added, removed)
        queue.apply(patch)
        assert queue.copies == sorted(queue.copies)
        assert queue.stall_s == pytest.approx(patch.stall_s)
        assert queue.stall_s == pytest.approx(stall_of(queue.copies, spare))


def unused(copies, spare):
    """Seconds of each op that no copy uses, when no op waits for any."""
    left, idle = [c.seconds for c in copies], []
    for t, budget in enumerate(spare):
        for k, c in enumerate(copies):
            if c.start <= t and budget > 0 and not any(left[:k]):
                used = min(budget, left[k])
                left[k] -= used
                budget -= used
        idle.append(budget)
    return idle


@pytest.mark.parametrize("seed", range(30))
def test_unused_time_is_found_where_it_is(seed):
    rng = np.random.default_rng(seed)
    num_ops = 20
    spare = [float(x) for x in rng.integers(0, 6, num_ops)]
    starts = rng.integers(0, num_ops, 6)
    copies = sorted(copy(int(s), num_ops, float(rng.integers(1, 6))) for s in starts)
    queue, clock = queue_of(copies, spare)
    idle = unused(copies, spare)
    for _ in range(20):
        low, high = sorted(rng.integers(0, num_ops + 1, 2).tolist())
        needs = (rng.integers(1, 9, 3) - 0.5).tolist()  # off the grid: no ties
        starts = queue.latest_starts(clock, low, high, needs)
        dones = queue.earliest_dones(clock, low, high, needs)
        for need, start, done in zip(needs, starts, dones, strict=True):
            latest = [q for q in range(low, high + 1) if sum(idle[q:high]) >= need]
            assert start == max(latest, default=low)
            earliest = [q for q in range(low, high + 1) if sum(idle[low:q]) >= need]
            assert done == min(earliest, default=high)


@pytest.mark.parametrize("seed", range(10))
def test_two_queues_agree_with_the_reference(seed):
    rng = np.random.default_rng(seed)
    spare = [float(x) for x in rng.integers(0, 5, 20)]
    queues = [sorted(random_copies(rng, 8, 20)) for _ in range(2)]
    rows = [[(c.start, c.done, c.seconds) for c in q] for q in queues]
    expected = reference.total_stall_s(spare, *rows)
    assert duplex_stall_s(clock_of(spare), *queues) == pytest.approx(expected)
