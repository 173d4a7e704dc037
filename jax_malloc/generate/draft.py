"""A program in the making: add buffers and ops one by one, close loops, build.

    draft = Draft("two layers")
    x, w = draft.parameter(4096), draft.parameter(8192)
    (h,) = draft.op("dot", [x, w], [4096], matmul_flops=1e6)
    (y,) = draft.op("fusion", [h, x], [4096])
    program = draft.build(outputs=[y])

Live ranges, regions and execution counts follow from the order of the calls.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

from frontends import program_check
from frontends.program import (
    Access,
    Buffer,
    BufferKind,
    LiveRange,
    Op,
    Program,
    Region,
)


@dataclasses.dataclass(slots=True)
class _Loop:
    """A region that may still be open; ops [start, end)."""

    name: str
    start: int
    parent: int
    trip_count: float
    end: int = -1


class Draft:
    """Collects the ops and buffers of one program, in schedule order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ops: list[Op] = []
        self.buffers: list[Buffer] = []  # live ranges are set by `build`
        self._elementwise: dict[int, list[int]] = {}  # outputs, by op
        self._loops: list[_Loop] = []
        self._open = 0  # region of the next op; 0 is the entry
        self._counts = [1.0]  # executions of each region per program call
        self._used: collections.Counter[str] = collections.Counter()

    def parameter(
        self,
        size_bytes: int,
        name: str = "",
        *,
        constant: bool = False,
        pinned_slow: str = "",
    ) -> int:
        """A new input; its id."""
        kind = BufferKind.CONSTANT if constant else BufferKind.PARAMETER
        self.buffers.append(
            Buffer(
                name=name or self._fresh("constant" if constant else "param"),
                size_bytes=size_bytes,
                live=LiveRange(0, 0),
                kind=kind,
                pinned_slow=pinned_slow,
            )
        )
        return len(self.buffers) - 1

    def op(
        self,
        opcode: str,
        reads: Iterable[int | tuple[int, int]] = (),
        outputs: Iterable[int] = (),
        *,
        updates: Iterable[int | tuple[int, int]] = (),
        overwrites: Iterable[int] = (),
        elementwise: bool = False,
        name: str = "",
        **cost,
    ) -> list[int]:
        """Appends an op.

        Args:
          opcode: also the stem of its name, if `name` is "".
          reads: buffer ids, or `(id, bytes)` where it touches a part.
          outputs: sizes in bytes of the buffers that it defines.
          updates: buffers, or `(id, bytes)` of them, that it changes in place; the rest
            of their contents stays.
          overwrites: buffers of earlier ops whose contents it replaces.
          elementwise: whether an output may be written over an operand of its size that
            dies here.
          **cost: the other fields of `Op` (op_name, matmul_flops, estimates, ...).
        Returns:
          The ids of its outputs.
        """
        name = name or self._fresh(opcode)
        sizes = list(outputs)
        ids = range(len(self.buffers), len(self.buffers) + len(sizes))
        for k, size_bytes in enumerate(sizes):
            self.buffers.append(
                Buffer(
                    name=name,
                    index=(k,) if len(sizes) > 1 else (),
                    size_bytes=size_bytes,
                    live=LiveRange(0, 0),
                    kind=BufferKind.TEMPORARY,
                )
            )
        read = dict(self._touched(a) for a in reads)
        updated = dict(self._touched(a) for a in updates)
        # An update depends on the old contents even where it moves none of them.
        read = {**dict.fromkeys(updated, 0), **read}
        written = {**updated, **dict(self._touched(b) for b in (*overwrites, *ids))}
        if elementwise:
            self._elementwise[len(self.ops)] = list(ids)
        self.ops.append(
            Op(
                name=name,
                opcode=opcode,
                reads=tuple(Access(b, n) for b, n in read.items()),
                writes=tuple(Access(b, n) for b, n in written.items()),
                count=self._counts[self._open],
                region=self._open,
                **cost,
            )
        )
        return list(ids)

    @contextlib.contextmanager
    def loop(self, trip_count: float, name: str = "") -> Iterator[str]:
        """Ops added inside form a loop body; its own op, named `name`, follows it."""
        name = name or self._fresh("while")
        outer = self._open
        loop = _Loop(name, len(self.ops), outer, trip_count)
        self._loops.append(loop)
        self._counts.append(self._counts[outer] * trip_count)
        self._open = len(self._loops)
        yield name
        loop.end, self._open = len(self.ops), outer
        self.op("while", name=name)

    def share(self, buffer_ids: Iterable[int]) -> None:
        """Gives buffers one place in slow memory, as donation does."""
        ids = list(buffer_ids)
        for b in ids:
            self.buffers[b] = dataclasses.replace(self.buffers[b], alias_group=ids[0])

    def build(self, outputs: Iterable[int] = (), **fields) -> Program:
        """The finished program.

        Args:
          outputs: ids of the buffers that the caller sees.
          **fields: further fields of `Program` (source, notes, text).
        Raises:
          ValueError: the parts contradict each other, see `Program`.
        """
        n, outputs = len(self.ops), set(outputs)
        regions = [Region(name="", start=0, end=n)]
        regions += [Region(**dataclasses.asdict(loop)) for loop in self._loops]
        buffers = []
        for i, (buffer, live) in enumerate(
            zip(self.buffers, self._live(regions), strict=True)
        ):
            if i in outputs:
                live = LiveRange(live.start, n)
                if buffer.kind is BufferKind.TEMPORARY:
                    buffer = dataclasses.replace(buffer, kind=BufferKind.OUTPUT)
            buffers.append(
                dataclasses.replace(buffer, live=live, is_output=i in outputs)
            )
        ops = tuple(
            dataclasses.replace(op, reuses=self._reuses(t, regions[op.region], buffers))
            for t, op in enumerate(self.ops)
        )
        return Program(
            name=self.name,
            ops=ops,
            buffers=tuple(buffers),
            regions=tuple(regions),
            **{"source": "generated", **fields},
        )

    def _reuses(
        self, t: int, region: Region, buffers: list[Buffer]
    ) -> tuple[tuple[int, int], ...]:
        """Operands of an element-wise op that an output may be written over."""
        written = {a.buffer_id for a in self.ops[t].writes}
        return tuple(
            (a.buffer_id, result)
            for a in self.ops[t].reads
            for result in self._elementwise.get(t, ())
            if a.buffer_id not in written
            and not program_check.reuse_obstacle(
                region, t, buffers[a.buffer_id], buffers[result]
            )
        )

    def _live(self, regions: list[Region]) -> list[LiveRange]:
        """First to last access, and all of a loop that the buffer enters or leaves."""
        spans: list[list[int]] = [[] for _ in self.buffers]
        inside: list[set[int]] = [set() for _ in self.buffers]
        for t, op in enumerate(self.ops):
            for b in op.touched_bytes():
                spans[b] += [t, t + 1]
                inside[b].add(op.region)
        lives = []
        for buffer, span, touched in zip(self.buffers, spans, inside, strict=True):
            if buffer.is_input:
                span.append(0)
            # From the innermost loops outwards.
            for r in sorted(touched, reverse=True):
                while r > 0:
                    region = regions[r]
                    if min(span) < region.start or max(span) > region.end:
                        span += [region.start, region.end + 1]
                    elif touched == {r}:
                        break
                    r = region.parent
            lives.append(LiveRange(min(span, default=0), max(span, default=0)))
        return lives

    def _touched(self, access: int | tuple[int, int]) -> tuple[int, int]:
        if isinstance(access, tuple):
            return access
        return access, self.buffers[access].size_bytes

    def _fresh(self, stem: str) -> str:
        self._used[stem] += 1
        return f"{stem}.{self._used[stem]}"
