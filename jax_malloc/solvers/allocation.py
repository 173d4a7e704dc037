"""A mapping in the making: stays that can be added, replaced and taken back one by one.

    uses of x      0     1     2           3     4
    try_place      [-----------]                        uses 0 to 2 in fast memory
                               [eviction]   if slow memory must learn what was written
    try_place                       (prefetch)---]      uses 3 to 4, brought back

Every state is a valid mapping with exact offsets and an exact latency. What a stay
needs follows from its own uses alone, so that removing others never breaks it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.packing import FitRule, Packing
from jax_malloc.solvers.stay import Stay, to_mapping
from jax_malloc.solvers.timing import Change, Timing
from jax_malloc.solvers.uses import Life, lives
from jax_malloc.solvers.windows import Window, Windows

# A stay must save this share of the program's latency: less is no gain but noise.
_NOISE = 1e-8


class Allocation:
    """Stays placed so far, at first none.

    lives: the buffers it can place, by id. stays: `{buffer_id: stays in time order}`.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.lives = lives(problem)
        self.stays: dict[int, tuple[Stay, ...]] = dict.fromkeys(self.lives, ())
        self._timing = Timing(problem)
        self._packing = Packing(problem.op_capacity_granules)
        self._windows = Windows(problem, self._timing)
        self._num_ops = len(problem.program.ops)
        self._max_in_flight = problem.accelerator.dma.max_in_flight
        self._noise_s = _NOISE * problem.all_slow_latency_s
        self._next_key = 0

    @classmethod
    def from_mapping(cls, problem: Problem, mapping: Mapping) -> Allocation:
        """The stays of a valid mapping; of their copies, those that are needed."""
        allocation = cls(problem)
        copies: dict[int, list[Copy]] = {b: [] for b in allocation.lives}
        for copy in mapping.copies:
            if copy.buffer_id in copies:
                copies[copy.buffer_id].append(copy)
        for segment in mapping.segments:
            if segment.buffer_id in copies:
                allocation._adopt(segment, copies[segment.buffer_id])
        return allocation

    @property
    def latency_s(self) -> float:
        """Exact latency of the program under the stays so far."""
        return self._timing.latency_s

    @property
    def stall_s(self) -> float:
        """The part of it in which ops wait for copies."""
        return self._timing.stall_s

    def stalls(self) -> list[tuple[int, float]]:
        """`(boundary, seconds)` of every wait for a copy."""
        return self._timing.stalls()

    def blocking_stays(self) -> list[Stay]:
        """Stays with a copy that ops wait for, or one just ahead of it in the queue."""
        blocking = set(self._timing.blocking_copies())
        return [s for s in self.all_stays() if not blocking.isdisjoint(s.copies)]

    def save(self) -> tuple:
        """A snapshot for `restore`."""
        return dict(self.stays), self._timing.save(), self._packing.save()

    def restore(self, snapshot: tuple) -> None:
        """Back to what `save` saw; the snapshot can be used again."""
        self.stays = dict(snapshot[0])
        self._timing.restore(snapshot[1])
        self._packing.restore(snapshot[2])

    def all_stays(self) -> Iterator[Stay]:
        """Every stay, by buffer."""
        for stays in self.stays.values():
            yield from stays

    def slow_runs(self, buffer_id: int) -> list[tuple[int, int]]:
        """Longest runs `(first use, last use)` of a buffer outside of fast memory."""
        runs, at = [], 0
        for stay in self.stays[buffer_id]:
            if stay.first_use > at:
                runs.append((at, stay.first_use - 1))
            at = stay.last_use + 1
        if at < len(self.lives[buffer_id].uses):
            runs.append((at, len(self.lives[buffer_id].uses) - 1))
        return runs

    def try_place(
        self, buffer_id: int, first: int, last: int, rule: FitRule = FitRule.BEST_TOP
    ) -> bool:
        """Puts a run of uses into fast memory if that lowers the latency.

        Stays of the buffer within the run are replaced; those that reach beyond it make
        it longer.
        """
        life, own = self.lives[buffer_id], self.stays[buffer_id]
        inside = [s for s in own if s.first_use <= last and first <= s.last_use]
        if inside:
            first = min(first, inside[0].first_use)
            last = max(last, inside[-1].last_use)
        covered = {u for s in inside for u in range(s.first_use, s.last_use + 1)}
        moved = [
            (t, -n)
            for u in range(first, last + 1)
            if u not in covered
            for t, n in life.uses[u].accesses
        ]
        saving_s = self._timing.op_saving_s(moved)
        if saving_s <= self._noise_s and not inside:
            return False
        for stay in inside:
            self._packing.remove(stay.key)
        removed = [c for s in inside for c in s.copies]
        best, best_s = None, self.latency_s - self._noise_s
        for stay in self._options(life, first, last, rule):
            change = Change(moved, stay.copies, removed)
            latency_s = self._timing.latency_after(change)
            if latency_s < best_s and self._may_copy(change):
                best, best_s = stay, latency_s
            if latency_s <= self.latency_s - saving_s + self._noise_s:
                break  # no stall: it cannot get better
        if best is None:
            for s in inside:
                self._take(s)
            return False
        self._timing.apply(Change(moved, best.copies, removed))
        self._take(best)
        self.stays[buffer_id] = tuple(s for s in own if s not in inside)
        self._insert(best)
        return True

    def place(
        self,
        buffer_id: int,
        first: int,
        last: int,
        *,
        start: int,
        done: int,
        rule: FitRule = FitRule.BEST_TOP,
    ) -> bool:
        """Puts a run of slow uses into fast memory, paying or not, if there is room.

        Args:
          start, done: boundaries near which its prefetch should start and its eviction
            be done.
        """
        life = self.lives[buffer_id]
        free_from, free_until = self._free_span(buffer_id, first, last)
        window = self._windows.near(
            life,
            first,
            last,
            free_from=free_from,
            free_until=free_until,
            start=start,
            done=done,
        )
        if window is None:
            return False
        sharing = self._sharing(life, first, last)
        offset = self._find(life.granules, window.begin, window.end, rule, sharing)
        if offset is None:
            return False
        stay = self._stay(buffer_id, first, last, offset, window)
        change = Change([(t, -n) for t, n in self._accesses(stay)], stay.copies, ())
        if not self._may_copy(change):
            return False
        self._timing.apply(change)
        self._take(stay)
        self._insert(stay)
        return True

    def remove(self, stays: Iterable[Stay]) -> None:
        """Puts the uses of stays back into slow memory."""
        stays = list(stays)
        for s in stays:
            self._packing.remove(s.key)
            mine = self.stays[s.buffer_id]
            self.stays[s.buffer_id] = tuple(x for x in mine if x is not s)
        slow = [access for s in stays for access in self._accesses(s)]
        self._timing.apply(Change(slow, (), [c for s in stays for c in s.copies]))

    def latency_without(self, stay: Stay) -> float:
        """The latency that `remove` would lead to."""
        change = Change(list(self._accesses(stay)), (), stay.copies)
        return self._timing.latency_after(change)

    def retime(self, stay: Stay) -> bool:
        """Moves the copies of a stay, at its offset, if that lowers the latency."""
        life = self.lives[stay.buffer_id]
        first, last = stay.first_use, stay.last_use
        free_from, free_until = self._free_span(stay.buffer_id, first, last)
        sharing = self._sharing(life, first, last).get(stay.offset, ())
        self._packing.remove(stay.key)
        best, best_s = stay, self.latency_s - self._noise_s
        for begin, end, prefetch, eviction in self._windows.retimed(
            life,
            first,
            last,
            free_from=free_from,
            free_until=free_until,
            prefetch=stay.prefetch,
            eviction=stay.eviction,
        ):
            if not self._packing.is_free(
                life.granules, stay.offset, begin, end, sharing
            ):
                continue
            other = dataclasses.replace(
                stay, begin=begin, end=end, prefetch=prefetch, eviction=eviction
            )
            change = Change((), other.copies, stay.copies)
            latency_s = self._timing.latency_after(change)
            if latency_s < best_s and self._may_copy(change):
                best, best_s = other, latency_s
        self._take(best)
        if best is stay:
            return False
        self._timing.apply(Change((), best.copies, stay.copies))
        self.stays[stay.buffer_id] = tuple(
            best if s is stay else s for s in self.stays[stay.buffer_id]
        )
        return True

    def in_the_way(
        self, run: tuple[int, int, int], offset: int, begin: int, end: int
    ) -> set[int]:
        """Keys of the stays that a run of uses would have to push out.

        Args:
          run: buffer, first and last use.
          offset, begin, end: the place that it would take during ops `[begin, end)`.
        """
        buffer_id, first, last = run
        life = self.lives[buffer_id]
        there = self._packing.in_the_way(life.granules, offset, begin, end)
        return set(there).difference(self._sharing(life, first, last).get(offset, ()))

    def to_mapping(self) -> Mapping:
        """The stays and their copies, in bytes and boundaries."""
        return to_mapping(self.problem, self.lives, self.all_stays())

    def _adopt(self, segment: Segment, copies: list[Copy]) -> None:
        """Takes over one stay of a mapping, at its offset; `copies` of its buffer."""
        life = self.lives[segment.buffer_id]
        served = [
            k
            for k, use in enumerate(life.uses)
            if segment.first <= use.begin and use.end <= segment.end
        ]
        if not served:
            return
        first, last = served[0], served[-1]
        mine = [c for c in copies if segment.begin <= c.start and c.done <= segment.end]
        prefetch = eviction = None
        if life.uses[first].reads:
            c = next(c for c in mine if c.direction is Direction.PREFETCH)
            prefetch = QueuedCopy(c.start, c.done, life.size_bytes, False, life.copy_s)
        end = life.uses[last].end
        if life.needs_eviction(first, last):
            # Of several, the one that saves what was written last.
            c = max(
                (c for c in mine if c.direction is Direction.EVICT),
                key=lambda c: c.start,
            )
            eviction = QueuedCopy(c.start, c.done, life.size_bytes, True, life.copy_s)
            end = max(end, c.done)
        offset = segment.offset_bytes // self.problem.granule_bytes
        window = Window(segment.begin, end, prefetch, eviction)
        stay = self._stay(segment.buffer_id, first, last, offset, window)
        moved = [(t, -n) for t, n in self._accesses(stay)]
        self._timing.apply(Change(moved, stay.copies, ()))
        self._take(stay)
        self._insert(stay)

    def _stay(
        self, buffer_id: int, first: int, last: int, offset: int, window: Window
    ) -> Stay:
        """A new stay, not yet placed."""
        self._next_key += 1
        return Stay(self._next_key, buffer_id, first, last, offset, *window)

    def _insert(self, stay: Stay) -> None:
        """Adds a stay to those of its buffer."""
        stays = (*self.stays[stay.buffer_id], stay)
        self.stays[stay.buffer_id] = tuple(sorted(stays, key=lambda s: s.first_use))

    def _accesses(self, stay: Stay) -> Iterator[tuple[int, float]]:
        uses = self.lives[stay.buffer_id].uses[stay.first_use : stay.last_use + 1]
        for use in uses:
            yield from use.accesses

    def _take(self, stay: Stay) -> None:
        granules = self.lives[stay.buffer_id].granules
        self._packing.add(stay.key, granules, stay.offset, stay.begin, stay.end)

    def _options(
        self, life: Life, first: int, last: int, rule: FitRule
    ) -> Iterator[Stay]:
        """Stays for a run of uses that find a place, preferred ones first."""
        sharing = self._sharing(life, first, last)
        # Without copies it is shortest: most that find no place do not then, either.
        shortest = life.uses[first].begin, life.uses[last].end
        if self._find(life.granules, *shortest, rule, sharing) is None:
            return
        free_from, free_until = self._free_span(life.buffer_id, first, last)
        windows = self._windows.of_run(
            life, first, last, free_from=free_from, free_until=free_until
        )
        too_long: list[tuple[int, int]] = []
        for window in windows:
            begin, end = window.begin, window.end
            if any(begin <= b and e <= end for b, e in too_long):
                continue
            offset = self._find(life.granules, begin, end, rule, sharing)
            if offset is None:
                too_long.append((begin, end))
                continue
            yield self._stay(life.buffer_id, first, last, offset, window)

    def _find(
        self,
        size: int,
        begin: int,
        end: int,
        rule: FitRule,
        sharing: dict[int, list[int]],
    ) -> int | None:
        """A place that is free, best one that is shared."""
        for offset, keys in sharing.items():
            if self._packing.is_free(size, offset, begin, end, keys):
                return offset
        return self._packing.find(size, begin, end, rule)

    def _sharing(self, life: Life, first: int, last: int) -> dict[int, list[int]]:
        """Stays beside which a run of uses may be at one offset, by that offset.

        At the op that writes one buffer over the other, and only there, both are in
        fast memory; neither has a copy to or from it at that time.
        """
        shared: dict[int, list[int]] = {}
        if first == 0:
            for b in life.written_over:
                for stay in self.stays.get(b, ())[-1:]:
                    if stay.last_use == len(self.lives[b].uses) - 1:
                        shared.setdefault(stay.offset, []).append(stay.key)
        if last == len(life.uses) - 1:
            for b in life.overwritten_by:
                for stay in self.stays.get(b, ())[:1]:
                    if stay.first_use == 0:
                        shared.setdefault(stay.offset, []).append(stay.key)
        return shared

    def _free_span(self, buffer_id: int, first: int, last: int) -> tuple[int, int]:
        """Boundaries between which a buffer has no stay but those of these uses."""
        free_from, free_until = 0, self._num_ops
        for s in self.stays[buffer_id]:
            if s.last_use < first:
                free_from = s.end
            elif s.first_use > last:
                free_until = s.begin
                break
        return free_from, free_until

    def _may_copy(self, change: Change) -> bool:
        """Whether the DMA can hold all copies in flight."""
        if self._max_in_flight is None:
            return True
        copies = [*self._timing.copies, *change.added]
        for copy in change.removed:
            copies.remove(copy)
        # A copy that is waited for as soon as it is issued is never in flight.
        copies = [c for c in copies if c.start < c.done]
        edges = [(c.start, 1) for c in copies] + [(c.done, -1) for c in copies]
        in_flight = itertools.accumulate(step for _, step in sorted(edges))
        return max(in_flight, default=0) <= self._max_in_flight
