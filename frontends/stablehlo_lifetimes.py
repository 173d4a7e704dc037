"""When the values of a scheduled graph are needed, and whose place they could take.

Positions count groups in running order, loop bodies before the loop itself. A value is
needed where the group stands that reads it; for a reader in a loop body that the value
does not belong to, where the loop ends, since the next execution reads it again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

from frontends.stablehlo_costs import Role
from frontends.stablehlo_fusion import Group
from frontends.stablehlo_graph import Graph, Source

# What a use is for: ("read", group), ("init", node, k), ("next", node, k),
# ("branch", node, k) or ("output", k).
Use = tuple


class Lifetimes:
    """Uses of every value.

    at[i]: position of group i. begin[r]: position of the first group of region r.
    heir_of[v]: the destination for whose sake v is computed, ("next", node, k) or
      ("branch", node, k), directly or through updates in place.
    heirs[v]: for a donated input v, the values that end up as the output that takes
      its memory, if all of them are updates of it in place; else nothing.
    """

    def __init__(
        self, graph: Graph, groups: list[Group], order: dict[int, list[int]]
    ) -> None:
        self.graph = graph
        self.at: dict[int, int] = {}
        self.begin: dict[int, int] = {}
        self.end: dict[int, int] = {}
        self._holder: dict[int, int] = {}
        self._number(groups, order, 0)
        self._same: dict[int, int] = {}
        self._uses: dict[int, list[tuple[float, Use]]] = defaultdict(list)
        for group in groups:
            node = graph.nodes[group.nodes[-1]]
            if node.cost.role is Role.VIEW:
                for value, result in zip(node.operands, node.results, strict=True):
                    self._same[result] = value
        self._record_uses(groups)
        self.heir_of: dict[int, Use] = {}
        self._find_heirs()
        self.heirs = self._donated_heirs()

    def _number(self, groups: list[Group], order: dict, region: int) -> None:
        self.begin[region] = len(self.at)
        for i in order[region]:
            for inner in self.graph.nodes[groups[i].nodes[-1]].regions:
                self._number(groups, order, inner)
                self._holder[inner] = i
            self.at[i] = len(self.at)
        self.end[region] = len(self.at)

    def content(self, value: int) -> int:
        """The value that this one is another name of."""
        while value in self._same:
            value = self._same[value]
        return value

    def _record(self, value: int, region: int, position: float, use: Use) -> None:
        """Records a use in `region`, at the end of the loops that the value is not in.

        Branches count as loops here.
        """
        home = self.graph.values[value].region
        while region != home and region in self._holder:
            i = self._holder[region]
            position, region = self.at[i], self.graph.regions[region].parent
        self._uses[self.content(value)].append((position, use))

    def _record_uses(self, groups: list[Group]) -> None:
        for i, group in enumerate(groups):
            n = group.nodes[-1]
            node = self.graph.nodes[n]
            for k, carry in enumerate(node.carries):
                (body,) = node.regions
                start = self.begin[body]
                self._record(carry.init, group.region, start, ("init", n, k))
                self._record(carry.next, body, self.end[body], ("next", n, k))
            for region, results in zip(node.regions, node.branches, strict=False):
                for k, value in enumerate(results):
                    self._record(value, region, self.end[region], ("branch", n, k))
            inits = {carry.init for carry in node.carries}
            for value in group.inputs - inits:
                # Another name is no use, but in a loop it is one for every iteration.
                beside = self.graph.values[value].region == group.region
                if not (node.cost.role is Role.VIEW and beside):
                    self._record(value, group.region, self.at[i], ("read", i))
        for k, value in enumerate(self.graph.outputs):
            self._record(value, 0, math.inf, ("output", k))

    def is_dead(self, value: int, position: float, but: Collection[Use] = ()) -> bool:
        """Whether nobody needs a value at or after `position`, but the uses given."""
        return all(
            at < position or use in but for at, use in self._uses[self.content(value)]
        )

    def _original(self, value: int) -> int | None:
        """The value of which this one is an update in place, or other name."""
        if self.graph.values[value].source is not Source.NODE:
            return None
        node = self.graph.nodes[self.graph.values[value].node]
        k = node.results.index(value)
        if node.cost.role is Role.LOOP:
            return node.carries[k].init
        if node.cost.role is Role.VIEW:
            return node.operands[k]
        operands = (p.operand for p in node.cost.in_place if p.result == k)
        return next((node.operands[p] for p in operands), None)

    def _find_heirs(self) -> None:
        for n in self.graph.order:
            node = self.graph.nodes[n]
            ends = [
                (c.next, node.regions[0], "next", k) for k, c in enumerate(node.carries)
            ]
            for region, results in zip(node.regions, node.branches, strict=False):
                ends += [(v, region, "branch", k) for k, v in enumerate(results)]
            for end, region, kind, k in ends:
                value: int | None = end
                while value is not None and value not in self.heir_of:
                    if self.graph.values[value].region != region:
                        break
                    self.heir_of[value] = (kind, n, k)
                    value = self._original(value)

    def _donated_heirs(self) -> dict[int, set[int]]:
        wanted = dict(self.graph.donated)
        heirs: dict[int, set[int]] = {}
        for k, output in enumerate(self.graph.outputs):
            chain, value = set(), output
            while (original := self._original(value)) is not None:
                chain.add(value)
                value = original
            if value not in self.graph.inputs:
                continue
            if wanted.get(self.graph.inputs.index(value)) in (k, -1):
                heirs.setdefault(value, chain)
        return heirs
