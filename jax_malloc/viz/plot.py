"""The memory map of a plan as a matplotlib picture: time across, offset up.

   offset +-------------------------------+ capacity
          |   +--------+   +-----------+  |
          |   | w1     |   | h3        |  |   one rectangle per stay, paler while
          |   +--------+---+-----------+  |   its bytes are on their way
        0 +-------------------------------+
      ops  [compute][slow memory]//[     ]    // the ops wait for a copy
 copies in       [====]     [=====]
copies out           [==]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jax_malloc import report
from jax_malloc.mapping import Direction
from jax_malloc.viz import extra, labels, palette, tables
from jax_malloc.viz.tables import Bound, Kind, StayRow, Tables

if TYPE_CHECKING:
    import matplotlib.axes

    from jax_malloc.plan import Plan

COLOR_BY = ("kind", "saved")
_MIB = 2.0**20
_US = 1e6
# Lanes below the map and the space between them, as shares of the capacity.
_LANE, _GAP = 0.042, 0.018
_FONT_SIZE = 7.0
# Above this many rectangles an outline would cover more of them than it sets apart.
_MAX_OUTLINED = 600


def plot(
    plan: Plan, ax: matplotlib.axes.Axes | None = None, *, color_by: str = "kind"
) -> matplotlib.axes.Axes:
    """Draws the memory map; see `Plan.plot`."""
    if color_by not in COLOR_BY:
        raise ValueError(
            f"color_by is {color_by!r}; choose one of {', '.join(COLOR_BY)}."
        )
    if ax is None:
        plt = extra.load("matplotlib.pyplot", "Plan.plot")
        figure = plt.figure(figsize=(11.0, 5.6), dpi=110)
        ax = figure.add_axes((0.075, 0.085, 0.915, 0.795))
    rows = tables.build(plan)
    capacity = float(rows.capacity_bytes.max(initial=0)) or 1.0
    lanes = _frame(ax, rows, capacity / _MIB)
    fill = _kind_fill(rows) if color_by == "kind" else _saved_fill(ax, rows)
    _draw_stays(ax, rows, fill)
    _draw_lanes(ax, rows, lanes)
    _draw_stalls(ax, rows, lanes["ops"])
    _draw_labels(ax, rows)
    legend_rows = _draw_legend(ax, rows, kinds=color_by == "kind")
    speedup = ""
    if "all_slow" in plan.baselines:
        speedup = f", {plan.speedup:.2f}x over all in slow memory"
    ax.set_title(
        f"{plan.program.name} on {plan.accelerator.name} by {plan.solver}: "
        f"{report.format_s(plan.latency_s)} predicted{speedup}",
        loc="left",
        fontsize=10,
        color=palette.TEXT,
        pad=12 + 12 * legend_rows,
    )
    return ax


def _frame(
    ax: matplotlib.axes.Axes, rows: Tables, capacity_mib: float
) -> dict[str, tuple[float, float]]:
    """Axes, ticks and the capacity line; the lanes' `(bottom, top)` by name."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    lanes, top = {}, -_GAP * capacity_mib
    for name in ("ops", "copies in", "copies out"):
        bottom = top - _LANE * capacity_mib
        lanes[name] = (bottom, top)
        top = bottom - _GAP * capacity_mib
    end_us = max(rows.latency_s * _US, 1e-9)
    ax.set_xlim(0, end_us)
    ax.set_ylim(top, 1.03 * capacity_mib)
    ticks = [
        y for y in MaxNLocator(6).tick_values(0, capacity_mib) if 0 <= y <= capacity_mib
    ]
    ax.set_yticks(
        [*ticks, *(sum(lane) / 2 for lane in lanes.values())],
        [*(f"{y:g}" for y in ticks), *lanes],
    )
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.tick_params(length=0, labelsize=8, labelcolor=palette.TEXT)
    ax.set_xlabel("time (µs, predicted)", fontsize=9, color=palette.TEXT)
    ax.set_ylabel("offset in fast memory (MiB)", fontsize=9, color=palette.TEXT)
    ax.yaxis.set_label_coords(-0.056, 0.6)
    ax.set_axisbelow(True)
    ax.grid(axis="x", color=palette.GRID, linewidth=0.6)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.axhline(0, color=palette.TEXT, linewidth=0.8)
    edges = np.append([o.start_s - o.stall_s for o in rows.ops], rows.latency_s) * _US
    if len(rows.capacity_bytes):
        free_mib = np.append(rows.capacity_bytes, rows.capacity_bytes[-1]) / _MIB
        ax.step(
            edges,
            free_mib,
            where="post",
            color=palette.TEXT,
            linewidth=1,
            ls=(0, (5, 3)),
        )
        ax.annotate(
            f"capacity {report.format_bytes(capacity_mib * _MIB)}",
            (end_us, capacity_mib),
            (0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=_FONT_SIZE,
            color=palette.TEXT,
        )
    return lanes


def _kind_fill(rows: Tables) -> Callable[[Sequence[StayRow]], list]:
    return lambda stays: [palette.KIND[rows.buffers[s.buffer_id].kind] for s in stays]


def _saved_fill(
    ax: matplotlib.axes.Axes, rows: Tables
) -> Callable[[Sequence[StayRow]], np.ndarray]:
    """Colours by latency saved, and their scale beside the picture."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, PowerNorm

    most_us = max((s.saved_s for s in rows.stays), default=0.0) * _US
    # Light enough for black labels; the root sets the many small savings apart.
    shades = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.08, 0.62)))
    scale = ScalarMappable(PowerNorm(0.5, 0, max(most_us, 1e-9)), shades)
    bar = ax.figure.colorbar(scale, ax=ax, pad=0.01, fraction=0.04, aspect=40)
    bar.set_label("latency that the stay saves (µs)", fontsize=8, color=palette.TEXT)
    bar.ax.tick_params(length=0, labelsize=7, labelcolor=palette.TEXT)
    bar.outline.set_visible(False)
    return lambda stays: scale.to_rgba([s.saved_s * _US for s in stays])


def _boxes(left, right, bottom, top) -> np.ndarray:
    """`[N, 4, 2]` corners of rectangles."""
    left, right, bottom, top = np.broadcast_arrays(left, right, bottom, top)
    x = np.stack([left, right, right, left], -1)
    y = np.stack([bottom, bottom, top, top], -1)
    return np.stack([x, y], -1).astype(float)


def _draw_stays(ax: matplotlib.axes.Axes, rows: Tables, fill: Callable) -> None:
    from matplotlib.collections import PolyCollection

    stays = rows.stays
    if not stays:
        return
    low = np.array([s.offset_bytes for s in stays]) / _MIB
    high = low + np.array([s.size_bytes for s in stays]) / _MIB
    begin, first, end = (
        np.array([getattr(s, name) for s in stays]) * _US
        for name in ("begin_s", "first_s", "end_s")
    )
    colors = fill(stays)
    width = 0.5 if len(stays) <= _MAX_OUTLINED else 0.15
    style = {"edgecolors": "white", "linewidths": width}
    on_the_way = np.flatnonzero(first > begin)
    ax.add_collection(
        PolyCollection(
            _boxes(begin, first, low, high)[on_the_way],
            facecolors=[colors[i] for i in on_the_way],
            alpha=0.4,
            gid="arriving",
            **style,
        ),
        autolim=False,
    )
    ax.add_collection(
        PolyCollection(
            _boxes(first, end, low, high), facecolors=colors, gid="stays", **style
        ),
        autolim=False,
    )


def _draw_lanes(
    ax: matplotlib.axes.Axes, rows: Tables, lanes: dict[str, tuple[float, float]]
) -> None:
    """What bounds each op, and when each copy moves."""
    from matplotlib.collections import PolyCollection

    def bars(times, colors, lane, gid):
        left, right = np.array(times, float).reshape(-1, 2).T * _US
        ax.add_collection(
            PolyCollection(
                _boxes(left, right, *lanes[lane]),
                facecolors=colors,
                edgecolors="face",
                # So that a short copy among few is seen; ops fill their lane.
                linewidths=0.4 if lane != "ops" and len(left) <= _MAX_OUTLINED else 0,
                gid=gid,
            ),
            autolim=False,
        )

    parts = [(o.start_s, o.start_s + o.fast_s) for o in rows.ops]
    colors = [palette.BOUND[o.fast_bound] for o in rows.ops]
    bars(parts, colors, "ops", "ops")
    slow = [(o.start_s + o.fast_s, o.end_s) for o in rows.ops if o.slow_s > 0]
    bars(slow, palette.BOUND[Bound.SLOW_MEMORY], "ops", "slow memory")
    for direction, lane in (
        (Direction.PREFETCH, "copies in"),
        (Direction.EVICT, "copies out"),
    ):
        times = [(c.begin_s, c.done_s) for c in rows.copies if c.direction is direction]
        bars(times, palette.DIRECTION[direction], lane, lane)


def _draw_stalls(
    ax: matplotlib.axes.Axes, rows: Tables, lane: tuple[float, float]
) -> None:
    """Hatched over the whole map, since nothing else goes on; solid in the lane."""
    from matplotlib.collections import PolyCollection

    if not rows.stalls_s():
        return
    left, right = np.array(rows.stalls_s()).T * _US
    top = float(rows.capacity_bytes.max(initial=0)) / _MIB
    ax.add_collection(
        PolyCollection(
            _boxes(left, right, 0, top),
            facecolors="none",
            edgecolors=palette.STALL,
            linewidths=0,
            hatch="//////",
            alpha=0.55,
            gid="stalls",
        ),
        autolim=False,
    )
    ax.add_collection(
        PolyCollection(
            _boxes(left, right, *lane),
            facecolors=palette.STALL,
            edgecolors=palette.STALL,
            linewidths=0.5,  # so that short ones are seen
        ),
        autolim=False,
    )


def _draw_labels(ax: matplotlib.axes.Axes, rows: Tables) -> None:
    """Names of the largest rectangles, as much of them as there is room for."""
    box = ax.get_window_extent()
    points = 72.0 / ax.figure.dpi
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    per_s = box.width * points / (right - left) * _US
    per_byte = box.height * points / (top - bottom) / _MIB
    for label in labels.of_stays(
        rows, per_s=per_s, per_byte=per_byte, font_size=_FONT_SIZE
    ):
        s = label.stay
        ax.text(
            (s.first_s + s.end_s) / 2 * _US,
            (s.offset_bytes + s.size_bytes / 2) / _MIB,
            label.text,
            rotation=90 if label.upright else 0,
            ha="center",
            va="center",
            fontsize=_FONT_SIZE,
            color=palette.TEXT,
            clip_on=True,
        )


def _draw_legend(ax: matplotlib.axes.Axes, rows: Tables, *, kinds: bool) -> int:
    """What the colours mean, above the map; in how many rows, as its width asks for."""
    from matplotlib.patches import Patch

    shown = {rows.buffers[s.buffer_id].kind for s in rows.stays} if kinds else set()
    handles = [
        Patch(facecolor=palette.KIND[kind], label=kind.value)
        for kind in Kind
        if kind in shown
    ]
    bounds = {bound for o in rows.ops for bound in (o.bound, o.fast_bound)}
    words = {
        Bound.COMPUTE: "op: compute",
        Bound.FAST_MEMORY: "op: fast memory",
        Bound.SLOW_MEMORY: "op: slow memory",
    }
    handles += [
        Patch(facecolor=palette.BOUND[bound], label=words[bound])
        for bound in Bound
        if bound in bounds
    ]
    handles += [
        Patch(facecolor=color, label=palette.DIRECTION_WORD[direction])
        for direction, color in palette.DIRECTION.items()
        if any(c.direction is direction for c in rows.copies)
    ]
    if rows.stalls_s():
        handles.append(
            Patch(
                facecolor="white",
                edgecolor=palette.STALL,
                linewidth=0.5,
                hatch="//////",
                label="stall",
            )
        )
    # Points: 8 to a font size, and 3.4 font sizes for the patch and the space around.
    wanted = sum(8 * (labels.CHARACTER * len(h.get_label()) + 3.4) for h in handles)
    room = ax.get_window_extent().width * 72 / ax.figure.dpi
    lines = max(math.ceil(wanted / max(room, 1)), 1)
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=max(math.ceil(len(handles) / lines), 1),
        frameon=False,
        fontsize=8,
        labelcolor=palette.TEXT,
        handlelength=1.3,
        handleheight=0.9,
        columnspacing=1.3,
        borderaxespad=0.2,
    )
    return lines
