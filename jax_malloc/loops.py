"""Which boundaries of the schedule lie inside which loop.

    boundary   0     1     2     3     4     5
    ops           a     b     c   while   d
    region 1         |-- body ---|
    inside it        .     x     x     .     .

A boundary inside a loop comes around once per iteration; the ones before its first op
and after its own op (`while`, at index `end`) come once. A branch counts as a loop, and
all branches of one conditional as one.
"""

from __future__ import annotations

import numpy as np

from frontends.program import Program


class Loops:
    """The loops of one program, asked by boundary and by op.

    "Seen from" a region means: what is inside of its loops counts as one step.
    """

    def __init__(self, program: Program) -> None:
        self.regions = program.regions
        self._op_region = [op.region for op in program.ops]
        self._region_at = np.zeros(len(program.ops) + 1, np.int64)
        # Parents come first, so that the innermost loop has the last word.
        for i, region in enumerate(program.regions[1:], 1):
            self._region_at[region.start + 1 : region.end + 1] = i
        self._spans: dict[tuple[int, str], tuple[int, int]] = {}
        for region in program.regions[1:]:
            key = region.parent, region.name
            lo, hi = self._spans.get(key, (region.start, 0))
            hi = max(hi, min(region.end + 1, len(program.ops)))
            self._spans[key] = min(lo, region.start), hi

    def region_at(self, boundary: int) -> int:
        """The innermost region that a boundary is inside of; 0 is the entry."""
        return int(self._region_at[boundary])

    def child(self, region: int, home: int) -> int:
        """The loop directly in `home` that holds `region`; -1 if there is none."""
        while region > 0 and self.regions[region].parent != home:
            region = self.regions[region].parent
        return region if region > 0 else -1

    def span(self, t: int, home: int) -> tuple[int, int]:
        """`[start, end)` of op t as seen from `home`, its region or one around it.

        For an op inside a loop in `home`: all of that loop, its own op included.
        """
        region = self._op_region[t]
        if region == home:
            return t, t + 1
        return self.span_of(self.child(region, home))

    def span_of(self, region: int) -> tuple[int, int]:
        """`[start, end)` of a loop with its own op, or of all branches beside it."""
        return self._spans[self.regions[region].parent, self.regions[region].name]

    def span_named(self, name: str, home: int) -> tuple[int, int] | None:
        """As `span_of`, of the loop of that name directly in `home`, if any."""
        return self._spans.get((home, name))
