"""The moment at which fast memory is fullest, and what fills it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jax_malloc import report
from jax_malloc.forcing import Forcing
from jax_malloc.mapping import Segment
from jax_malloc.report import format_bytes, format_s

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

_MAX_ROWS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contributor:
    """One stay in fast memory at the peak.

    taken_bytes: size of the buffer, rounded up to whole granules.
    begin, end: ops `[begin, end)` for which its place is taken.
    worth_s: what the program would take longer without this stay.
    """

    buffer: str
    taken_bytes: int
    offset_bytes: int
    begin: int
    end: int
    worth_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """Fast memory at the op at which most of it is taken, the first of several.

    t, op: that op; None and "" where nothing is ever in fast memory.
    used_bytes: taken; a place that two buffers share counts once.
    capacity_bytes: there are for buffers while it runs.
    contributors: what is there, the largest first.
    """

    t: int | None
    op: str
    used_bytes: int
    capacity_bytes: int
    contributors: tuple[Contributor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.t is None:
            return "fast memory is empty at every op"
        table = report.text_table("buffer", "size", "offset", "ops", "saves")
        for c in self.contributors[:_MAX_ROWS]:
            table.add_row(
                c.buffer,
                format_bytes(c.taken_bytes),
                format_bytes(c.offset_bytes),
                f"{c.begin}-{c.end}",
                format_s(c.worth_s),
            )
        text = (
            f"fast memory is fullest at op {self.op} ({self.t}): "
            f"{format_bytes(self.used_bytes)} of {format_bytes(self.capacity_bytes)}, "
            f"{len(self.contributors)} buffers\n\n{report.plain_text(table)}"
        )
        if len(self.contributors) > _MAX_ROWS:
            rest = self.contributors[_MAX_ROWS:]
            taken = format_bytes(sum(c.taken_bytes for c in rest))
            text += f"\nand {len(rest)} more, {taken}"
        return f"{text}\nops: [start-end). saves: predicted, by this stay alone."


def peak(plan: Plan) -> Peak:
    """Where fast memory is fullest, and what is there."""
    problem, granule = plan.problem, plan.problem.granule_bytes
    segments = sorted(plan.mapping.segments, key=lambda s: s.offset_bytes)

    def taken_bytes(s: Segment) -> int:
        return int(problem.size_granules[s.buffer_id]) * granule

    def used_bytes(t: int) -> int:
        used = top = 0
        for s in segments:
            if s.begin <= t < s.end:
                high = s.offset_bytes + taken_bytes(s)
                used += max(high - max(top, s.offset_bytes), 0)
                top = max(top, high)
        return used

    # It is fullest where something has just come in.
    t = max(sorted({s.begin for s in segments}), key=used_bytes, default=None)
    if t is None:
        capacity = problem.capacity_granules * granule
        return Peak(
            t=None, op="", used_bytes=0, capacity_bytes=capacity, contributors=()
        )
    forcing = Forcing(problem, plan.mapping)
    there = [
        Contributor(
            buffer=plan.program.buffers[s.buffer_id].label,
            taken_bytes=taken_bytes(s),
            offset_bytes=s.offset_bytes,
            begin=s.begin,
            end=s.end,
            worth_s=forcing.worth_s(s),
        )
        for s in segments
        if s.begin <= t < s.end
    ]
    return Peak(
        t=t,
        op=plan.program.ops[t].name,
        used_bytes=used_bytes(t),
        capacity_bytes=int(problem.op_capacity_granules[t]) * granule,
        contributors=tuple(sorted(there, key=lambda c: (-c.taken_bytes, c.buffer))),
    )
