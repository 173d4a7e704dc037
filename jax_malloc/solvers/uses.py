"""What a host solver decides about: the uses of each buffer, and where copies may run.

ops        0    1   [2    3    4]  5    6        [ ]: the body of a loop
accesses   w         r         r        r
uses       0         1---------1        2        a buffer from outside of the loop
                                                 has one place for all of it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_malloc.loops import Loops
from jax_malloc.problem import Problem


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """One access of a buffer, or all its accesses in one loop that it outlives.

    begin, end: ops `[begin, end)` during which it needs the buffer in one place.
    reads: whether a stay that begins here needs a prefetch; only the first use of a
    buffer without earlier contents does not.
    needs: whether it needs the contents before it, wherever they are; all do but the
      first of a buffer without earlier contents, and what only replaces them.
    writes: whether it changes them.
    accesses: `(op, bytes)` that it moves, all executions together.
    """

    begin: int
    end: int
    reads: bool
    needs: bool
    writes: bool
    accesses: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Life:
    """One buffer as a solver sees it.

    uses: in time order. granules: its size. copy_s: seconds that one copy occupies the
    DMA, all executions together. home: its home region. starts_in_slow, ends_in_slow:
    whether slow memory holds it before the first use, and must after the last.
    written_over: buffers that its first use may write over in fast memory, their last.
    overwritten_by: buffers whose first use may be written over it, at its last.
    """

    buffer_id: int
    uses: tuple[Use, ...]
    granules: int
    size_bytes: int
    copy_s: float
    home: int
    starts_in_slow: bool
    ends_in_slow: bool
    written_over: tuple[int, ...] = ()
    overwritten_by: tuple[int, ...] = ()

    def needs_eviction(self, first: int, last: int) -> bool:
        """Whether slow memory must learn what uses `[first, last]` wrote."""
        if not any(use.writes for use in self.uses[first : last + 1]):
            return False
        if last + 1 < len(self.uses):
            return self.uses[last + 1].reads
        return self.ends_in_slow


def lives(problem: Problem) -> dict[int, Life]:
    """The life of every eligible buffer, by buffer id."""
    program, dma = problem.program, problem.accelerator.dma
    loops = Loops(program)
    accesses: dict[int, list[tuple[int, float, bool, bool]]] = {}
    columns = (
        problem.access_op,
        problem.access_buffer,
        problem.access_bytes,
        problem.access_reads,
        problem.access_writes,
    )
    for t, b, moved, reads, writes in zip(*(c.tolist() for c in columns), strict=True):
        if problem.eligible[b]:
            accesses.setdefault(b, []).append((t, moved, reads, writes))
    pairs = [
        pair
        for op in program.ops
        for pair in op.reuses
        if problem.eligible[list(pair)].all()
    ]
    result = {}
    for b, mine in accesses.items():
        buffer, home = program.buffers[b], int(problem.home_region[b])
        one_copy_s = buffer.size_bytes / problem.accelerator.dma_bytes_per_s
        result[b] = Life(
            buffer_id=b,
            uses=_uses(mine, loops, home, buffer.is_input),
            granules=int(problem.size_granules[b]),
            size_bytes=buffer.size_bytes,
            copy_s=(one_copy_s + dma.latency_s) * float(problem.region_counts[home]),
            home=home,
            starts_in_slow=buffer.is_input,
            ends_in_slow=buffer.is_output,
            written_over=tuple(x for x, result in pairs if result == b),
            overwritten_by=tuple(x for operand, x in pairs if operand == b),
        )
    return result


class CopyBoundaries:
    """At which op boundaries copies of a buffer may start and end.

    Those directly in its home region, neither outside of it nor inside a deeper loop.
    """

    def __init__(self, problem: Problem) -> None:
        loops = Loops(problem.program)
        self._num_boundaries = len(problem.program.ops) + 1
        region_at = [loops.region_at(q) for q in range(self._num_boundaries)]
        self._region_at = np.array(region_at)
        self._tables: dict[int, tuple[list[int], list[int]]] = {}

    def at_or_before(self, home: int, boundary: int) -> int:
        """The latest allowed boundary up to this one, or -1."""
        return self._table(home)[0][boundary]

    def at_or_after(self, home: int, boundary: int) -> int:
        """The earliest allowed boundary from this one on, or one past the program's."""
        return self._table(home)[1][boundary]

    def tables(self, homes: Sequence[int]) -> np.ndarray:
        """`[2, H, T + 1]` what `at_or_before` and `at_or_after` say, for each home."""
        found = np.array([self._table(home) for home in homes], np.int64)
        found = found.reshape(len(homes), 2, self._num_boundaries)
        return np.ascontiguousarray(found.swapaxes(0, 1))

    def _table(self, home: int) -> tuple[list[int], list[int]]:
        if home not in self._tables:
            t = np.arange(self._num_boundaries)
            allowed = self._region_at == home
            before = np.maximum.accumulate(np.where(allowed, t, -1))
            after = np.where(allowed, t, self._num_boundaries)
            after = np.minimum.accumulate(after[::-1])[::-1]
            self._tables[home] = (before.tolist(), after.tolist())
        return self._tables[home]


def _uses(
    accesses: Sequence[tuple[int, float, bool, bool]],
    loops: Loops,
    home: int,
    is_input: bool,
) -> tuple[Use, ...]:
    """Accesses `(op, bytes, reads, writes)` of one buffer, grouped by loop."""
    groups: list[tuple[int, int, list[tuple[int, float, bool, bool]]]] = []
    for access in accesses:
        begin, end = loops.span(access[0], home)
        if groups and begin < groups[-1][1]:  # the same loop, or its own op
            groups[-1][2].append(access)
        else:
            groups.append((begin, end, [access]))
    uses: list[Use] = []
    for begin, end, group in groups:
        # Only the first use of a temporary has nothing before it. What a later write
        # replaces still counts as needed: a loop may not run at all, and a stay begins
        # with the definition or with a prefetch.
        reads = is_input or bool(uses) or group[0][2]
        needs = reads and (group[0][2] or end > begin + 1)
        writes = any(w for *_, w in group)
        moved = tuple((t, n) for t, n, *_ in group)
        uses.append(Use(begin, end, reads, needs, writes, moved))
    return tuple(uses)
