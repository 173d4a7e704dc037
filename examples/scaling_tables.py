"""Tables of `measure_scaling.py`: what was measured, and apart from it what follows."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.text

import results_table
import scaling_model
from jax_malloc import report
from scaling_model import Length, Link

Found = Mapping[str, Any]  # what one process measured, see scaling_jobs.measure

# Parts of an iteration by their column; what they leave over is "rest".
_PARTS = {
    "self_play_s": "self-play",
    "demonstrations_s": "demonstrations",
    "reanalysis_s": "reanalysis",
    "waiting_s": "waiting",
    "updates_s": "updates",
}
_ITERATION = ["moves", *_PARTS.values(), "rest", "iteration", "moves/s"]

# Ways for hosts to work together, each a change of the one before: a name, whether all
# draw the same length, and whether each has as many rows of an update as one host has.
_VARIANTS = (
    ("as it is", False, False),
    ("drawn together", True, False),
    ("batch grown too", True, True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its title and what is to be known about it."""

    title: str
    text: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        table = results_table.markdown_table(self.headings, self.rows)
        return f"### {self.title}\n\n{self.text}\n\n{table}"

    def rich(self) -> rich.console.Group:
        table = report.text_table(*self.headings)
        for row in self.rows:
            table.add_row(*row)
        return rich.console.Group(
            rich.text.Text(self.title, "bold"), self.text, "", table, ""
        )


def lengths_of(one: Found) -> list[Length]:
    """What a host alone does per iteration, by length of programs."""
    programs = sum(len(x["seeds"]) for x in one["lengths"].values())
    lengths = []
    for measured in one["lengths"].values():
        mean = typical(measured["iterations"])
        lengths.append(
            Length(
                share=len(measured["seeds"]) / programs,
                moves=mean["moves"],
                own_s=mean["iteration_s"] - mean["updates_s"],
            )
        )
    return lengths


