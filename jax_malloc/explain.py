"""Why a buffer is where a plan has it, and what it would cost elsewhere."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from frontends.program import Program
from hwmodel.latency import copy_s
from jax_malloc import report
from jax_malloc.json_reader import nearest
from jax_malloc.report import format_bytes, format_s

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

_MAX_ACCESSES = 30
_MAX_NAMED = 3
# Savings below this share of the program's latency are not worth a reason.
_NEGLIGIBLE_SHARE = 1e-5


def explain(plan: Plan, name: str) -> str:
    """A paragraph per buffer of that name, or per buffer that the op of it touches.

    Raises:
      ValueError: the program has no buffer and no op of that name.
    """
    return "\n\n".join(_buffer(plan, b) for b in _find(plan.program, name))


def _find(program: Program, name: str) -> list[int]:
    """The buffers that a name means: by label, by name, as an alias, by op."""
    for matches in (
        lambda b: b.label == name,
        lambda b: b.name == name,
        lambda b: any(alias == name for alias, _ in b.aliases),
    ):
        found = [i for i, b in enumerate(program.buffers) if matches(b)]
        if found:
            return found
    if name in program.op_index:
        return list(program.ops[program.op_index[name]].touched_bytes())
    known = [*(b.label for b in program.buffers), *program.op_index]
    raise ValueError(
        f"program {program.name!r} has no buffer and no op {name!r}"
        f"{nearest(name, known) or '.'}"
    )


def _buffer(plan: Plan, buffer_id: int) -> str:
    """What it is, where it is, its accesses, what that saves, and why not more."""
    program, problem, mapping = plan.program, plan.problem, plan.mapping
    buffer = program.buffers[buffer_id]
    lines = [
        f"{buffer.label}: {format_bytes(buffer.size_bytes)}, {buffer.kind.value}, live "
        f"over ops [{buffer.live.start}, {buffer.live.end})",
    ]
    for s in mapping.segments_of(buffer_id):
        lines.append(
            f"- in fast memory from op {program.ops[s.first].name} to "
            f"{program.ops[s.end - 1].name}, at offset {s.offset_bytes}; its place is "
            f"taken over ops [{s.begin}, {s.end})"
        )
    for c, exposed_s in zip(mapping.copies, plan.timeline.copy_exposed_s, strict=True):
        if c.buffer_id == buffer_id:
            lines.append(
                f"- {c.direction.value} between boundaries {c.start} and {c.done}; ops "
                f"wait {format_s(float(exposed_s))} for it"
            )
    rows = np.flatnonzero(problem.access_buffer == buffer_id)
    changes_s = report.access_changes_s(problem, mapping)[rows]
    fast = problem.fast_mask(mapping)[rows]
    reasons = []
    if fast.any():
        saved_s = report.saving_s(plan, buffer_id)
        reasons.append(
            f"Its stays and copies together save {format_s(saved_s)} (predicted)."
        )
    if not fast.all():
        reasons.append(_why_slow(plan, buffer_id, rows[~fast], -changes_s[~fast]))
    if buffer.is_output:
        reasons.append(
            "It is an output: what is written in fast memory must be evicted before the"
            f" program ends, a copy of {format_s(_copy_s(plan, buffer_id))}."
        )
    paragraphs = [_wrapped(*lines)]
    if len(rows):
        paragraphs.append(_accesses(plan, rows, fast, changes_s))
    return "\n\n".join([*paragraphs, _wrapped(*reasons)]).rstrip()


def _accesses(
    plan: Plan, rows: np.ndarray, fast: np.ndarray, changes_s: np.ndarray
) -> str:
    """A table: where each access is, what its op takes, and with this access moved."""
    problem = plan.problem
    table = report.text_table("op", "access", "bytes", "where", "op takes", "if moved")
    shown = zip(rows[:_MAX_ACCESSES], fast, changes_s, strict=False)
    for row, is_fast, change_s in shown:
        t = int(problem.access_op[row])
        reads, writes = problem.access_reads[row], problem.access_writes[row]
        op_s = float(plan.timeline.op_duration_s[t])
        table.add_row(
            f"{t} {plan.program.ops[t].name}",
            "update" if reads and writes else "write" if writes else "read",
            format_bytes(float(problem.access_bytes[row])),
            "fast" if is_fast else "slow",
            format_s(op_s),
            format_s(op_s + float(change_s)),
        )
    text = report.plain_text(table)
    if len(rows) > _MAX_ACCESSES:
        text += f"\nand {len(rows) - _MAX_ACCESSES} more accesses"
    return text


def _why_slow(plan: Plan, buffer_id: int, rows: np.ndarray, gains_s: np.ndarray) -> str:
    """A sentence or two on the accesses that slow memory serves.

    Args:
      rows: of the accesses.
      gains_s: seconds that each would save in fast memory.
    """
    problem, buffer = plan.problem, plan.program.buffers[buffer_id]
    size_granules = int(problem.size_granules[buffer_id])
    if buffer.pinned_slow:
        return f"It must stay in slow memory: {buffer.pinned_slow}."
    if size_granules > problem.capacity_granules:
        free_bytes = problem.capacity_granules * problem.granule_bytes
        return (
            f"It does not fit: fast memory has {format_bytes(free_bytes)} for buffers."
        )
    gain_s = float(gains_s.sum())
    if gain_s <= _NEGLIGIBLE_SHARE * plan.latency_s:
        return (
            "Its accesses in slow memory are not worth a place: in fast memory they "
            f"would save {format_s(gain_s)}."
        )
    text = (
        "In fast memory its accesses in slow memory would save up to "
        f"{format_s(gain_s)}, copies not counted."
    )
    times = problem.access_op[rows[np.argsort(-gains_s, kind="stable")]].tolist()
    for t in times[:_MAX_ACCESSES]:
        in_the_way = _in_the_way(plan, size_granules, t)
        if in_the_way:
            return (
                f"{text} There is no space for it at op {plan.program.ops[t].name}; "
                f"the least that would have to make room: {in_the_way}."
            )
    op_name, copy_time_s = plan.program.ops[times[0]].name, _copy_s(plan, buffer_id)
    if copy_time_s > gain_s and (buffer.is_input or buffer.is_output):
        return (
            f"{text} There is space at op {op_name}, but a copy takes "
            f"{format_s(copy_time_s)}, which pays only beside ops that leave slow "
            "memory idle."
        )
    return f"{text} There is space at op {op_name}; {plan.solver} left it where it is."


def _in_the_way(plan: Plan, size_granules: int, t: int) -> str:
    """The buffers to move for a place at op t, those that save least together.

    Empty where a gap is large enough.
    """
    problem, buffers = plan.problem, plan.program.buffers
    saved_s = report.op_savings_s(problem, plan.mapping)
    residents = []
    for s in plan.mapping.segments:
        if s.begin <= t < s.end:
            low = s.offset_bytes // problem.granule_bytes
            high = low + int(problem.size_granules[s.buffer_id])
            residents.append((low, high, s.buffer_id))
    top = int(problem.op_capacity_granules[t]) - size_granules
    starts = {0, top, *(high for _, high, _ in residents)}
    starts |= {low - size_granules for low, _, _ in residents}
    windows = [
        [
            b
            for low, high, b in residents
            if low < start + size_granules and start < high
        ]
        for start in sorted(starts)
        if 0 <= start <= top
    ]
    window = min(windows, key=lambda ids: sum(saved_s[b] for b in ids), default=[])
    window.sort(key=lambda b: -saved_s[b])
    named = [
        f"{buffers[b].label} ({format_bytes(buffers[b].size_bytes)}, saves its ops "
        f"{format_s(float(saved_s[b]))})"
        for b in window[:_MAX_NAMED]
    ]
    if len(window) > _MAX_NAMED:
        named.append(f"and {len(window) - _MAX_NAMED} that save less")
    return ", ".join(named)


def _copy_s(plan: Plan, buffer_id: int) -> float:
    """Seconds of one execution of a copy of a buffer, undisturbed."""
    size_bytes = plan.program.buffers[buffer_id].size_bytes
    return float(copy_s(size_bytes, plan.accelerator))


def _wrapped(*lines: str) -> str:
    """Each line broken at 88 columns, names left whole."""
    return "\n".join(
        textwrap.fill(
            line, report.WIDTH, break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )
