"""The rows of a plan as columns for the report's panels and its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_malloc.report import format_bytes
from jax_malloc.viz import labels, palette, scopes
from jax_malloc.viz.tables import Tables

_MIB = 2.0**20
_US = 1e6
MAP_HEIGHT_PX = 430
# What fits is told for a panel of this width; on a wider one there is room to spare.
_WIDTH_PX = 1150.0
_FONT_PX = 11.0


def buffers(rows: Tables) -> dict[str, Any]:
    """A row per buffer, those first that save most; `buffer` is the id."""
    places: list[list[str]] = [[] for _ in rows.buffers]
    for s in rows.stays:
        places[s.buffer_id].append(f"{s.ops[0]}-{s.ops[2]}")
    of = sorted(rows.buffers, key=lambda b: -b.saved_s)
    return {
        "buffer": np.array([b.buffer_id for b in of], np.int32),
        "name": [b.name for b in of],
        "path": [b.user_name for b in of],
        "kind": [b.kind.value for b in of],
        "size_mib": np.array([b.size_bytes for b in of]) / _MIB,
        "live": [f"{b.live[0]}-{b.live[1]}" for b in of],
        "in_fast": [", ".join(places[b.buffer_id]) for b in of],
        "copies": np.array([b.num_copies for b in of], np.int32),
        "saved_us": np.array([b.saved_s for b in of]) * _US,
    }


def stays(rows: Tables) -> dict[str, Any]:
    """A row per rectangle of the memory map."""
    of = rows.stays
    low = np.array([s.offset_bytes for s in of], float)
    size = np.array([s.size_bytes for s in of], float)
    return {
        **_described(rows, [s.buffer_id for s in of]),
        "begin_us": np.array([s.begin_s for s in of]) * _US,
        "first_us": np.array([s.first_s for s in of]) * _US,
        "end_us": np.array([s.end_s for s in of]) * _US,
        "low_mib": low / _MIB,
        "high_mib": (low + size) / _MIB,
        "ops": [f"{s.ops[0]}-{s.ops[2]}" for s in of],
        "saved_us": np.array([s.saved_s for s in of]) * _US,
        "color": [palette.KIND[rows.buffers[s.buffer_id].kind] for s in of],
    }


def stay_labels(rows: Tables, capacity_mib: float) -> dict[str, Any]:
    """A row per name in the memory map, as it fits before any zoom."""
    found = labels.of_stays(
        rows,
        per_s=_WIDTH_PX / max(rows.latency_s, 1e-12),
        per_byte=MAP_HEIGHT_PX / (capacity_mib * _MIB),
        font_size=_FONT_PX,
    )
    return {
        "x": [(n.stay.first_s + n.stay.end_s) / 2 * _US for n in found],
        "y": [(n.stay.offset_bytes + n.stay.size_bytes / 2) / _MIB for n in found],
        "text": [n.text for n in found],
        "angle": [np.pi / 2 if n.upright else 0.0 for n in found],
    }


def copies(rows: Tables) -> dict[str, Any]:
    """A row per copy; `lane` is the name of its queue."""
    of = rows.copies
    return {
        **_described(rows, [c.buffer_id for c in of]),
        "lane": [palette.DIRECTION_WORD[c.direction] for c in of],
        "color": [palette.DIRECTION[c.direction] for c in of],
        "issue_us": np.array([c.issue_s for c in of]) * _US,
        "begin_us": np.array([c.begin_s for c in of]) * _US,
        "done_us": np.array([c.done_s for c in of]) * _US,
        "exposed_us": np.array([c.exposed_s for c in of]) * _US,
        "window": [f"{c.start} and {c.due}" for c in of],
    }


def ops(rows: Tables) -> dict[str, Any]:
    """A row per op."""
    of = rows.ops
    fast, slow = (np.array([getattr(o, n) for o in of]) for n in ("fast_s", "slow_s"))
    return {
        "name": [o.op.name for o in of],
        "path": [o.op.op_name for o in of],
        "opcode": [o.op.opcode for o in of],
        "bound": [o.bound.value for o in of],
        "color": [palette.BOUND[o.fast_bound] for o in of],
        "buffers": [list(o.buffers) for o in of],
        "start_us": np.array([o.start_s for o in of]) * _US,
        "end_us": np.array([o.end_s for o in of]) * _US,
        "fast_us": fast * _US,
        "slow_us": slow * _US,
        "latency_us": (fast + slow) * _US,
        "stall_us": np.array([o.stall_s for o in of]) * _US,
        "used_mib": rows.used_bytes / _MIB,
    }


def stalls(rows: Tables) -> dict[str, Any]:
    """A row per wait for a copy."""
    begin, end = np.array(rows.stalls_s(), float).reshape(-1, 2).T * _US
    return {"begin_us": begin, "end_us": end, "length_us": end - begin}


def scope_runs(rows: Tables) -> dict[str, Any]:
    """A row per scope and stretch of ops in it; the outermost is on top, at 0."""
    runs = scopes.runs(rows.ops)
    depth = np.array([r.depth for r in runs], float)
    begin, end = (
        np.array(times) * _US
        for times in (
            [r.first.start_s - r.first.stall_s for r in runs],
            [r.last.end_s for r in runs],
        )
    )
    per_us = _WIDTH_PX / _FONT_PX / max(rows.latency_s * _US, 1e-12)
    return {
        "name": [r.name for r in runs],
        "path": [r.path for r in runs],
        "begin_us": begin,
        "end_us": end,
        "length_us": end - begin,
        "middle_us": (begin + end) / 2,
        "text": [
            r.name if labels.fits(r.name, width, np.inf) else ""
            for r, width in zip(runs, (end - begin) * per_us, strict=True)
        ],
        "middle": -depth - 0.45,
        "top": -depth,
        "bottom": -depth - 0.9,
        "color": [_SHADES[r.depth % len(_SHADES)] for r in runs],
    }


# Two greys in turn set the levels apart.
_SHADES = ("#C5CDD6", "#DCE2E8")


def _described(rows: Tables, buffer_ids: Sequence[int]) -> dict[str, Any]:
    """What a tooltip says of the buffer."""
    of = [rows.buffers[i] for i in buffer_ids]
    return {
        "buffer": np.array(buffer_ids, np.int32),
        "name": [b.name for b in of],
        "path": [b.user_name for b in of],
        "kind": [b.kind.value for b in of],
        "size": [format_bytes(b.size_bytes) for b in of],
    }
