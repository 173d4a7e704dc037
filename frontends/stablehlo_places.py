"""Where values are: the buffers of a program in the making, and who may share one.

A value gets a place of its own unless it is computed into another's: an update in
place, what a loop carries, the result of a branch. It takes a place only when what is
there is dead, or read just ahead of being overwritten, element by element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from frontends.program import Buffer, BufferKind, LiveRange, Region
from frontends.stablehlo_fusion import Group
from frontends.stablehlo_graph import Graph, Source
from frontends.stablehlo_lifetimes import Lifetimes, Use

_SCALAR = "is a scalar, which compilers keep out of fast memory"
_EMPTY = "holds no bytes"


class Names:
    """Hands out names that are unique in the program."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._taken: set[str] = set()

    def numbered(self, base: str) -> str:
        """`base.1`, `base.2` and so on."""
        while True:
            self._last[base] = self._last.get(base, 0) + 1
            name = f"{base}.{self._last[base]}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def exactly(self, name: str) -> str:
        """`name` itself if it is free."""
        if name in self._taken:
            return self.numbered(name)
        self._taken.add(name)
        return name


@dataclasses.dataclass(slots=True, eq=False)
class Place:
    """A buffer in the making.

    region: of the program, in which it was made. content: the value that it holds.
    owned: whether its contents may be replaced.
    times: `(op, region of the program)` of every access.
    """

    name: str
    index: tuple[int, ...]
    size_bytes: int
    kind: BufferKind
    region: int
    owned: bool = True
    content: int | None = None
    is_output: bool = False
    alias_group: int | None = None
    pinned_slow: str = ""
    aliases: list[tuple[str, tuple[int, ...]]] = dataclasses.field(default_factory=list)
    times: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def buffer(self, live: LiveRange) -> Buffer:
        """The record for the program."""
        kind = self.kind
        if self.is_output and kind is BufferKind.TEMPORARY:
            kind = BufferKind.OUTPUT
        return Buffer(
            name=self.name,
            index=self.index,
            size_bytes=self.size_bytes,
            live=live,
            kind=kind,
            is_output=self.is_output,
            aliases=tuple(self.aliases),
            alias_group=self.alias_group,
            pinned_slow=self.pinned_slow,
        )


