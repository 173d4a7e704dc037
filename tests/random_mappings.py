"""Random mappings that are valid by construction, for tests of what reads mappings."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from frontends.program import Buffer
from jax_malloc.loops import Loops
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem


@dataclasses.dataclass
class _Use:
    """Accesses of one buffer at one op, or in one loop that it outlives."""

    start: int
    end: int
    reads: bool = False
    writes: bool = False


def random_mapping(problem: Problem, seed: int, *, share: float = 0.7) -> Mapping:
    """Up to two stays of some buffers, at free offsets, with random copy times.

    Every copy is needed: without it the mapping is invalid.

    Args:
      problem: any; its limit of copies in flight is not obeyed.
      seed: of all draws.
      share: of the buffers that are tried; those that find no place stay out.
    """
    rng = np.random.default_rng(seed)
    loops, home = Loops(problem.program), problem.home_region.tolist()
    num_ops = len(problem.program.ops)
    uses = _uses(problem, loops, home)
    segments: list[Segment] = []
    copies: list[Copy] = []
    for b in rng.permutation(len(problem.program.buffers)).tolist():
        buffer = problem.program.buffers[b]
        if not uses[b] or buffer.pinned_slow or rng.random() > share:
            continue
        direct = [q for q in range(num_ops + 1) if loops.region_at(q) == home[b]]
        stays, moves = _stays(rng, b, buffer, uses[b], direct)
        offset = _free_offset(problem, rng, stays, segments)
        if offset is not None:
            segments += [dataclasses.replace(s, offset_bytes=offset) for s in stays]
            copies += moves
    return Mapping(tuple(segments), tuple(copies))


def _uses(problem: Problem, loops: Loops, home: list[int]) -> dict[int, list[_Use]]:
    uses: dict[int, list[_Use]] = collections.defaultdict(list)
    for t, b, _, reads, writes in problem.program.accesses():
        start, end = loops.span(t, home[b])
        if not uses[b] or uses[b][-1].start != start:
            uses[b].append(_Use(start, end))
        # A loop may not run at all, and then keeps the contents that it found.
        uses[b][-1].reads |= reads or (start + 1 < end and len(uses[b]) > 1)
        uses[b][-1].writes |= writes
    return uses


def _stays(
    rng: np.random.Generator,
    buffer_id: int,
    buffer: Buffer,
    uses: list[_Use],
    direct: list[int],
) -> tuple[list[Segment], list[Copy]]:
    """Up to two stays at offset 0, with their copies at `direct` boundaries."""

    def copy(direction: Direction, earliest: int, latest: int) -> Copy | None:
        window = [q for q in direct if earliest <= q <= latest]
        if not window:
            return None
        start, done = sorted(rng.choice(window, 2).tolist())
        return Copy(
            buffer_id=buffer_id,
            direction=direction,
            size_bytes=buffer.size_bytes,
            start=start,
            done=done,
        )

    stays: list[Segment] = []
    copies: list[Copy] = []
    slow_from, i = 0, 0  # slow memory is current from boundary slow_from on
    while i < len(uses) and len(stays) < 2:
        if rng.random() < 0.4:  # this one is served from slow memory
            slow_from, i = uses[i].end, i + 1
            continue
        begin = first = uses[i].start
        if i > 0 or buffer.is_input:
            prefetch = copy(Direction.PREFETCH, slow_from, first)
            if prefetch is None:
                break
            begin = prefetch.start
            window = [q for q in direct if prefetch.done <= q <= first]
            first = int(rng.choice(window))
            copies.append(prefetch)
        last = int(rng.integers(i, len(uses)))
        after, end = uses[last + 1 :], uses[last].end
        slow_from = end
        dirty = any(use.writes for use in uses[i : last + 1])
        if dirty and (after[0].reads if after else buffer.is_output):
            eviction = copy(
                Direction.EVICT, end, after[0].start if after else direct[-1]
            )
            if eviction is None:
                return [], []
            end = slow_from = eviction.done
            copies.append(eviction)
        elif dirty:
            slow_from = direct[-1] + 1
        stay = Segment(
            buffer_id=buffer_id, offset_bytes=0, begin=begin, first=first, end=end
        )
        stays.append(stay)
        i = last + 1
    return stays, copies


def _free_offset(
    problem: Problem,
    rng: np.random.Generator,
    stays: list[Segment],
    taken: list[Segment],
) -> int | None:
    """An offset that is free during all of `stays`, mostly the lowest, if any is."""
    if not stays:
        return None
    size = int(problem.size_granules[stays[0].buffer_id])
    room = min(int(problem.op_capacity_granules[s.begin : s.end].min()) for s in stays)
    free = {0, *_ends(problem, taken)}
    blocked = [
        (low, high)
        for other in taken
        if any(other.begin < s.end and s.begin < other.end for s in stays)
        for low, high in [_place(problem, other)]
    ]
    offsets = [
        low
        for low in sorted(free)
        if low + size <= room
        and not any(low < high and other < low + size for other, high in blocked)
    ]
    if not offsets:
        return None
    low = offsets[0] if rng.random() < 0.7 else int(rng.choice(offsets))
    return low * problem.granule_bytes


def _place(problem: Problem, segment: Segment) -> tuple[int, int]:
    low = segment.offset_bytes // problem.granule_bytes
    return low, low + int(problem.size_granules[segment.buffer_id])


def _ends(problem: Problem, segments: list[Segment]) -> list[int]:
    return [_place(problem, s)[1] for s in segments]
