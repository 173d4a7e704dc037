"""Where the time goes under several plans: latency bars in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_malloc import report
from jax_malloc.mapping import Mapping
from jax_malloc.viz import extra, palette, tables
from jax_malloc.viz.tables import Bound, Breakdown

if TYPE_CHECKING:
    import matplotlib.axes

    from jax_malloc.plan import Plan

_US = 1e6


def bars(plans: Sequence[Plan]) -> list[tuple[str, Breakdown]]:
    """`(name, parts)` of every plan, between those that it is measured against.

    All in slow memory comes first, and the compiler's own mapping, where a program
    carries it, last; both once per program and machine. Plans are named by solver, and
    by what else tells them apart.
    """
    first, own, last = {}, [], {}
    for plan in plans:
        problem = plan.problem
        setting = (plan.program.name, plan.accelerator.name)
        all_slow = problem.evaluate(Mapping())
        compiler = problem.evaluate_compiler()
        if not any(p.solver == "all_slow" for p in plans):
            first[setting, "all_slow", ""] = tables.breakdown(problem, all_slow)
        own.append(
            (
                (setting, plan.solver, f"seed {plan.seed}"),
                tables.breakdown(problem, plan.timeline),
            )
        )
        if compiler is not None:
            last[setting, "xla", ""] = tables.breakdown(problem, compiler)
    rows = [*first.items(), *own, *last.items()]
    settings = [setting for (setting, _, _), _ in rows]
    many = [len({s[i] for s in settings}) > 1 for i in (0, 1)]
    short = [(setting, solver) for (setting, solver, _), _ in rows]
    named = []
    for (setting, solver, seed), parts in rows:
        words = [solver]
        if short.count((setting, solver)) > 1 and seed:
            words.append(seed)
        words += [word for word, shown in zip(setting, many, strict=True) if shown]
        named.append((", ".join(words), parts))
    return _numbered(named)


def plot_comparison(
    plans: Sequence[Plan], ax: matplotlib.axes.Axes | None = None
) -> matplotlib.axes.Axes:
    """Latency bars broken into compute, slow-memory time and stalls, one per plan.

    Everything in slow memory, and the compiler's own mapping where the program carries
    it, stand beside them. All latencies are predicted.

    Args:
      plans: of one program or of several, by any solvers.
      ax: where to draw; None makes a figure.
    Returns:
      The axes.
    Raises:
      ValueError: there is no plan.
      RuntimeError: matplotlib is not installed.
    """
    plans = list(plans)
    if not plans:
        raise ValueError("plot_comparison was given no plans; it needs at least one.")
    plt = extra.load("matplotlib.pyplot", "plot_comparison")
    rows = bars(plans)
    if ax is None:
        height = 0.36 * len(rows) + 1.2
        _, ax = plt.subplots(figsize=(8.0, height), dpi=110, layout="constrained")
    names = [name for name, _ in rows]
    left = [0.0] * len(rows)
    styles = (
        ("compute and fast memory", "fast_s", {"color": palette.BOUND[Bound.COMPUTE]}),
        ("slow memory", "slow_s", {"color": palette.BOUND[Bound.SLOW_MEMORY]}),
        (
            "stall",
            "stall_s",
            {
                "facecolor": "white",
                "edgecolor": palette.STALL,
                "hatch": "//////",
                "linewidth": 0.5,
            },
        ),
    )
    for label, field, style in styles:
        width = [getattr(parts, field) * _US for _, parts in rows]
        ax.barh(names, width, left=left, height=0.66, label=label, **style)
        left = [a + b for a, b in zip(left, width, strict=True)]
    for i, total_us in enumerate(left):
        ax.annotate(
            report.format_s(total_us / _US),
            (total_us, i),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=palette.TEXT,
        )
    _frame(ax, plans, max(left))
    return ax


def _frame(ax: matplotlib.axes.Axes, plans: Sequence[Plan], longest_us: float) -> None:
    from matplotlib.ticker import StrMethodFormatter

    ax.invert_yaxis()
    ax.set_xlim(0, max(longest_us, 1e-9) * 1.13)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.set_xlabel("latency (µs, predicted)", fontsize=9, color=palette.TEXT)
    ax.tick_params(length=0, labelsize=8, labelcolor=palette.TEXT)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color=palette.GRID, linewidth=0.6)
    for spine in ax.spines.values():
        spine.set_visible(False)
    subjects = {f"{p.program.name} on {p.accelerator.name}" for p in plans}
    if len(subjects) == 1:
        ax.set_title(
            subjects.pop(), loc="left", fontsize=10, color=palette.TEXT, pad=22
        )
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=palette.TEXT,
        handlelength=1.3,
        handleheight=0.9,
        borderaxespad=0.1,
    )


def _numbered(named: list[tuple[str, Breakdown]]) -> list[tuple[str, Breakdown]]:
    """Names made different from one another, since bars of one name would coincide."""
    seen: dict[str, int] = {}
    rows = []
    for name, parts in named:
        seen[name] = seen.get(name, 0) + 1
        rows.append((name if seen[name] == 1 else f"{name} ({seen[name]})", parts))
    return rows
