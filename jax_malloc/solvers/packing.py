"""Places in fast memory, exact: rectangles of time and offset that must not overlap.

offset
  ^  capacity of the ops in the window
  |--------------.........
  |   gap        :       :   the topmost gap is filled from its top,
  |   [  a  ]    :  gap  :   any other from its bottom
  |   gap     [  b  ]    :
  |[ c ]         :       :
  +--------------+-------+--> ops
                 begin   end
"""

from __future__ import annotations

import enum
from collections.abc import Collection

import numpy as np

# Rows of the table.
_LOW, _HIGH, _BEGIN, _END, _KEY = range(5)
_INITIAL_ROOM = 64


class FitRule(enum.Enum):
    """Which gap a stay takes, and which end of it.

    BEST: the smallest that holds it, from the bottom; BEST_TOP: but the topmost gap
    from its top, so that large stays meet there. LOWEST and HIGHEST: the gap at that
    end.
    """

    BEST = "best"
    BEST_TOP = "best_top"
    LOWEST = "lowest"
    HIGHEST = "highest"


class Packing:
    """Rectangles of granules by ops, each with a whole-numbered key of the caller's."""

    def __init__(self, op_capacity_granules: np.ndarray) -> None:
        self._capacity = op_capacity_granules
        # Most programs have the same capacity throughout.
        values = np.unique(op_capacity_granules)
        self._flat = int(values[0]) if len(values) == 1 else None
        self._table = np.empty((5, _INITIAL_ROOM), np.int64)
        self._used = 0

    def save(self) -> np.ndarray:
        """A snapshot for `restore`."""
        return self._table[:, : self._used].copy()

    def restore(self, snapshot: np.ndarray) -> None:
        """Back to what `save` saw."""
        self._used = snapshot.shape[1]
        self._table[:, : self._used] = snapshot

    def find(self, size: int, begin: int, end: int, rule: FitRule) -> int | None:
        """An offset that is free for `size` granules during ops `[begin, end)`."""
        capacity = self._flat
        if capacity is None:
            capacity = int(self._capacity[begin:end].min())
        table = self._table[:, : self._used]
        there = (table[_BEGIN] < end) & (table[_END] > begin)
        lows, highs = table[_LOW][there].tolist(), table[_HIGH][there].tolist()
        best, best_room, bottom = None, capacity + 1, 0
        # By offset: a gap reaches from the highest end so far to the next start.
        for low, high in zip((*lows, capacity), (*highs, capacity), strict=True):
            room = (low if low < capacity else capacity) - bottom
            if size <= room and (room < best_room or rule is FitRule.HIGHEST):
                best, best_room = bottom, room
                if rule is FitRule.LOWEST:
                    break
            if high > bottom:
                bottom = high
        if best is None:
            return None
        is_top = best + best_room == capacity
        from_top = rule is FitRule.HIGHEST or (rule is FitRule.BEST_TOP and is_top)
        return best + best_room - size if from_top else best

    def is_free(
        self,
        size: int,
        offset: int,
        begin: int,
        end: int,
        beside: Collection[int] = (),
    ) -> bool:
        """Whether that place can be taken; what has a key in `beside` may be there."""
        if begin >= end:
            return True
        if offset + size > self._capacity[begin:end].min():
            return False
        there = self._meets(size, offset, begin, end)
        if not beside:
            return not there.any()
        return all(key in beside for key in self._table[_KEY, : self._used][there])

    def in_the_way(self, size: int, offset: int, begin: int, end: int) -> list[int]:
        """Keys of what overlaps that place."""
        meets = self._meets(size, offset, begin, end)
        return self._table[_KEY, : self._used][meets].tolist()

    def add(self, key: int, size: int, offset: int, begin: int, end: int) -> None:
        """Takes a place, which must be free, or shared as the caller knows."""
        used, table = self._used, self._table
        if used == table.shape[1]:
            self._table = table = np.concatenate([table, np.empty_like(table)], axis=1)
        at = int(np.searchsorted(table[_LOW, :used], offset))
        table[:, at + 1 : used + 1] = table[:, at:used]
        table[:, at] = (offset, offset + size, begin, end, key)
        self._used += 1

    def remove(self, key: int) -> None:
        """Gives a place back."""
        table, used = self._table, self._used
        at = int(np.flatnonzero(table[_KEY, :used] == key)[0])
        table[:, at : used - 1] = table[:, at + 1 : used]
        self._used -= 1

    def _meets(self, size: int, offset: int, begin: int, end: int) -> np.ndarray:
        table = self._table[:, : self._used]
        return (
            (table[_BEGIN] < end)
            & (table[_END] > begin)
            & (table[_LOW] < offset + size)
            & (table[_HIGH] > offset)
        )
