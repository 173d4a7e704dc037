"""From scheduled groups to a `Program`: ops, their accesses, and copies where needed.

Where a value must change its place, or the old one is still needed, there is an
explicit copy, as a compiler would insert it:

    before a loop       what it carries, if that is needed after it, or a parameter
    end of a body       the new value, if the old was still needed when it was computed
    before an update    the operand, if it is needed later
    end of the program  an output that is a parameter, a constant or an output already
"""

from __future__ import annotations

import dataclasses
import math

from frontends import program_check
from frontends.program import Access, BufferKind, Op, Program, Region
from frontends.stablehlo_costs import Role
from frontends.stablehlo_fusion import Group
from frontends.stablehlo_graph import Graph, Node, Source
from frontends.stablehlo_lifetimes import Lifetimes, Use
from frontends.stablehlo_ops import base_name, op_of
from frontends.stablehlo_places import Names, Place, Places

# `{place: bytes}`.
_Touched = dict[Place, int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Scope:
    """Where ops go: a region of the program, and how often it runs per call."""

    region: int = 0
    count: float = 1.0


class ProgramBuilder:
    """Walks the schedule once, deciding on places as values are computed.

    program: the result. ops_of: names of the ops that compute each node of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        groups: list[Group],
        order: dict[int, list[int]],
        *,
        name: str,
        text: str,
    ) -> None:
        self._graph, self._groups, self._order = graph, groups, order
        self._lifetimes = Lifetimes(graph, groups, order)
        self._names = Names()
        self._places = Places(graph, self._lifetimes, self._names)
        self._ops: list[tuple[Op, _Touched, _Touched]] = []
        self._group_of_op: dict[int, Group] = {}
        self._reuses: dict[int, list[tuple[Place, Place]]] = {}
        self._regions: list[Region] = [Region(name="", start=0, end=0)]
        self._loops: set[int] = set()
        self.ops_of: dict[int, list[str]] = {}
        self._emit_region(0, _Scope())
        outputs = self._emit_outputs()
        self._close(0)
        self.program = self._program(name, text, outputs)

    def _append(
        self, op: Op, reads: _Touched, writes: _Touched, group: Group | None = None
    ) -> None:
        t = len(self._ops)
        for place in (*reads, *writes):
            place.times.append((t, op.region))
        if group is not None:
            self._group_of_op[t] = group
            for n in group.nodes:
                self.ops_of.setdefault(n, []).append(op.name)
        self._ops.append((op, reads, writes))

    def _copy(
        self, source: Place | None, target: Place | None, value: int, scope: _Scope
    ) -> Place:
        """An op that copies a value, or writes a constant anew; returns where to."""
        if self._is_fill(value):
            source = None
        opcode = "broadcast" if source is None else "copy"
        name = self._names.numbered(opcode)
        if target is None:
            target = self._places.add(value, scope.region, name)
        else:
            target.aliases.append((name, ()))
        size = self._graph.values[value].size_bytes
        op = Op(name=name, opcode=opcode, count=scope.count, region=scope.region)
        self._append(op, {} if source is None else {source: size}, {target: size})
        return target

    def _is_fill(self, value: int) -> bool:
        """Whether a value repeats an immediate, so that nobody needs to read it."""
        v = self._graph.values[value]
        if v.source is Source.NODE:
            node = self._graph.nodes[v.node]
            sources = {self._graph.values[o].source for o in node.operands}
            return node.cost.role is Role.MOVEMENT and sources == {Source.IMMEDIATE}
        return v.source is Source.IMMEDIATE

    # Groups -------------------------------------------------------------------------

    def _emit_region(self, region: int, scope: _Scope) -> None:
        """The groups of a region of the graph."""
        for i in self._order[region]:
            node = self._graph.nodes[self._groups[i].nodes[-1]]
            if node.cost.role is Role.VIEW:
                for value, result in zip(node.operands, node.results, strict=True):
                    self._places.call_same(value, result)
            elif node.cost.role is Role.LOOP:
                self._emit_loop(i, node, scope)
            elif node.cost.role is Role.BRANCH:
                self._emit_branch(i, node, scope)
            else:
                self._emit_group(i, node, scope)

    def _emit_group(self, i: int, node: Node, scope: _Scope) -> None:
        group = self._groups[i]
        reads: _Touched = {}
        writes: _Touched = {}
        for value, touched in group.reads.items():
            place = self._places.of(value)
            if place is not None:
                touched += reads.get(place, 0)
                reads[place] = min(place.size_bytes, touched)
        replaced = self._replace_in_place(i, node, scope, reads, writes)
        stored = [v for v in group.written if v in replaced or self._is_stored(v)]
        if not (stored or node.cost.side_effects) and all(
            place.pinned_slow for place in reads
        ):
            return  # arithmetic on scalars
        name = self._names.numbered(base_name(self._graph, group))
        for k, value in enumerate(stored):
            index = (k,) if len(stored) > 1 else ()
            if value in replaced:
                place = self._places.of(value)
            else:
                at = self._lifetimes.at[i]
                place = self._places.target(value, at, (i, group))
            if place is None:
                place = self._places.add(value, scope.region, name, index)
            else:
                place.aliases.append((name, index))
            self._places.put(value, place)
            writes.setdefault(place, place.size_bytes)
        self._reuses[len(self._ops)] = [
            (self._places.of(before), self._places.of(after))
            for before in group.reads
            for after in stored
            if self._places.of(before) is not None
            and self._places.reads_ahead(group, before, after)
        ]
        extra_bytes = sum(self._graph.nodes[n].extra_bytes for n in group.nodes)
        if extra_bytes:
            _spread(extra_bytes, reads, writes)
        op = op_of(self._graph, group, name, region=scope.region, count=scope.count)
        self._append(op, reads, writes, group)

    def _is_stored(self, value: int) -> bool:
        v = self._graph.values[value]
        returned = value in self._graph.outputs and v.shape.dtype != "token"
        return returned or not v.is_register

    def _replace_in_place(
        self, i: int, node: Node, scope: _Scope, reads: _Touched, writes: _Touched
    ) -> set[int]:
        """Places the results that replace an operand, after a copy if need be."""
        at, region, done = self._lifetimes.at[i], node.region, set()
        for part in node.cost.in_place:
            value, result = node.operands[part.operand], node.results[part.result]
            if not self._is_stored(result):
                continue
            place = self._places.of(value)
            # The group may read the slice that it replaces, but by no other name.
            names = [v for v in self._groups[i].reads if self._places.of(v) is place]
            once = node.operands.count(value) == 1 and set(names) <= {value}
            if once and self._places.may_take(value, result, region, at, [("read", i)]):
                place.owned = True
            else:
                target = self._places.target(result, at)
                place = self._copy(place, target, value, scope)
            self._places.put(result, place)
            # The part is padded as the whole is.
            v = self._graph.values[value]
            padding = v.size_bytes / max(1, v.shape.size_bytes)
            read = reads.get(place, 0) + math.ceil(part.read_bytes * padding)
            write = math.ceil(part.write_bytes * padding)
            reads[place] = min(place.size_bytes, read)
            writes[place] = min(place.size_bytes, write)
            done.add(result)
        return done

    # Loops and branches -------------------------------------------------------------

    def _emit_loop(self, i: int, node: Node, scope: _Scope) -> None:
        (region,) = node.regions
        n, begin = self._groups[i].nodes[-1], self._lifetimes.begin[region]
        name = self._names.numbered("while")
        carried: dict[int, Place] = {}
        handed_over: list[Use] = []
        for k, carry in enumerate(node.carries):
            handed_over.append(("init", n, k))
            if self._graph.values[carry.result].is_register:
                continue
            place = self._places.of(carry.init)
            free = place not in carried.values() and self._places.may_take(
                carry.init, carry.result, node.region, begin, handed_over
            )
            if free:
                place.owned = True
            else:
                target = self._places.target(carry.result, begin)
                place = self._copy(place, target, carry.init, scope)
            place.aliases.append((name, (k,)))
            self._places.put(carry.argument, place)
            self._places.targets["next", n, k] = carried[k] = place
        body = self._open(region, name, scope)
        self._loops.add(body.region)
        self._emit_region(region, body)
        self._copy_all([(node.carries[k].next, p) for k, p in carried.items()], body)
        self._close(body.region)
        state = dict.fromkeys(carried.values(), 0)
        self._control(i, node, name, scope, state, state)
        for k, place in carried.items():
            self._places.put(node.carries[k].result, place)

    def _emit_branch(self, i: int, node: Node, scope: _Scope) -> None:
        n, begin = self._groups[i].nodes[-1], self._lifetimes.begin[node.regions[0]]
        name = self._names.numbered(node.opcode.rpartition(".")[2])
        places: dict[int, Place] = {}
        for k, value in enumerate(node.results):
            if self._graph.values[value].is_register:
                continue
            place = self._places.target(value, begin)
            if place is None:
                place = self._places.add(value, scope.region, name, (k,))
            else:
                place.aliases.append((name, (k,)))
            places[k] = self._places.targets["branch", n, k] = place
        for region, results in zip(node.regions, node.branches, strict=True):
            for place in places.values():
                place.content = None
            body = self._open(region, name, scope)
            self._emit_region(region, body)
            self._copy_all([(results[k], p) for k, p in places.items()], body)
            self._close(body.region)
        self._control(i, node, name, scope, dict.fromkeys(places.values(), 0), {})
        for k, place in places.items():
            self._places.put(node.results[k], place)

    def _open(self, region: int, name: str, scope: _Scope) -> _Scope:
        """Begins the body `region` of the graph in the program."""
        trips, start = self._graph.regions[region].trip_count, len(self._ops)
        self._regions.append(
            Region(
                name=name,
                start=start,
                end=start,
                parent=scope.region,
                trip_count=trips,
            )
        )
        return _Scope(len(self._regions) - 1, scope.count * trips)

    def _close(self, region: int) -> None:
        end = len(self._ops)
        self._regions[region] = dataclasses.replace(self._regions[region], end=end)

    def _control(
        self,
        i: int,
        node: Node,
        name: str,
        scope: _Scope,
        reads: _Touched,
        writes: _Touched,
    ) -> None:
        """The while or case itself, which touches nothing of what it hands on."""
        op = Op(
            name=name,
            opcode=node.opcode,
            op_name=node.op_name,
            count=scope.count,
            region=scope.region,
        )
        self._append(op, reads, writes, self._groups[i])

    def _copy_all(self, wanted: list[tuple[int, Place]], scope: _Scope) -> None:
        """Copies values to where they are wanted at the end of a body, all at once.

        A place that is still to be read is filled later; of a cycle (two values that
        change places) one goes through a place of its own.
        """
        pending = [
            (self._places.of(value), target, value)
            for value, target in wanted
            if self._places.of(value) is not target
        ]
        while pending:
            sources = [source for source, _, _ in pending]
            free = next((p for p in pending if p[1] not in sources), None)
            if free is not None:
                self._copy(*free, scope)
                pending.remove(free)
                continue
            blocked = pending[0][1]
            aside = self._copy(blocked, None, blocked.content, scope)
            pending = [
                (aside if source is blocked else source, target, value)
                for source, target, value in pending
            ]

    # The end ------------------------------------------------------------------------

    def _emit_outputs(self) -> dict[int, Place]:
        """Makes every output a place of its own; `{output: place}`."""
        graph, outputs = self._graph, {}
        given_to = {graph.inputs[i]: k for i, k in graph.donated.items()}
        for k, value in enumerate(graph.outputs):
            if graph.values[value].shape.dtype == "token":
                continue
            place = self._places.of(value)
            free = place is not None and not place.is_output
            if free and not place.owned:
                free = given_to.get(value) in (k, -1)
            if not free:
                place = self._copy(place, None, value, _Scope())
            place.is_output = True
            outputs[k] = place
        return outputs

    def _program(self, name: str, text: str, outputs: dict[int, Place]) -> Program:
        self._places.name_parameters()
        every = self._places.all
        live = {
            place: self._places.live_range(
                place, self._regions, self._loops, len(self._ops)
            )
            for place in every
        }
        self._places.share_donated(outputs, live, self._group_of_op)
        rank = {BufferKind.PARAMETER: 0, BufferKind.CONSTANT: 1}
        places = sorted(every, key=lambda place: rank.get(place.kind, 2))
        ids = {place: i for i, place in enumerate(places)}

        buffers = tuple(place.buffer(live[place]) for place in places)

        def accesses(touched: _Touched) -> tuple[Access, ...]:
            return tuple(Access(ids[place], n) for place, n in touched.items())

        def reuses(
            t: int, op: Op, reads: _Touched, writes: _Touched
        ) -> tuple[tuple[int, int], ...]:
            return tuple(
                (ids[before], ids[after])
                for before, after in dict.fromkeys(self._reuses.get(t, ()))
                if before not in writes
                and after not in reads
                and not program_check.reuse_obstacle(
                    self._regions[op.region],
                    t,
                    buffers[ids[before]],
                    buffers[ids[after]],
                )
            )

        return Program(
            name=name,
            ops=tuple(
                dataclasses.replace(
                    op,
                    reads=accesses(reads),
                    writes=accesses(writes),
                    reuses=reuses(t, op, reads, writes),
                )
                for t, (op, reads, writes) in enumerate(self._ops)
            ),
            buffers=buffers,
            regions=tuple(self._regions),
            notes=tuple(self._graph.notes),
            source="stablehlo",
            text=text,
        )


def _spread(extra_bytes: int, reads: _Touched, writes: _Touched) -> None:
    """Adds bytes to accesses, in proportion to those that they have."""
    total = sum(reads.values()) + sum(writes.values())
    for touched in (reads, writes):
        for place, size in touched.items():
            touched[place] = size + round(extra_bytes * size / max(1, total))
