"""Pictures of the benchmark: quality against time, saving against fast memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib import figure

import benchmark_table
from benchmark_runs import LOWER_BOUND, Run
from benchmark_table import Cells
from results_table import geometric_mean

_FORMATS = ("png", "svg")
_MARKERS = "osD^vP*X<>"

Curves = dict[str, list[tuple[float, float]]]  # points by solver


def quality_against_time(runs: Sequence[Run]) -> Curves:
    """Seconds and latency over greedy's, geometric means, a point per time limit.

    Args:
      runs: on one machine.
    """
    return _curves(
        (cells for (_, _, limit_s), cells in _sorted(runs) if limit_s is not None),
        lambda cells, solver, programs: (
            geometric_mean(max(cells[p, solver].wall_s, 1e-3) for p in programs),
            geometric_mean(cells[p, solver].ratio for p in programs),
        ),
    )


def saving_against_memory(runs: Sequence[Run]) -> Curves:
    """MiB of fast memory, and percent of the all-slow latency saved, a point per size.

    Args:
      runs: on one accelerator with several sizes; of each the longest limit counts.
    """
    longest = {
        fast_bytes: cells for (_, fast_bytes, _), cells in _sorted(runs) if cells
    }
    return _curves(
        (longest[size] for size in sorted(longest)),
        lambda cells, solver, programs: (
            cells[programs[0], solver].run.fast_bytes / 2**20,
            100 * (1 - geometric_mean(_share(cells, p, solver) for p in programs)),
        ),
    )


def save(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Draws what there is to draw for every accelerator; the files written."""
    matplotlib.rcParams["svg.hashsalt"] = "jax_malloc"  # same runs, same file
    written = []
    for accelerator in dict.fromkeys(run.accelerator for run in runs):
        mine = [r for r in runs if r.accelerator == accelerator]
        for fast_bytes in sorted({r.fast_bytes for r in mine}):
            same = [r for r in mine if r.fast_bytes == fast_bytes]
            curves = quality_against_time(same)
            if any(curves.values()):
                where = f"{accelerator}, {fast_bytes / 2**20:g} MiB of fast memory"
                ax = _axes(f"{where}: quality against time", curves)
                ax.set_xscale("log")
                ax.set_xlabel("seconds (measured)")
                ax.set_ylabel("predicted latency / greedy's, geometric mean")
                ax.axhline(1.0, color="0.7", linewidth=1, zorder=0)
                stem = f"quality-{accelerator}-{fast_bytes // 2**20}"
                written += _write(ax.figure, directory / stem)
        if len({r.fast_bytes for r in mine}) > 1:
            curves = saving_against_memory(mine)
            ax = _axes(f"{accelerator}: saving against fast memory", curves)
            ax.set_xlabel("fast memory, MiB")
            ax.set_ylabel("predicted latency saved over all in slow memory, %")
            written += _write(ax.figure, directory / f"saving-{accelerator}")
    return written


def _curves(settings: Iterable[Cells], point) -> Curves:
    """A point per setting and solver, over the programs that all of them share."""
    settings = list(settings)
    if not settings:
        return {}
    # Only what is there everywhere: else a point would differ by its programs.
    shared = set.intersection(*(set(c) for c in settings))
    solvers = [s for s in benchmark_table.solvers_of(settings[0]) if _has(shared, s)]
    programs = sorted(
        p for p in {p for p, _ in shared} if all((p, s) in shared for s in solvers)
    )
    if not programs:
        return {}
    return {s: [point(cells, s, programs) for cells in settings] for s in solvers}


def _has(shared: set[tuple[str, str]], solver: str) -> bool:
    return solver != LOWER_BOUND and any(s == solver for _, s in shared)


def _sorted(runs: Sequence[Run]):
    """Settings with their cells, by size of memory and time limit, no limit last."""
    return sorted(
        benchmark_table.by_setting(runs).items(),
        key=lambda item: (item[0][1], item[0][2] is None, item[0][2] or 0.0),
    )


def _share(cells: Cells, program: str, solver: str) -> float:
    """Latency over that with everything in slow memory."""
    cell = cells[program, solver]
    return cell.ratio * cell.run.greedy_s / cell.run.all_slow_s


def _axes(title: str, curves: Curves):
    """Axes of a new figure with the curves."""
    ax = figure.Figure(figsize=(7, 4.5), layout="constrained").subplots()
    for i, (solver, points) in enumerate(curves.items()):
        xs, ys = zip(*sorted(points), strict=True)
        marker = _MARKERS[i % len(_MARKERS)]
        ax.plot(xs, ys, marker=marker, markersize=5, label=solver, color=f"C{i % 10}")
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def _write(drawn: figure.Figure, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}.{ending}") for ending in _FORMATS]
    for one in paths:
        drawn.savefig(
            one, dpi=150, metadata={"Date": None} if one.suffix == ".svg" else {}
        )
    return paths
