"""Ops with several results: groups that sweep over the same elements become one.

Mean and mean of squares of one array, or the three results of an Adam update, read the
same values in the same order: one sweep computes them all. A reduction, or element-wise
work, joins the op that writes what it reads: softmax takes its maximum along with the
product, its sum, which needs the maximum first, is another sweep.

    reads x     reads x          reads x             writes s       reads s
    +-----+     +-----+       +-----------+          +-----+        +-----+
    | sum |     | sq. |   ->  | sum, sq.  |          | dot |   ->   | max |  -> one op
    +-----+     +-----+       +-----------+          +-----+        +-----+

Two groups merge if they stand in the same region, sweep over equally many elements and
share a value that both go through element by element; unless one must be complete, or
a third between them, before the other can begin. A product or convolution takes in what
reads its result, nothing else.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from frontends.stablehlo_costs import Role
from frontends.stablehlo_fusion import FUSIBLE, Fusion, Group
from frontends.stablehlo_graph import Graph, Source

# Results that one sweep may write; compilers stop somewhere, too.
_MAX_RESULTS = 8


def fuse(graph: Graph) -> list[Group]:
    """The groups into which `graph.order` falls, by all rules of `stablehlo_fusion`.

    Their order is that of their first result in the program, and need not be one in
    which they could run.
    """
    fusion = Fusion(graph)
    roots = [i for i in graph.order if fusion.home.get(i) == i]
    groups = _Sweeps(fusion, [fusion.group(root) for root in roots]).merged()
    for group in groups:
        _measure_accesses(fusion, group)
    return groups


class _Sweeps:
    """Merging, pair by pair.

    before[i]: the bit set of the groups that group i needs, directly or not.
    writer[v]: the group that writes value v. copies[n]: groups that compute node n.
    """

    def __init__(self, fusion: Fusion, groups: list[Group]) -> None:
        self.fusion, self.graph = fusion, fusion.graph
        self.groups: list[Group | None] = list(groups)
        self.writer = {v: i for i, g in enumerate(groups) for v in g.results}
        self.copies = Counter(n for group in groups for n in group.nodes)
        self.holds_product = [False] * len(groups)
        self.before = [0] * len(groups)
        in_region: dict[int, int] = defaultdict(int)
        for i, group in enumerate(groups):
            for region in self.graph.nodes[group.nodes[-1]].regions:
                self.before[i] |= in_region[region]
            for value in group.inputs:
                self.before[i] |= self._up_to(value)
            in_region[group.region] |= self.before[i] | 1 << i
            self._measure_sweep(i, group)

    def _up_to(self, value: int) -> int:
        """The group that writes a value, and all that it needs, as a bit set."""
        i = self.writer.get(value)
        return 0 if i is None else self.before[i] | 1 << i

    def _measure_sweep(self, i: int, group: Group) -> None:
        """Sets a new group's sweep, and how it reads."""
        nodes, values = self.graph.nodes, self.graph.values
        if not group.results:
            return
        root = values[group.results[0]].node
        heroes = [n for n in group.nodes if nodes[n].cost.role not in FUSIBLE]
        hero = nodes[heroes[0]] if heroes else nodes[root]
        self.holds_product[i] = hero.cost.role is Role.CONTRACTION
        elements = values[group.results[0]].shape.elements
        group.stepwise, group.scattered = self._read_in_step(group, root, elements)
        if nodes[root].cost.role is Role.MOVEMENT:
            return
        start = root
        if hero.opcode == "stablehlo.reduce":
            start, elements = heroes[0], values[hero.operands[0]].shape.elements
        elif heroes and not self.holds_product[i]:
            return
        group.elements = elements
        group.aligned, group.unaligned = self._read_in_step(group, start, elements)

    def _read_in_step(
        self, group: Group, start: int, elements: int
    ) -> tuple[set[int], set[int]]:
        """Values that a group reads along with computing `start`, and the others.

        Followed are element-wise operations on so many elements, back to memory.
        """
        nodes, values = self.graph.nodes, self.graph.values
        followed = (Role.POINTWISE, Role.REDUCTION)
        edges: set[tuple[int, int]] = set()
        seen, work = {start}, [start]
        while work:
            reader = work.pop()
            if nodes[reader].cost.role not in followed:
                continue
            for position, v in enumerate(nodes[reader].operands):
                if values[v].shape.elements != elements:
                    continue
                producer = self.fusion.computes(reader, position)
                if producer is None:
                    edges.add((reader, position))
                elif producer not in seen:
                    seen.add(producer)
                    work.append(producer)
        in_step = {nodes[n].operands[position] for n, position in edges}
        others = {
            v
            for n in group.nodes
            for position, v in enumerate(nodes[n].operands)
            if (n, position) not in edges
        }
        return in_step, others & group.inputs

    def merged(self) -> list[Group]:
        """The groups that remain."""
        sweeps: dict[int, list[int]] = defaultdict(list)
        for i, group in enumerate(self.groups):
            for value in group.aligned:
                sweeps[value].append(i)
        alias = list(range(len(self.groups)))
        for value in sorted(sweeps):
            if self.graph.values[value].is_register:
                continue
            members = sweeps[value]
            if value in self.writer:
                members = [self.writer[value], *members]
            apart: list[int] = []
            for i in dict.fromkeys(alias[member] for member in members):
                partner = next((a for a in apart if self._can_merge(a, i, value)), None)
                if partner is None:
                    apart.append(i)
                else:
                    self._merge(partner, i)
                    alias = [partner if a == i else a for a in alias]
        return [group for group in self.groups if group is not None]

    def _can_merge(self, i: int, j: int, shared: int) -> bool:
        a, b = self.groups[i], self.groups[j]
        if a.region != b.region or a.elements != b.elements or not a.elements:
            return False
        if len(a.results) + len(b.results) > _MAX_RESULTS:
            return False
        if self.holds_product[i] or self.holds_product[j]:
            writer = self.writer.get(shared)
            if writer not in (i, j) or not self.holds_product[writer]:
                return False
            if self.holds_product[i] and self.holds_product[j]:
                return False
        return not (self._must_precede(i, j) or self._must_precede(j, i))

    def _must_precede(self, i: int, j: int) -> bool:
        """Whether group j needs all of group i, or a third between them, done."""
        if not self.before[j] >> i & 1:
            return False
        results = set(self.groups[i].results) & self.groups[j].inputs
        in_step = self.groups[j].aligned - self.groups[j].unaligned
        if not results <= in_step:
            return True
        return any(
            self.before[k] >> i & 1
            for k in {self.writer.get(v, i) for v in self.groups[j].inputs} - {i}
        )

    def _merge(self, i: int, j: int) -> None:
        """Makes group j a part of group i."""
        a, b = self.groups[i], self.groups[j]
        self.groups[j] = None
        self.copies.subtract(set(a.nodes) & set(b.nodes))
        a.nodes = sorted({*a.nodes, *b.nodes})
        a.results = sorted(a.results + b.results)
        a.inputs = (a.inputs | b.inputs) - set(a.results)
        a.aligned = (a.aligned | b.aligned) - set(a.results)
        a.unaligned |= b.unaligned
        a.stepwise |= b.stepwise
        a.scattered |= b.scattered
        a.written = [v for v in a.results if self._is_needed(v, a)]
        self.holds_product[i] |= self.holds_product[j]
        for value in b.results:
            self.writer[value] = i
        both = 1 << i | 1 << j
        needed = (self.before[i] | self.before[j]) & ~both
        self.before[i] = needed
        for k, mask in enumerate(self.before):
            if mask & both:
                self.before[k] = mask | needed | 1 << i

    def _is_needed(self, value: int, group: Group) -> bool:
        """Whether anybody but the group itself needs one of its results."""
        inside = set(group.nodes)
        return value in self.fusion.escapes or any(
            reader not in inside or self.copies[reader] > 1
            for reader, _ in self.fusion.readers[value]
        )


