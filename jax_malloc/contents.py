"""Where the current contents of each buffer are, replayed with version numbers.

Every write raises a buffer's version. Slow memory and each stay in fast memory hold
some version; an access, a copy and the program's end must find the current one where
they look.

    op             0: define    1        2: update    3        4: read
    version            1        1            2        2            2
    fast stay          1        1            2        2            2
    slow memory        -        - [evict    (1)] race: op 2 writes what is being copied
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
from collections.abc import Iterator

from jax_malloc.loops import Loops
from jax_malloc.mapping import Copy, Direction, Segment
from jax_malloc.problem import Problem
from jax_malloc.violation import Violation, ViolationKind


@dataclasses.dataclass(slots=True)
class _Use:
    """Accesses of one buffer that no copy can come between: an op, or a whole loop.

    start, end: ops that it spans. t: its first access.
    needs: whether it depends on the contents before it.
    """

    start: int
    end: int
    t: int
    needs: bool
    writes: bool


class _Phase(enum.IntEnum):
    """What happens at one boundary, in this order."""

    COPY_DONE = 0
    COPY_START = 1
    USE = 2


def find_violations(
    problem: Problem, segments: list[Segment], copies: list[Copy]
) -> list[Violation]:
    """Violations of what must be where when, of all buffers.

    Args:
      problem: program and machine.
      segments, copies: of a mapping, with times in order and known buffers.
    """
    stays, moves = collections.defaultdict(list), collections.defaultdict(list)
    for s in segments:
        stays[s.buffer_id].append(s)
    for c in copies:
        moves[c.buffer_id].append(c)
    uses = _uses(problem)
    found: list[Violation] = []
    # A buffer that is never in fast memory is where every op expects it.
    for b in sorted({*stays, *moves}):
        replay = _Replay(problem, b, uses[b], stays[b], moves[b])
        found += replay.run()
    found += _alias_groups(problem, uses, stays, moves)
    return found


def _uses(problem: Problem) -> dict[int, list[_Use]]:
    """The uses of each buffer, in time order."""
    uses: dict[int, list[_Use]] = collections.defaultdict(list)
    loops, home = Loops(problem.program), problem.home_region.tolist()
    columns = (
        problem.access_op,
        problem.access_buffer,
        problem.access_reads,
        problem.access_writes,
    )
    for t, b, reads, writes in zip(*(c.tolist() for c in columns), strict=True):
        start, end = loops.span(t, home[b])
        if uses[b] and uses[b][-1].start == start:
            uses[b][-1].writes |= writes
            continue
        if problem.program.ops[t].region != home[b]:
            # A loop may not run at all, and then keeps the contents that it found.
            defined = problem.program.buffers[b].is_input or bool(uses[b])
            reads = reads or defined
        uses[b].append(_Use(start, end, t, reads, writes))
    return uses


class _Replay:
    """One buffer from the program's start to its end.

    version: raised by every write; 0, as the program found it.
    slow: the version that slow memory holds, None for nothing.
    held: the version that each stay holds, by its index; missing until it is filled.
    """

    def __init__(
        self,
        problem: Problem,
        buffer_id: int,
        uses: list[_Use],
        stays: list[Segment],
        copies: list[Copy],
    ) -> None:
        self.program = problem.program
        self.buffer = problem.program.buffers[buffer_id]
        self.label = self.buffer.label
        self.uses, self.copies = uses, sorted(copies, key=lambda c: (c.start, c.done))
        self.stays = sorted(stays, key=lambda s: (s.first, s.begin))
        self.version = 0
        self.slow: int | None = 0 if self.buffer.is_input else None
        self.held: dict[int, int] = {}
        self.copied: dict[int, int] = {}  # version under way, by copy
        self.target: dict[int, int] = {}  # stay that each prefetch fills
        self.unfilled: set[int] = set()  # stays reported as not filled in time

    def run(self) -> Iterator[Violation]:
        yield from self._fill()
        events = [(u.start, _Phase.USE, k) for k, u in enumerate(self.uses)]
        for k, c in enumerate(self.copies):
            events.append((c.start, _Phase.COPY_START, k))
            # Without time in between, the start ends the copy as well.
            if c.done > c.start:
                events.append((c.done, _Phase.COPY_DONE, k))
        for _, phase, k in sorted(events):
            if phase is _Phase.USE:
                yield from self._use(self.uses[k])
            elif phase is _Phase.COPY_DONE:
                self._done(k)
            else:
                yield from self._start(k)
                if self.copies[k].done == self.copies[k].start:
                    self._done(k)
        if self.buffer.is_output and self.version and self.slow != self.version:
            yield self._violation(
                ViolationKind.OUTPUT,
                len(self.program.ops),
                f"output {self.label!r} is not in slow memory when the program ends; "
                "evict it after its last write.",
            )

    def _fill(self) -> Iterator[Violation]:
        """Matches prefetches and stays; every stay needs one, or the definition."""
        for k, c in enumerate(self.copies):
            if c.direction is Direction.PREFETCH:
                yield from self._match(k, c)
        definition = None
        if not self.buffer.is_input:
            definition = next((u for u in self.uses if u.writes), None)
        for i, s in enumerate(self.stays):
            defined_here = (
                definition is not None and s.first <= definition.start < s.end
            )
            if not defined_here and i not in self.target.values():
                self.unfilled.add(i)
                yield self._violation(
                    ViolationKind.NO_SOURCE,
                    s.first,
                    f"the segment of {self.label!r} from op {self._op(s.first)} holds "
                    "neither its definition nor is it filled by a prefetch that is "
                    "done by then; add one.",
                )

    def _match(self, k: int, c: Copy) -> Iterator[Violation]:
        """The stay that a prefetch fills: ready for it, or the next one that is not."""
        ready = [
            i
            for i, s in enumerate(self.stays)
            if s.begin <= c.start and c.done <= s.first
        ]
        after = [i for i, s in enumerate(self.stays) if c.done < s.end]
        what = f"the prefetch of {self.label!r} at boundaries {c.start} to {c.done}"
        if not ready and not after:
            yield self._violation(
                ViolationKind.PREFETCH_TARGET,
                c.start,
                f"{what} fills no segment; remove it or add one.",
            )
            return
        i = (ready or after)[0]
        s = self.stays[i]
        if i in self.target.values():
            yield self._violation(
                ViolationKind.PREFETCH_TARGET,
                c.start,
                f"{what} fills a segment that another prefetch fills; remove one.",
            )
            return
        self.target[k] = i
        if s.first < c.done:
            self.unfilled.add(i)
            yield self._violation(
                ViolationKind.PREFETCH_LATE,
                s.first,
                f"{what} is done after op {self._op(s.first)}, from which on its "
                "segment is used; wait for it before.",
            )
        if s.begin > c.start:
            yield self._violation(
                ViolationKind.PREFETCH_PLACE,
                c.start,
                f"{what} writes to a place that is its own only from boundary "
                f"{s.begin} on; begin the segment at {c.start}.",
            )

    def _use(self, use: _Use) -> Iterator[Violation]:
        i = next((i for i, s in enumerate(self.stays) if _serves(s, use)), None)
        found = self.slow if i is None else self.held.get(i)
        if use.needs and found != self.version and i not in self.unfilled:
            where = "slow" if i is None else "fast"
            yield self._violation(
                ViolationKind.READ_STALE,
                use.t,
                f"op {self._op(use.t)} needs the contents of {self.label!r} in "
                f"{where} memory, where they are not current; copy them there before.",
            )
        self.version += use.writes
        # What was not current is taken to be so from here on: one mistake, one report.
        if i is not None:
            self.held[i] = self.version
        elif use.needs or use.writes:
            self.slow = self.version
        for k, c in enumerate(self.copies):
            if use.writes and c.start < use.end and use.start < c.done:
                if k in self.copied:
                    self.copied[k] = self.version
                yield self._violation(
                    ViolationKind.RACE,
                    use.t,
                    f"op {self._op(use.t)} writes {self.label!r} while its "
                    f"{c.direction.value} runs from boundary {c.start} to {c.done}; "
                    "finish the copy before, or start it after.",
                )

    def _start(self, k: int) -> Iterator[Violation]:
        c = self.copies[k]
        what = f"the {c.direction.value} of {self.label!r} that starts at boundary"
        if c.direction is Direction.PREFETCH:
            if self.slow is None or self.slow != self.version:
                yield self._violation(
                    ViolationKind.PREFETCH_STALE,
                    c.start,
                    f"{what} {c.start} finds no current contents in slow memory; "
                    "finish an eviction before.",
                )
            self.copied[k] = self.version
            return
        holding = [
            i for i, s in enumerate(self.stays) if s.begin < c.start and c.done <= s.end
        ]
        if not holding:
            yield self._violation(
                ViolationKind.EVICT_SOURCE,
                c.start,
                f"{what} {c.start} reads a place in fast memory that is not its own "
                f"until boundary {c.done}; end its segment there or later.",
            )
        elif all(self.held.get(i) != self.version for i in holding):
            yield self._violation(
                ViolationKind.EVICT_STALE,
                c.start,
                f"{what} {c.start} finds no current contents in fast memory; start it "
                "after the write that it is to save.",
            )
        self.copied[k] = self.version

    def _done(self, k: int) -> None:
        version = self.copied.pop(k)
        if self.copies[k].direction is Direction.EVICT:
            self.slow = version
        elif k in self.target:
            self.held[self.target[k]] = version

    def _op(self, t: int) -> str:
        return repr(self.program.ops[t].name)

    def _violation(self, kind: ViolationKind, t: int, detail: str) -> Violation:
        return Violation(kind=kind, buffers=(self.label,), t=t, detail=detail)


def _alias_groups(
    problem: Problem,
    uses: dict[int, list[_Use]],
    stays: dict[int, list[Segment]],
    copies: dict[int, list[Copy]],
) -> Iterator[Violation]:
    """Copies that read or write slow memory after another buffer has taken it over.

    Accesses from slow memory alone never conflict: the program itself runs so.
    """
    groups = collections.defaultdict(list)
    for b, buffer in enumerate(problem.program.buffers):
        if buffer.alias_group is not None and uses[b]:
            groups[buffer.alias_group].append(b)
    for members in groups.values():
        members.sort(key=lambda b: (uses[b][0].start, b))
        for old, new in itertools.combinations(members, 2):
            if problem.program.buffers[new].is_input:
                continue
            writes = [
                u.start
                for u in uses[new]
                if u.writes and not any(_serves(s, u) for s in stays[new])
            ]
            writes += [c.start for c in copies[new] if c.direction is Direction.EVICT]
            taken = min(writes, default=len(problem.program.ops))
            names = tuple(problem.program.buffers[b].label for b in (old, new))
            for c in copies[old]:
                if c.done > taken:
                    yield Violation(
                        kind=ViolationKind.ALIAS_GROUP,
                        buffers=names,
                        t=taken,
                        detail=f"the {c.direction.value} of {names[0]!r} runs until "
                        f"boundary {c.done}, but {names[1]!r} takes over its place in "
                        f"slow memory at {taken}; end the copy before.",
                    )


def _serves(segment: Segment, use: _Use) -> bool:
    return segment.first < use.end and use.start < segment.end
