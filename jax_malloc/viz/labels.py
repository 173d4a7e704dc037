"""Which rectangles of the memory map bear a name, and which: as much as fits."""

from __future__ import annotations

from typing import NamedTuple

from jax_malloc.viz import scopes
from jax_malloc.viz.tables import BufferRow, Kind, StayRow, Tables

# A character's mean width and a line's height, as shares of the font size.
CHARACTER, _LINE = 0.56, 1.15
_MARGIN = 0.5
_MAX_LABELS = 120


class Label(NamedTuple):
    """A name in the middle of a stay; upright where it reads from bottom to top."""

    stay: StayRow
    text: str
    upright: bool


def of_stays(
    rows: Tables, *, per_s: float, per_byte: float, font_size: float
) -> list[Label]:
    """Labels of the largest rectangles that have room for one.

    Args:
      rows: of the plan.
      per_s, per_byte: length on paper or screen of a second and of a byte.
      font_size: in the same unit.
    """
    by_area = sorted(rows.stays, key=lambda s: (s.first_s - s.end_s) * s.size_bytes)
    labels = []
    for s in by_area[:_MAX_LABELS]:
        width = (s.end_s - s.first_s) * per_s / font_size
        height = s.size_bytes * per_byte / font_size
        fitting = (
            Label(s, name, upright)
            for name in _names(rows.buffers[s.buffer_id])
            for upright in (False, True)
            if fits(name, *((height, width) if upright else (width, height)))
        )
        label = next(fitting, None)
        if label is not None:
            labels.append(label)
    return labels


def fits(text: str, width: float, height: float) -> bool:
    """Whether a line of text fits into a box, measured in font sizes."""
    return height >= _LINE and width >= CHARACTER * len(text) + _MARGIN


def _names(buffer: BufferRow) -> list[str]:
    """Names for a buffer, the most telling first: the end of its path, then its own."""
    if buffer.kind is Kind.PARAMETER:
        parts = tuple(buffer.user_name.split("/"))
    else:
        parts = scopes.scope_of(buffer.user_name)
    tails = ["/".join(parts[-n:]) for n in (3, 2) if len(parts) >= n]
    last = [part for part in parts[-1:] if not part.isdigit()]
    return [*tails, *last, buffer.name]
