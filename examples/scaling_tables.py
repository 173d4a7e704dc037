"""Tables of `measure_scaling.py`: what was measured, and apart from it what follows."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.table

import results_table
import scaling_model
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

    def rich(self) -> rich.table.Table:
        table = rich.table.Table(title=self.title, caption=self.text)
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


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
    rows = []
    for length, measured in one["lengths"].items():
        mean = typical(measured["iterations"])
        programs = str(len(measured["seeds"]))
        rows.append([f"up to {length}", programs, *_cells(mean, mean["moves"])])
    return Table(
        title="Measured: one process, one device, one core",
        text="Per iteration, seconds: medians. By the accesses of the programs that "
        "an iteration plays, and how many such programs there are.",
        headings=["accesses", "programs", *_headings()],
        rows=rows,
    )


def two_processes(one: Found, two: Sequence[Found], shared: bool) -> Table:
    """Measured: two joined processes beside one, on the same programs."""
    (length,) = two[0]["lengths"]
    alone = typical(one["lengths"][length]["iterations"])
    both = [typical(x["lengths"][length]["iterations"]) for x in two]
    joined = {name: statistics.mean(x[name] for x in both) for name in alone}
    moves = sum(x["moves"] for x in both)
    rate = alone["moves"] / alone["iteration_s"]
    efficiency = moves / joined["iteration_s"] / (2 * rate)
    where = (
        "BOTH ON ONE CORE, which says nothing of scaling"
        if shared
        else "a core and as many games each"
    )
    return Table(
        title="Measured: two processes joined over loopback",
        text=f"{where[0].upper()}{where[1:]}. Programs of up to {length} accesses, "
        "seconds of an iteration; each update's batch is split between the two. "
        "Efficiency is moves/s over twice those of one process.",
        headings=["processes", *_headings(), "efficiency"],
        rows=[
            ["1", *_cells(alone, alone["moves"]), ""],
            ["2", *_cells(joined, moves), f"{efficiency:.0%}"],
        ],
    )


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
        "update": "what an update sums, as compiled",
        "params": "the tree of parameters",
        "flat": "the same in one array",
    }
    rows = []
    for name, label in names.items():
        every = [x["all_reduce"][name] for x in two]
        seconds = statistics.mean(x["s"] for x in every)
        arrays, size = every[0]["arrays"], every[0]["size_bytes"]
        rows.append([label, str(arrays), f"{size:,}", f"{seconds * 1e3:.2f}"])
    return Table(
        title="Measured: one all-reduce between two processes over loopback",
        text="Nothing else runs in the two; medians of calls.",
        headings=["what", "arrays", "bytes", "ms"],
        rows=rows,
    )


def check(one: Found, two: Sequence[Found], batch: int, updates: int) -> Table:
    """The arithmetic for two processes beside what the two were measured to take."""
    (length,) = two[0]["lengths"]
    alone = typical(one["lengths"][length]["iterations"])
    both = [typical(x["lengths"][length]["iterations"]) for x in two]
    half = str(batch // 2)
    summed_s = statistics.mean(x["all_reduce"]["update"]["s"] for x in two)
    update_s = one["update_s"][half] + summed_s
    iteration_s = alone["iteration_s"] - alone["updates_s"] + updates * update_s
    measured_s = statistics.mean(x["update_s"][half] for x in two)
    rows = [("update", update_s, measured_s)]
    rows.append(
        ("iteration", iteration_s, statistics.mean(x["iteration_s"] for x in both))
    )
    return Table(
        title="Check of the arithmetic: two processes over loopback",
        text="Predicted: an update is the measured compute of one process with half of "
        "the batch, and the measured all-reduce of what an update sums; an iteration "
        "is one process's own work and so many updates.",
        headings=["seconds of one", "predicted", "measured"],
        rows=[[name, f"{a:.4f}", f"{b:.4f}"] for name, a, b in rows],
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
    update_s = {int(rows): s for rows, s in one["update_s"].items()}
    alone = scaling_model.predict(
        lengths, hosts=1, updates=updates, update_s=update_s[batch], all_reduce_s=0.0
    )
    rows = []
    for variant in variants(two[0]):
        for n in hosts:
            number = batch if variant.weak else batch // n
            found = scaling_model.predict(
                lengths,
                hosts=n,
                updates=updates,
                update_s=update_s[number],
                all_reduce_s=scaling_model.ring_all_reduce_s(
                    variant.size_bytes, n, link, variant.messages
                ),
                drawn_together=variant.drawn_together,
            )
            rows.append(
                [
                    variant.name,
                    str(n),
                    str(number),
                    f"{found.own_s:.3f}",
                    f"{found.compute_s:.3f}",
                    f"{found.all_reduce_s:.3f}",
                    f"{found.iteration_s:.3f}",
                    f"{found.moves_per_s:,.0f}",
                    f"{found.moves_per_s / (n * alone.moves_per_s):.0%}",
                ]
            )
    return Table(
        title="Predicted: many hosts",
        text="Arithmetic, not measured: seconds per iteration from the tables above, "
        "for hosts like the one measured, on "
        f"{link.bandwidth_bytes_per_s * 8 / 1e9:g} Gbit/s with "
        f"{link.latency_s * 1e6:g} us per message, both assumed of the Ethernet of a "
        "data centre. An all-reduce is a ring: 2 (N - 1) / N of the bytes over the "
        "bandwidth, and 2 (N - 1) latencies for each message. Efficiency is over N "
        "times one host by the same arithmetic, "
        f"{alone.moves_per_s:,.0f} moves/s; it can exceed 100% where a divided batch "
        "leaves each host fewer rows. The first variant sends the arrays of an update "
        "one after another, as the collectives on CPUs do.",
        headings=[
            "variant",
            "hosts",
            "rows each",
            "own work",
            "compute",
            "all-reduce",
            "iteration",
            "moves/s",
            "efficiency",
        ],
        rows=rows,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A way for hosts to work together."""

    name: str
    size_bytes: int
    messages: int
    drawn_together: bool = False
    weak: bool = False


def variants(two: Found) -> Iterator[Variant]:
    """From what the code does to what it could do, one change after another."""
    sent, params = two["all_reduce"]["update"], two["all_reduce"]["params"]
    size, whole = sent["size_bytes"], params["size_bytes"]
    yield Variant(name="as on CPUs now", size_bytes=size, messages=sent["arrays"])
    yield Variant(name="one message per update", size_bytes=size, messages=1)
    yield Variant(
        name="and each gradient once, lengths drawn together",
        size_bytes=whole,
        messages=1,
        drawn_together=True,
    )
    yield Variant(
        name="and the batch grown with the hosts",
        size_bytes=whole,
        messages=1,
        drawn_together=True,
        weak=True,
    )


def _headings() -> list[str]:
    return ["moves", *_PARTS.values(), "rest", "iteration", "moves/s"]


def _cells(mean: Mapping[str, float], moves: float) -> list[str]:
    seconds = [mean[part] for part in (*_PARTS, "rest_s", "iteration_s")]
    return [
        f"{moves:,.0f}",
        *(f"{s:.3f}" for s in seconds),
        f"{moves / mean['iteration_s']:,.0f}",
    ]
