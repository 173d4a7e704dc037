"""What steering the compiler gave, as a person holds it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping

import numpy as np
import rich.box
import rich.console
import rich.table

from jax_malloc import report
from jax_malloc.steering.loop import History
from jax_malloc.steering.trial import Trial

_MAX_HINTS_SHOWN = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """The order value of one buffer, and whether the compiler did what it was for.

    label: of the buffer, as in the HLO: `fusion.3{1}`.
    size_bytes: of the buffer.
    value: order value; negative ones get their turn before all buffers without one,
      positive ones after them.
    asked_bytes: accessed from fast memory in the mapping that was asked for.
    obtained_bytes: accessed from fast memory in the mapping that came out.
    is_honoured: whether both serve the same accesses from fast memory.
    """

    label: str
    size_bytes: int
    value: int
    asked_bytes: float
    obtained_bytes: float
    is_honoured: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One compilation with hints.

    asked_latency_s: predicted of the mapping that was asked for, before compiling.
    obtained_latency_s: predicted of the mapping that came out, by its own estimates.
    cycles: the compiler's estimates, added up.
    """

    asked_latency_s: float
    obtained_latency_s: float
    cycles: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SteeringResult:
    """The best that was obtained from the compiler; all latencies are predicted.

    name: of the program.
    topology: what it was compiled for.
    default_latency_s: of one call as the compiler compiles it without hints, stalls
      included, by the estimates in its text.
    asked_latency_s: of the mapping that the kept hints ask for.
    obtained_latency_s: of the one that came out. If no hint helped this is the default.
    default_cycles, obtained_cycles: the compiler's own estimates, added up; stalls are
      not in them.
    hints: the kept order values.
    attempts: every compilation with hints, in order.
    refusals: what the compiler said to options that it refused.
    compiler_options: for `jax.jit(f, compiler_options=...)`; empty if no hint helped.
    slow_hlo: the text without memory space assignment.
    default_hlo: the text without hints.
    obtained_hlo: the text with `compiler_options`.
    """

    name: str
    topology: str
    default_latency_s: float
    asked_latency_s: float
    obtained_latency_s: float
    default_cycles: float
    obtained_cycles: float
    hints: tuple[Hint, ...]
    attempts: tuple[Attempt, ...]
    refusals: tuple[str, ...]
    compiler_options: Mapping[str, str]
    slow_hlo: str = dataclasses.field(repr=False)
    default_hlo: str = dataclasses.field(repr=False)
    obtained_hlo: str = dataclasses.field(repr=False)

    @property
    def speedup(self) -> float:
        """How many times faster than the compiler's default; at least 1."""
        if not self.obtained_latency_s:
            return 1.0
        return self.default_latency_s / self.obtained_latency_s

    def __str__(self) -> str:
        return _table(self)


def of_history(
    history: History,
    *,
    name: str,
    topology: str,
) -> SteeringResult:
    """The result of a steering loop."""
    default, best = history.default, history.best
    attempts = tuple(
        Attempt(
            asked_latency_s=t.expected.latency_s,
            obtained_latency_s=t.latency_s,
            cycles=t.cycles,
        )
        for t in history.trials
        if t.expected is not None
    )
    asked_s = min((a.asked_latency_s for a in attempts), default=default.latency_s)
    options: Mapping[str, str] = {}
    if best.expected is not None:
        asked_s = best.expected.latency_s
        options = best.expected.request.compiler_options(default.problem.program)
    return SteeringResult(
        name=name,
        topology=topology,
        default_latency_s=default.latency_s,
        asked_latency_s=asked_s,
        obtained_latency_s=best.latency_s,
        default_cycles=default.cycles,
        obtained_cycles=best.cycles,
        hints=_hints(best),
        attempts=attempts,
        refusals=history.refusals,
        compiler_options=options,
        slow_hlo=history.slow_text,
        default_hlo=default.text,
        obtained_hlo=best.text,
    )


def _hints(best: Trial) -> tuple[Hint, ...]:
    if best.expected is None:
        return ()
    problem = best.problem
    asked = best.expected.fast
    hints = []
    for buffer_id, value in best.expected.request.priorities.items():
        mine = problem.access_buffer == buffer_id
        size = problem.access_bytes
        buffer = problem.program.buffers[buffer_id]
        hints.append(
            Hint(
                label=buffer.label,
                size_bytes=buffer.size_bytes,
                value=value,
                asked_bytes=float(size[mine & asked].sum()),
                obtained_bytes=float(size[mine & best.fast].sum()),
                is_honoured=bool(np.array_equal(asked[mine], best.fast[mine])),
            )
        )
    return tuple(hints)


def _table(result: SteeringResult) -> str:
    default, obtained = result.default_latency_s, result.obtained_latency_s
    change = obtained / default - 1 if default else 0.0
    honoured = sum(h.is_honoured for h in result.hints)
    lines = [
        f"steering {result.name!r} on {result.topology}: "
        f"{2 + len(result.attempts) + len(result.refusals)} compilations",
        f"default   {report.format_s(default)} (predicted), "
        f"{result.default_cycles:.4g} cycles by the compiler's own estimates",
        f"asked     {report.format_s(result.asked_latency_s)} (predicted)",
        f"obtained  {report.format_s(obtained)} (predicted, {change:+.1%}), "
        f"{result.obtained_cycles:.4g} cycles",
    ]
    if not result.compiler_options:
        lines.append("no hint was better than the default, which is kept")
    if result.obtained_cycles > result.default_cycles:
        lines.append(
            "NOTE: the compiler's own estimates add up to more than by default; the "
            "gain is in stalls, which they leave out"
        )
    for refusal in result.refusals:
        lines.append(f"refused: {refusal}")
    if result.hints:
        lines.append(f"hints honoured: {honoured} of {len(result.hints)}")
        lines += ["", _hint_table(result)]
    return "\n".join(lines)


def _hint_table(result: SteeringResult) -> str:
    table = rich.table.Table(box=rich.box.HORIZONTALS, pad_edge=False)
    table.add_column("buffer", overflow="fold")
    for column in ("size", "order", "asked", "obtained"):
        table.add_column(column, justify="right")
    table.add_column("honoured")
    for hint in result.hints[:_MAX_HINTS_SHOWN]:
        table.add_row(
            hint.label,
            report.format_bytes(hint.size_bytes),
            str(hint.value),
            report.format_bytes(hint.asked_bytes),
            report.format_bytes(hint.obtained_bytes),
            "yes" if hint.is_honoured else "no",
        )
    text = io.StringIO()
    rich.console.Console(file=text, width=report.WIDTH).print(table)
    more = len(result.hints) - _MAX_HINTS_SHOWN
    tail = f"and {more} more hints\n" if more > 0 else ""
    return (
        "\n".join(line.rstrip() for line in text.getvalue().splitlines())
        + f"\n{tail}asked, obtained: bytes that ops access from fast memory"
    )