def typical(iterations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians of the seconds, the mean of the moves, and the seconds left over."""
    mean = {
        name: statistics.median(x[name] for x in iterations)
        for name in ("iteration_s", *_PARTS)
    }
    mean["moves"] = statistics.mean(x["moves"] for x in iterations)
    mean["rest_s"] = mean["iteration_s"] - sum(mean[part] for part in _PARTS)
    return mean


def one_process(one: Found) -> Table:
    """Measured: iterations of one process by length of programs."""
    columns = [
        [
            f"up to {length}",
            str(len(measured["seeds"])),
            *_cells(typical(measured["iterations"])),
        ]
        for length, measured in one["lengths"].items()
    ]
    headings, *rows = zip(["accesses", "programs", *_ITERATION], *columns, strict=True)
    return Table(
        title="Measured: one process, one device, one core",
        text="Per iteration, seconds: medians. By the accesses of the programs that "
        "an iteration plays, and how many such programs there are.",
        headings=headings,
        rows=rows,
    )


def two_processes(one: Found, two: Sequence[Found], shared: bool) -> Table:
    """Measured: two joined processes beside one, on the same programs."""
    length, alone, joined = _side_by_side(one, two)
    rate, own_rate = (x["moves"] / x["iteration_s"] for x in (alone, joined))
    joined["moves"] *= 2
    headings, *rows = zip(
        ["processes", *_ITERATION, "efficiency"],
        ["1", *_cells(alone), ""],
        ["2", *_cells(joined), f"{own_rate / rate:.0%}"],
        strict=True,
    )
    where = (
        "BOTH ON ONE CORE, which says nothing of scaling"
        if shared
        else "A core and as many games each"
    )
    return Table(
        title="Measured: two processes joined over loopback",
        text=f"{where}. Both play programs of up to {length} accesses; seconds of an "
        "iteration. Each update's batch is split between the two. Efficiency is "
        "moves/s over twice those of one process.",
        headings=headings,
        rows=rows,
    )


def _side_by_side(one: Found, two: Sequence[Found]) -> tuple[str, dict, dict]:
    """The length that the two played; of it, what one does, and the mean of the two."""
    (length,) = two[0]["lengths"]
    alone, *both = (typical(x["lengths"][length]["iterations"]) for x in (one, *two))
    return length, alone, {k: statistics.mean(x[k] for x in both) for k in alone}


def updates(one: Found, two: Sequence[Found], batch: int) -> Table:
    """Measured: updates alone, by rows per process."""
    alone = {int(rows): s for rows, s in one["update_s"].items()}
    joined = {
        int(rows): statistics.mean(x["update_s"][rows] for x in two)
        for rows in two[0]["update_s"]
    }
    rows = []
    for processes, seconds in ((1, alone), (2, joined)):
        for number, update_s in sorted(seconds.items(), reverse=True):
            ratio = alone[batch] / update_s * number * processes / batch / processes
            rows.append(
                [
                    str(processes),
                    str(number),
                    f"{number * processes:,}",
                    f"{update_s * 1e3:.2f}",
                    f"{ratio:.0%}",
                ]
            )
    return Table(
        title="Measured: updates alone",
        text="Efficiency is rows per second and process over those of one process "
        f"with the batch of {batch}: of two processes, strong scaling where they share "
        "that batch, weak scaling where each has as many rows.",
        headings=["processes", "rows each", "rows in all", "ms/update", "efficiency"],
        rows=rows,
    )


def all_reduces(two: Sequence[Found]) -> Table:
    """Measured: sums over two processes, by themselves."""
    names = {
        "flat": "the gradients in one array, as an update sums them",
        "tree": "the same array by array",
    }
    rows = []
    for name, label in names.items():
        first = two[0]["all_reduce"][name]
        ms = 1e3 * _all_reduce_s(two, name)
        rows.append(
            [label, str(first["arrays"]), f"{first['size_bytes']:,}", f"{ms:.2f}"]
        )
    return Table(
        title="Measured: one sum between two processes over loopback",
        text="Nothing else runs in the two; medians of calls.",
        headings=["what", "arrays", "bytes", "ms"],
        rows=rows,
    )


def _all_reduce_s(two: Sequence[Found], name: str) -> float:
    return statistics.mean(x["all_reduce"][name]["s"] for x in two)


def check(one: Found, two: Sequence[Found], batch: int, updates: int) -> Table:
    """The arithmetic for two processes beside what the two were measured to take."""
    _, alone, joined = _side_by_side(one, two)
    half = str(batch // 2)
    update_s = one["update_s"][half] + _all_reduce_s(two, "flat")
    iteration_s = alone["iteration_s"] - alone["updates_s"] + updates * update_s
    measured_s = statistics.mean(x["update_s"][half] for x in two)
    return Table(
        title="Check of the arithmetic: two processes over loopback",
        text="Predicted: an update is the measured compute of one process with half of "
        "the batch, and the measured sum of the gradients in one array; an iteration "
        "is one process's own work and so many updates.",
        headings=["seconds of one", "predicted", "measured"],
        rows=[
            ["update", f"{update_s:.4f}", f"{measured_s:.4f}"],
            ["iteration", f"{iteration_s:.4f}", f"{joined['iteration_s']:.4f}"],
        ],
    )


def predictions(
    one: Found,
    two: Sequence[Found],
    *,
    hosts: Sequence[int],
    batch: int,
    updates: int,
    link: Link,
) -> Table:
    """Predicted: many hosts, from what one was measured to do."""
    lengths = lengths_of(one)
    size_bytes = two[0]["all_reduce"]["flat"]["size_bytes"]

    def seconds_of(n: int, rows: int, drawn_together: bool) -> list[float]:
        """Of one iteration: own work, compute and sums."""
        return [
            scaling_model.slowest_s(lengths, 1 if drawn_together else n),
            updates * one["update_s"][str(rows)],
            updates * scaling_model.ring_all_reduce_s(size_bytes, n, link),
        ]

    moves = sum(x.share * x.moves for x in lengths)
    alone = moves / sum(seconds_of(1, batch, False))
    rows = []
    for name, drawn_together, weak in _VARIANTS:
        for n in hosts:
            seconds = seconds_of(n, batch if weak else batch // n, drawn_together)
            rate = n * moves / sum(seconds)
            rows.append(
                [
                    name,
                    str(n),
                    *(f"{s:.3f}" for s in (*seconds, sum(seconds))),
                    f"{rate:,.0f}",
                    f"{rate / (n * alone):.0%}",
                ]
            )
    return Table(
        title="Predicted: many hosts",
        text="Arithmetic, not measured: seconds per iteration from the tables above, "
        "for hosts like the one measured, on "
        f"{link.bandwidth_bytes_per_s * 8 / 1e9:g} Gbit/s with "
        f"{link.latency_s * 1e6:g} us per message, both assumed of the Ethernet of a "
        "data centre. Own is what a host does by itself, until the slowest is through; "
        "compute and summing are of all updates. An update sums its gradients as one "
        f"array of {size_bytes:,} bytes, its losses aside, in a ring: 2 (N - 1) / N of "
        "the bytes over the bandwidth, and 2 (N - 1) latencies. Efficiency is over N "
        f"times one host by the same arithmetic, {alone:,.0f} moves/s; it can exceed "
        "100% where a divided batch leaves each host fewer rows. As it is: each draws "
        f"its own length and has {batch} / N rows of an update. Drawn together: all "
        "play the same length in an iteration, so that none waits for a longer draw. "
        f"Batch grown too: besides, each has {batch} rows of an update, as one host "
        "by itself has.",
        headings=[
            "variant",
            "hosts",
            "own",
            "compute",
            "summing",
            "iteration",
            "moves/s",
            "efficiency",
        ],
        rows=rows,
    )


def _cells(mean: Mapping[str, float]) -> list[str]:
    seconds = [mean[part] for part in (*_PARTS, "rest_s", "iteration_s")]
    return [
        f"{mean['moves']:,.0f}",
        *(f"{s:.3f}" for s in seconds),
        f"{mean['moves'] / mean['iteration_s']:,.0f}",
    ]
