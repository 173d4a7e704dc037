"""A plan as a notebook shows it: summary, small map, link to the full report."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
import urllib.parse
from typing import TYPE_CHECKING

from jax_malloc import files, report
from jax_malloc.viz import page, plot

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

# Below the working folder, since a notebook server serves nothing else.
REPORTS = "jax_malloc_reports"
_WIDTH_IN, _HEIGHT_IN, _DPI = 8.0, 3.8, 110


def to_html(plan: Plan) -> str:
    """A fragment; see `Plan._repr_html_`."""
    summary = html.escape(report.summary(plan))
    try:
        picture = f'<img src="data:image/png;base64,{_map(plan)}" alt="memory map">'
        link = _link(plan)
    except RuntimeError as error:  # without the extra a notebook still gets the summary
        picture, link = "", html.escape(str(error))
    return f"<div><pre>{summary}</pre>{picture}<p>{link}</p></div>"


def _map(plan: Plan) -> str:
    """The memory map as a PNG, in base64; leaves no figure open."""
    from jax_malloc.viz import extra

    figures = extra.load("matplotlib.figure", "a plan's picture in a notebook")
    figure = figures.Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI)
    plot.plot(plan, figure.add_axes((0.095, 0.12, 0.895, 0.69)))
    with io.BytesIO() as out:
        figure.savefig(out, format="png")
        return base64.b64encode(out.getvalue()).decode()


def _link(plan: Plan) -> str:
    """A link to the report, which is written unless it is there."""
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.-]+", "_", plan.program.name)[:60]
    path = os.path.join(REPORTS, f"{stem}.{digest}.html")
    try:
        if not os.path.exists(path):
            os.makedirs(REPORTS, exist_ok=True)
            files.write(path, page.to_html(plan).encode())
    except OSError as error:
        return html.escape(f"no full report: {error}")
    target = urllib.parse.quote(path.replace(os.sep, "/"))
    return f'<a href="{target}" target="_blank">full report</a>'