class Places:
    """All places, and which value is where.

    all: in order of creation. targets[use]: where what is computed for a use belongs.
    """

    def __init__(self, graph: Graph, lifetimes: Lifetimes, names: Names) -> None:
        self._graph, self._lifetimes, self._names = graph, lifetimes, names
        self._of: dict[int, Place] = {}
        self.all: list[Place] = []
        self.targets: dict[Use, Place] = {}
        for value in graph.inputs:
            if graph.values[value].source is Source.PARAMETER:
                name = graph.values[value].name
                self._add_input(value, name, BufferKind.PARAMETER)

    def name_parameters(self) -> None:
        """Makes the names of parameters unique, once all others are given.

        So the others do not depend on what the parameters are called.
        """
        for place in self.all:
            if place.kind is BufferKind.PARAMETER:
                place.name = self._names.exactly(place.name)

    def _add_input(self, value: int, name: str, kind: BufferKind) -> None:
        place = self.add(value, 0, name, kind=kind)
        place.owned = False
        self.put(value, place)

    def add(
        self,
        value: int,
        region: int,
        name: str,
        index: tuple[int, ...] = (),
        kind: BufferKind = BufferKind.TEMPORARY,
    ) -> Place:
        """A new place as large as a value, which is not there yet."""
        shape = self._graph.values[value].shape
        size_bytes = self._graph.values[value].size_bytes
        place = Place(name, index, size_bytes, kind, region)
        if shape.elements <= 1:
            place.pinned_slow = _SCALAR if shape.elements else _EMPTY
        self.all.append(place)
        return place

    def of(self, value: int) -> Place | None:
        """Where a value is; None for one that is in no memory."""
        is_constant = self._graph.values[value].source is Source.CONSTANT
        if is_constant and value not in self._of:
            name = self._names.numbered("constant")
            self._add_input(value, name, BufferKind.CONSTANT)
        return self._of.get(value)

    def put(self, value: int, place: Place) -> None:
        """Notes that a value is now in a place."""
        self._of[value] = place
        place.content = self._lifetimes.content(value)

    def call_same(self, value: int, result: int) -> None:
        """Notes that `result` is another name of a value."""
        place = self.of(value)
        if place is not None:
            self._of[result] = place

    def may_take(
        self,
        value: int,
        becomes: int,
        region: int,
        position: float,
        but: Collection[Use],
    ) -> bool:
        """Whether `becomes` may be written where `value` is, at `position`.

        Args:
          region: of the graph, in which `becomes` is computed; a value from before a
            loop is needed again in its next execution.
          but: uses of `value` that do not count.
        """
        place = self.of(value)
        if place is None or self._graph.values[value].region != region:
            return False
        if not place.owned and becomes not in self._lifetimes.heirs.get(value, ()):
            return False
        return self._lifetimes.is_dead(value, position, but)

    def target(
        self, value: int, position: float, writer: tuple[int, Group] | None = None
    ) -> Place | None:
        """The place that a value is computed for, if what it holds is dead by then.

        Args:
          writer: index and record of the group that writes the value; it may itself be
            the last to read what is there.
        """
        place = self.targets.get(self._lifetimes.heir_of.get(value, ()))
        if place is None or place.content is None:
            return place
        but: list[Use] = []
        if writer is not None and self.reads_ahead(writer[1], place.content, value):
            but = [("read", writer[0])]
        return place if self._lifetimes.is_dead(place.content, position, but) else None

    def reads_ahead(self, group: Group, read: int, written: int) -> bool:
        """Whether a group reads each element just before it writes it, as in c += x."""
        before, after = (self._graph.values[v].shape for v in (read, written))
        if written not in group.written:
            return False
        if (before.elements, before.bits) != (after.elements, after.bits):
            return False
        swept = after.elements == group.elements
        return read in group.stepwise - group.scattered or (
            swept and read in group.aligned - group.unaligned
        )

    def live_range(
        self, place: Place, regions: list[Region], loops: set[int], num_ops: int
    ) -> LiveRange:
        """From the first access to the last, and to the end of loops around that.

        Args:
          regions: of the program. loops: indices of those that may run repeatedly.
        """
        end = max((t + 1 for t, _ in place.times), default=0)
        for _, region in set(place.times):
            while region not in (place.region, 0):
                if region in loops:
                    end = max(end, regions[region].end)
                region = regions[region].parent
        start = min((t for t, _ in place.times), default=0)
        if place.kind is not BufferKind.TEMPORARY:
            start = 0
        if place.is_output:
            end = num_ops
        return LiveRange(start, max(start, end))

    def share_donated(
        self,
        outputs: dict[int, Place],
        live: dict[Place, LiveRange],
        groups: dict[int, Group],
    ) -> None:
        """Gives donated arguments and the outputs that replace them one alias group.

        Args:
          outputs: place of each output. live: of every place.
          groups: the group that runs as op t, by t.
        """
        graph, kept = self._graph, []
        unclaimed = [k for k in outputs if k not in graph.donated.values()]
        for position, wanted in sorted(graph.donated.items()):
            value = graph.inputs[position]
            place = self._of.get(value)
            if place is None or place.is_output:
                continue
            for k in [wanted] if wanted >= 0 else unclaimed:
                output = outputs.get(k)
                if output is None or output.alias_group is not None:
                    continue
                if output.kind is not BufferKind.TEMPORARY:
                    continue
                if output.size_bytes != place.size_bytes:
                    continue
                begin, end = live[output].start, live[place].end
                last = groups.get(begin) if end == begin + 1 else None
                if end <= begin or (
                    last is not None and self.reads_ahead(last, value, graph.outputs[k])
                ):
                    place.alias_group = output.alias_group = position
                    break
            else:
                kept.append(place.name)
        if kept:
            graph.note(
                f"The memory of {len(kept)} donated arguments is not used again, since "
                "they are still read when a fitting output is written: "
                + ", ".join(kept[:3])
                + (", ..." if len(kept) > 3 else ".")
            )
