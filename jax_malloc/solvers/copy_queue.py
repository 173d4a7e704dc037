"""One FIFO queue of copies, and the stall it causes, recomputed only where it changes.

    spare time of the ops, end to end: the clock that copies see
    0----+-------+--+-----------+----> seconds
         [ copy A ][ copy B ]        served in order of issue
                      ^ B due: what is left of it is waited for

Copies advance only in the time that ops leave over. On that clock a copy begins at its
issue or at the end of the one ahead, and a stall is what sticks out beyond a deadline.
Once a copy ends where it did before a change, so do all that follow.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple


class QueuedCopy(NamedTuple):
    """One copy as a queue sees it; tuples sort in the order of service.

    start, done: op boundaries. seconds: it occupies the queue, all executions together.
    """

    start: int
    done: int
    size_bytes: int
    is_eviction: bool
    seconds: float


class Patch(NamedTuple):
    """New entries for `[first, stop)` of a queue's lists, and its stall with them."""

    first: int
    stop: int
    copies: list[QueuedCopy]
    dues: list[int]
    runs_s: list[float]
    waits_s: list[float]
    stall_s: float


class CopyQueue:
    """Copies in the order of service.

    dues: boundary by which each must be over: its own deadline, or that of a copy
      behind it. runs_s: from the issue of each to its end, on the clock. waits_s: the
      stall at the deadline of each. stall_s: their sum.

    A clock is the `[T + 1]` seconds of spare time before each boundary. The queue keeps
    none; it is given the one that the ops have now.
    """

    def __init__(self, same_s: float) -> None:
        """Args: same_s: times closer than this are equal."""
        self.copies: list[QueuedCopy] = []
        self.dues: list[int] = []
        self.runs_s: list[float] = []
        self.waits_s: list[float] = []
        self.stall_s = 0.0
        self._same_s = same_s

    def save(self) -> tuple:
        """A snapshot for `restore`."""
        lists = (self.copies, self.dues, self.runs_s, self.waits_s)
        return (*map(list, lists), self.stall_s)

    def restore(self, snapshot: tuple) -> None:
        """Back to what `save` saw; the snapshot can be used again."""
        self.copies, self.dues, self.runs_s, self.waits_s = map(list, snapshot[:4])
        self.stall_s = snapshot[4]

    def patch(
        self,
        clock: list[float],
        changed: tuple[int, int],
        added: Sequence[QueuedCopy] = (),
        removed: Sequence[QueuedCopy] = (),
    ) -> Patch:
        """What would change with other copies on another clock.

        Args:
          clock: the new one.
          changed: boundaries `(a, b)`: up to a the clock is what it was, from b on it
            differs by a constant.
        """
        first, last = self._affected(changed, added, removed)
        copies = self.copies[first:last]
        for copy in removed:
            del copies[bisect.bisect_left(copies, copy)]
        for copy in added:
            bisect.insort(copies, copy)
        dues = []
        due = self.dues[last] if last < len(self.dues) else len(clock)
        for copy in reversed(copies):
            if copy.done < due:
                due = copy.done
            dues.append(due)
        dues.reverse()

        runs_s, waits_s = [], []
        served = self.end_s(clock, first - 1)
        for (start, _, _, _, seconds), due in zip(copies, dues, strict=True):
            issued, due_s = clock[start], clock[due]
            if issued > served:
                served = issued
            served += seconds
            if served > due_s:
                waits_s.append(served - due_s)
                served = due_s
            else:
                waits_s.append(0.0)
            runs_s.append(served - issued)
        stop = last
        # Names of their own: attributes would cost more here than the arithmetic.
        old_copies, old_dues = self.copies, self.dues
        old_runs_s, old_waits_s, same_s = self.runs_s, self.waits_s, self._same_s
        while stop < len(old_copies):
            start, _, _, _, seconds = old_copies[stop]
            issued, due_s = clock[start], clock[old_dues[stop]]
            if issued > served:
                served = issued
            served += seconds
            wait_s = served - due_s if served > due_s else 0.0
            served -= wait_s
            run_s = served - issued
            if (
                -same_s < run_s - old_runs_s[stop] < same_s
                and -same_s < wait_s - old_waits_s[stop] < same_s
            ):
                break
            waits_s.append(wait_s)
            runs_s.append(run_s)
            stop += 1
        copies += self.copies[last:stop]
        dues += self.dues[last:stop]
        stall_s = self.stall_s + sum(waits_s) - sum(self.waits_s[first:stop])
        return Patch(first, stop, copies, dues, runs_s, waits_s, stall_s)

    def apply(self, patch: Patch) -> None:
        """Makes it so."""
        where = slice(patch.first, patch.stop)
        self.copies[where] = patch.copies
        self.dues[where] = patch.dues
        self.runs_s[where] = patch.runs_s
        self.waits_s[where] = patch.waits_s
        self.stall_s = sum(self.waits_s)

    def end_s(self, clock: list[float], position: int) -> float:
        """When, on the clock, a copy is over; 0 before the first."""
        if position < 0:
            return 0.0
        return clock[self.copies[position].start] + self.runs_s[position]

    def blocking(self, clock: list[float]) -> list[QueuedCopy]:
        """Copies that ops wait for, and those just ahead of them in the queue."""
        found, blocks = [], False
        for position in reversed(range(len(self.copies))):
            copy = self.copies[position]
            blocks = blocks or self.waits_s[position] > 0
            if blocks:
                found.append(copy)
                # The queue was idle before: what is further ahead is not to blame.
                if self.end_s(clock, position - 1) < clock[copy.start]:
                    blocks = False
        return found

    def latest_starts(
        self,
        clock: list[float],
        earliest: int,
        done: int,
        seconds: Sequence[float],
    ) -> list[int]:
        """For each number of seconds, the last boundary with that much unused time
        from there to `done`; `earliest` where there is none."""
        copies, runs_s = self.copies, self.runs_s
        floor, at = clock[earliest], clock[done]
        left = dict.fromkeys(seconds)  # the clock at which each is found
        todo = [(s, s) for s in left]
        position = bisect.bisect_left(copies, (done,)) - 1
        end = self.end_s(clock, position)
        while position >= 0 and at > floor and todo:
            if end < at:
                unused = at - end
                for s, more in todo:
                    if unused >= more:
                        left[s] = at - more
                todo = [(s, more - unused) for s, more in todo if unused < more]
                at = end
            issued = clock[copies[position].start]
            position -= 1
            end = (
                clock[copies[position].start] + runs_s[position]
                if position >= 0
                else 0.0
            )
            begun = issued if issued > end else end
            if begun < at:
                at = begun
        for s, more in todo:
            left[s] = at - more
        return [
            max(earliest, min(bisect.bisect_right(clock, left[s]) - 1, done))
            for s in seconds
        ]

    def earliest_dones(
        self,
        clock: list[float],
        start: int,
        latest: int,
        seconds: Sequence[float],
    ) -> list[int]:
        """For each number of seconds, the first boundary with that much unused time
        since `start`; `latest` where there is none."""
        copies, runs_s = self.copies, self.runs_s
        at, limit = clock[start], clock[latest]
        left = dict.fromkeys(seconds)  # the clock at which each is found
        todo = [(s, s) for s in left]
        position = bisect.bisect_left(copies, (start + 1,))
        while position > 0 and self.end_s(clock, position - 1) > at:
            position -= 1
        while position < len(copies) and at < limit and todo:
            issued = clock[copies[position].start]
            if issued > at:
                unused = issued - at
                for s, more in todo:
                    if unused >= more:
                        left[s] = at + more
                todo = [(s, more - unused) for s, more in todo if unused < more]
            end = issued + runs_s[position]
            if end > at:
                at = end
            position += 1
        for s, more in todo:
            left[s] = at + more
        return [min(latest, bisect.bisect_left(clock, left[s])) for s in seconds]

    def _affected(
        self,
        changed: tuple[int, int],
        added: Sequence[QueuedCopy],
        removed: Sequence[QueuedCopy],
    ) -> tuple[int, int]:
        """Positions `[first, last)` outside of which no copy or deadline changes."""
        first, last = len(self.copies), 0
        if changed[0] < changed[1]:
            first = bisect.bisect_right(self.dues, changed[0])
            last = bisect.bisect_left(self.copies, (changed[1],))
        for copy in (*added, *removed):
            position = bisect.bisect_left(self.copies, copy)
            first = min(first, position, bisect.bisect_left(self.dues, copy.done))
            last = max(last, bisect.bisect_right(self.copies, copy))
        return first, max(first, last)


def duplex_stall_s(
    clock: list[float], prefetches: list[QueuedCopy], evictions: list[QueuedCopy]
) -> float:
    """The stall of two queues that are served side by side; ops wait for the slower."""
    must, arrived = [], []
    for copies in (prefetches, evictions):
        total = 0.0
        must.append([0.0] * len(clock))
        arrived.append([0.0] * len(clock))
        for copy in copies:
            total += copy.seconds
            must[-1][copy.done] = arrived[-1][copy.start] = total
    stall_s = in_served = out_served = in_arrived = out_arrived = 0.0
    previous = clock[0]
    for t, now in enumerate([*clock[1:], clock[-1]]):
        in_arrived = max(in_arrived, arrived[0][t])
        out_arrived = max(out_arrived, arrived[1][t])
        wait_s = max(must[0][t] - in_served, must[1][t] - out_served, 0.0)
        stall_s += wait_s
        in_served = min(in_served + wait_s + now - previous, in_arrived)
        out_served = min(out_served + wait_s + now - previous, out_arrived)
        previous = now
    return stall_s
