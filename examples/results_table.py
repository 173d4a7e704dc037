"""Rows of a study of TPU compiles: JSON lines in, Markdown tables out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from jax_malloc import report

# Columns of latencies, by their name in a row. Those that no row has are left out.
_COLUMNS: Mapping[str, str] = {
    "all_slow": "all in HBM",
    "xla_msa": "xla_msa",
    "xla": "XLA",
    "greedy": "greedy",
    "muzero": "agent",
    "hybrid": "hybrid",
    "steered": "obtained by steering",
    "lower_bound": "lower bound",
}
_LATENCY_NOTE = (
    "Predicted milliseconds per call. What steering obtained is timed by the estimates "
    "in its own text, since other placements make other code; the bound is for those "
    "of the first two texts, so it may be undercut."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One program on one topology.

    settings: all else that the row depends on: versions, seed, limits.
    ops, accesses: of the program, as compiled with everything in HBM.
    touched_bytes: that its ops read and write in one call.
    latency_s: predicted seconds per call, by mapping: "all_slow", "xla", ...
    wall_s: measured seconds: "compile", "steer", and the solvers by name; empty where
      other work on the machine would have made them meaningless.
    """

    program: str
    topology: str
    settings: Mapping[str, str | int | float]
    ops: int
    accesses: int
    touched_bytes: float
    latency_s: Mapping[str, float]
    wall_s: Mapping[str, float]

    @property
    def key(self) -> tuple:
        return key(self.program, self.topology, self.settings)


def key(
    program: str, topology: str, settings: Mapping[str, str | int | float]
) -> tuple:
    """What must be the same for a row not to be made again."""
    return program, topology, tuple(sorted(settings.items()))


def markdown(rows: Sequence[Row]) -> str:
    """A table of latencies and a table of seconds for each topology."""
    topologies = dict.fromkeys(row.topology for row in rows)
    parts = []
    for topology in topologies:
        chosen = [row for row in rows if row.topology == topology]
        parts += [
            f"### {topology}",
            _LATENCY_NOTE,
            _latencies(chosen),
        ]
        if any(row.wall_s for row in chosen):
            parts += ["Measured seconds.", _seconds(chosen)]
    return "\n\n".join(parts) + "\n"


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers; NaN of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _latencies(rows: Sequence[Row]) -> str:
    columns = [c for c in _COLUMNS if any(c in row.latency_s for row in rows)]
    headings = ["program", "ops", "touched", *(_COLUMNS[c] for c in columns)]
    lines = []
    for row in rows:
        cells = [
            f"{row.latency_s[c] * 1e3:#.4g}" if c in row.latency_s else ""
            for c in columns
        ]
        lines.append(
            [row.program, str(row.ops), report.format_bytes(row.touched_bytes), *cells]
        )
    means = []
    for column in columns:
        ratios = [
            row.latency_s["xla"] / row.latency_s[column]
            for row in rows
            if {"xla", column} <= row.latency_s.keys() and row.latency_s[column] > 0
        ]
        means.append(f"{geometric_mean(ratios):.4f}" if ratios else "")
    lines.append(["XLA / column, geometric mean", "", "", *means])
    return markdown_table(headings, lines)


def _seconds(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.wall_s))
    lines = [
        [
            row.program,
            *(f"{row.wall_s[c]:.1f}" if c in row.wall_s else "" for c in columns),
        ]
        for row in rows
    ]
    return markdown_table(["program", *columns], lines)


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text, the others figures."""
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
