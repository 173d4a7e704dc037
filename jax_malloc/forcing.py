"""A buffer brought into fast memory by force, and what that gains: evaluated.

    offset
      ^    +------+  +--------+        to hold x during ops [2, 5), the stays of a and b
      |    |  a   |  |   b    |        that meet its place leave, with their copies;
      |    +--[===|==|==x]----+        what they served is in slow memory then
      +----0--1---2--3---4---5--> ops

Every answer is a whole mapping without violations, so that anyone can evaluate it.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator

import numpy as np

from hwmodel.latency import copy_s
from jax_malloc import validator
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.timing import Change, Timing
from jax_malloc.solvers.uses import Life, lives
from jax_malloc.solvers.windows import Window, Windows
from jax_malloc.violation import Violation

# Pieces of one run of uses that are tried, and offsets and windows for each of them.
_MAX_PIECES = 9
_MAX_OFFSETS = 4
_MAX_WINDOWS = 8
# Of the candidates, best first, that many are put to the validator.
_MAX_VALIDATED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forced:
    """A mapping with one more stay, and what it takes.

    buffer_id, stay: what was brought in, and where to.
    evicted: stays that had to make room.
    mapping: the whole of it; without violations.
    latency_s: of `mapping`. gain_s: less than before; negative where it is a loss.
    ops_gain_s: the part of the gain that ops make, waits for copies left aside.
    """

    buffer_id: int
    stay: Segment
    evicted: tuple[Segment, ...]
    mapping: Mapping
    latency_s: float
    gain_s: float
    ops_gain_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of forcing a run of uses in; None where there is no such way.

    best: the best of all ways. there: the best that has a given op in it. free: the
    best of these that moves nothing else.
    refused: why the validator refused the most promising one, if it did.
    """

    best: Forced | None
    there: Forced | None
    free: Forced | None
    refused: Violation | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """One way, with its latency as the solvers' incremental timing gives it."""

    latency_s: float
    stay: Segment
    copies: tuple[Copy, ...]
    evicted: tuple[int, ...]  # positions in the mapping's segments
    replaced: tuple[int, ...]  # the buffer's own stays that the new one takes over


