"""One attempt to place a buffer: its uses in order of time, one segment after another.

    uses        0 (definition)     1              2                     3
    segments    |------------------|--------------|---------------------|
                no-copy            no-copy        waits too long: evict
                [==================|==============|== ]       [prefetch]|
                                            eviction, begun at 0

Source: `MsaAlgorithm::AllocateSegment`, `AllocateInAlternateMemoryNoCopy`, `Evict` and
`Prefetch` in xla/service/memory_space_assignment/algorithm.cc.
"""

from __future__ import annotations

import dataclasses
import enum

from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import CopyBoundaries, Life
from jax_malloc.solvers.xla_msa.costs import CostAnalysis
from jax_malloc.solvers.xla_msa.interval_picker import IntervalPicker
from jax_malloc.solvers.xla_msa.memory import FastMemory, Stay, Transfer
from jax_malloc.solvers.xla_msa.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workspace:
    """What all attempts at one problem share."""

    problem: Problem
    options: Options
    costs: CostAnalysis
    picker: IntervalPicker
    boundaries: CopyBoundaries
    memory: FastMemory


class Start(enum.Enum):
    """Where the definition of a buffer must be, other than in an operand's place."""

    ANYWHERE = "anywhere"
    SLOW = "slow"


class Result(enum.Flag):
    """What went wrong while a segment was placed."""

    SUCCESS = 0
    OUT_OF_MEMORY = enum.auto()
    NO_TIME = enum.auto()
    LIVE_RANGE_TOO_LONG = enum.auto()
    REQUIRES_UNCOMMIT = enum.auto()


