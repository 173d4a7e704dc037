"""Whether copies get enough time beside the ops: one queue, in order of their starts.

    boundary    0         1         2         3         4
    ops         [-- 5 s --][- 3 s -][-- 4 s --][- 2 s -]
    copy A      start=0 ~~~~~~~~ 7 s    done=3             5 s of op 0, 2 s of op 1
    copy B                start=1     ~~~ 3 s       done=4 1 s of op 1, 2 s of op 2

Prefetches and evictions each have a queue; they do not compete, and every op lends all
of its time, as if it did not use slow memory itself.

Source: `AsynchronousCopyResource` in
xla/service/memory_space_assignment/algorithm.cc. There a delay is handed from copy to
copy; when each ends follows from the same numbers.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

# Times are integers, so that adding and removing is exactly reversible.
_SCALE = 2**40


class CopyResource:
    """Copies of one direction, and whether one more fits.

    Args:
      elapsed_s: what each op lends, in seconds.
      max_outstanding: copies in flight at once; None, no limit.
    """

    def __init__(self, elapsed_s: Sequence[float], max_outstanding: int | None) -> None:
        lent = (_scaled(s) for s in elapsed_s)
        self._lent = list(itertools.accumulate(lent, initial=0))
        self._max_outstanding = max_outstanding
        self._starts: list[int] = []
        self._dones: list[int] = []
        self._works: list[int] = []
        self._ends: list[int] = []  # in time lent since the program's start
        self._sorted_dones: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def in_flight(self, start: int, done: int) -> int:
        """How many copies are open at some time between two boundaries."""
        begun = bisect.bisect_left(self._starts, done)
        return begun - bisect.bisect_right(self._sorted_dones, start)

    def is_full(self, start: int, done: int) -> bool:
        """Whether as many as may be are open between two boundaries."""
        if self._max_outstanding is None:
            return False
        return self.in_flight(start, done) >= self._max_outstanding

    def has_time(self, start: int, done: int, copy_s: float) -> bool:
        """Whether a copy ends in time, and all others with it.

        Args:
          start, done: boundaries that it runs between.
          copy_s: seconds that it takes undisturbed.
        """
        at = bisect.bisect_right(self._starts, start)
        end = self._end(at, start, _scaled(copy_s))
        if end > self._lent[done]:
            return False
        for k in range(at, len(self._starts)):
            later = max(self._lent[self._starts[k]], end) + self._works[k]
            if later <= self._ends[k]:
                return True
            if later > self._lent[self._dones[k]]:
                return False
            end = later
        return True

    def add(self, start: int, done: int, copy_s: float) -> None:
        """Takes the time of a copy; whether there is any is the caller's matter."""
        at = bisect.bisect_right(self._starts, start)
        work = _scaled(copy_s)
        self._starts.insert(at, start)
        self._dones.insert(at, done)
        self._works.insert(at, work)
        self._ends.insert(at, 0)
        bisect.insort(self._sorted_dones, done)
        self._update(at)

    def remove(self, start: int, done: int, copy_s: float) -> None:
        """Gives back what `add` with the same numbers took."""
        work = _scaled(copy_s)
        at = bisect.bisect_right(self._starts, start) - 1
        while (self._starts[at], self._dones[at], self._works[at]) != (
            start,
            done,
            work,
        ):
            at -= 1
        for column in (self._starts, self._dones, self._works, self._ends):
            del column[at]
        del self._sorted_dones[bisect.bisect_left(self._sorted_dones, done)]
        self._update(at)

    def _end(self, at: int, start: int, work: int) -> int:
        """When a copy at position `at` ends."""
        queue_free = self._ends[at - 1] if at else 0
        return max(self._lent[start], queue_free) + work

    def _update(self, at: int) -> None:
        """Ends of the copies from position `at` on."""
        for k in range(at, len(self._starts)):
            end = self._end(k, self._starts[k], self._works[k])
            if end == self._ends[k] and k > at:
                return
            self._ends[k] = end


def _scaled(seconds: float) -> int:
    return round(seconds * _SCALE)
