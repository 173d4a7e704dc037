"""Tables of the benchmark: runs in, Markdown and CSV out."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmark_runs import FINETUNED, LOWER_BOUND, Run
from results_table import geometric_mean, markdown_table

# A program counts towards the gap closed if the best mapping known is so much better
# than greedy's.
_LEAST_GAP = 1e-3

Setting = tuple[str, int, float | None]  # accelerator, its fast bytes, time limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A solver on a program, over all seeds.

    ratio: median of its latency over greedy's; lowest, highest: of the seeds.
    wall_s, cold_s: medians; None where no run compiled.
    run: one of the runs, for what they have in common.
    """

    ratio: float
    lowest: float
    highest: float
    wall_s: float
    cold_s: float | None
    seeds: int
    run: Run


Cells = Mapping[tuple[str, str], Cell]  # by program and solver


def by_setting(runs: Iterable[Run]) -> dict[Setting, Cells]:
    """The cells of every setting, in the order in which runs first have it."""
    grouped: dict[Setting, dict[tuple[str, str], list[Run]]] = {}
    for run in runs:
        setting = (run.accelerator, run.fast_bytes, run.time_limit_s)
        cells = grouped.setdefault(setting, {})
        cells.setdefault((name(run), run.solver), []).append(run)
    return {
        setting: {key: _cell(same) for key, same in cells.items()}
        for setting, cells in grouped.items()
    }


def name(run: Run) -> str:
    """Of the program; where it was compiled for another machine, with that."""
    if run.topology == run.accelerator:
        return run.program
    return f"{run.program} ({run.topology})"


def solvers_of(cells: Cells) -> list[str]:
    """Those with a column, the bound not among them."""
    return [s for s in dict.fromkeys(s for _, s in cells) if s != LOWER_BOUND]


# Programs that have a mean of their own, if there are any.
_CLASSES: Mapping[str, Callable[[Run], bool]] = {
    "pressured": lambda run: run.pressured,
    "above 1,000 accesses": lambda run: run.accesses > 1_000,
    "above 3,000 accesses": lambda run: run.accesses > 3_000,
}


def in_common(
    cells: Cells, belongs: Callable[[Run], bool] = lambda run: True
) -> list[str]:
    """Programs that every solver has planned; means are over these.

    Args:
      belongs: which of them.
    """
    solvers = solvers_of(cells)
    return [
        p
        for p in dict.fromkeys(p for p, _ in cells)
        if all((p, s) in cells for s in solvers) and belongs(cells[p, solvers[0]].run)
    ]


def best_known(runs: Iterable[Run]) -> dict[tuple[str, str, int], float]:
    """The lowest latency over greedy's that any solver found with any time limit, by
    program, accelerator and its fast bytes."""
    best: dict[tuple[str, str, int], float] = {}
    for run in runs:
        if run.solver != LOWER_BOUND:
            where = _where(run)
            ratio = run.latency_s / run.greedy_s
            best[where] = min(ratio, best.get(where, ratio))
    return best


def gap_closed(
    cells: Cells, solver: str, best: Mapping[tuple[str, str, int], float]
) -> float | None:
    """The mean share of the gap from greedy to the best latency known, over programs
    that have one; negative where a solver loses to greedy."""
    shares = []
    for program in in_common(cells):
        cell = cells[program, solver]
        gap = 1 - best[_where(cell.run)]
        if gap >= _LEAST_GAP:
            shares.append((1 - cell.ratio) / gap)
    return statistics.fmean(shares) if shares else None


def markdown(runs: Sequence[Run]) -> str:
    """A table of latencies over greedy's for each setting, with summaries below."""
    parts, best = [], best_known(runs)
    for setting, cells in by_setting(runs).items():
        if solvers_of(cells):
            parts += [f"### {describe(setting)}", _markdown_table(cells, best)]
    return "\n\n".join([_legend(runs), *parts]) + "\n"


def describe(setting: Setting) -> str:
    """Such as "tpu_v5e, 128 MiB of fast memory, 10 s"."""
    accelerator, fast_bytes, limit_s = setting
    limit = "no time limit" if limit_s is None else f"{limit_s:g} s"
    return f"{accelerator}, {fast_bytes / 2**20:g} MiB of fast memory, {limit}"


_LEGEND = (
    "Predicted latency over that of greedy without a time limit, the median over "
    "seeds; lower is better. Means are over the programs that every solver planned; "
    "pressured are those whose working set exceeds fast memory. The gap closed is from "
    "greedy (0 %) to the best mapping that any solver found in any time (100 %), over "
    f"programs where that is {_LEAST_GAP:.1%} or more. Seconds are measured, by the "
    "wall clock; a cold run imports or compiles what later ones find."
)


