"""One stay of a buffer in fast memory, as host solvers see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping as MappingType

from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.uses import Life


@dataclasses.dataclass(frozen=True, slots=True)
class Stay:
    """Uses `[first_use, last_use]` of a buffer, both included, in fast memory.

    begin, end: ops `[begin, end)` that it takes its place for, copies included.
    prefetch, eviction: None where the buffer is defined in place, or nothing is to
      save.
    """

    key: int
    buffer_id: int
    first_use: int
    last_use: int
    offset: int
    begin: int
    end: int
    prefetch: QueuedCopy | None
    eviction: QueuedCopy | None

    @property
    def copies(self) -> list[QueuedCopy]:
        return [c for c in (self.prefetch, self.eviction) if c is not None]


def to_mapping(
    problem: Problem, lives: MappingType[int, Life], stays: Iterable[Stay]
) -> Mapping:
    """Stays and their copies, in bytes and boundaries."""
    segments, copies = [], []
    for s in sorted(stays, key=lambda s: (s.begin, s.buffer_id)):
        uses = lives[s.buffer_id].uses
        segments.append(
            Segment(
                buffer_id=s.buffer_id,
                offset_bytes=s.offset * problem.granule_bytes,
                begin=s.begin,
                first=uses[s.first_use].begin,
                end=s.end,
            )
        )
        for c in s.copies:
            way = Direction.EVICT if c.is_eviction else Direction.PREFETCH
            copies.append(
                Copy(
                    buffer_id=s.buffer_id,
                    direction=way,
                    size_bytes=c.size_bytes,
                    start=c.start,
                    done=c.done,
                )
            )
    return Mapping(tuple(segments), tuple(copies))
