"""An explanation in words: what `print(plan.explain(name))` shows."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from hwmodel.latency import copy_s
from jax_malloc import report
from jax_malloc.explain import BufferExplanation, Reason, Rule
from jax_malloc.report import format_bytes, format_s
from jax_malloc.top import losses

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

_MAX_ACCESSES = 30
_MAX_REASONS = 4
_MAX_NAMED = 3


def render(plan: Plan, t: int | None, buffers: tuple[BufferExplanation, ...]) -> str:
    """A paragraph for op t, if it is not None, and some for each buffer."""
    paragraphs = [] if t is None else [_op(plan, t)]
    return "\n\n".join([*paragraphs, *(_buffer(plan, b) for b in buffers)])


def _op(plan: Plan, t: int) -> str:
    loss = losses(plan)[t]
    where = f", {loss.op_name}" if loss.op_name else ""
    return _wrapped(
        f"op {loss.name} ({loss.opcode}{where}), {t + 1} of {len(plan.program.ops)}: "
        f"takes {format_s(loss.latency_s)}, with all it touches in fast memory "
        f"{format_s(loss.fast_s)}; waits {format_s(loss.stall_s)} for copies "
        "(predicted)."
    )


def _buffer(plan: Plan, record: BufferExplanation) -> str:
    """What it is, where it is, its accesses, what that saves, and why not more."""
    ops = plan.program.ops
    lines = [
        f"{record.buffer}: {format_bytes(record.size_bytes)}, {record.kind}, live over "
        f"ops [{record.live[0]}, {record.live[1]})"
    ]
    for s in record.stays:
        lines.append(
            f"- in fast memory from op {ops[s.first].name} to {ops[s.end - 1].name}, "
            f"at offset {s.offset_bytes}; its place is taken over ops "
            f"[{s.begin}, {s.end})"
        )
    for c, wait_s in zip(record.copies, record.waits_s, strict=True):
        lines.append(
            f"- {c.direction.value} between boundaries {c.start} and {c.done}; ops "
            f"wait {format_s(wait_s)} for it"
        )
    reasons = []
    if record.stays:
        reasons.append(
            f"Its stays and copies together save {format_s(record.saved_s)} "
            "(predicted)."
        )
    for reason in record.reasons[:_MAX_REASONS]:
        where = ""
        if len(record.reasons) > 1:
            where = f"From op {ops[reason.first].name} to {ops[reason.last].name}: "
        reasons.append(where + _reason(plan, record, reason))
    if len(record.reasons) > _MAX_REASONS:
        rest_s = sum(r.potential_s for r in record.reasons[_MAX_REASONS:])
        reasons.append(
            f"And {len(record.reasons) - _MAX_REASONS} more stretches in slow memory, "
            f"which would save {format_s(rest_s)} at most."
        )
    if plan.program.buffers[record.buffer_id].is_output:
        reasons.append(
            "It is an output: what is written in fast memory must be evicted before the"
            f" program ends, a copy of {format_s(_copy_s(plan, record))}."
        )
    paragraphs = [_wrapped(*lines)]
    if record.accesses:
        paragraphs.append(_accesses(record))
    return "\n\n".join([*paragraphs, _wrapped(*reasons)]).rstrip()


def _accesses(record: BufferExplanation) -> str:
    """A table: where each access is, what its op takes, and with this access moved."""
    table = report.text_table("op", "access", "bytes", "where", "op takes", "if moved")
    for a in record.accesses[:_MAX_ACCESSES]:
        table.add_row(
            f"{a.t} {a.op}",
            a.kind,
            format_bytes(a.moved_bytes),
            "fast" if a.is_fast else "slow",
            format_s(a.op_s),
            format_s(a.op_if_moved_s),
        )
    text = report.plain_text(table)
    if len(record.accesses) > _MAX_ACCESSES:
        text += f"\nand {len(record.accesses) - _MAX_ACCESSES} more accesses"
    return text


def _reason(plan: Plan, record: BufferExplanation, reason: Reason) -> str:
    """A few sentences on accesses that slow memory serves."""
    if reason.rule is Rule.PINNED:
        return f"It must stay in slow memory: {reason.detail}."
    if reason.rule is Rule.TOO_LARGE:
        return f"It does not fit: fast memory has {reason.detail} for buffers."
    forced, t = reason.forced, reason.at
    if forced is not None and not forced.stay.first <= t < forced.stay.end:
        t = forced.stay.first
    at, gain = plan.program.ops[t].name, "" if forced is None else _gain(reason)
    if reason.rule is Rule.NOT_WORTH:
        return (
            "Its accesses in slow memory are not worth a place: in fast memory they "
            f"would save {format_s(reason.potential_s)}. {gain}".rstrip()
        )
    text = (
        "In fast memory its accesses in slow memory would save up to "
        f"{format_s(reason.potential_s)}, copies not counted. "
    )
    if forced is None:
        why = reason.detail or "no boundary between ops is free for the copy it needs."
        kept = (
            "It shares its place in slow memory with another buffer"
            if reason.rule is Rule.ALIASED
            else "No copy can bring it there"
        )
        return f"{text}{kept}: {why}"
    if reason.blockers:
        return (
            f"{text}There is no space for it at op {at}; the least that would have to "
            f"make room: {_named(reason)}. {gain}"
        )
    if reason.rule is Rule.MISSED:
        return (
            f"{text}There is space at op {at}; {plan.solver} left it where it is. "
            f"{gain}"
        )
    return (
        f"{text}There is space at op {at}, but no copy bandwidth in the window: ops "
        f"would save {format_s(forced.ops_gain_s)} and wait "
        f"{format_s(forced.ops_gain_s - forced.gain_s)} longer for copies of "
        f"{format_s(_copy_s(plan, record))} each. {gain}"
    )


def _gain(reason: Reason) -> str:
    forced = reason.forced
    verb = "loses" if forced.gain_s < 0 else "gains"
    return (
        f"Forced in over ops [{forced.stay.begin}, {forced.stay.end}) the program "
        f"{verb} {format_s(abs(forced.gain_s))} (predicted)."
    )


def _named(reason: Reason) -> str:
    blockers = sorted(reason.blockers, key=lambda b: -b.worth_s)
    named = [
        f"{b.buffer} ({format_bytes(b.size_bytes)}, saves its ops "
        f"{format_s(b.worth_s)})"
        for b in blockers[:_MAX_NAMED]
    ]
    if len(blockers) > _MAX_NAMED:
        named.append(f"and {len(blockers) - _MAX_NAMED} that save less")
    return ", ".join(named)


def _copy_s(plan: Plan, record: BufferExplanation) -> float:
    """Seconds of one execution of a copy of a buffer, undisturbed."""
    return float(copy_s(record.size_bytes, plan.accelerator))


def _wrapped(*lines: str) -> str:
    """Each line broken at 88 columns, names left whole."""
    return "\n".join(
        textwrap.fill(
            line, report.WIDTH, break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )
