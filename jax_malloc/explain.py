"""Why a buffer is where a plan has it, and what it would gain elsewhere.

    explanation = plan.explain("fusion.12")
    print(explanation)                     # it is a str
    explanation.rule                       # what decided
    explanation.forced.mapping             # the best change, to evaluate for yourself

Reasons are found by forcing: every run of accesses in slow memory is brought into fast
memory in many ways, each a valid mapping, and the best of them is timed by the
evaluator. Which rule decided follows from what that took and whether it paid.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_malloc import report
from jax_malloc.forcing import Forced, Forcing
from jax_malloc.json_reader import nearest
from jax_malloc.mapping import Copy, Segment
from jax_malloc.violation import ViolationKind

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

# A gain below this share of the all-in-slow-memory latency is none, as for solvers.
_NEGLIGIBLE_SHARE = 1e-5
# Of gains that are about equal, the first access is named.
_ABOUT = 0.99


class Rule(enum.Enum):
    """What keeps accesses in slow memory."""

    FAST = "none is in slow memory"
    PINNED = "must be in slow memory"
    TOO_LARGE = "too large for fast memory"
    ALIASED = "shares its place in slow memory with another buffer"
    OUTPUT = "an output, which must be in slow memory at the end"
    NOT_WORTH = "not worth its bytes"
    NO_SPACE = "no space"
    NO_BANDWIDTH = "no copy bandwidth in the window"
    MISSED = "nothing; the solver did not find it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccessCost:
    """One access: what its op takes, and would take with only this access moved.

    t, op: when. kind: "read", "write" or "update". moved_bytes: all executions
    together. is_fast: where it is.
    """

    t: int
    op: str
    kind: str
    moved_bytes: float
    is_fast: bool
    op_s: float
    op_if_moved_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocker:
    """A stay in the way, and the seconds that the program would take longer without."""

    buffer: str
    size_bytes: int
    stay: Segment
    worth_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a run of accesses is in slow memory.

    first, last: ops of its first and last access. at: the one that would save most.
    potential_s: what the accesses could save, copies and space left aside.
    rule: what decided. detail: of the rule, if it has any.
    blockers: stays that have to make room in `forced`.
    forced: the best way to bring any of it in; None where there is none.
    """

    rule: Rule
    first: int
    last: int
    at: int
    potential_s: float
    detail: str = ""
    blockers: tuple[Blocker, ...] = ()
    forced: Forced | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BufferExplanation:
    """One buffer of a plan.

    stays, copies: in fast memory, and to and from it. waits_s: for each of the copies.
    saved_s: what the program would take longer without them.
    reasons: one per run of accesses in slow memory, the greatest potential first.
    """

    buffer_id: int
    buffer: str
    size_bytes: int
    kind: str
    live: tuple[int, int]
    stays: tuple[Segment, ...]
    copies: tuple[Copy, ...]
    waits_s: tuple[float, ...]
    accesses: tuple[AccessCost, ...]
    saved_s: float
    reasons: tuple[Reason, ...]

    @property
    def rule(self) -> Rule:
        """What keeps most of it in slow memory."""
        return self.reasons[0].rule if self.reasons else Rule.FAST


