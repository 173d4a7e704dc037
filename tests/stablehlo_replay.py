"""Replays a program that the StableHLO frontend builds, values instead of numbers.

Every place holds one value at a time. Each op must find the values that it reads where
the program says, in every iteration of a loop and in every branch: an update in place
or a copy in the wrong order shows up as a value that is not there.
"""

from __future__ import annotations

import jax

from frontends import stablehlo_sweeps, stablehlo_walk
from frontends.program import BufferKind, Program
from frontends.stablehlo_buffers import ProgramBuilder
from frontends.stablehlo_graph import Node
from frontends.stablehlo_places import Place
from frontends.stablehlo_schedule import schedule

# `[(place, value)]`.
_Contents = list[tuple[Place, int]]


class _Recorder(ProgramBuilder):
    """Notes which values each op reads and writes where."""

    def __init__(self, *args, **kwargs) -> None:
        self.moved: list[tuple[_Contents, _Contents]] = []
        self.loops: dict[int, tuple[int, Node]] = {}
        self.branches: dict[int, tuple[list[tuple[int, int]], Node]] = {}
        super().__init__(*args, **kwargs)
        self.content = self._lifetimes.content
        self.place = self._places.of

    def _now(self, values) -> _Contents:
        found = ((self._places.of(v), self._lifetimes.content(v)) for v in values)
        return [(place, value) for place, value in found if place is not None]

    def _append(self, op, reads, writes, group=None) -> None:
        super()._append(op, reads, writes, group)
        while len(self.moved) < len(self._ops):
            self.moved.append(([], []))

    def _emit_group(self, i, node, scope) -> None:
        read, start = self._now(self._groups[i].reads), len(self._ops)
        super()._emit_group(i, node, scope)
        if len(self._ops) == start:
            return
        for part in node.cost.in_place:
            place = self._places.of(node.results[part.result])
            if place is not None:
                old = node.operands[part.operand]
                read.append((place, self._lifetimes.content(old)))
        self.moved[-1] = read, self._now(self._groups[i].written)

    def _copy(self, source, target, value, scope):
        target = super()._copy(source, target, value, scope)
        content = self._lifetimes.content(value)
        made_anew = source is None or self._is_fill(value)
        self.moved[-1] = [] if made_anew else [(source, content)], [(target, content)]
        return target

    def _emit_loop(self, i, node, scope) -> None:
        first = len(self._regions)
        super()._emit_loop(i, node, scope)
        self.loops[len(self._ops) - 1] = self._regions[first].start, node

    def _emit_branch(self, i, node, scope) -> None:
        first = len(self._regions)
        super()._emit_branch(i, node, scope)
        t = len(self._ops) - 1
        name = self._ops[t][0].name
        bodies = [(r.start, r.end) for r in self._regions[first:] if r.name == name]
        self.branches[t] = bodies, node


def replay(lowered: jax.stages.Lowered) -> tuple[Program, list[str]]:
    """The program of a lowered function, and what its ops look for and do not find."""
    module = lowered.compiler_ir("stablehlo")
    with module.context:
        graph = stablehlo_walk.build_graph(module)
        groups = stablehlo_sweeps.fuse(graph)
        order = schedule(graph, groups)
        built = _Recorder(graph, groups, order, name="replayed", text="")
        return built.program, _Replay(built).missing


class _Replay:
    def __init__(self, built: _Recorder) -> None:
        self.built, self.missing = built, []
        inputs = (BufferKind.PARAMETER, BufferKind.CONSTANT)
        state = {
            place: value
            for value in range(len(built._graph.values))
            if (place := built.place(value)) is not None
            and place.kind in inputs
            and built._graph.values[value].node == -1
        }
        self.run(0, len(built.moved), state)
        for value in built._graph.outputs:
            place = built.place(value)
            if place is not None and place.is_output:
                self.expect(state, place, value, "the caller")

    def expect(self, state, place, value, who) -> None:
        wanted = self.built.content(value)
        if state.get(place) != wanted:
            self.missing.append(
                f"{who} wants value {wanted} in {place.name}: {state.get(place)}"
            )

    def run(self, start: int, end: int, state: dict[Place, int]) -> None:
        """Ops `[start, end)`; a loop or conditional that ends there is not entered."""
        built, t = self.built, start
        while t < end:
            inside = [
                (u, True) for u, (begin, _) in built.loops.items() if begin == t
            ] + [
                (u, False)
                for u, (bodies, _) in built.branches.items()
                if bodies[0][0] == t
            ]
            around = max((x for x in inside if t <= x[0] < end), default=None)
            if around is not None:
                (self.loop if around[1] else self.branch)(around[0], state)
                t = around[0] + 1
                continue
            reads, writes = built.moved[t]
            for place, value in reads:
                self.expect(state, place, value, built._ops[t][0].name)
            state.update(writes)
            t += 1

    def loop(self, t: int, state: dict[Place, int]) -> None:
        begin, node = self.built.loops[t]
        name = self.built._ops[t][0].name
        carries = [c for c in node.carries if self.built.place(c.result) is not None]
        for iteration in range(3):
            for c in carries:
                came = c.init if iteration == 0 else c.next
                place = self.built.place(c.result)
                self.expect(state, place, came, f"iteration {iteration} of {name}")
                state[place] = self.built.content(c.argument)
            self.run(begin, t, state)
        for c in carries:
            self.expect(state, self.built.place(c.result), c.next, f"the end of {name}")
            state[self.built.place(c.result)] = self.built.content(c.result)

    def branch(self, t: int, state: dict[Place, int]) -> None:
        bodies, node = self.built.branches[t]
        ends = []
        for (start, end), results in zip(bodies, node.branches, strict=True):
            after = dict(state)
            self.run(start, end, after)
            for value, result in zip(results, node.results, strict=True):
                place = self.built.place(result)
                if place is not None:
                    self.expect(after, place, value, f"a branch of {node.opcode}")
                    after[place] = self.built.content(result)
            ends.append(after)
        # What the branches leave different can be relied on by nobody.
        for place in {place for end in ends for place in end}:
            left = {end.get(place) for end in ends}
            state[place] = left.pop() if len(left) == 1 else -1
