"""Every reason why a mapping could not run, found the slow and plain way.

Shares nothing with the game or the solvers, so that a mistake in their rules cannot
approve itself. What is where is `contents`; here is what holds without knowing that:
places in fast memory, copies taken one by one, loops.

    boundary   0     1     2     3     4     5
    loop             |---- body -----|while|
    inside           .     x     x     x     .      x: runs once per iteration

A segment or copy may begin and end only at boundaries directly in its buffer's home
region, the innermost that holds all accesses. So what a loop uses from outside keeps
one place for all of the loop, the loop's own op included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jax_malloc import contents
from jax_malloc.loops import Loops
from jax_malloc.mapping import Copy, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.violation import Violation, ViolationKind

__all__ = ["Violation", "ViolationKind", "find_violations"]

T = TypeVar("T", Segment, Copy)


def find_violations(problem: Problem, mapping: Mapping) -> list[Violation]:
    """Every rule that a mapping breaks, in order of time; empty if it could run.

    A segment or copy that makes no sense by itself (times out of order, no such buffer)
    is reported and left out of the other checks.
    """
    found: list[Violation] = []
    loops = Loops(problem.program)
    segments = _keep_sound(problem, mapping.segments, _malformed_segment, found)
    copies = _keep_sound(problem, mapping.copies, _malformed_copy, found)
    for segment in segments:
        found += _segment_alone(problem, loops, segment)
    for copy in copies:
        found += _copy_alone(problem, loops, copy)
    found += _overlaps(problem, segments, copies)
    found += _too_many_in_flight(problem, copies)
    found += contents.find_violations(problem, segments, copies)
    return sorted(found, key=lambda v: v.t)


def _keep_sound(
    problem: Problem,
    records: Sequence[T],
    malformed: Callable[[Problem, T], Violation | None],
    found: list[Violation],
) -> list[T]:
    """The records that make sense; violations for the others go to `found`."""
    sound = []
    for record in records:
        violation = malformed(problem, record)
        if violation is None:
            sound.append(record)
        else:
            found.append(violation)
    return sound


def _unknown_buffer(problem: Problem, buffer_id: int, what: str) -> Violation | None:
    num_buffers = len(problem.program.buffers)
    if 0 <= buffer_id < num_buffers:
        return None
    return Violation(
        kind=ViolationKind.UNKNOWN_BUFFER,
        buffers=(),
        t=0,
        detail=f"a {what} is of buffer {buffer_id}; the program has {num_buffers}.",
    )


def _malformed_segment(problem: Problem, s: Segment) -> Violation | None:
    unknown = _unknown_buffer(problem, s.buffer_id, "segment")
    num_ops = len(problem.program.ops)
    if unknown or 0 <= s.begin <= s.first < s.end <= num_ops:
        return unknown
    label = problem.program.buffers[s.buffer_id].label
    return Violation(
        kind=ViolationKind.SEGMENT_TIMES,
        buffers=(label,),
        t=s.begin,
        detail=f"a segment of {label!r} has begin {s.begin}, first {s.first}, end "
        f"{s.end}; it needs 0 <= begin <= first < end <= {num_ops}.",
    )


def _malformed_copy(problem: Problem, c: Copy) -> Violation | None:
    unknown = _unknown_buffer(problem, c.buffer_id, "copy")
    num_ops = len(problem.program.ops)
    if unknown or 0 <= c.start <= c.done <= num_ops:
        return unknown
    label = problem.program.buffers[c.buffer_id].label
    return Violation(
        kind=ViolationKind.COPY_TIMES,
        buffers=(label,),
        t=c.start,
        detail=f"the {c.direction.value} of {label!r} runs from boundary {c.start} to "
        f"{c.done}; it needs 0 <= start <= done <= {num_ops}.",
    )


def _segment_alone(problem: Problem, loops: Loops, s: Segment) -> Iterator[Violation]:
    """Pinning, alignment, capacity and loops."""
    buffer = problem.program.buffers[s.buffer_id]
    granule, home = problem.granule_bytes, int(problem.home_region[s.buffer_id])

    def violation(kind: ViolationKind, t: int, detail: str) -> Violation:
        return Violation(kind=kind, buffers=(buffer.label,), t=t, detail=detail)

    if buffer.pinned_slow:
        yield violation(
            ViolationKind.PINNED,
            s.begin,
            f"{buffer.label!r} must stay in slow memory ({buffer.pinned_slow}); remove "
            "its segment.",
        )
    if s.offset_bytes < 0 or s.offset_bytes % granule:
        yield violation(
            ViolationKind.ALIGNMENT,
            s.begin,
            f"{buffer.label!r} is at offset {s.offset_bytes}; offsets are multiples of "
            f"{granule}, from 0.",
        )
    capacity_bytes = problem.op_capacity_granules[s.begin : s.end] * granule
    t = s.begin + int(np.argmin(capacity_bytes))
    end_bytes = s.offset_bytes + int(problem.size_granules[s.buffer_id]) * granule
    if end_bytes > capacity_bytes.min():
        yield violation(
            ViolationKind.CAPACITY,
            t,
            f"{buffer.label!r} ends at byte {end_bytes} of fast memory, which has "
            f"{capacity_bytes.min()} for buffers during op "
            f"{problem.program.ops[t].name!r}; place it lower or leave it in slow "
            "memory.",
        )
    for edge in (s.begin, s.first, s.end):
        # A loop's first op may define it: that boundary lies before the loop.
        if edge != loops.regions[home].start and loops.region_at(edge) != home:
            detail = _loop_detail(loops, home, edge, buffer.label)
            yield violation(
                ViolationKind.LOOP,
                edge,
                f"a segment of {buffer.label!r} (begin {s.begin}, first {s.first}, end "
                f"{s.end}) changes at boundary {edge}, {detail}",
            )
            return


def _copy_alone(problem: Problem, loops: Loops, c: Copy) -> Iterator[Violation]:
    """Size and loops."""
    buffer = problem.program.buffers[c.buffer_id]
    what = f"the {c.direction.value} of {buffer.label!r}"
    if c.size_bytes != buffer.size_bytes:
        yield Violation(
            kind=ViolationKind.COPY_SIZE,
            buffers=(buffer.label,),
            t=c.start,
            detail=f"{what} moves {c.size_bytes} bytes; a copy moves the whole buffer, "
            f"{buffer.size_bytes} bytes.",
        )
    home = int(problem.home_region[c.buffer_id])
    for boundary in (c.start, c.done):
        if loops.region_at(boundary) != home:
            detail = _loop_detail(loops, home, boundary, buffer.label)
            yield Violation(
                kind=ViolationKind.LOOP,
                buffers=(buffer.label,),
                t=boundary,
                detail=f"{what} begins or ends at boundary {boundary}, {detail}",
            )
            return


def _loop_detail(loops: Loops, home: int, boundary: int, label: str) -> str:
    """Where a boundary is that is not directly in the home region, and what to do."""
    inner = loops.child(loops.region_at(boundary), home)
    if inner < 0:
        name = loops.regions[home].name
        return (
            f"outside loop {name!r}; {label!r} is used in the loop only: move it there."
        )
    start, end = loops.span_of(inner)
    return (
        f"which comes around in every iteration of loop {loops.regions[inner].name!r}; "
        f"{label!r} outlives the loop: move it to boundary {start} or {end}."
    )


def _overlaps(
    problem: Problem, segments: list[Segment], copies: list[Copy]
) -> Iterator[Violation]:
    """Pairs of segments that meet in time and offset, or in time and buffer.

    An op may write a result over an operand (`Op.reuses`): then the two meet at that op
    alone, at one offset, and no copy still reads the operand.
    """
    segments = sorted(segments, key=lambda s: (s.begin, s.end, s.offset_bytes))
    granule, buffers = problem.granule_bytes, problem.program.buffers
    ids = np.array([s.buffer_id for s in segments], np.int64)
    begin = np.array([s.begin for s in segments], np.int64)
    # Offsets beyond any memory are reported elsewhere; here they must fit an int64.
    low = np.array([s.offset_bytes for s in segments], object).clip(-(2**60), 2**60)
    low = low.astype(np.int64)
    high = low + problem.size_granules[ids] * granule
    for i, a in enumerate(segments):
        later = slice(i + 1, None)
        same_time = begin[later] < a.end
        same_place = (low[later] < high[i]) & (low[i] < high[later])
        same_buffer = ids[later] == a.buffer_id
        for j in i + 1 + np.flatnonzero(same_time & (same_place | same_buffer)):
            b = segments[j]
            until = min(a.end, b.end)
            names = tuple(buffers[s.buffer_id].label for s in (a, b))
            if same_buffer[j - i - 1]:
                yield Violation(
                    kind=ViolationKind.TWO_PLACES,
                    buffers=names[:1],
                    t=b.begin,
                    detail=f"{names[0]!r} has two places at once during ops "
                    f"[{b.begin}, {until}), at offsets {a.offset_bytes} and "
                    f"{b.offset_bytes}; end one before the other begins.",
                )
            elif _reuses(problem, a, b) or _reuses(problem, b, a):
                yield from _copies_beside(problem, max(a.begin, b.begin), copies, a, b)
            else:
                yield Violation(
                    kind=ViolationKind.OVERLAP,
                    buffers=names,
                    t=b.begin,
                    detail=f"{names[0]!r} at bytes [{low[i]}, {high[i]}) and "
                    f"{names[1]!r} at [{low[j]}, {high[j]}) share fast memory during "
                    f"ops [{b.begin}, {until}).",
                )


def _reuses(problem: Problem, operand: Segment, result: Segment) -> bool:
    """Whether the op that `result` begins with may write it over `operand`."""
    pair = (operand.buffer_id, result.buffer_id)
    return (
        pair in problem.program.ops[result.begin].reuses
        and result.first == result.begin
        and operand.end == result.begin + 1
        and operand.offset_bytes == result.offset_bytes
    )


def _copies_beside(
    problem: Problem, t: int, copies: list[Copy], *pair: Segment
) -> Iterator[Violation]:
    """Copies of two buffers that run while op t writes one over the other."""
    buffers = problem.program.buffers
    ids = [s.buffer_id for s in pair]
    for c in copies:
        if c.buffer_id in ids and c.start <= t < c.done:
            yield Violation(
                kind=ViolationKind.RACE,
                buffers=tuple(buffers[b].label for b in ids),
                t=t,
                detail=f"op {problem.program.ops[t].name!r} writes "
                f"{buffers[ids[0]].label!r} and {buffers[ids[1]].label!r} over each "
                f"other while the {c.direction.value} of "
                f"{buffers[c.buffer_id].label!r} runs from boundary {c.start} to "
                f"{c.done}; finish it before or start it after.",
            )


def _too_many_in_flight(problem: Problem, copies: list[Copy]) -> Iterator[Violation]:
    """Runs of ops beside which more copies are open than the DMA engine can hold."""
    limit = problem.accelerator.dma.max_in_flight
    if limit is None:
        return
    change = np.zeros(len(problem.program.ops) + 1, np.int64)
    for c in copies:
        change[c.start] += 1
        change[c.done] -= 1
    too_many = np.cumsum(change) > limit
    for t in np.flatnonzero(too_many & ~np.append(False, too_many[:-1])):
        running = [c for c in copies if c.start <= t < c.done]
        names = tuple(problem.program.buffers[c.buffer_id].label for c in running)
        yield Violation(
            kind=ViolationKind.IN_FLIGHT,
            buffers=names,
            t=int(t),
            detail=f"{len(running)} copies are in flight during op "
            f"{problem.program.ops[t].name!r}; accelerator "
            f"{problem.accelerator.name!r} holds {limit}. Start one later or wait for "
            "one earlier.",
        )
