"""What is elsewhere in another plan of the same program, and what that is worth."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jax_malloc import report
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.report import format_bytes, format_s

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

_MAX_ROWS = 30
_ROUNDING = 1e-9  # of the latency


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a buffer is in one plan: stays in fast memory, in time order, and copies.

    Without stays it is in slow memory throughout.
    """

    stays: tuple[Segment, ...]
    copies: tuple[Copy, ...]

    def __str__(self) -> str:
        if not self.stays:
            return "slow"
        return "fast " + " ".join(f"{s.first}-{s.end}" for s in self.stays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moved:
    """One buffer that is elsewhere.

    before, after: its places. gain_s: what the first plan would gain by moving this
    buffer alone, copies included, and whether or not there is space for it; negative
    where that costs.
    offset_only: it is in fast memory at the same times, at another offset.
    """

    buffer: str
    size_bytes: int
    before: Place
    after: Place
    gain_s: float
    offset_only: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanDiff:
    """Two plans of one program on one machine.

    before, after: names of what made them. before_s, after_s: their latencies.
    stall_before_s, stall_after_s: of these, waits for copies.
    moved: buffers that are elsewhere, those that matter most first.
    """

    program: str
    before: str
    after: str
    before_s: float
    after_s: float
    stall_before_s: float
    stall_after_s: float
    moved: tuple[Moved, ...]

    @property
    def gain_s(self) -> float:
        """Seconds by which the second plan is faster."""
        return self.before_s - self.after_s

    @property
    def together_s(self) -> float:
        """The part of the gain that no buffer makes alone.

        Operands of one op, and copies that share the same time, add up to more or less
        than their sum.
        """
        rest_s = self.gain_s - sum(m.gain_s for m in self.moved)
        return rest_s if abs(rest_s) > _ROUNDING * self.before_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""

        def place(p: Place) -> dict[str, Any]:
            copies = [
                {**dataclasses.asdict(c), "direction": c.direction.value}
                for c in p.copies
            ]
            stays = [dataclasses.asdict(s) for s in p.stays]
            return {"stays": stays, "copies": copies}

        body = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        body["moved"] = [
            {
                "buffer": m.buffer,
                "size_bytes": m.size_bytes,
                "before": place(m.before),
                "after": place(m.after),
                "gain_s": m.gain_s,
                "offset_only": m.offset_only,
            }
            for m in self.moved
        ]
        return {**body, "gain_s": self.gain_s, "together_s": self.together_s}

    def __str__(self) -> str:
        better = "faster" if self.gain_s >= 0 else "slower"
        share = abs(self.gain_s) / self.before_s if self.before_s else 0.0
        lines = [
            f"{self.program!r}, {self.before} -> {self.after}",
            f"{format_s(self.before_s)} -> {format_s(self.after_s)}, {share:.2%} "
            f"{better} (predicted)",
            f"ops wait {format_s(self.stall_before_s)} -> "
            f"{format_s(self.stall_after_s)} for copies",
        ]
        shown = [m for m in self.moved if not m.offset_only]
        num_shifted = len(self.moved) - len(shown)
        if shown:
            table = report.text_table(
                "buffer", "size", "before", "after", "copies", "gains alone"
            )
            for m in shown[:_MAX_ROWS]:
                table.add_row(
                    m.buffer,
                    format_bytes(m.size_bytes),
                    *(_folded(str(p)) for p in (m.before, m.after)),
                    f"{_copies(m.before)} -> {_copies(m.after)}",
                    format_s(m.gain_s),
                )
            lines += ["", report.plain_text(table)]
            if len(shown) > _MAX_ROWS:
                rest_s = sum(m.gain_s for m in shown[_MAX_ROWS:])
                lines.append(
                    f"and {len(shown) - _MAX_ROWS} more buffers, {format_s(rest_s)}"
                )
            lines.append(f"together, beyond their sum: {format_s(self.together_s)}")
        if num_shifted:
            lines.append(f"only at another offset: {num_shifted} more")
        if not self.moved:
            lines.append("every buffer is at the same place")
        return "\n".join(lines)


def diff(before: Plan, after: Plan) -> PlanDiff:
    """What `after` has elsewhere than `before`.

    Raises:
      ValueError: the plans are of different programs or machines.
    """
    if before.program.fingerprint != after.program.fingerprint:
        raise ValueError(
            f"cannot compare a plan of {before.program.name!r} with one of "
            f"{after.program.name!r}: not the same program (fingerprints "
            f"{before.program.fingerprint[:8]} and {after.program.fingerprint[:8]}). "
            "Plan one program twice."
        )
    if before.accelerator != after.accelerator:
        raise ValueError(
            f"cannot compare plans for {before.accelerator.name!r} and "
            f"{after.accelerator.name!r}: the machines differ. Plan for one machine, "
            "or see what_if."
        )
    moved = []
    for b, buffer in enumerate(before.program.buffers):
        places = [_place(plan, b) for plan in (before, after)]
        if places[0] == places[1]:
            continue
        offset_only = _without_offsets(places[0]) == _without_offsets(places[1])
        moved.append(
            Moved(
                buffer=buffer.label,
                size_bytes=buffer.size_bytes,
                before=places[0],
                after=places[1],
                gain_s=0.0 if offset_only else _gain_s(before, b, places[1]),
                offset_only=offset_only,
            )
        )
    moved.sort(key=lambda m: (m.offset_only, -abs(m.gain_s)))
    return PlanDiff(
        program=before.program.name,
        before=before.solver,
        after=after.solver,
        before_s=before.timeline.latency_s,
        after_s=after.timeline.latency_s,
        stall_before_s=float(before.timeline.stall_s.sum()),
        stall_after_s=float(after.timeline.stall_s.sum()),
        moved=tuple(moved),
    )


def _place(plan: Plan, buffer_id: int) -> Place:
    copies = [c for c in plan.mapping.copies if c.buffer_id == buffer_id]
    copies.sort(key=lambda c: (c.start, c.done))
    return Place(stays=plan.mapping.segments_of(buffer_id), copies=tuple(copies))


def _without_offsets(place: Place) -> Place:
    stays = (dataclasses.replace(s, offset_bytes=0) for s in place.stays)
    return dataclasses.replace(place, stays=tuple(stays))


def _gain_s(plan: Plan, buffer_id: int, place: Place) -> float:
    """What moving one buffer to another plan's place for it would gain."""
    mapping = Mapping(
        (*(s for s in plan.mapping.segments if s.buffer_id != buffer_id), *place.stays),
        (*(c for c in plan.mapping.copies if c.buffer_id != buffer_id), *place.copies),
    )
    return plan.timeline.latency_s - plan.problem.evaluate(mapping).latency_s


def _copies(place: Place) -> str:
    ins = sum(c.direction is Direction.PREFETCH for c in place.copies)
    return f"{ins}/{len(place.copies) - ins}"


def _folded(text: str, width: int = 18) -> str:
    """Long lists of stays on several lines."""
    lines, words = [""], text.split()
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3] + (["..."] if len(lines) > 3 else []))
