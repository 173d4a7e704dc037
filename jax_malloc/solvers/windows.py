"""From when until when a stay could hold its place, with the copies that this means.

    uses                 1        2
    room 2    [prefetch--|--------|------- eviction]     hidden, with time to spare
    room 1         [pref-|--------|--- evict]            just hidden by the ops
    room 0               |--------|                      the ops wait for both

A copy gets as many times its own length of unused copy time as the room says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.timing import Timing
from jax_malloc.solvers.uses import CopyBoundaries, Life

# In the order of preference: just hidden; more, should an op wait for it even so; less,
# should that find no place, at the price of a stall.
_ROOMS = (1.0, 2.0, 0.5, 0.0)
# Boundaries from a deadline, or to one, that are tried when a stay is timed anew.
_DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Window(NamedTuple):
    """Ops `[begin, end)` for which a place is taken, and the copies that fill and save
    it; None where there is nothing to fill or save."""

    begin: int
    end: int
    prefetch: QueuedCopy | None
    eviction: QueuedCopy | None


class Windows:
    """The windows of runs of uses, given the copies that there are now."""

    def __init__(self, problem: Problem, timing: Timing) -> None:
        self._timing = timing
        self._boundaries = CopyBoundaries(problem)
        self._num_ops = len(problem.program.ops)

    def of_run(
        self,
        life: Life,
        first: int,
        last: int,
        *,
        free_from: int,
        free_until: int,
        many: bool = False,
    ) -> Iterator[Window]:
        """Windows for uses `[first, last]`, preferred ones first; maybe none.

        Args:
          life: the buffer.
          free_from, free_until: boundaries between which it has no other stay.
          many: every sensible copy time, not only those that should be good.
        """
        begin, end = life.uses[first].begin, life.uses[last].end
        fills: list[QueuedCopy | None] = [None]
        saves: list[QueuedCopy | None] = [None]
        if life.uses[first].reads:
            fills = list(self._prefetches(life, first, free_from, many))
        if life.needs_eviction(first, last):
            saves = list(self._evictions(life, first, last, free_until, many))
        elif end > free_until:
            return
        for save, fill in itertools.product(saves, fills):
            yield Window(
                fill.start if fill else begin,
                max(end, save.done) if save else end,
                fill,
                save,
            )

    def _prefetches(
        self, life: Life, first: int, free_from: int, many: bool
    ) -> Iterator[QueuedCopy]:
        """Copies that bring a buffer in for a use."""
        done = life.uses[first].begin
        written = [u.end for u in life.uses[:first] if u.writes]
        earliest = self._boundaries.at_or_after(life.home, max([free_from, *written]))
        nothing_to_copy = not (written or life.starts_in_slow)
        if (
            nothing_to_copy
            or earliest > done
            or self._boundaries.at_or_before(life.home, done) != done
        ):
            return
        if many:
            starts = [done - distance for distance in _DISTANCES]
        else:
            starts = [
                self._timing.latest_start(earliest, done, life.copy_s * room)
                for room in _ROOMS
            ]
        starts = [max(s, earliest) for s in starts]
        starts = [self._boundaries.at_or_before(life.home, s) for s in starts]
        for start in dict.fromkeys(starts):
            yield QueuedCopy(start, done, life.size_bytes, False, life.copy_s)

    def _evictions(
        self, life: Life, first: int, last: int, free_until: int, many: bool
    ) -> Iterator[QueuedCopy]:
        """Copies that save what uses `[first, last]` wrote, from the last write on."""
        written = max(u.end for u in life.uses[first : last + 1] if u.writes)
        start = self._boundaries.at_or_after(life.home, written)
        limit = self._num_ops
        if last + 1 < len(life.uses):
            limit = life.uses[last + 1].begin
        latest = self._boundaries.at_or_before(life.home, min(limit, free_until))
        earliest = max(start, life.uses[last].end)
        if latest < earliest:
            return
        if many:
            dones = [earliest + distance for distance in _DISTANCES]
        else:
            dones = [
                self._timing.earliest_done(start, latest, life.copy_s * room)
                for room in _ROOMS
            ]
        dones = [min(max(d, earliest), latest) for d in dones] + [latest]
        dones = [self._boundaries.at_or_after(life.home, d) for d in dones]
        for done in dict.fromkeys(dones):
            yield QueuedCopy(start, done, life.size_bytes, True, life.copy_s)