class Attempt:
    """Stays of one buffer, placed in fast memory as they are found.

    Args:
      workspace: the memory that they are placed in, and what decides about them.
      life: the buffer.
      start: where its definition must be; a stay of the operand that it is written
        over.
      slow_uses: indices of uses that must be served from slow memory.
      retry: how often the buffer was tried before.
    """

    def __init__(
        self,
        workspace: Workspace,
        life: Life,
        *,
        start: Stay | Start = Start.ANYWHERE,
        slow_uses: frozenset[int] = frozenset(),
        retry: int = 0,
    ) -> None:
        self._memory, self._picker = workspace.memory, workspace.picker
        self._boundaries, self._options = workspace.boundaries, workspace.options
        problem = workspace.problem
        self._life, self._start = life, start
        self._slow_uses, self._retry = slow_uses, retry
        self._num_ops = len(problem.program.ops)
        self._runs = float(problem.region_counts[life.home])
        self._nest = workspace.costs.region_nest[life.home]
        self._copy_s = workspace.costs.copy_s(life.size_bytes)
        self.stays: list[Stay] = []
        self._held: Stay | None = None  # holds the contents after the last use
        self._undecided = False  # defined, but not yet known where
        self._written_by = 0  # boundary after the last write
        # Boundary from which slow memory has the contents; None, not at all.
        self._in_slow_since: int | None = 0 if life.starts_in_slow else None

    @property
    def buffer_id(self) -> int:
        return self._life.buffer_id

    def run(self) -> Result:
        """Places every segment.

        With REQUIRES_UNCOMMIT in the result the attempt must be undone; with anything
        else its stays are in order, and uses without one are in slow memory.
        """
        life, failures = self._life, Result.SUCCESS
        if not life.starts_in_slow:
            self._define()
        for k in range(0 if life.starts_in_slow else 1, len(life.uses)):
            failures |= self._segment(k)
            if Result.REQUIRES_UNCOMMIT in failures:
                return failures
        if life.ends_in_slow and self._held and self._in_slow_since is None:
            failures |= self._evict(self._num_ops)
        return failures

    def stay_at(self, op: int) -> Stay | None:
        """The stay that serves an op."""
        uses = self._life.uses
        for stay in self.stays:
            if uses[stay.first_use].begin <= op < uses[stay.last_use].end:
                return stay
        return None

    def undo(self) -> None:
        """Gives back all that the attempt took."""
        for stay in reversed(self.stays):
            self._memory.remove(stay)
        self.stays.clear()

    def inefficient_uses(self) -> frozenset[int]:
        """Uses in stays whose copies move more than is gained, by the bytes touched.

        Source: `MsaAlgorithm::GetInefficientAllocationSites`.
        """
        uses: set[int] = set()
        for stay in self.stays:
            num_copies = sum(c is not None for c in (stay.prefetch, stay.eviction))
            copied = num_copies * self._life.size_bytes
            mine = range(stay.first_use, stay.last_use + 1)
            touched = sum(n for k in mine for _, n in self._life.uses[k].accesses)
            copied *= self._runs
            if copied * self._options.inefficient_use_to_copy_ratio > touched:
                uses.update(mine)
        return frozenset(uses)

    def _define(self) -> None:
        """Where the first use writes the buffer, as far as that is settled."""
        define = self._life.uses[0]
        self._written_by = define.end
        if self._start is Start.ANYWHERE:
            self._undecided = True
        elif self._start is Start.SLOW:
            self._in_slow_since = define.end
        else:
            self._hold(self._memory.add_over(self._life, self._start))

    def _segment(self, k: int) -> Result:
        """Places use k, given where the contents are after the one before it."""
        may_be_fast = k not in self._slow_uses
        failures = Result.SUCCESS
        if may_be_fast and (self._held or self._undecided):
            failures = self._no_copy(k)
            if not failures:
                return self._served(k)
        if self._undecided:
            self._undecided = False
            self._in_slow_since = self._written_by
        elif self._held and self._in_slow_since is None:
            failures |= self._evict(self._life.uses[k].begin)
            if failures & Result.REQUIRES_UNCOMMIT:
                return failures
        self._held = None
        if may_be_fast:
            prefetch_failures = self._prefetch(k)
            if not prefetch_failures:
                return self._served(k)
            failures |= prefetch_failures
        if self._life.uses[k].writes:
            self._written_by = self._in_slow_since = self._life.uses[k].end
        return failures

    def _served(self, k: int) -> Result:
        """Notes that use k finds the buffer in fast memory."""
        self._held.last_use = k
        if self._life.uses[k].writes:
            self._written_by, self._in_slow_since = self._life.uses[k].end, None
        return Result.SUCCESS

    def _no_copy(self, k: int) -> Result:
        """Keeps the buffer in fast memory since the use before, or the definition."""
        before, use = self._life.uses[k - 1], self._life.uses[k]
        if not self._picker.may_wait(before.end, use.begin, self._nest):
            return Result.LIVE_RANGE_TOO_LONG
        if self._undecided:
            if k - 1 in self._slow_uses:
                return Result.LIVE_RANGE_TOO_LONG
            offset = self._memory.find(self._life, before.begin, self._ends(k))
            if offset is None:
                return Result.OUT_OF_MEMORY
            self._hold(
                self._memory.add(self._life, offset, before.begin, k - 1, end=use.end)
            )
            self._undecided = False
            return Result.SUCCESS
        stay = self._held
        if not self._memory.is_free(self._life, stay.offset, stay.end, use.end):
            return Result.OUT_OF_MEMORY
        self._memory.extend(stay, use.end)
        return Result.SUCCESS

    def _evict(self, limit: int) -> Result:
        """Copies what was written to slow memory by a boundary, right after the write.

        The place is kept for that long, if it is free; otherwise at least until the
        last use.
        """
        failed = Result.NO_TIME | Result.REQUIRES_UNCOMMIT
        life, stay = self._life, self._held
        start = self._boundaries.at_or_after(life.home, self._written_by)
        if start > limit:
            return failed
        wanted = self._picker.preferred_eviction_end(
            life, start, self._retry, self._nest
        )
        latest = min(max(wanted, stay.end), limit)
        latest = self._memory.free_until(life, stay.offset, stay.end, latest)
        done = self._boundaries.at_or_before(life.home, latest)
        last_retry = self._retry >= self._options.max_retries
        # After the last op there is still the one that returns the outputs.
        at_end = start == self._num_ops and last_retry
        if done < stay.end or (done <= start and not at_end):
            return failed
        copy_s = 0.0 if last_retry else self._copy_s
        eviction = Transfer(start, done, copy_s)
        if not self._memory.may_evict(eviction):
            return failed
        self._memory.evict(stay, eviction)
        self._in_slow_since = done
        return Result.SUCCESS

    def _prefetch(self, k: int) -> Result:
        """Copies the buffer to fast memory in time for use k."""
        life, use = self._life, self._life.uses[k]
        earliest = self._in_slow_since
        if self.stays:
            earliest = max(earliest, self.stays[-1].end)
        if self._boundaries.at_or_before(life.home, use.begin) != use.begin:
            return Result.NO_TIME  # a loop's first op: no copy can end here
        latest = self._picker.latest_start(life, use, self._nest)
        if latest < earliest:
            return Result.NO_TIME
        if self._memory.find(life, latest, [use.end]) is None:
            return Result.OUT_OF_MEMORY
        failures, too_early, ends = Result.NO_TIME, -1, self._ends(k)
        for start in self._picker.starts(life, use, earliest, self._nest):
            prefetch = Transfer(start, use.begin, self._copy_s)
            if start <= too_early or not self._memory.may_prefetch(prefetch):
                continue
            offset = self._memory.find(life, start, ends)
            if offset is None:
                too_early = start  # and so is every earlier one
                failures |= Result.OUT_OF_MEMORY
                continue
            self._hold(
                self._memory.add(life, offset, start, k, end=use.end, prefetch=prefetch)
            )
            return Result.SUCCESS
        return failures

    def _hold(self, stay: Stay) -> None:
        self.stays.append(stay)
        self._held = stay

    def _ends(self, k: int) -> list[int]:
        """Ends of use k and of those after it that could do without another copy."""
        uses = self._life.uses
        ends = [uses[k].end]
        for before, use in zip(uses[k:], uses[k + 1 :], strict=False):
            if not self._picker.may_wait(before.end, use.begin, self._nest):
                break
            ends.append(use.end)
        return ends
