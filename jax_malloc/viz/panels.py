"""The panels of the report: Bokeh figures over one time axis, and the latency bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jax_malloc.viz import comparison, page_data, palette
from jax_malloc.viz.tables import Bound, Tables

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, Range1d
    from bokeh.plotting import figure

    from jax_malloc.plan import Plan

_US = 1e6
_MIB = 2.0**20
# Scopes deeper than this are in the tree only.
_MAX_SCOPE_ROWS = 10
_LABEL = {
    "text_align": "center",
    "text_baseline": "middle",
    "text_font_size": "11px",
    "text_color": palette.TEXT,
}
_STALL = {
    "fill_color": None,
    "hatch_pattern": "/",
    "hatch_scale": 6,
    "line_color": None,
}


def _panel(name: str, height: int, time: Range1d, **options: Any) -> figure:
    """An empty panel over the common time axis."""
    from bokeh.models import NumeralTickFormatter
    from bokeh.plotting import figure

    panel = figure(
        name=f"{name} panel",
        height=height,
        x_range=time,
        tools="xpan,xwheel_zoom,box_zoom,reset,tap,save",
        active_scroll="xwheel_zoom",
        sizing_mode="stretch_width",
        min_border_left=85,
        outline_line_color=None,
        **options,
    )
    panel.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    panel.xaxis.visible = False
    panel.xgrid.grid_line_color = panel.ygrid.grid_line_color = palette.GRID
    panel.axis.axis_line_color = panel.axis.minor_tick_line_color = None
    panel.axis.major_tick_line_color = None
    panel.axis.axis_label_text_font_style = "normal"
    panel.axis.axis_label_text_font_size = "12px"
    return panel


def _hover(panel: figure, renderers: list[Any], *lines: tuple[str, str]) -> None:
    from bokeh.models import HoverTool

    panel.add_tools(HoverTool(renderers=renderers, tooltips=list(lines)))


def memory_map(
    rows: Tables, source: dict[str, ColumnDataSource], time: Range1d
) -> figure:
    """Offset over time, one rectangle per stay, paler while its bytes are coming."""
    from bokeh.models import ColumnDataSource

    capacity_mib = (float(rows.capacity_bytes.max(initial=0)) or 1.0) / _MIB
    panel = _panel(
        "map", page_data.MAP_HEIGHT_PX, time, y_range=(0, capacity_mib * 1.03)
    )
    panel.yaxis.axis_label = "offset in fast memory (MiB)"
    panel.ygrid.grid_line_color = None
    style = {
        "source": source["stays"],
        "bottom": "low_mib",
        "top": "high_mib",
        "fill_color": "color",
        "line_color": "white",
        "line_width": 0.5,
        "selection_line_color": palette.TEXT,
        "selection_line_width": 1.5,
        "nonselection_line_color": "white",
    }
    arriving = panel.quad(
        left="begin_us",
        right="first_us",
        fill_alpha=0.4,
        nonselection_fill_alpha=0.1,
        **style,
    )
    there = panel.quad(
        left="first_us", right="end_us", nonselection_fill_alpha=0.25, **style
    )
    panel.quad(
        left="begin_us",
        right="end_us",
        bottom=0,
        top=capacity_mib,
        source=source["stalls"],
        hatch_color=palette.STALL,
        hatch_alpha=0.4,
        **_STALL,
    )
    edges = [o.start_s - o.stall_s for o in rows.ops]
    panel.step(
        np.append(edges, rows.latency_s) * _US,
        np.append(rows.capacity_bytes, rows.capacity_bytes[-1:]) / _MIB
        if len(rows.ops)
        else [capacity_mib],
        mode="after",
        line_color=palette.TEXT,
        line_dash="dashed",
    )
    panel.text(
        "x",
        "y",
        "text",
        angle="angle",
        source=ColumnDataSource(page_data.stay_labels(rows, capacity_mib)),
        **_LABEL,
    )
    _hover(
        panel,
        [arriving, there],
        ("buffer", "@name"),
        ("user name", "@path"),
        ("kind", "@kind, @size"),
        ("place", "@low_mib{0.00} to @high_mib{0.00} MiB"),
        ("ops", "@ops"),
        ("time", "@begin_us{0,0.0} to @end_us{0,0.0} µs"),
        ("saves", "@saved_us{0,0.00} µs"),
    )
    return panel


def ops(source: dict[str, ColumnDataSource], time: Range1d) -> figure:
    """Latency of each op in its parts, and stalls."""
    # As high as the ops in view, so that a zoom shows short ones as well.
    panel = _panel("ops", 165, time, window_axis="x")
    panel.yaxis.axis_label = "op latency (µs)"
    panel.y_range.start = 0
    style = {
        "source": source["ops"],
        "left": "start_us",
        "right": "end_us",
        "line_color": "white",
        "line_width": 0.3,
        "nonselection_fill_alpha": 0.35,
    }
    fast = panel.quad(bottom=0, top="fast_us", fill_color="color", **style)
    slow = panel.quad(
        bottom="fast_us",
        top="latency_us",
        fill_color=palette.BOUND[Bound.SLOW_MEMORY],
        **style,
    )
    stalls = panel.quad(
        left="begin_us",
        right="end_us",
        bottom=0,
        top="length_us",
        source=source["stalls"],
        hatch_color=palette.STALL,
        **_STALL,
    )
    _hover(
        panel,
        [fast, slow],
        ("op", "@name (@opcode)"),
        ("user name", "@path"),
        ("latency", "@latency_us{0,0.00} µs, bound by @bound"),
        ("in fast memory", "@fast_us{0,0.00} µs"),
        ("slow memory adds", "@slow_us{0,0.00} µs"),
        ("stall before", "@stall_us{0,0.00} µs"),
        ("fast memory in use", "@used_mib{0.0} MiB"),
    )
    _hover(
        panel, [stalls], ("stall", "@length_us{0,0.00} µs, from @begin_us{0,0.0} µs")
    )
    return panel


def copies(source: dict[str, ColumnDataSource], time: Range1d) -> figure:
    """The copy queues: when each copy moves, and a line since it waits."""
    lanes = [palette.DIRECTION_WORD[d] for d in reversed(palette.DIRECTION)]
    panel = _panel("copies", 85, time, y_range=lanes)
    panel.segment(
        x0="issue_us",
        x1="done_us",
        y0="lane",
        y1="lane",
        line_color="color",
        line_alpha=0.5,
        nonselection_line_alpha=0.1,
        source=source["copies"],
    )
    moves = panel.hbar(
        y="lane",
        left="begin_us",
        right="done_us",
        height=0.75,
        fill_color="color",
        line_color="color",
        line_width=0.5,
        nonselection_fill_alpha=0.3,
        nonselection_line_alpha=0.3,
        source=source["copies"],
    )
    _hover(
        panel,
        [moves],
        ("@lane", "@name, @size"),
        ("user name", "@path"),
        ("between ops", "@window"),
        ("issued", "@issue_us{0,0.0} µs"),
        ("moves", "@begin_us{0,0.0} to @done_us{0,0.0} µs"),
        ("ops wait", "@exposed_us{0,0.00} µs"),
    )
    return panel


def scopes(runs: ColumnDataSource, time: Range1d) -> list[figure]:
    """The user's scopes over time, outermost on top; nothing where no op has a name."""
    if not runs.data["name"]:
        return []
    depth = min(int(-min(runs.data["top"])) + 1, _MAX_SCOPE_ROWS)
    panel = _panel("scopes", 17 * depth + 10, time, y_range=(-depth, 0.1))
    panel.yaxis.axis_label = "scopes"
    panel.yaxis.axis_label_orientation = "horizontal"  # one level is not high
    panel.yaxis.ticker = []
    panel.ygrid.grid_line_color = None
    boxes = panel.quad(
        left="begin_us",
        right="end_us",
        bottom="bottom",
        top="top",
        fill_color="color",
        line_color="white",
        line_width=0.5,
        source=runs,
    )
    panel.text("middle_us", "middle", "text", source=runs, **_LABEL)
    _hover(panel, [boxes], ("scope", "@path"), ("time", "@length_us{0,0.0} µs"))
    return [panel]


