r"""The report of a plan: one HTML file with all that it needs in it.

    +--------------------------------------------+
    | summary                     latency, bars  |
    | search                                     |
    | memory map   \                             |
    | ops           | one time axis              |
    | copies        |                            |
    | scopes       /                             |
    | table of buffers     ops by scope          |
    +--------------------------------------------+

`panels` draws with Bokeh; `link.mjs` ties selections together; `page.html` is the page
around them.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from jax_malloc import report
from jax_malloc.viz import extra, page_data, palette, panels, scopes, tables
from jax_malloc.viz.tables import Tables

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, DataTable, UIElement

    from jax_malloc.plan import Plan

_HERE = pathlib.Path(__file__).parent
_US = 1e6


def to_html(plan: Plan) -> str:
    """The page; see `Plan.to_html`."""
    extra.load("bokeh", "Plan.to_html")
    import jinja2
    from bokeh.embed import components
    from bokeh.resources import Resources

    rows = tables.build(plan)
    script, divs = components(_models(plan, rows))
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_HERE),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["time"] = report.format_s
    resources = Resources(
        mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"]
    )
    heading, *facts = report.summary(plan).splitlines()
    return environment.get_template("page.html").render(
        title=f"{plan.program.name} on {plan.accelerator.name}: jax_malloc",
        heading=heading,
        facts="\n".join(facts),
        key=_key(rows),
        tree=scopes.tree(rows.ops),
        resources=resources.render_js(),
        script=script,
        divs=divs,
    )


def _key(rows: Tables) -> list[tuple[str, str]]:
    """What the colours mean: `(words, colour)`."""
    kinds = {rows.buffers[s.buffer_id].kind for s in rows.stays}
    return [
        *((kind.value, color) for kind, color in palette.KIND.items() if kind in kinds),
        *((f"op: {bound.value}", color) for bound, color in palette.BOUND.items()),
        *((palette.DIRECTION_WORD[d], color) for d, color in palette.DIRECTION.items()),
    ]


def _models(plan: Plan, rows: Tables) -> dict[str, UIElement]:
    """The parts of the page by name, tied together."""
    from bokeh.layouts import gridplot, row
    from bokeh.models import (
        BooleanFilter,
        CDSView,
        ColumnDataSource,
        CustomJS,
        Div,
        Range1d,
        TextInput,
    )

    source = {
        name: ColumnDataSource(getattr(page_data, name)(rows), name=name)
        for name in ("buffers", "stays", "copies", "ops", "stalls", "scope_runs")
    }
    end_us = max(rows.latency_s * _US, 1e-9)
    time = Range1d(0, end_us, bounds=(0, end_us), min_interval=end_us * 1e-5)
    stack = [
        panels.memory_map(rows, source, time),
        panels.ops(source, time),
        panels.copies(source, time),
        *panels.scopes(source["scope_runs"], time),
    ]
    stack[-1].xaxis.visible = True
    stack[-1].xaxis.axis_label = "time (µs, predicted)"
    stack[-1].height += 45

    search = TextInput(
        name="search",
        placeholder="search buffers and ops: fusion.12, self_attn/q_proj, kernel...",
        width=460,
    )
    count = Div(text="", name="count", margin=(12, 5, 5, 5))
    shown = BooleanFilter(booleans=None)
    link = CustomJS.from_file(
        _HERE / "link.mjs",
        **{name: source[name] for name in ("buffers", "stays", "copies", "ops")},
        search=search,
        shown=shown,
        count=count,
        time=time,
    )
    search.js_on_change("value_input", link)
    for name in ("buffers", "stays", "copies", "ops"):
        source[name].selected.js_on_change("indices", link)
    return {
        "latency": panels.latency(plan),
        "search": row(search, count),
        "panels": gridplot(
            [[panel] for panel in stack],
            merge_tools=True,
            toolbar_location="right",
            toolbar_options={"logo": None},
            sizing_mode="stretch_width",
        ),
        "table": _table(source["buffers"], CDSView(filter=shown)),
    }


def _table(source: ColumnDataSource, view: Any) -> DataTable:
    """Every buffer, to sort and to click on."""
    from bokeh.models import DataTable, NumberFormatter, TableColumn

    def column(field, title, width, number=None):
        options = {"field": field, "title": title, "width": width}
        if number is not None:
            options["formatter"] = NumberFormatter(format=number, text_align="right")
        return TableColumn(**options)

    return DataTable(
        name="table",
        source=source,
        view=view,
        columns=[
            column("name", "buffer", 190),
            column("path", "user name", 260),
            column("kind", "kind", 75),
            column("size_mib", "MiB", 60, "0,0.00"),
            column("live", "live", 65),
            column("in_fast", "in fast memory", 105),
            column("copies", "copies", 50, "0"),
            column("saved_us", "saves (µs)", 75, "0,0.00"),
        ],
        height=430,
        sizing_mode="stretch_width",
        index_position=None,
        stylesheets=[".slick-cell.selected { background-color: #FFF1C2; }"],
        reorderable=False,  # or Bokeh warns that it needs jQuery UI
    )
