"""A StableHLO module as one flat data-flow graph: functions inlined, loops as regions.

Operations become `Node`s, SSA values become `Value`s, both numbered in program order.
What moves no data disappears on the way (`stablehlo_walk`): calls are inlined, reshapes
and their like give their operand a second name, equal operations become one, dead ones
go.

    module                              graph
    %0 = call @relu(%x)                 node 3: stablehlo.maximum
    %1 = stablehlo.reshape %0           (the same value as %0)
    %2 = stablehlo.while ... {body}     nodes 4-9: body, in a region of their own
                                        node 10: the while itself
"""

from __future__ import annotations

import dataclasses
import enum

from jax.extend.mlir import ir

from frontends.stablehlo_costs import OpCost
from frontends.stablehlo_types import Shape


class Source(enum.Enum):
    """Where a value comes from. IMMEDIATE: a constant that is part of the code."""

    PARAMETER = enum.auto()
    CONSTANT = enum.auto()
    IMMEDIATE = enum.auto()
    NODE = enum.auto()
    CARRIED = enum.auto()


@dataclasses.dataclass(slots=True)
class Value:
    """One tensor value.

    size_bytes: in memory, tiles padded where their size is known.
    node: the node that produces it (NODE, and CARRIED: the loop), or -1.
    region: where it is defined. name: of a parameter.
    number: the value of a scalar integer constant.
    minor: the two dimensions that are minor in its layout, where an operation wants so.
    """

    shape: Shape
    source: Source
    size_bytes: int
    node: int = -1
    region: int = 0
    name: str = ""
    number: int | None = None
    minor: tuple[int, int] | None = None

    @property
    def is_register(self) -> bool:
        """Whether it needs no memory: immediates, computed scalars, empty arrays."""
        if self.source in (Source.PARAMETER, Source.CONSTANT):
            return False
        return self.source is Source.IMMEDIATE or self.shape.elements <= 1


@dataclasses.dataclass(slots=True)
class Carry:
    """One value that a loop carries: before, inside, at the body's end, after."""

    init: int
    argument: int
    next: int
    result: int


@dataclasses.dataclass(slots=True)
class Node:
    """One operation of the flat graph.

    operands, results: indices into `Graph.values`.
    mlir: the operations of the module that it stands for (equal ones are merged).
    path: `op_name` of the call sites through which it was inlined.
    extra_bytes: that it moves beyond reading its operands and writing its results once.
    carries: of a LOOP. branches: of a BRANCH, the results of each branch.
    regions: the bodies of a LOOP or BRANCH.
    """

    opcode: str
    cost: OpCost
    operands: list[int]
    results: list[int]
    region: int
    mlir: list[ir.Operation]
    path: str = ""
    extra_bytes: int = 0
    carries: list[Carry] = dataclasses.field(default_factory=list)
    branches: list[list[int]] = dataclasses.field(default_factory=list)
    regions: list[int] = dataclasses.field(default_factory=list)

    @property
    def op_name(self) -> str:
        """The user's own name for it, from JAX's name stack, without `jit(f)/`."""
        name = joined_path(self.path, location_name(self.mlir[0].location))
        head, _, rest = name.partition("/")
        return rest if rest and head.startswith("jit(") else name


@dataclasses.dataclass(slots=True)
class GraphRegion:
    """The entry, or the body of a loop or branch, executed `trip_count` times."""

    parent: int
    is_loop: bool = False
    trip_count: float = 1.0


@dataclasses.dataclass(slots=True)
class Graph:
    """The flat graph; `order` lists the nodes that are left, in program order.

    donated: for each input whose memory the caller gives away, the output that takes
      it, or -1 where any output may.
    """

    values: list[Value] = dataclasses.field(default_factory=list)
    nodes: list[Node] = dataclasses.field(default_factory=list)
    regions: list[GraphRegion] = dataclasses.field(
        default_factory=lambda: [GraphRegion(parent=-1)]
    )
    order: list[int] = dataclasses.field(default_factory=list)
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    donated: dict[int, int] = dataclasses.field(default_factory=dict)
    notes: dict[str, None] = dataclasses.field(default_factory=dict)

    def note(self, text: str) -> None:
        """Adds a note once."""
        self.notes.setdefault(text)


def location_name(location: ir.Location) -> str:
    """JAX's name in a location (`jit(f)/mlp/dot_general`, `params['w']`), or ""."""
    if isinstance(location, ir.NameLoc):
        return location.name_str
    if isinstance(location, ir.CallSiteLoc):
        return location_name(location.callee)
    if isinstance(location, ir.FusedLoc):
        names = (location_name(inner) for inner in location.locations)
        return next((name for name in names if name), "")
    return ""


def joined_path(path: str, name: str) -> str:
    """`name` below the call site `path`, unless it is a path from the top itself."""
    if path and name and name.split("/")[0] != path.split("/")[0]:
        return f"{path}/{name}"
    return name or path


def needed(graph: Graph) -> tuple[set[int], set[int]]:
    """Values that the outputs need, and nodes that stay for their side effects."""
    live: set[int] = set()
    kept: set[int] = set()
    work = list(graph.outputs)
    around = {r: i for i, node in enumerate(graph.nodes) for r in node.regions}
    for index, node in enumerate(graph.nodes):
        # With an operation stay the loops and branches that it stands in.
        while node.cost.side_effects and index not in kept:
            kept.add(index)
            work.extend(graph.nodes[index].operands)
            index = around.get(graph.nodes[index].region, index)
    while work:
        index = work.pop()
        if index in live:
            continue
        live.add(index)
        value = graph.values[index]
        if value.source not in (Source.NODE, Source.CARRIED):
            continue
        node = graph.nodes[value.node]
        work.extend(node.operands)
        for carry in node.carries:
            if index in (carry.argument, carry.result):
                work += [carry.init, carry.argument, carry.next, carry.result]
        if node.branches:
            k = node.results.index(index)
            work.extend(branch[k] for branch in node.branches)
    return live, kept
