"""From when until when a stay could hold its place, with the copies that this means.

    uses                 1        2
    room 2    [prefetch--|--------|------- eviction]     hidden, with time to spare
    room 1         [pref-|--------|--- evict]            just hidden by the ops
    room 0               |--------|                      the ops wait for both

A copy gets as many times its own length of unused copy time as the room says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.timing import Timing
from jax_malloc.solvers.uses import CopyBoundaries, Life

# In the order of preference: just hidden; more, should an op wait for it even so; less,
# should that find no place, at the price of a stall.
_ROOMS = (1.0, 2.0, 0.5, 0.0)


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
        self, life: Life, first: int, last: int, *, free_from: int, free_until: int
    ) -> Iterator[Window]:
        """A few windows for uses `[first, last]`, preferred ones first; maybe none.

        Args:
          life: the buffer.
          free_from, free_until: boundaries between which it has no other stay.
        """
        fills: list[QueuedCopy | None] = [None]
        saves: list[QueuedCopy | None] = [None]
        lengths = [life.copy_s * room for room in _ROOMS]
        if life.uses[first].reads:
            span = self._prefetch_span(life, first, free_from)
            if span is None:
                return
            starts = self._timing.latest_starts(*span, lengths)
            fills = list(self._prefetches(life, span, starts))
        if life.needs_eviction(first, last):
            span = self._eviction_span(life, first, last, free_until)
            if span is None:
                return
            start, latest = span[0], span[2]
            dones = self._timing.earliest_dones(start, latest, lengths)
            saves = list(self._evictions(life, span, (*dones, latest)))
        elif life.uses[last].end > free_until:
            return
        for save, fill in itertools.product(saves, fills):
            yield _window(life, first, last, fill, save)

    def _prefetch_span(
        self, life: Life, first: int, free_from: int
    ) -> tuple[int, int] | None:
        """Earliest start and deadline of a prefetch; None if there is no way."""
        done = life.uses[first].begin
        written = [u.end for u in life.uses[:first] if u.writes]
        if not written and not life.starts_in_slow:
            return None
        earliest = self._boundaries.at_or_after(life.home, max([free_from, *written]))
        if earliest > done or self._boundaries.at_or_before(life.home, done) != done:
            return None
        return earliest, done

    def _eviction_span(
        self, life: Life, first: int, last: int, free_until: int
    ) -> tuple[int, int, int] | None:
        """Start, earliest and latest deadline of an eviction; None if there is no way.

        It starts right after the last of the writes that it saves.
        """
        written = max(u.end for u in life.uses[first : last + 1] if u.writes)
        start = self._boundaries.at_or_after(life.home, written)
        limit = free_until
        if last + 1 < len(life.uses):
            limit = min(limit, life.uses[last + 1].begin)
        latest = self._boundaries.at_or_before(life.home, limit)
        earliest = max(start, life.uses[last].end)
        return (start, earliest, latest) if earliest <= latest else None

    def _prefetches(
        self, life: Life, span: tuple[int, int], starts: Iterable[int]
    ) -> Iterator[QueuedCopy]:
        """Prefetches at allowed boundaries near `starts`."""
        earliest, done = span
        starts = (
            self._boundaries.at_or_before(life.home, max(start, earliest))
            for start in starts
        )
        for start in dict.fromkeys(starts):
            yield QueuedCopy(start, done, life.size_bytes, False, life.copy_s)

    def _evictions(
        self, life: Life, span: tuple[int, int, int], dones: Iterable[int]
    ) -> Iterator[QueuedCopy]:
        """Evictions with deadlines at allowed boundaries near `dones`."""
        start, earliest, latest = span
        dones = (
            self._boundaries.at_or_after(life.home, min(max(done, earliest), latest))
            for done in dones
        )
        for done in dict.fromkeys(dones):
            yield QueuedCopy(start, done, life.size_bytes, True, life.copy_s)


def _window(
    life: Life,
    first: int,
    last: int,
    prefetch: QueuedCopy | None,
    eviction: QueuedCopy | None,
) -> Window:
    begin, end = life.uses[first].begin, life.uses[last].end
    return Window(
        begin if prefetch is None else prefetch.start,
        end if eviction is None else max(end, eviction.done),
        prefetch,
        eviction,
    )
