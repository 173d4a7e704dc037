"""A `Program` from a schedule of HLO instructions and the places of its values."""

from __future__ import annotations

import dataclasses
from typing import Any

from frontends import hlo_places, program_check
from frontends.hlo_costs import Costs
from frontends.hlo_places import Places
from frontends.hlo_schedule import Step, Touch, Value
from frontends.program import (
    Access,
    Buffer,
    BufferKind,
    CompilerCopy,
    CompilerMapping,
    CycleEstimate,
    LiveRange,
    Op,
    Program,
)


def build(places: Places, *, name: str, text: str) -> Program:
    """The program of a module laid out.

    Where the text has memory space assignment applied, the program is the one before
    it, and the compiler's mapping stands beside it.

    Raises:
      ValueError: with the line of ENTRY, if what the text describes cannot run.
    """
    module = places.schedule.module
    try:
        return _Builder(places).program(name or module.name, text)
    except ValueError as error:
        module.fail(
            module.entry.line, f"{error} The text looks damaged: dump it again."
        )


class _Builder:
    """Buffers numbered by the first value in each place."""

    def __init__(self, places: Places):
        self.schedule, self.place_of = places.schedule, places.place_of
        self.conflicts = places.conflicts
        self.costs = Costs(self.schedule.module)
        self.live = self.live_ranges()
        self.values: dict[int, list[Value]] = {}
        for value, place in zip(self.schedule.values, self.place_of, strict=True):
            if place in self.live:
                self.values.setdefault(place, []).append(value)
        self.ids = {place: i for i, place in enumerate(self.values)}

    def program(self, name: str, text: str) -> Program:
        schedule = self.schedule
        buffers = self.buffers()
        ops = tuple(
            dataclasses.replace(op, reuses=self.reuses(t, op, step, buffers))
            for t, (op, step) in enumerate(
                zip(map(self.op, schedule.steps), schedule.steps, strict=True)
            )
        )
        notes = [
            f"Buffer {buffers[self.ids[place]].label!r} {hlo_places.CONFLICT}: it "
            "stays in slow memory."
            for place in sorted(self.conflicts & self.ids.keys())
        ]
        return Program(
            name=name,
            ops=ops,
            buffers=buffers,
            regions=tuple(schedule.regions),
            notes=(*schedule.notes, *notes),
            source="hlo",
            compiler_mapping=self.mapping(),
            text=text,
        )

    def live_ranges(self) -> dict[int, list[int]]:
        """`[start, end]` of every place that is touched or holds an input."""
        schedule, place_of = self.schedule, self.place_of
        inputs = {
            place
            for value, place in zip(schedule.values, place_of, strict=True)
            if value.origin
        }
        live = {place: [0, 0] for place in inputs}
        for t, step in enumerate(schedule.steps):
            for touch in (*step.reads, *step.writes):
                live.setdefault(place_of[touch.value], [t, t])[1] = t + 1
        for value, boundary in schedule.kept:
            if place_of[value] in live:
                range_ = live[place_of[value]]
                range_[1] = max(range_[1], boundary)
        for region in (schedule.regions[i] for i in schedule.loops):
            # What comes from before a loop must be there in its last iteration.
            for step in schedule.steps[region.start : region.end]:
                for touch in (*step.reads, *step.writes):
                    place = place_of[touch.value]
                    if place in inputs or live[place][0] < region.start:
                        live[place][1] = max(live[place][1], region.end)
        for leaf in schedule.outputs.values():
            live.setdefault(place_of[leaf.value], [len(schedule.steps)] * 2)
            live[place_of[leaf.value]][1] = len(schedule.steps)
        return live

    def op(self, step: Step) -> Op:
        schedule = self.schedule
        work = self.costs.work(step.computation, step.inst)
        reads: dict[int, int] = {}
        for touch in step.reads:
            i = self.buffer_id(touch)
            reads[i] = max(reads.get(i, 0), touch.touched_bytes)
        writes: dict[int, int] = {}
        for touch in step.writes:
            i = self.buffer_id(touch)
            writes[i] = writes.get(i, 0) + touch.touched_bytes
        count, region = 1.0, step.region
        while region >= 0:
            count *= schedule.regions[region].trip_count
            region = schedule.regions[region].parent
        cycles = step.inst.estimated_cycles
        estimate = CycleEstimate(cycles or 0, self.slow_bytes(step))
        return Op(
            name=step.name,
            opcode=step.opcode,
            op_name=step.inst.op_name,
            reads=tuple(Access(*item) for item in reads.items()),
            writes=tuple(Access(*item) for item in writes.items()),
            matmul_flops=work.matmul_flops,
            matmul_dtype=work.matmul_dtype,
            vector_flops=work.vector_flops,
            transcendentals=work.transcendentals,
            scoped_bytes=_scoped_bytes(
                step.inst.backend_config(), self.schedule.fast_space
            ),
            count=count,
            region=step.region,
            estimates=() if cycles is None else (estimate,),
        )

    def reuses(
        self, t: int, op: Op, step: Step, buffers: tuple[Buffer, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Buffers for the values that may share a place and are not needed then."""
        read = {a.buffer_id for a in op.reads}
        written = {a.buffer_id for a in op.writes}
        region = self.schedule.regions[step.region]
        pairs = (tuple(self.ids[self.place_of[v]] for v in p) for p in step.reuses)
        return tuple(
            (operand, result)
            for operand, result in pairs
            if operand in read - written
            and result in written - read
            and not program_check.reuse_obstacle(
                region, t, buffers[operand], buffers[result]
            )
        )

    def buffer_id(self, touch: Touch) -> int:
        return self.ids[self.place_of[touch.value]]

    def slow_bytes(self, step: Step) -> int:
        """Bytes that a step touches in slow memory, each buffer's reads once."""
        reads: dict[int, int] = {}
        for touch in step.reads:
            if touch.space == 0:
                i = self.buffer_id(touch)
                reads[i] = max(reads.get(i, 0), touch.touched_bytes)
        written = sum(t.touched_bytes for t in step.writes if t.space == 0)
        return sum(reads.values()) + written

    def buffers(self) -> tuple[Buffer, ...]:
        schedule = self.schedule
        outputs = {
            index: self.place_of[leaf.value] for index, leaf in schedule.outputs.items()
        }
        groups = self.alias_groups(outputs)
        names: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
        for key, value in schedule.names.items():
            names.setdefault(self.place_of[value], []).append(key)
        buffers = []
        for place, values in self.values.items():
            # Outer names win: those are what a reader of the entry sees.
            first = min(values, key=lambda value: value.depth)
            own = first.name, first.index
            is_output = place in outputs.values()
            origins = {value.origin for value in values}
            kind = BufferKind.OUTPUT if is_output else BufferKind.TEMPORARY
            if origins & {"parameter", "constant"}:
                is_parameter = "parameter" in origins
                kind = BufferKind.PARAMETER if is_parameter else BufferKind.CONSTANT
            start, end = self.live[place]
            buffers.append(
                Buffer(
                    name=first.name,
                    index=first.index,
                    size_bytes=max(value.type.size_bytes for value in values),
                    live=LiveRange(start, end),
                    kind=kind,
                    is_output=is_output,
                    aliases=tuple(key for key in names.get(place, ()) if key != own),
                    alias_group=groups.get(place),
                    pinned_slow=self.pinned(place),
                )
            )
        return tuple(buffers)

    def alias_groups(self, outputs: dict[tuple[int, ...], int]) -> dict[int, int]:
        """Group of every place that shares slow memory with a donated parameter's."""
        groups: dict[int, int] = {}
        given = hlo_places.donated(self.schedule.module)
        for key, index in given.items():
            parameter = self.schedule.parameters.get(key)
            if parameter is None or index not in outputs:
                continue
            pair = self.place_of[parameter], outputs[index]
            if pair[0] != pair[1]:
                fresh = len(set(groups.values()))
                group = groups.get(pair[0], groups.get(pair[1], fresh))
                groups.update(dict.fromkeys(pair, group))
        return groups

    def pinned(self, place: int) -> str:
        """Why a place may never be in fast memory, or ""."""
        values = self.values[place]
        spaces = {value.type.space for value in values}
        others = spaces - {0, self.schedule.fast_space}
        if others:
            return f"lives in memory space S({min(others)}), not ours to place"
        if any(value.type.size_bytes == 0 for value in values):
            return "holds no bytes"
        if all(value.type.num_elements == 1 for value in values):
            return "is a scalar, which compilers keep out of fast memory"
        if place in self.conflicts:
            return hlo_places.CONFLICT
        return ""

    def mapping(self) -> CompilerMapping | None:
        """The compiler's own mapping; None if the text has nothing in fast memory."""
        fast_space = self.schedule.fast_space
        accesses = set()
        for t, step in enumerate(self.schedule.steps):
            # One op may read a buffer in both memories: the larger part counts.
            fast_bytes: dict[int, int] = {}
            for touch in (*step.reads, *step.writes):
                sign = 1 if touch.space == fast_space else -1
                i = self.buffer_id(touch)
                change = sign * (touch.touched_bytes + 1)
                fast_bytes[i] = fast_bytes.get(i, 0) + change
            accesses |= {(t, i) for i, total in fast_bytes.items() if total > 0}
        copies = [
            CompilerCopy(
                buffer_id=self.ids[self.place_of[copy.value]],
                direction="evict" if copy.is_eviction else "prefetch",
                size_bytes=copy.size_bytes,
                start=copy.start,
                done=copy.done,
                cross_program=copy.cross_program,
                region=copy.region,
            )
            for copy in self.schedule.copies.values()
            if self.place_of[copy.value] in self.ids
        ]
        if not accesses and not copies:
            return None
        return CompilerMapping(
            fast_accesses=frozenset(accesses),
            copies=tuple(sorted(copies, key=lambda copy: (copy.start, copy.done))),
            source=self.schedule.module.where,
        )


def _scoped_bytes(config: dict[str, Any], space: int) -> int:
    """Bytes of a memory space that an op reserves for itself while it runs."""
    scoped = config.get("used_scoped_memory_configs")
    total = 0
    for entry in scoped if isinstance(scoped, list) else ():
        if isinstance(entry, dict) and str(entry.get("memory_space")) == str(space):
            size = str(entry.get("size", ""))
            total = max(total, int(size) if size.isdecimal() else 0)
    return total
