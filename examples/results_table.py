"""Rows of a study of TPU compiles: JSON lines in, Markdown tables out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
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


def read(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file; none if there is no file. A line that was cut off is skipped.

    Raises:
      ValueError: naming the line, if one is JSON and not a row.
    """
    if not os.path.exists(path):
        return []
    rows = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                rows.append(Row(**json.loads(line)))
            except json.JSONDecodeError:
                continue  # the run ended while it was being written
            except TypeError as error:
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: not a row of this study "
                    f"({error}). Give another --output."
                ) from None
    return rows


def append(path: str | os.PathLike[str], row: Row) -> None:
    """Adds a row's line to a file, on a line of its own whatever the file ends in."""
    with open(path, "a+b") as f:
        if f.tell() > 0:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                f.write(b"\n")
        f.write(json.dumps(dataclasses.asdict(row)).encode() + b"\n")


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
    return _table(headings, lines)


def _seconds(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.wall_s))
    lines = [
        [
            row.program,
            *(f"{row.wall_s[c]:.1f}" if c in row.wall_s else "" for c in columns),
        ]
        for row in rows
    ]
    return _table(["program", *columns], lines)


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