class Explanation(str):
    """The answer to `Plan.explain`: its text, with the records that it says.

    buffers: one record each.
    """

    __slots__ = ("buffers",)

    buffers: tuple[BufferExplanation, ...]

    def __new__(cls, text: str, buffers: tuple[BufferExplanation, ...]) -> Explanation:
        self = super().__new__(cls, text)
        self.buffers = buffers
        return self

    def __repr__(self) -> str:
        return str(self)

    @property
    def rule(self) -> Rule:
        """What keeps most of the first buffer in slow memory."""
        return self.buffers[0].rule if self.buffers else Rule.FAST

    @property
    def forced(self) -> Forced | None:
        """The change that gains most, or loses least; None if none is possible."""
        ways = (r.forced for b in self.buffers for r in b.reasons)
        return max((w for w in ways if w), key=lambda w: w.gain_s, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The records as plain JSON values; of a forced mapping, what it changes."""
        return {"buffers": [_plain(b) for b in self.buffers]}


def explain(plan: Plan, name: str) -> Explanation:
    """What is known of the buffers that a name means.

    Args:
      plan: any.
      name: of a buffer, or of an op: then also of what it accesses in slow memory.
    Raises:
      ValueError: the program has no buffer and no op of that name.
    """
    from jax_malloc import explain_text

    program = plan.program
    t, ids = program.op_index.get(name), _buffers_called(plan, name)
    if t is None and not ids:
        known = [*(b.label for b in program.buffers), *program.op_index]
        raise ValueError(
            f"program {program.name!r} has no buffer and no op {name!r}"
            f"{nearest(name, known) or '.'}"
        )
    forcing = Forcing(plan.problem, plan.mapping)
    changes_s = report.access_changes_s(plan.problem, plan.mapping)
    if t is not None:
        # An op is named after its result; what slows it down may be an operand.
        ids += [b for b in _touched(plan, t, changes_s) if b not in ids]
    buffers = tuple(_explained(plan, forcing, changes_s, b) for b in ids)
    return Explanation(explain_text.render(plan, t, buffers), buffers)


def _buffers_called(plan: Plan, name: str) -> list[int]:
    """The buffers that a name means: by label, by name, as an alias."""
    for matches in (
        lambda b: b.label == name,
        lambda b: b.name == name,
        lambda b: any(alias == name for alias, _ in b.aliases),
    ):
        found = [i for i, b in enumerate(plan.program.buffers) if matches(b)]
        if found:
            return found
    return []


def _touched(plan: Plan, t: int, changes_s: np.ndarray) -> list[int]:
    """What op t touches and finds in slow memory, the dearest first.

    All that it touches, where there is no such buffer.
    """
    problem = plan.problem
    rows = np.flatnonzero(problem.access_op == t)
    cost_s = np.where(problem.fast_mask(plan.mapping)[rows], 0.0, -changes_s[rows])
    dear = cost_s > _NEGLIGIBLE_SHARE * plan.problem.all_slow_latency_s
    order = np.argsort(-cost_s, kind="stable")
    chosen = [i for i in order if dear[i]] or order
    return [int(b) for b in problem.access_buffer[rows[chosen]]]


def _explained(
    plan: Plan, forcing: Forcing, changes_s: np.ndarray, buffer_id: int
) -> BufferExplanation:
    program, problem = plan.program, plan.problem
    buffer, fast = program.buffers[buffer_id], problem.fast_mask(plan.mapping)
    rows = np.flatnonzero(problem.access_buffer == buffer_id)
    accesses = []
    for row in rows.tolist():
        t, writes = int(problem.access_op[row]), problem.access_writes[row]
        op_s = float(plan.timeline.op_duration_s[t])
        accesses.append(
            AccessCost(
                t=t,
                op=program.ops[t].name,
                kind=("update" if problem.access_reads[row] else "write")
                if writes
                else "read",
                moved_bytes=float(problem.access_bytes[row]),
                is_fast=bool(fast[row]),
                op_s=op_s,
                op_if_moved_s=op_s + float(changes_s[row]),
            )
        )
    copies = [
        (c, float(wait_s))
        for c, wait_s in zip(
            plan.mapping.copies, plan.timeline.copy_exposed_s, strict=True
        )
        if c.buffer_id == buffer_id
    ]
    stays = plan.mapping.segments_of(buffer_id)
    return BufferExplanation(
        buffer_id=buffer_id,
        buffer=buffer.label,
        size_bytes=buffer.size_bytes,
        kind=buffer.kind.value,
        live=(buffer.live.start, buffer.live.end),
        stays=stays,
        copies=tuple(c for c, _ in copies),
        waits_s=tuple(wait_s for _, wait_s in copies),
        accesses=tuple(accesses),
        saved_s=report.saving_s(plan, buffer_id) if stays else 0.0,
        reasons=_reasons(plan, forcing, buffer_id, accesses),
    )


def _reasons(
    plan: Plan, forcing: Forcing, buffer_id: int, accesses: list[AccessCost]
) -> tuple[Reason, ...]:
    """One reason per run of accesses in slow memory, the greatest potential first."""
    slow = [a for a in accesses if not a.is_fast]
    if not slow:
        return ()
    pinned = plan.program.buffers[buffer_id].pinned_slow
    if pinned or buffer_id not in forcing.lives:
        rule, detail = Rule.PINNED, pinned
        if not pinned:
            rule, detail = Rule.NOT_WORTH, "it has no bytes"
        return (Reason(rule=rule, detail=detail, **_span(slow)),)
    reasons, uses = [], forcing.lives[buffer_id].uses
    for first, last in forcing.slow_runs(buffer_id):
        begin, end = uses[first].begin, uses[last].end
        mine = [a for a in slow if begin <= a.t < end]
        if mine:
            reasons.append(_reason(plan, forcing, buffer_id, (first, last), mine))
    return tuple(sorted(reasons, key=lambda r: -r.potential_s))


def _span(accesses: list[AccessCost]) -> dict[str, Any]:
    gains_s = [a.op_s - a.op_if_moved_s for a in accesses]
    # Of equals the first, whatever the rounding.
    dearest = next(
        a
        for a, gain_s in zip(accesses, gains_s, strict=True)
        if gain_s >= _ABOUT * max(gains_s)
    )
    return {
        "first": accesses[0].t,
        "last": accesses[-1].t,
        "at": dearest.t,
        "potential_s": sum(gains_s),
    }


def _reason(
    plan: Plan,
    forcing: Forcing,
    buffer_id: int,
    run: tuple[int, int],
    accesses: list[AccessCost],
) -> Reason:
    """What decided over one run of uses."""
    buffer, problem = plan.program.buffers[buffer_id], plan.problem
    span, uses = _span(accesses), forcing.lives[buffer_id].uses[run[0] : run[1] + 1]
    room = max(problem.op_capacity_granules[u.begin : u.end].min() for u in uses)
    if problem.size_granules[buffer_id] > room:
        return Reason(
            rule=Rule.TOO_LARGE,
            detail=report.format_bytes(int(room) * problem.granule_bytes),
            **span,
        )
    attempt = forcing.bring_in(buffer_id, run, span["at"])
    forced, negligible_s = attempt.there, _NEGLIGIBLE_SHARE * problem.all_slow_latency_s
    if attempt.best is not None and attempt.best.gain_s > negligible_s:
        rule, forced = Rule.MISSED, attempt.best
    elif span["potential_s"] <= negligible_s:
        rule = Rule.NOT_WORTH
    elif attempt.free is not None:
        # There is a gap, and its ops get faster: only copies can eat that up.
        forced = attempt.free
        ends = buffer.is_output and run[1] + 1 == len(forcing.lives[buffer_id].uses)
        rule = Rule.OUTPUT if ends and not buffer.is_input else Rule.NO_BANDWIDTH
        if forced.ops_gain_s <= negligible_s:
            rule = Rule.NOT_WORTH
    elif forced is not None:
        rule = Rule.NO_SPACE
    elif attempt.refused and attempt.refused.kind is ViolationKind.ALIAS_GROUP:
        rule = Rule.ALIASED
    else:
        rule = Rule.NO_BANDWIDTH
    evicted = forced.evicted if forced is not None else ()
    return Reason(
        rule=rule,
        detail="" if forced or not attempt.refused else attempt.refused.detail,
        blockers=tuple(_blocker(plan, forcing, s) for s in evicted),
        forced=forced,
        **span,
    )


def _blocker(plan: Plan, forcing: Forcing, stay: Segment) -> Blocker:
    buffer = plan.program.buffers[stay.buffer_id]
    return Blocker(
        buffer=buffer.label,
        size_bytes=buffer.size_bytes,
        stay=stay,
        worth_s=forcing.worth_s(stay),
    )


def _plain(value: Any) -> Any:
    """Records, tuples and enums as JSON values; a whole mapping is left out."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name != "mapping"
        }
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
