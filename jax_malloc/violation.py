"""One broken rule of a mapping."""

from __future__ import annotations

import dataclasses
import enum


class ViolationKind(enum.Enum):
    """The rules, by what breaks them."""

    UNKNOWN_BUFFER = "unknown buffer"
    SEGMENT_TIMES = "segment times"
    PINNED = "pinned to slow memory"
    ALIGNMENT = "alignment"
    CAPACITY = "capacity"
    OVERLAP = "overlap"  # two buffers in one place
    TWO_PLACES = "two places"  # one buffer in two places
    LOOP = "loop"  # a change inside a loop that the buffer outlives
    NO_SOURCE = "no source"  # a segment that nothing fills
    COPY_TIMES = "copy times"
    COPY_SIZE = "copy size"
    IN_FLIGHT = "copies in flight"
    PREFETCH_TARGET = "prefetch target"  # fills no segment, or a filled one
    PREFETCH_LATE = "late prefetch"  # done after the first access it is for
    PREFETCH_PLACE = "prefetch place"  # place taken after the copy starts
    PREFETCH_STALE = "stale prefetch"  # slow memory is not current
    EVICT_SOURCE = "evict source"  # not in fast memory for all of the copy
    EVICT_STALE = "stale evict"  # fast memory is not current
    RACE = "race"  # written, or written over, while a copy of it runs
    READ_STALE = "stale read"  # read where the contents are not current
    OUTPUT = "output"  # not current in slow memory at the program's end
    ALIAS_GROUP = "alias group"  # slow memory shared with a buffer still in use


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that a mapping breaks.

    kind: which rule.
    buffers: labels of the buffers concerned, the first one at fault.
    t: op, or boundary before it, at which it goes wrong.
    detail: a sentence that says what is wrong and what would be right.
    """

    kind: ViolationKind
    buffers: tuple[str, ...]
    t: int
    detail: str

    def __str__(self) -> str:
        return f"[{self.kind.value}] at t={self.t}: {self.detail}"
