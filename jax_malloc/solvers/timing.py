"""The latency of a mapping in the making: exact, and fast enough for an inner loop.

It agrees with `hwmodel.simulator.simulate`, with which it shares nothing; the tests of
the solvers compare the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import CopyQueue, QueuedCopy, duplex_stall_s

# Times closer than this share of the program's latency are equal.
_SAME = 1e-13


class Change(NamedTuple):
    """What would be different.

    slow_bytes: `(op, bytes more in slow memory)`, at most one per op.
    """

    slow_bytes: Sequence[tuple[int, float]] = ()
    added: Sequence[QueuedCopy] = ()
    removed: Sequence[QueuedCopy] = ()


class Timing:
    """Op latencies and copies of one mapping, at first everything in slow memory.

    ops_s: the sum of op latencies.
    """

    def __init__(self, problem: Problem) -> None:
        model = problem.latency
        self._floor_s = model.floor_s.tolist()
        self._base_s = model.base_s.tolist()
        self._slope = model.slope_s_per_byte.tolist()
        self._dma_s_per_byte = 1 / problem.accelerator.dma_bytes_per_s
        self._slow_bytes = problem.slow_bytes.tolist()
        ops = [self._op(t, x) for t, x in enumerate(self._slow_bytes)]
        self._op_s = [latency_s for latency_s, _ in ops]
        self._spare_s = [spare_s for _, spare_s in ops]
        self._clock = list(itertools.accumulate(self._spare_s, initial=0.0))
        self.ops_s = sum(self._op_s)
        same_s = _SAME * problem.all_slow_latency_s
        # One queue for both directions, or one for each.
        num_queues = 2 if problem.accelerator.dma.full_duplex else 1
        self._queues = [CopyQueue(same_s) for _ in range(num_queues)]
        self._duplex_stall_s = 0.0

    @property
    def stall_s(self) -> float:
        """Seconds in which ops wait for copies."""
        if len(self._queues) == 1:
            return self._queues[0].stall_s
        return self._duplex_stall_s

    @property
    def latency_s(self) -> float:
        """Seconds per program call."""
        return self.ops_s + self.stall_s

    @property
    def copies(self) -> list[QueuedCopy]:
        """Every copy, queue by queue."""
        return [c for queue in self._queues for c in queue.copies]

    def save(self) -> tuple:
        """A snapshot for `restore`."""
        lists = (self._slow_bytes, self._op_s, self._spare_s, self._clock)
        queues = [queue.save() for queue in self._queues]
        return *map(list, lists), self.ops_s, self._duplex_stall_s, queues

    def restore(self, snapshot: tuple) -> None:
        """Back to what `save` saw; the snapshot can be used again."""
        lists = map(list, snapshot[:4])
        self._slow_bytes, self._op_s, self._spare_s, self._clock = lists
        self.ops_s, self._duplex_stall_s, queues = snapshot[4:]
        for queue, saved in zip(self._queues, queues, strict=True):
            queue.restore(saved)

    def op_saving_s(self, slow_bytes: Iterable[tuple[int, float]]) -> float:
        """Seconds by which ops, stalls aside, get faster by such a change."""
        return sum(
            self._op_s[t] - self._op(t, self._slow_bytes[t] + more)[0]
            for t, more in slow_bytes
        )

    def latency_after(self, change: Change) -> float:
        """The latency that `apply` would lead to."""
        ops_s, spare_s = self.ops_s, {}
        for t, more in change.slow_bytes:
            latency_s, spare_s[t] = self._op(t, self._slow_bytes[t] + more)
            ops_s += latency_s - self._op_s[t]
        clock, changed = self._clock_with(spare_s)
        if len(self._queues) == 1:
            queue = self._queues[0]
            patch = queue.patch(clock, changed, change.added, change.removed)
            return ops_s + patch.stall_s
        copies = []
        for is_eviction, queue in enumerate(self._queues):
            kept = [c for c in queue.copies if c not in change.removed]
            new = [c for c in change.added if c.is_eviction == is_eviction]
            copies.append(sorted(kept + new))
        return ops_s + duplex_stall_s(clock, *copies)

    def apply(self, change: Change) -> None:
        """Makes it so."""
        spare_s = {}
        for t, more in change.slow_bytes:
            self._slow_bytes[t] += more
            self._op_s[t], spare_s[t] = self._op(t, self._slow_bytes[t])
        self._clock, changed = self._clock_with(spare_s)
        for t, spare in spare_s.items():
            self._spare_s[t] = spare
        self.ops_s = sum(self._op_s)
        for way, queue in enumerate(self._queues):
            mine = [
                [c for c in copies if len(self._queues) == 1 or c.is_eviction == way]
                for copies in (change.added, change.removed)
            ]
            queue.apply(queue.patch(self._clock, changed, *mine))
        if len(self._queues) == 2:
            copies = (queue.copies for queue in self._queues)
            self._duplex_stall_s = duplex_stall_s(self._clock, *copies)

    def latest_starts(
        self, earliest: int, done: int, seconds: Sequence[float]
    ) -> list[int]:
        """For each number of seconds, the last boundary with that much unused copy time
        until a prefetch is due; `earliest` if there is none."""
        return self._queues[0].latest_starts(self._clock, earliest, done, seconds)

    def earliest_dones(
        self, start: int, latest: int, seconds: Sequence[float]
    ) -> list[int]:
        """For each number of seconds, the first boundary with that much unused copy
        time since an eviction's start; `latest` if there is none."""
        return self._queues[-1].earliest_dones(self._clock, start, latest, seconds)

    def _op(self, t: int, slow_bytes: float) -> tuple[float, float]:
        """Latency and spare time of one op."""
        latency_s = self._base_s[t] + self._slope[t] * slow_bytes
        if latency_s < self._floor_s[t]:
            latency_s = self._floor_s[t]
        spare_s = latency_s - slow_bytes * self._dma_s_per_byte
        return latency_s, spare_s if spare_s > 0.0 else 0.0

    def _clock_with(
        self, spare_s: dict[int, float]
    ) -> tuple[list[float], tuple[int, int]]:
        """The clock with other spare times of some ops, and where it differs."""
        if not spare_s:
            return self._clock, (0, 0)
        first, last = min(spare_s), max(spare_s)
        spare = self._spare_s[first:]
        for t, seconds in spare_s.items():
            spare[t - first] = seconds
        tail = itertools.accumulate(spare, initial=self._clock[first])
        return [*self._clock[:first], *tail], (first, last + 1)