class Forcing:
    """The ways to change one mapping.

    lives: every buffer that may be in fast memory at all, by id.
    """

    def __init__(self, problem: Problem, mapping: Mapping) -> None:
        self.problem, self.mapping = problem, mapping
        self.timeline = problem.evaluate(mapping)
        # A solver leaves out what cannot matter; here even that can be asked for.
        placeable = np.array([not b.pinned_slow for b in problem.program.buffers], bool)
        placeable &= problem.size_granules > 0
        self.lives = lives(dataclasses.replace(problem, eligible=placeable))
        self._owned = [_copies_of(s, mapping.copies) for s in mapping.segments]
        self._timing = Timing(problem)
        self._windows = Windows(problem, self._timing)
        moved = [self._moved(s, -1) for s in mapping.segments]
        copies = [self._queued(c) for c in mapping.copies]
        self._timing.apply(Change(_summed(moved), copies, ()))
        self._saved_s = [
            -self._timing.op_saving_s(self._moved(s, 1)) for s in mapping.segments
        ]

    def slow_runs(self, buffer_id: int) -> list[tuple[int, int]]:
        """Longest runs `(first use, last use)` outside of fast memory."""
        life = self.lives[buffer_id]
        runs: list[tuple[int, int]] = []
        for k, use in enumerate(life.uses):
            if any(
                s.first <= use.begin and use.end <= s.end
                for s in self.mapping.segments
                if s.buffer_id == buffer_id
            ):
                continue
            if runs and runs[-1][1] == k - 1:
                runs[-1] = (runs[-1][0], k)
            else:
                runs.append((k, k))
        return runs

    def worth_s(self, stay: Segment) -> float:
        """Seconds that the program would take longer without a stay of the mapping."""
        i = self.mapping.segments.index(stay)
        mapping = self._without({i}, self._owned[i])
        return self.problem.evaluate(mapping).latency_s - self.timeline.latency_s

    def bring_in(self, buffer_id: int, run: tuple[int, int], at: int) -> Attempt:
        """Forces a run of uses in: all of it, pieces, and it with the stays beside it.

        Args:
          buffer_id: one of `lives`.
          run: one of its `slow_runs`.
          at: an op of it.
        """
        candidates = [
            candidate
            for first, last in self._extents(buffer_id, run)
            for candidate in self._candidates(buffer_id, first, last)
        ]
        candidates.sort(key=lambda c: c.latency_s)
        best, refused = self._first_valid(candidates)
        there = free = best
        if best is not None and not best.stay.first <= at < best.stay.end:
            candidates = [c for c in candidates if c.stay.first <= at < c.stay.end]
            there, _ = self._first_valid(candidates)
            free = there
        if there is not None and there.evicted:
            candidates = [c for c in candidates if c.stay.first <= at < c.stay.end]
            free, _ = self._first_valid([c for c in candidates if not c.evicted])
        return Attempt(best=best, there=there, free=free, refused=refused)

    def _first_valid(
        self, candidates: list[_Candidate]
    ) -> tuple[Forced | None, Violation | None]:
        """The first without violations, and the first violation met on the way."""
        refused = None
        for candidate in candidates[:_MAX_VALIDATED]:
            mapping = self._changed(candidate)
            violations = validator.find_violations(self.problem, mapping)
            if not violations:
                return self._evaluated(candidate, mapping), refused
            refused = refused or violations[0]
        return None, refused

    def _evaluated(self, candidate: _Candidate, mapping: Mapping) -> Forced:
        before, after = self.timeline, self.problem.evaluate(mapping)
        return Forced(
            buffer_id=candidate.stay.buffer_id,
            stay=candidate.stay,
            evicted=tuple(self.mapping.segments[i] for i in candidate.evicted),
            mapping=mapping,
            latency_s=after.latency_s,
            gain_s=before.latency_s - after.latency_s,
            ops_gain_s=float(before.op_duration_s.sum() - after.op_duration_s.sum()),
        )

    def _changed(self, candidate: _Candidate) -> Mapping:
        gone = {*candidate.evicted, *candidate.replaced}
        copies = [c for i in gone for c in self._owned[i]]
        mapping = self._without(gone, copies)
        return Mapping(
            (*mapping.segments, candidate.stay), (*mapping.copies, *candidate.copies)
        )

    def _without(self, gone: set[int], copies: Iterable[Copy]) -> Mapping:
        kept = list(self.mapping.copies)
        for copy in copies:
            kept.remove(copy)
        segments = enumerate(self.mapping.segments)
        return Mapping(tuple(s for i, s in segments if i not in gone), tuple(kept))

    def _extents(self, buffer_id: int, run: tuple[int, int]) -> list[tuple[int, int]]:
        """Runs of uses to try: all, with the stays beside it, and pieces.

        Pieces are what is left when a run is cut at its longest gap, again and again.
        """
        life, (first, last) = self.lives[buffer_id], run
        before = after = None
        for _, served in self._own(buffer_id):
            if served[1] == first - 1:
                before = served[0]
            if served[0] == last + 1:
                after = served[1]
        extents = [run]
        extents += [(before, last)] if before is not None else []
        extents += [(first, after)] if after is not None else []
        if before is not None and after is not None:
            extents.append((before, after))

        def gap_s(k: int) -> float:
            begin, end = life.uses[k].end - 1, life.uses[k + 1].begin
            return float(
                self.timeline.op_start_s[end] - self.timeline.op_start_s[begin]
            )

        heap = [(first - last, first, last)]  # the longest first
        while heap and len(extents) < _MAX_PIECES:
            _, a, b = heapq.heappop(heap)
            if a == b:
                continue
            cut = max(range(a, b), key=gap_s)
            for piece in ((a, cut), (cut + 1, b)):
                extents.append(piece)
                heapq.heappush(heap, (piece[0] - piece[1], *piece))
        return extents

    def _own(self, buffer_id: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Position of each stay of a buffer, and the uses that it serves."""
        uses = self.lives[buffer_id].uses
        for i, s in enumerate(self.mapping.segments):
            if s.buffer_id == buffer_id:
                served = [
                    k
                    for k, use in enumerate(uses)
                    if s.first <= use.begin and use.end <= s.end
                ]
                if served:
                    yield i, (served[0], served[-1])

    def _candidates(
        self, buffer_id: int, first: int, last: int
    ) -> Iterator[_Candidate]:
        life = self.lives[buffer_id]
        replaced, free_from, free_until = [], 0, len(self.problem.program.ops)
        for i, served in self._own(buffer_id):
            if served[1] < first:
                free_from = max(free_from, self.mapping.segments[i].end)
            elif served[0] > last:
                free_until = min(free_until, self.mapping.segments[i].begin)
            else:
                replaced.append(i)
        snapshot = self._timing.save()
        self._timing.apply(self._removal(replaced))
        windows = self._windows.of_run(
            life, first, last, free_from=free_from, free_until=free_until
        )
        for _, window in zip(range(_MAX_WINDOWS), windows, strict=False):
            for offset, evicted in self._offsets(life, window, set(replaced)):
                removal = self._removal(evicted)
                moved = [
                    (t, -n)
                    for use in life.uses[first : last + 1]
                    for t, n in use.accesses
                ]
                queued = [
                    c for c in (window.prefetch, window.eviction) if c is not None
                ]
                change = Change(
                    _summed([moved, removal.slow_bytes]), queued, removal.removed
                )
                stay = Segment(
                    buffer_id=buffer_id,
                    offset_bytes=offset * self.problem.granule_bytes,
                    begin=window.begin,
                    first=life.uses[first].begin,
                    end=window.end,
                )
                yield _Candidate(
                    self._timing.latency_after(change),
                    stay,
                    tuple(_copy(buffer_id, c) for c in queued),
                    tuple(evicted),
                    tuple(replaced),
                )
        self._timing.restore(snapshot)

    def _offsets(
        self, life: Life, window: Window, replaced: set[int]
    ) -> list[tuple[int, list[int]]]:
        """Offsets in granules, and the stays in the way there, those worth least first.

        Only offsets at the edge of something: any other has as much in the way.
        """
        begin, end = window.begin, window.end
        capacity = int(self.problem.op_capacity_granules[begin:end].min())
        top = capacity - life.granules
        there, shared = [], set()
        for i, s in enumerate(self.mapping.segments):
            if s.begin < end and begin < s.end and i not in replaced:
                low = s.offset_bytes // self.problem.granule_bytes
                size = int(self.problem.size_granules[s.buffer_id])
                there.append((low, low + size, i))
                if _may_share(life, window, s):
                    shared.add((low, i))
        starts = {0, top, *(high for _, high, _ in there), *(low for low, _ in shared)}
        starts |= {low - life.granules for low, _, _ in there}
        ways: dict[tuple[int, ...], int] = {}
        for start in sorted(starts):
            if 0 <= start <= top:
                stop = start + life.granules
                met = (
                    i
                    for low, high, i in there
                    if low < stop and start < high and (start, i) not in shared
                )
                ways.setdefault(tuple(met), start)
        ranked = sorted(ways, key=lambda met: sum(self._saved_s[i] for i in met))
        return [(ways[met], list(met)) for met in ranked[:_MAX_OFFSETS]]

    def _removal(self, positions: Iterable[int]) -> Change:
        """What taking stays out changes."""
        positions = list(positions)
        moved = [self._moved(self.mapping.segments[i], 1) for i in positions]
        copies = [self._queued(c) for i in positions for c in self._owned[i]]
        return Change(_summed(moved), (), copies)

    def _moved(self, stay: Segment, sign: int) -> list[tuple[int, float]]:
        """`(op, bytes)` that a stay serves, times `sign`."""
        problem = self.problem
        rows = problem.access_buffer == stay.buffer_id
        rows &= (problem.access_op >= stay.first) & (problem.access_op < stay.end)
        moved = problem.access_bytes[rows] * sign
        return list(zip(problem.access_op[rows].tolist(), moved.tolist(), strict=True))

    def _queued(self, c: Copy) -> QueuedCopy:
        home = self.problem.home_region[c.buffer_id]
        count = float(self.problem.region_counts[home])
        seconds = float(copy_s(c.size_bytes, self.problem.accelerator, count))
        is_eviction = c.direction is Direction.EVICT
        return QueuedCopy(c.start, c.done, c.size_bytes, is_eviction, seconds)


def _may_share(life: Life, window: Window, other: Segment) -> bool:
    """Whether one of the two is written over the other at the only op of both."""
    if other.buffer_id in life.written_over:
        return window.prefetch is None and other.end == window.begin + 1
    if other.buffer_id in life.overwritten_by:
        return window.eviction is None and other.begin == window.end - 1
    return False


def _copies_of(stay: Segment, copies: Iterable[Copy]) -> list[Copy]:
    """The prefetch that fills a stay and the evictions that save it."""
    mine = [c for c in copies if c.buffer_id == stay.buffer_id]
    return [
        c
        for c in mine
        if (
            stay.begin <= c.start and c.done <= stay.first
            if c.direction is Direction.PREFETCH
            else stay.begin < c.start and c.done <= stay.end
        )
    ]


def _copy(buffer_id: int, queued: QueuedCopy) -> Copy:
    return Copy(
        buffer_id=buffer_id,
        direction=Direction.EVICT if queued.is_eviction else Direction.PREFETCH,
        size_bytes=queued.size_bytes,
        start=queued.start,
        done=queued.done,
    )


def _summed(parts: Iterable[Iterable[tuple[int, float]]]) -> list[tuple[int, float]]:
    """`(op, bytes)` with each op once."""
    total: dict[int, float] = {}
    for part in parts:
        for t, moved in part:
            total[t] = total.get(t, 0.0) + moved
    return list(total.items())
