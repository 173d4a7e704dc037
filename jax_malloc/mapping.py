"""A mapping: which buffer holds which bytes of fast memory when, and the copies that
bring it there.

Time runs over op boundaries: boundary t lies before op t, boundary `len(ops)` is the
  program's end.

    offset
      ^      +----------------+          segment of w: begin 1, first 3, end 5
      |      | w      :       |          (its prefetch runs from boundary 1 to 3)
      |      +----------------+
      |  +-----------+                   segment of x: begin = first = 0, end 3
      |  | x         |                   (defined by op 0 in fast memory)
      +--0---1---2---3---4---5--> ops
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frontends.program import Program


class MemorySpace(enum.Enum):
    """`SLOW` is HBM (XLA: default memory), `FAST` the on-chip one (XLA: alternate)."""

    SLOW = "slow"
    FAST = "fast"


class Direction(enum.Enum):
    """PREFETCH copies slow to fast memory, EVICT fast to slow."""

    PREFETCH = "prefetch"
    EVICT = "evict"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One stay of a buffer in fast memory, at one offset.

    The place is taken during ops `[begin, end)`; accesses of ops `[first, end)` are
    served from it. `begin` equals `first` where the buffer is defined in fast memory,
    and is the start of the prefetch otherwise.
    """

    buffer_id: int
    offset_bytes: int
    begin: int
    first: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One asynchronous copy of a whole buffer, from boundary `start` to `done`."""

    buffer_id: int
    direction: Direction
    size_bytes: int
    start: int
    done: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """Every stay in fast memory and every copy; the rest is in slow memory."""

    segments: tuple[Segment, ...] = ()
    copies: tuple[Copy, ...] = ()

    def segments_of(self, buffer_id: int) -> tuple[Segment, ...]:
        """The stays of one buffer, in time order."""
        mine = (s for s in self.segments if s.buffer_id == buffer_id)
        return tuple(sorted(mine, key=lambda s: s.begin))

    def fast_accesses(self, program: Program) -> set[tuple[int, int]]:
        """`(t, buffer_id)` of every access of `program` that a segment serves."""
        stays: dict[int, list[Segment]] = {}
        for s in self.segments:
            stays.setdefault(s.buffer_id, []).append(s)
        return {
            (t, b)
            for t, b, *_ in program.accesses()
            if any(s.first <= t < s.end for s in stays.get(b, ()))
        }
