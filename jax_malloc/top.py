"""The ops of a plan that lose most: to slow memory, and to waiting for copies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from hwmodel.latency import op_latency_s
from jax_malloc import report
from jax_malloc.json_reader import nearest
from jax_malloc.report import format_bytes, format_s

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

ORDERS = ("loss", "stall", "latency", "slow_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpLoss:
    """What one op loses, all executions together.

    t: its place in the schedule. op_name: the user's own path to it.
    latency_s: it takes. fast_s: it would, with all it touches in fast memory.
    stall_s: the program waits for copies before it.
    slow_bytes: it touches in slow memory. slow_buffers: in which buffers, most first.
    """

    t: int
    name: str
    opcode: str
    op_name: str
    latency_s: float
    fast_s: float
    stall_s: float
    slow_bytes: float
    slow_buffers: tuple[str, ...]

    @property
    def loss_s(self) -> float:
        """Seconds that it would save with all in fast memory and copies for free."""
        return self.latency_s - self.fast_s + self.stall_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Top:
    """Ops in the order of one figure, the worst first.

    by: the figure. rows: the ops. program_latency_s: of the plan.
    """

    by: str
    rows: tuple[OpLoss, ...]
    program_latency_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [{**dataclasses.asdict(r), "loss_s": r.loss_s} for r in self.rows]
        latency_s = self.program_latency_s
        return {"by": self.by, "program_latency_s": latency_s, "ops": rows}

    def __str__(self) -> str:
        table = report.text_table(
            "op", "takes", "in fast", "waits", "loses", "share", "slow bytes"
        )
        for r in self.rows:
            share = r.loss_s / self.program_latency_s if self.program_latency_s else 0.0
            table.add_row(
                f"{r.t} {r.name}",
                format_s(r.latency_s),
                format_s(r.fast_s),
                format_s(r.stall_s),
                format_s(r.loss_s),
                f"{share:.1%}",
                format_bytes(r.slow_bytes),
            )
        return (
            f"{report.plain_text(table)}\n"
            "in fast: with all that the op touches in fast memory. waits: for copies,"
            " before it.\nloses: takes + waits - in fast; share: of the program's "
            f"{format_s(self.program_latency_s)} (predicted)."
        )


def top(plan: Plan, n: int = 10, by: str = "loss") -> Top:
    """The n worst ops.

    Args:
      plan: any.
      n: at most so many.
      by: "loss", "stall", "latency" or "slow_bytes"; see `OpLoss`.
    Raises:
      ValueError: `n` is negative, or there is no such figure.
    """
    if by not in ORDERS:
        raise ValueError(
            f"cannot order ops by {by!r}{nearest(by, ORDERS) or ';'} choose one of "
            f"{', '.join(ORDERS)}."
        )
    if n < 0:
        raise ValueError(f"n is {n}; expected a number of ops >= 0.")
    field = by if by == "slow_bytes" else f"{by}_s"
    rows = sorted(losses(plan), key=lambda r: -getattr(r, field))
    return Top(by=by, rows=tuple(rows[:n]), program_latency_s=plan.latency_s)


def losses(plan: Plan) -> list[OpLoss]:
    """What every op loses, in schedule order."""
    problem, timeline = plan.problem, plan.timeline
    num_ops = len(plan.program.ops)
    in_fast = problem.fast_mask(plan.mapping)
    moved = np.where(in_fast, 0.0, problem.access_bytes)
    slow_bytes = np.bincount(problem.access_op, weights=moved, minlength=num_ops)
    fast_s = op_latency_s(problem.latency, np.zeros(num_ops))
    buffers: list[list[tuple[float, str]]] = [[] for _ in range(num_ops)]
    for row in np.flatnonzero(moved > 0).tolist():
        label = plan.program.buffers[problem.access_buffer[row]].label
        buffers[problem.access_op[row]].append((-float(moved[row]), label))
    return [
        OpLoss(
            t=t,
            name=op.name,
            opcode=op.opcode,
            op_name=op.op_name,
            latency_s=float(timeline.op_duration_s[t]),
            fast_s=float(fast_s[t]),
            stall_s=float(timeline.stall_s[t]),
            slow_bytes=float(slow_bytes[t]),
            slow_buffers=tuple(label for _, label in sorted(buffers[t])),
        )
        for t, op in enumerate(plan.program.ops)
    ]
