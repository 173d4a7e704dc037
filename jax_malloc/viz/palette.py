"""Colours of the pictures: one meaning each, in every picture the same.

Areas are light enough for black text on them and differ under the common kinds of
colour blindness; lines and bars of time are darker.

Source: Paul Tol, "Colour Schemes", SRON/EPS/TN/09-002, issue 3.2 (2021): "light" for
areas, "muted" for the rest.
"""

from __future__ import annotations

from jax_malloc.mapping import Direction
from jax_malloc.viz.tables import Bound, Kind

KIND = {
    Kind.PARAMETER: "#77AADD",
    Kind.CONSTANT: "#DDDDDD",
    Kind.ACTIVATION: "#EEDD88",
    Kind.GRADIENT: "#EE8866",
    Kind.TEMPORARY: "#99DDFF",
    Kind.OUTPUT: "#44BB99",
}
DIRECTION = {Direction.PREFETCH: "#332288", Direction.EVICT: "#117733"}
DIRECTION_WORD = {Direction.PREFETCH: "copy in", Direction.EVICT: "copy out"}
BOUND = {
    Bound.COMPUTE: "#8593A1",
    Bound.FAST_MEMORY: "#CBD2D9",
    Bound.SLOW_MEMORY: "#882255",
}
STALL = "#222222"
GRID = "#E3E6EA"
TEXT = "#333A42"