def _legend(runs: Iterable[Run]) -> str:
    """What the tables show, with the seconds of training where there was any."""
    seconds = sorted({run.finetune_s for run in runs if run.finetune_s is not None})
    if not seconds:
        return _LEGEND
    return (
        f"{_LEGEND} {FINETUNED.capitalize()} is the hybrid in the time limit and then "
        f"an agent that trains on the very program, for "
        f"{' or '.join(f'{s:g}' for s in seconds)} s more."
    )


def _markdown_table(cells: Cells, best: Mapping[tuple[str, str, int], float]) -> str:
    solvers = solvers_of(cells)
    bounds = any(s == LOWER_BOUND for _, s in cells)
    compiler = any(cell.run.xla_s is not None for cell in cells.values())
    references: dict[str, Callable[[Run], float | None]] = {
        "all_slow": lambda run: run.all_slow_s / run.greedy_s
    }
    if compiler:
        references["XLA"] = lambda run: (
            None if run.xla_s is None else run.xla_s / run.greedy_s
        )
    lines = []
    for program in dict.fromkeys(p for p, _ in cells):
        run = next(cell.run for (p, _), cell in cells.items() if p == program)
        values = [reference(run) for reference in references.values()]
        columns = [*solvers, LOWER_BOUND] if bounds else solvers
        found = [cells.get((program, s)) for s in columns]
        values += [None if cell is None else cell.ratio for cell in found]
        share = f"{run.working_set_bytes / run.usable_bytes:.2f}"
        lines.append([program, str(run.ops), share, *map(_ratio, values)])
    headings = ["program", "ops", "working set", *references, *solvers]
    headings += ["lower bound"] if bounds else []
    classes = {name: in_common(cells, belongs) for name, belongs in _CLASSES.items()}
    for name, programs in {"": in_common(cells), **classes}.items():
        if not programs:
            continue
        runs = [cells[p, solvers[0]].run for p in programs]
        means = [
            _mean([reference(r) for r in runs]) for reference in references.values()
        ]
        means += [_mean([cells[p, s].ratio for p in programs]) for s in solvers]
        if bounds:
            found = [cells.get((p, LOWER_BOUND)) for p in programs]
            means.append(_mean([None if c is None else c.ratio for c in found]))
        which = f"{len(programs)} {name}" if name else f"all {len(programs)}"
        title = f"geometric mean, {which}"
        lines.append([title, "", "", *map(_ratio, means)])
    blank = ["" for _ in references]
    closed = [gap_closed(cells, s, best) for s in solvers]
    summaries = {
        "worst of any program and seed": [_worst(cells, s) for s in solvers],
        "gap closed": ["" if c is None else f"{c:.0%}" for c in closed],
        "seconds, median": [_seconds(cells, s, cold=False) for s in solvers],
        "seconds of cold runs, median": [
            _seconds(cells, s, cold=True) for s in solvers
        ],
    }
    for title, shown in summaries.items():
        lines.append([title, "", "", *blank, *shown, *([""] if bounds else [])])
    return markdown_table(headings, lines)


def _worst(cells: Cells, solver: str) -> str:
    return _ratio(max(cells[p, s].highest for p, s in cells if s == solver))


def _seconds(cells: Cells, solver: str, *, cold: bool) -> str:
    mine = [cell for (_, s), cell in cells.items() if s == solver]
    seconds = [cell.cold_s if cold else cell.wall_s for cell in mine]
    seconds = [s for s in seconds if s is not None]
    return f"{statistics.median(seconds):.2f}" if seconds else ""


def comma_separated(runs: Sequence[Run]) -> str:
    """A line per program, solver and setting, as CSV."""
    out = io.StringIO()
    fields = ("program", "topology", "accelerator", "fast_bytes", "usable_bytes")
    fields += ("working_set_bytes", "ops", "accesses", "solver", "time_limit_s")
    fields += ("finetune_s", "all_slow_s", "greedy_s", "xla_s")
    writer = csv.writer(out, lineterminator="\n")
    mine = ("seeds", "ratio", "lowest", "highest", "wall_s", "cold_s")
    writer.writerow([*fields, *mine])
    every = (cells.values() for cells in by_setting(runs).values())
    for cell in itertools.chain.from_iterable(every):
        row = [getattr(cell.run, field) for field in fields]
        row += [getattr(cell, field) for field in mine]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def _where(run: Run) -> tuple[str, str, int]:
    return name(run), run.accelerator, run.fast_bytes


def _cell(runs: Sequence[Run]) -> Cell:
    ratios = [run.latency_s / run.greedy_s for run in runs]
    cold_s = [run.cold_s for run in runs if run.cold_s is not None]
    return Cell(
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        wall_s=statistics.median(run.wall_s for run in runs),
        cold_s=statistics.median(cold_s) if cold_s else None,
        seeds=len(runs),
        run=runs[0],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean; None if one of them is unknown."""
    known = [value for value in values if value is not None]
    return geometric_mean(known) if len(known) == len(values) else None


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
