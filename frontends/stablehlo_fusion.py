"""Which operations of the flat graph become one op, as a compiler would fuse them.

The rule, in the order in which it is applied:

1. Epilogues. Element-wise operations on the result of a product, convolution,
   reduction or gather are computed as it is written, up to the last value through
   which everything computed from it must pass: matmul + bias + relu is one op, which
   writes the relu. Where two products meet, the later one takes what follows; where
   bytes per element grow on the way, it stops at the fewest.
2. Prologues. Element-wise operations and data movement (broadcast, slice, transpose,
   pad, select ...) are computed by the op that reads their result, be it element-wise,
   a product, a convolution or a reduction.
3. With several readers such a value is computed anew by each if that moves no more
   bytes than writing it once and reading it back, and if little arithmetic is
   repeated (no random bits); else it is written to memory. What is larger than what it
   is made of is computed anew, and so that is what is written: bf16, and not the
   float32 that it is converted to. What comes from next to nothing (constants, iota, a
   broadcast vector) is computed by whoever can, always.
4. Sweeps (stablehlo_sweeps.py). Ops that read the same large value element by element
   are one op with several results, if none must be done before another begins.

Products, convolutions and reductions are never repeated. Sort, custom calls and
collectives fuse with nothing; nothing but constants fuses into a loop body from
outside; an update in place computes what it stores, not what it stores it into.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from frontends.stablehlo_costs import Role
from frontends.stablehlo_graph import Graph, Node, Source

FUSIBLE = (Role.POINTWISE, Role.MOVEMENT)
# What an op is built around: at most one of these before sweeps are merged.
HEROES = (Role.CONTRACTION, Role.REDUCTION, Role.WINDOW)
WALLS = (Role.OPAQUE, Role.VIEW, Role.LOOP, Role.BRANCH)

# Operations per element that may be repeated to save a trip to memory; an exponential
# counts as several. Softmax and GELU pass, random bits do not.
_MAX_REPEATED_FLOPS = 100.0
_FLOPS_PER_TRANSCENDENTAL = 8.0
# A value made from this many times fewer bytes comes from next to nothing.
_NEXT_TO_NOTHING = 8
# A value made from more values than this counts as one of its own, for its readers.
_MAX_SOURCES = 32


@dataclasses.dataclass(slots=True)
class Group:
    """Operations that run as one op.

    nodes: sorted indices of graph nodes, some of which may be in other groups too.
    region: of the graph, in which it runs.
    results: values of the nodes that are its own, in program order.
    written: those of the results that others need.
    inputs: values that it needs from others, registers and loop bodies included.
    reads: value -> bytes of it that it touches in memory.
    shares: node -> share of the node's result that it computes.
    elements: length of its sweep over memory; 0 where it has no single one.
    aligned, unaligned: values that it reads element by element in the order of the
      sweep, and those that it reads in another way. A value may be in both.
    stepwise, scattered: likewise for the order in which it writes its results.
    """

    nodes: list[int]
    region: int
    results: list[int]
    written: list[int]
    inputs: set[int]
    reads: dict[int, int] = dataclasses.field(default_factory=dict)
    shares: dict[int, float] = dataclasses.field(default_factory=dict)
    elements: int = 0
    aligned: set[int] = dataclasses.field(default_factory=set)
    unaligned: set[int] = dataclasses.field(default_factory=set)
    stepwise: set[int] = dataclasses.field(default_factory=set)
    scattered: set[int] = dataclasses.field(default_factory=set)


class Fusion:
    """The decisions 1 to 3 for one graph.

    home[n]: the node as part of which the result of node n is written, which may be n
      itself. A node without a home is computed by each of its readers.
    readers[v]: `(node, operand position)` of every use of value v.
    escapes: values that an output, a loop or a branch needs in memory.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.escapes = set(graph.outputs)
        for index in graph.order:
            node = graph.nodes[index]
            for position, value in enumerate(node.operands):
                self.readers[value].append((index, position))
            for carry in node.carries:
                self.escapes |= {carry.init, carry.next}
            for branch in node.branches:
                self.escapes.update(branch)
        self.home: dict[int, int] = {}
        self._following = self._find_following()
        self._claim_epilogues()
        # What computing the result of a node anew would read, {value: bytes}, and the
        # operations per element that it would repeat; nodes that come from next to
        # nothing; nodes whose results are larger than what they are made of.
        self._sources: dict[int, dict[int, float]] = {}
        self._repeated_flops: dict[int, float] = {}
        self._tiny: set[int] = set()
        self._growing: set[int] = set()
        for index in graph.order:
            self._measure(index)
        self._choose_homes()

    def computes(self, reader: int, position: int) -> int | None:
        """The node with which `reader` computes an operand, or None if it reads it."""
        value = self.graph.nodes[reader].operands[position]
        if self.graph.values[value].source is not Source.NODE:
            return None
        producer = self.graph.values[value].node
        if self.graph.nodes[producer].cost.role not in (*FUSIBLE, *HEROES):
            return None
        if self.home.get(producer) == producer and producer not in self._tiny:
            return None
        return producer if self._accepts(reader, position, producer) else None

    def group(self, root: int) -> Group:
        """The op that writes the results of the node `root`, its own home."""
        node = self.graph.nodes[root]
        inside, inputs, work = {root}, set(), [root]
        while work:
            reader = work.pop()
            for position, value in enumerate(self.graph.nodes[reader].operands):
                producer = self.computes(reader, position)
                if producer is None:
                    inputs.add(value)
                elif producer not in inside:
                    inside.add(producer)
                    work.append(producer)
        inputs.update(carry.init for carry in node.carries)
        results = list(node.results)
        return Group(sorted(inside), node.region, results, list(results), inputs)

    # What is fused with what --------------------------------------------------------

    def _elements(self, index: int) -> int:
        return self.graph.values[self.graph.nodes[index].results[0]].shape.elements

    def _size(self, index: int) -> int:
        """Bytes of a node's one result."""
        return self.graph.values[self.graph.nodes[index].results[0]].shape.size_bytes

    def _accepts(self, reader: int, position: int, producer: int) -> bool:
        """Whether `reader` could compute its operand with the node `producer`."""
        node, source = self.graph.nodes[reader], self.graph.nodes[producer]
        if node.cost.role in WALLS:
            return False
        if node.region != source.region and self._sources[producer]:
            return False
        if any(place.operand == position for place in node.cost.in_place):
            return False
        return not (node.opcode == "stablehlo.gather" and position == 0)

    def _find_following(self) -> dict[int, int]:
        """The next node through which everything computed from a node must pass.

        These are immediate post-dominators, where every reader that is not fusible or
        stands in another region is an exit, as is everything that escapes.
        """
        following: dict[int, int] = {}
        depth: dict[int, int] = {}
        for index in reversed(self.graph.order):
            node = self.graph.nodes[index]
            depth[index] = 0
            if len(node.results) != 1 or node.results[0] in self.escapes:
                continue
            readers = {reader for reader, _ in self.readers[node.results[0]]}
            if not readers or not all(
                self.graph.nodes[reader].cost.role in FUSIBLE
                and self.graph.nodes[reader].region == node.region
                for reader in readers
            ):
                continue
            common: int | None = readers.pop()
            for reader in readers:
                while common is not None and common != reader:
                    if depth[common] >= depth[reader]:
                        common = following.get(common)
                    else:
                        reader = following[reader]
            if common is not None:
                following[index] = common
                depth[index] = depth[common] + 1
        return following

    def _between(self, first: int, last: int) -> set[int]:
        """Nodes on the paths from `first` to `last`, without `first`."""
        found, work = {last}, [first]
        while work:
            for reader, _ in self.readers[self.graph.nodes[work.pop()].results[0]]:
                if reader not in found:
                    found.add(reader)
                    work.append(reader)
        return found

    def _claim_epilogues(self) -> None:
        """Rule 1."""
        for hero in reversed(self.graph.order):
            node = self.graph.nodes[hero]
            if node.cost.role not in HEROES or len(node.results) != 1:
                continue
            elements, last, path = self._elements(hero), hero, {hero}
            best, claimed = hero, {hero}
            while last in self._following:
                path |= self._between(last, self._following[last])
                last = self._following[last]
                if not all(self._may_join(i, elements) for i in path - {hero}):
                    break
                if self._size(last) <= self._size(best):
                    best, claimed = last, set(path)
            self.home.update(dict.fromkeys(claimed, best))

    def _may_join(self, index: int, elements: int) -> bool:
        """Whether a node can be part of an epilogue of so many elements."""
        fusible = self.graph.nodes[index].cost.role in FUSIBLE
        return fusible and self._elements(index) == elements and index not in self.home

    def _measure(self, index: int) -> None:
        """What it would take to compute a node anew from memory."""
        node, values = self.graph.nodes[index], self.graph.values
        sources: dict[int, float] = {}
        flops, near = 0.0, 0.0
        for position, v in enumerate(node.operands):
            value = values[v]
            if value.source is Source.NODE:
                producer = value.node
                # What grows (a conversion to f32) is never written for its readers.
                again = (
                    len(self.readers[v]) == 1
                    or producer in self._following
                    or producer in self._growing
                )
                flops += self._repeated_flops.get(producer, 0.0)
                if producer in self._tiny or (
                    again
                    and producer in self._repeated_flops
                    and len(self._sources[producer]) < _MAX_SOURCES
                ):
                    for leaf, size in self._sources[producer].items():
                        sources[leaf] = max(size, sources.get(leaf, 0.0))
                    if producer in self._tiny or producer in self._growing:
                        near += sum(self._sources[producer].values())
                    else:
                        near += self._size(producer)
                    continue
            if not value.is_register:
                share = node.cost.shares[position] if node.cost.shares else 1.0
                size = share * value.shape.size_bytes
                near += size if v not in sources else 0.0
                sources[v] = max(size, sources.get(v, 0.0))
        self._sources[index] = sources
        if node.cost.role not in FUSIBLE or index in self.home:
            return
        own = node.cost.vector_flops
        own += _FLOPS_PER_TRANSCENDENTAL * node.cost.transcendentals
        flops += own / max(1, self._elements(index))
        cheap = flops <= _MAX_REPEATED_FLOPS
        (result,) = node.results
        if cheap and sum(sources.values()) * _NEXT_TO_NOTHING <= self._size(index):
            self._tiny.add(index)
        if near < self._size(index):
            self._growing.add(index)
        # Several readers that do not meet again will find a costly value in memory.
        apart = len(self.readers[result]) > 1 and index not in self._following
        if not cheap and apart:
            self.home[index] = index
        else:
            self._repeated_flops[index] = flops

    def _choose_homes(self) -> None:
        """Rules 2 and 3, every node after all of its readers."""
        # takers[n]: the nodes as part of which node n is computed.
        takers: dict[int, set[int]] = {}
        for index in reversed(self.graph.order):
            if self.graph.nodes[index].cost.role not in FUSIBLE:
                self.home.setdefault(index, index)
            if index in self.home:
                takers[index] = {self.home[index]}
            else:
                takers[index] = self._place(index, takers)

    def _place(self, index: int, takers: dict[int, set[int]]) -> set[int]:
        """The takers of one fusible node, of which it is one itself if written."""
        node = self.graph.nodes[index]
        (result,) = node.results
        roots: set[int] = set()
        written = result in self.escapes
        for reader, position in self.readers[result]:
            if self._accepts(reader, position, index):
                roots |= takers[reader]
            else:
                written = True
        if any(self._reads_what_it_replaces(node, root) for root in roots):
            self._tiny.discard(index)
            written = True
        elif not written and len(roots) > 1:
            written = not self._worth_repeating(index, len(roots))
        if not written:
            return roots
        self.home[index] = index
        return {index} | roots if index in self._tiny else {index}

    def _worth_repeating(self, index: int, times: int) -> bool:
        """Whether computing a value `times` times moves no more bytes than once."""
        if self._repeated_flops[index] > _MAX_REPEATED_FLOPS:
            return False
        if index in self._growing:
            return True  # its operand will be written in its place
        read = sum(self._sources[index].values())
        return times * read <= read + (times + 1) * self._size(index)

    def _reads_what_it_replaces(self, node: Node, root: int) -> bool:
        """Whether a node, computed by an update, would read what that replaces."""
        update = self.graph.nodes[root]
        places = {update.operands[place.operand] for place in update.cost.in_place}
        if places.isdisjoint(node.operands):
            return False
        # The very slice that is replaced may be read first.
        return not (
            node.opcode == "stablehlo.dynamic_slice"
            and update.opcode == "stablehlo.dynamic_update_slice"
            and node.operands[1:] == update.operands[2:]
            and self.graph.values[node.results[0]].shape.elements
            == self.graph.values[update.operands[1]].shape.elements
        )