def _measure_accesses(fusion: Fusion, group: Group) -> None:
    """Sets what a group reads, and how much of each of its nodes it computes."""
    nodes, values = fusion.graph.nodes, fusion.graph.values
    shares: dict[int, float] = defaultdict(float)
    reads: dict[int, float] = defaultdict(float)
    for value in group.results:
        shares[values[value].node] = 1.0
    for index in reversed(group.nodes):
        node = nodes[index]
        if node.cost.role in (Role.VIEW, Role.LOOP, Role.BRANCH):
            continue
        computed = min(1.0, shares[index]) if node.results else 1.0
        shares[index] = computed
        # What is replaced in place is read as much as `stablehlo_buffers` says.
        replaced = {place.operand for place in node.cost.in_place}
        wanted: dict[tuple[bool, int], float] = {}
        for position, v in enumerate(node.operands):
            if position in replaced:
                continue
            share = node.cost.shares[position] if node.cost.shares else 1.0
            if node.cost.role in FUSIBLE:
                share *= computed
            producer = fusion.computes(index, position)
            if producer is None and v in group.results:
                producer = values[v].node
            key = (False, v) if producer is None else (True, producer)
            wanted[key] = max(wanted.get(key, 0.0), share)
        for (inside, key), share in wanted.items():
            if inside:
                shares[key] += share
            else:
                reads[key] += share
    for v, share in reads.items():
        if values[v].source is Source.IMMEDIATE or values[v].is_register:
            continue
        size = values[v].size_bytes
        group.reads[v] = min(size, math.ceil(share * size))
    group.shares = dict(shares)
