"""How fast a program would be on a machine with more, less or faster memory.

latency
  |  o
  |    o
  |       o                 the knee: the smallest value whose latency is within
  |          X---o---o---o  1 % of the best
  +---------------------------- fast memory, or bandwidth of slow memory
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import planner, report
from jax_malloc import problem as problem_lib
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.report import format_bytes, format_s

# At the knee, this much of the best latency is still missing at most.
KNEE_SHARE = 0.01
# Without a sweep asked for: these multiples of the fast memory that plans may use.
_USABLE_MULTIPLES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_BAR_WIDTH = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhatIfRow:
    """One machine of the sweep, and the latencies predicted for it.

    fast_capacity_bytes: of all fast memory, with what ops keep of it for themselves.
    slow_bandwidth: of slow memory, in bytes/s.
    """

    fast_capacity_bytes: int
    slow_bandwidth: float
    latency_s: float
    all_slow_latency_s: float

    @property
    def speedup(self) -> float:
        """How many times faster than with everything in slow memory, there."""
        return self.all_slow_latency_s / self.latency_s if self.latency_s else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhatIf:
    """Predicted latencies over a sweep.

    swept: the fields of the rows that vary, "fast_capacity_bytes" first.
    rows: a row per machine, by bandwidth and then by capacity, ascending.
    """

    program: str
    accelerator: str
    solver: str
    swept: tuple[str, ...]
    rows: tuple[WhatIfRow, ...]

    @property
    def axis(self) -> str:
        """The field that varies along one curve: capacity, if it varies at all."""
        return self.swept[0]

    @property
    def curves(self) -> tuple[tuple[WhatIfRow, ...], ...]:
        """The rows; where both fields vary, those of each bandwidth."""
        if len(self.swept) == 1:
            return (self.rows,)
        groups = itertools.groupby(self.rows, key=lambda r: r.slow_bandwidth)
        return tuple(tuple(rows) for _, rows in groups)

    @property
    def knees(self) -> tuple[WhatIfRow, ...]:
        """Of each curve the first row within 1 % of its best latency."""
        knees = []
        for rows in self.curves:
            enough_s = (1 + KNEE_SHARE) * min(r.latency_s for r in rows)
            knees.append(next(r for r in rows if r.latency_s <= enough_s))
        return tuple(knees)

    @property
    def knee(self) -> WhatIfRow:
        """The knee of the only curve, or of the one with the most bandwidth."""
        return self.knees[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        knees = self.knees
        rows = [
            {**dataclasses.asdict(r), "speedup": r.speedup, "knee": r in knees}
            for r in self.rows
        ]
        return {**dataclasses.asdict(self), "rows": rows}

    def __str__(self) -> str:
        table = report.text_table(
            "fast memory", "slow memory", "latency", "speedup", "", ""
        )
        table.columns[-2].justify = table.columns[-1].justify = "left"
        worst_s, knees = max(r.latency_s for r in self.rows), self.knees
        for r in self.rows:
            bar = round(_BAR_WIDTH * r.latency_s / worst_s) if worst_s else 0
            table.add_row(
                format_bytes(r.fast_capacity_bytes),
                f"{r.slow_bandwidth / 1e9:.4g} GB/s",
                format_s(r.latency_s),
                f"{r.speedup:.3f}x",
                "█" * bar,
                "knee" if r in knees else "",
            )
        return (
            f"{self.program!r} on variations of {self.accelerator}, by {self.solver}\n"
            f"\n{report.plain_text(table)}\n"
            "latency: predicted; speedup: over all in slow memory. knee: the least "
            f"{'capacity' if self.axis == 'fast_capacity_bytes' else 'bandwidth'}\n"
            f"within {KNEE_SHARE:.0%} of the best latency."
        )

    def plot(self, ax: Any = None) -> Any:
        """Draws the curves, their knees marked.

        Args:
          ax: matplotlib axes; None makes a figure.
        Returns:
          The axes.
        Raises:
          RuntimeError: matplotlib is not installed.
        """
        if ax is None:
            ax = new_axes()
        by_capacity = self.axis == "fast_capacity_bytes"
        scale = 2**20 if by_capacity else 1e9
        for rows, knee in zip(self.curves, self.knees, strict=True):
            label = f"{rows[0].slow_bandwidth / 1e9:.4g} GB/s"
            x = [getattr(r, self.axis) / scale for r in rows]
            (line,) = ax.plot(
                x,
                [r.latency_s * 1e3 for r in rows],
                marker="o",
                label=label if len(self.swept) == 2 else None,
            )
            at = getattr(knee, self.axis) / scale
            ax.plot([at], [knee.latency_s * 1e3], "o", color=line.get_color(), ms=11)
            ax.annotate(
                f"knee, {at:.4g}",
                (at, knee.latency_s * 1e3),
                xytext=(6, 8),
                textcoords="offset points",
            )
        ax.set_xlabel("fast memory, MiB" if by_capacity else "slow memory, GB/s")
        ax.set_ylabel("predicted latency, ms")
        ax.set_title(f"{self.program} on {self.accelerator}, by {self.solver}")
        ax.set_ylim(bottom=0)
        if len(self.swept) == 2:
            ax.legend(title="slow memory")
        return ax


def what_if(
    program: Program,
    accelerator: str | os.PathLike[str] | Accelerator = "tpu_v5e",
    *,
    fast_capacity_bytes: Sequence[int] | None = None,
    slow_bandwidth: Sequence[float] | None = None,
    solver: str = "greedy",
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WhatIf:
    """Predicted latencies of a program on variations of a machine.

    Where the program carries a compiler's cycle estimates, what these say about slow
    memory is scaled with its bandwidth; the schedule and the tilings stay as they are.

    Args:
      program: from a frontend or `load_program`.
      accelerator: the machine to vary, which the compiler's estimates are for.
      fast_capacity_bytes: capacities of all fast memory, what is reserved included.
        With neither sweep, from an eighth to twice of what plans may use.
      slow_bandwidth: of slow memory, in bytes/s. Both sweeps give all pairs.
      solver, seed: as for `solve`; a plan for less memory also counts for more.
      time_limit_s: for each machine.
      progress: called with how many machines are done, and of how many.
    Raises:
      ValueError: an argument is unknown or out of range, a sweep is empty, or the
        program cannot run on one of the machines.
    """
    planner.check_solver(solver)
    limit_s = planner.check_time_limit_s(time_limit_s)
    seed = planner.check_seed(seed)
    machine = presets.get(accelerator)
    swept = [
        name
        for name, values in (
            ("fast_capacity_bytes", fast_capacity_bytes),
            ("slow_bandwidth", slow_bandwidth),
        )
        if values is not None
    ]
    if not swept:
        swept, fast = ["fast_capacity_bytes"], machine.fast
        fast_capacity_bytes = [
            fast.reserved_bytes + int(m * fast.usable_bytes) for m in _USABLE_MULTIPLES
        ]
    capacities = _ascending(
        "fast_capacity_bytes", fast_capacity_bytes, machine.fast.capacity_bytes
    )
    bandwidths = _ascending(
        "slow_bandwidth", slow_bandwidth, machine.slow.bandwidth_bytes_per_s
    )
    rows: list[WhatIfRow] = []
    slower = dict.fromkeys(capacities, Mapping())  # plans for less bandwidth
    for bandwidth in bandwidths:
        mapping = Mapping()
        for capacity in capacities:
            problem = _varied(program, machine, capacity, bandwidth)
            deadline_s = None if limit_s is None else time.monotonic() + limit_s
            found = planner.valid_mapping(problem, solver, seed, deadline_s)
            # What fits into less fits into more.
            mapping = min(
                (found, mapping, slower[capacity]),
                key=lambda m: problem.evaluate(m).latency_s,
            )
            slower[capacity] = mapping
            rows.append(
                WhatIfRow(
                    fast_capacity_bytes=capacity,
                    slow_bandwidth=bandwidth,
                    latency_s=problem.evaluate(mapping).latency_s,
                    all_slow_latency_s=problem.all_slow_latency_s,
                )
            )
            if progress is not None:
                progress(len(rows), len(bandwidths) * len(capacities))
    return WhatIf(
        program=program.name,
        accelerator=machine.name,
        solver=solver,
        swept=tuple(swept),
        rows=tuple(rows),
    )


def _ascending(name: str, values: Sequence[Any] | None, own: Any) -> list[Any]:
    """The values of a sweep, each once; the machine's own where there is none."""
    if values is None:
        return [own]
    values = sorted(set(values))
    if not values:
        raise ValueError(f"{name} is empty; give at least one value to try.")
    return values


def _varied(
    program: Program, machine: Accelerator, capacity: int, bandwidth: float
) -> Problem:
    try:
        varied = machine.replace(
            fast_capacity_bytes=capacity, slow_bandwidth_bytes_per_s=bandwidth
        )
        return problem_lib.build(program, varied, estimated_for=machine)
    except ValueError as error:
        raise ValueError(
            f"{machine.name} with {capacity!r} bytes of fast memory and {bandwidth!r} "
            f"bytes/s: {error}"
        ) from None


def new_axes() -> Any:
    """Axes of a new figure.

    Raises: RuntimeError if matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise RuntimeError(
            "WhatIf.plot needs matplotlib, which is not installed: "
            "pip install 'jax_malloc[viz]'."
        ) from None
    return plt.subplots(figsize=(7, 4), layout="constrained")[1]