def latency(plan: Plan) -> figure:
    """The latency in its parts, beside all in slow memory and the compiler's own."""
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure

    bars = comparison.bars([plan])
    names = [name for name, _ in bars]
    panel = figure(
        name="latency",
        y_range=names[::-1],
        height=26 * len(bars) + 55,
        tools="",
        toolbar_location=None,
        sizing_mode="stretch_width",
        outline_line_color=None,
        x_axis_label="latency (µs, predicted)",
    )
    parts = {
        "compute and fast memory": [b.fast_s * _US for _, b in bars],
        "slow memory": [b.slow_s * _US for _, b in bars],
        "stall": [b.stall_s * _US for _, b in bars],
    }
    colors = [
        palette.BOUND[Bound.COMPUTE],
        palette.BOUND[Bound.SLOW_MEMORY],
        palette.STALL,
    ]
    source = ColumnDataSource({"name": names, **parts})
    stack = panel.hbar_stack(
        list(parts),
        y="name",
        height=0.7,
        fill_color=[*colors[:2], "white"],
        line_color=colors,
        line_width=0.5,
        hatch_pattern=[" ", " ", "/"],
        hatch_scale=6,
        hatch_color=palette.STALL,
        source=source,
    )
    for renderer, part in zip(stack, parts, strict=True):
        _hover(panel, [renderer], ("@name", f"@{{{part}}}{{0,0.0}} µs {part}"))
    panel.ygrid.grid_line_color = None
    panel.axis.axis_line_color = panel.axis.minor_tick_line_color = None
    panel.axis.major_tick_line_color = None
    panel.axis.axis_label_text_font_style = "normal"
    panel.x_range.start = 0
    return panel
