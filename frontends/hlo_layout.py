"""Lays a module out as one schedule, and takes the compiler's copies out of it.

Bodies of loops, branches and calls come before the instruction that runs them. Copies
between the slow and the fast memory (copy-start and copy-done; slice-start, slice-done
and the custom call that joins the slices) hand their source on and are kept aside.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from frontends import hlo_control_flow, hlo_opcodes
from frontends.hlo_costs import Costs
from frontends.hlo_module import Computation, Instruction, Module
from frontends.hlo_schedule import Copy, Leaf, Schedule, Touch
from frontends.hlo_types import ArrayType, leaves, map_leaves

_MAX_CALL_DEPTH = 100


def lay_out(module: Module, fast_space: int, split: frozenset[str]) -> Schedule:
    """The module as one schedule.

    Args:
      module: scheduled, with memory space assignment applied or not.
      fast_space: the memory space that takes tensors beside slow memory.
      split: names of the compiler's copies between memories that stay ops all the same,
        since what they copy and the copy become different values.
    Raises:
      ValueError: with a line number, where instructions do not fit together.
    """
    schedule, entry = Schedule(module, fast_space), module.entry
    whole = schedule.open_region("", -1, 1.0)
    arguments = []
    for number, inst in enumerate(entry.parameters):

        def parameter(index, array, inst=inst, number=number):
            leaf = schedule.define(inst, index, array, 0, "parameter")
            schedule.parameters[number, index] = leaf.value
            schedule.happen("writes", [leaf])
            return leaf

        arguments.append(map_leaves(parameter, inst.type))
    walk = Walk(schedule, Costs(module), split, entry, arguments, whole, 0)
    schedule.outputs.update(leaves(walk.result()))
    schedule.close_region(whole)
    return schedule


class Walk:
    """One computation laid out with given arguments.

    trees: the result of every instruction so far, a nested tuple of leaves.
    promised: what the done of each asynchronous start hands on.
    """

    def __init__(
        self,
        schedule: Schedule,
        costs: Costs,
        split: frozenset[str],
        computation: Computation,
        arguments: list[Any],
        region: int,
        depth: int,
    ):
        self.schedule, self.costs, self.split = schedule, costs, split
        self.computation, self.arguments = computation, arguments
        self.region, self.depth = region, depth
        self.trees: dict[str, Any] = {}
        self.promised: dict[str, Any] = {}
        if depth > _MAX_CALL_DEPTH or len(arguments) != len(computation.parameters):
            schedule.module.fail(
                computation.line,
                f"computation {computation.name!r} has {len(computation.parameters)} "
                f"parameters and is called with {len(arguments)} arguments, {depth} "
                f"calls deep (at most {_MAX_CALL_DEPTH}). Dump the module again.",
            )

    def result(self) -> Any:
        """Lays out every instruction; the tree of the computation's result."""
        for inst in self.computation.instructions:
            tree = self.trees[inst.name] = self.lay(inst)
            for index, leaf in leaves(tree):
                self.schedule.names.setdefault((inst.name, index), leaf.value)
        return self.trees[self.computation.root.name]

    def lay(self, inst: Instruction) -> Any:
        """Lays out one instruction; the tree of its result."""
        opcode = inst.opcode
        source = self.trees[inst.operands[0]] if inst.operands else None
        if opcode == "parameter":
            return self.arguments[int(inst.literal)]
        if opcode == "constant" and inst.estimated_cycles is None:
            return map_leaves(lambda i, array: self.constant(inst, i, array), inst.type)
        if opcode in hlo_opcodes.VIEWS:
            return self.operand(inst, 0)
        if opcode == "get-tuple-element":
            return self.element(inst)
        if opcode == "tuple":
            return tuple(self.trees[name] for name in inst.operands)
        if opcode == "while":
            return hlo_control_flow.loop(self, inst)
        if opcode == "conditional":
            return hlo_control_flow.conditional(self, inst)
        if opcode == "call":
            return hlo_control_flow.call(self, inst)
        if opcode in ("copy-start", "slice-start") and self.is_transfer(inst):
            return self.transfer_start(inst)
        if opcode in ("copy-done", "slice-done") and type(source) is Leaf:
            return self.transfer_done(inst, source)
        if inst.attributes.get("custom_call_target") == "ConcatBitcast":
            pieces = [self.trees[name] for name in inst.operands]
            if _is_one_value(pieces):
                return self.joined_slices(inst, pieces)
        if opcode.endswith("-start"):
            return self.start(inst)
        if inst.operands and inst.operands[0] in self.promised:
            if opcode.endswith("-update"):
                self.promised[inst.name] = self.promised[inst.operands[0]]
                return source
            if opcode.endswith("-done"):
                return self.done(inst)
        return self.op(inst)

    # Ops and views.

    def op(
        self, inst: Instruction, handed_on: Mapping[tuple[int, ...], Leaf] | None = None
    ) -> Any:
        """An instruction that runs; `handed_on` are old values in its result."""
        if not hlo_opcodes.is_known(inst.opcode):
            self.schedule.notes.setdefault(
                f"Opcode {inst.opcode!r} is unknown: it is taken to touch all of its "
                "operands and results and to compute nothing."
            )
        values = self.schedule.values
        reads = []
        for number, name in enumerate(inst.operands):
            for _, leaf in leaves(self.trees[name]):
                full = values[leaf.value].type.size_bytes
                touched = self.costs.read_bytes(inst, number, full)
                reads.append(Touch(leaf.value, touched, leaf.space))
        writes: list[Touch] = []
        reuses: list[tuple[int, int]] = []
        shared, numbers = inst.reused_operands, itertools.count()

        def result(index: tuple[int, ...], array: ArrayType) -> Leaf:
            if handed_on and index in handed_on:
                return handed_on[index]
            size, number = array.size_bytes, next(numbers)
            plan = self.costs.result(self.computation, inst, number, size)
            source = self.replaced(inst, plan.in_place_of, size)
            if source is not None and plan.hands_on:
                return source._replace(space=array.space)
            leaf = self.schedule.define(inst, index, array, self.depth)
            if source is not None:
                self.schedule.join(source, leaf, "in place")
                if "output_to_operand_aliasing" in inst.attributes:
                    # Whoever reads the operand later wants what is then in its place.
                    self.schedule.same[leaf.value] = source.value
            written = size if source is None else plan.written_bytes
            if inst.attributes.get("custom_call_target") == "AllocateBuffer":
                written = 0
            writes.append(Touch(leaf.value, written, leaf.space))
            over = self.replaced(inst, shared.get(number), size)
            if source is None and over is not None:
                reuses.append((over.value, leaf.value))
            return leaf

        tree = map_leaves(result, inst.type)
        self.schedule.append(
            inst, self.computation, self.region, reads, writes, reuses=reuses
        )
        return tree

    def replaced(
        self, inst: Instruction, operand: int | None, size_bytes: int
    ) -> Leaf | None:
        """The operand whose place a result of this size takes over, if it fits."""
        source = None if operand is None else self.trees[inst.operands[operand]]
        if type(source) is not Leaf:
            return None
        fits = self.schedule.values[source.value].type.size_bytes == size_bytes
        return source if fits else None

    def append(
        self,
        inst: Instruction,
        reads: list[Touch],
        writes: list[Touch],
        opcode: str = "",
    ) -> None:
        self.schedule.append(inst, self.computation, self.region, reads, writes, opcode)

    def constant(
        self, inst: Instruction, index: tuple[int, ...], array: ArrayType
    ) -> Leaf:
        leaf = self.schedule.define(inst, index, array, self.depth, "constant")
        self.schedule.happen("writes", [leaf])
        return leaf

    def operand(self, inst: Instruction, number: int) -> Any:
        if number >= len(inst.operands):
            self.fail(
                inst,
                f"{inst.opcode} {inst.name!r} has {len(inst.operands)} operands, needs "
                f"{number + 1}",
            )
        return self.trees[inst.operands[number]]

    def element(self, inst: Instruction) -> Any:
        source, index = self.operand(inst, 0), inst.attributes.get("index", "")
        size = len(source) if type(source) is tuple else 0
        if not re.fullmatch(r"\d{1,9}", index) or int(index) >= size:
            self.fail(
                inst,
                f"{inst.name!r} takes element {index!r} of {inst.operands[0]!r}, which "
                f"has {size}",
            )
        return source[int(index)]

    def fail(self, inst: Instruction, message: str) -> NoReturn:
        self.schedule.module.fail(
            inst.line, f"{message}. The text looks damaged: dump it again."
        )

    # The compiler's copies between the slow and the fast memory.

    def is_transfer(self, inst: Instruction) -> bool:
        """Whether it starts to copy an array, or a part, to the other memory."""
        part = int(inst.opcode == "slice-start")
        if len(inst.operands) != 1 or type(inst.type) is not tuple:
            return False
        source = self.trees[inst.operands[0]]
        target = inst.type[part] if part < len(inst.type) else None
        if type(source) is not Leaf or type(target) is not ArrayType:
            return False
        if {source.space, target.space} != {0, self.schedule.fast_space}:
            return False
        # A slice that is not put together with the rest is an op that slices.
        return inst.opcode == "copy-start" or all(
            user.attributes.get("custom_call_target") == "ConcatBitcast"
            for done, _ in self.computation.users.get(inst.name, ())
            for user, _ in self.computation.users.get(done.name, ())
        )

    def transfer_start(self, inst: Instruction) -> Leaf:
        source = self.operand(inst, 0)
        target = inst.type[inst.opcode == "slice-start"]
        cross_program = "cross_program_prefetch_index" in inst.attributes
        if inst.name not in self.split:
            now = self.schedule.now
            self.schedule.copies[inst.name] = Copy(
                value=source.value,
                is_eviction=source.space != 0,
                size_bytes=target.size_bytes,
                start=0 if cross_program else now,
                done=now,
                cross_program=cross_program,
                region=self.region,
            )
        return Leaf(source.value, target.space, inst.name)

    def transfer_done(self, inst: Instruction, source: Leaf) -> Leaf:
        if source.via in self.split:
            return self.copy_op(inst, source)
        copy = self.schedule.copies.get(source.via)
        if copy is not None:
            done = copy._replace(done=self.schedule.now)
            self.schedule.copies[source.via] = done
        return source

    def joined_slices(self, inst: Instruction, pieces: list[Leaf]) -> Leaf:
        if inst.name in self.split:
            for piece in pieces:
                self.schedule.copies.pop(piece.via, None)
            return self.copy_op(inst, pieces[0])
        return pieces[0]._replace(via=inst.name)

    def copy_op(self, inst: Instruction, source: Leaf) -> Leaf:
        """A copy between memories that makes a value of its own."""
        if type(inst.type) is not ArrayType:
            self.fail(inst, f"{inst.opcode} {inst.name!r} copies a tuple")
        size = inst.type.size_bytes
        leaf = self.schedule.define(inst, (), inst.type, self.depth)
        origin = self.schedule.fast_space if source.space == 0 else 0
        reads = [Touch(source.value, size, origin)]
        self.append(inst, reads, [Touch(leaf.value, size, leaf.space)], "copy")
        return leaf

    # Asynchronous ops: the start stands for all of it, the done hands on the result.

    def start(self, inst: Instruction) -> Any:
        type_ = inst.type
        if type(type_) is not tuple or inst.opcode == "all-reduce-start":
            tree = self.promised[inst.name] = self.op(inst)
            return tree
        # (operands, results, contexts ...), but (result, operand, context) for a copy.
        old, new = (1, 0) if inst.opcode == "copy-start" else (0, 1)
        if len(type_) < 2:
            self.fail(inst, f"{inst.name!r} has no result beside its operands")
        operands = [
            leaf for name in inst.operands for _, leaf in leaves(self.trees[name])
        ]
        slots = [(old, *index) for index, _ in leaves(type_[old])]
        same = len(slots) == len(operands)
        tree = self.op(inst, dict(zip(slots, operands, strict=True)) if same else None)
        self.promised[inst.name] = tree[new]
        return tree

    def done(self, inst: Instruction) -> Any:
        start = self.computation.by_name[inst.operands[0]]
        for name in (start.name, *start.operands):
            for _, leaf in leaves(self.trees[name]):
                self.schedule.kept.append((leaf.value, self.schedule.now))
        return self.promised[start.name]

    # Computations that are part of the schedule.

    def body(self, name: str, arguments: list[Any], region: int) -> Any:
        """Lays out a called computation; the tree of its result."""
        computation = self.schedule.module.computations[name]
        walk = Walk(
            self.schedule,
            self.costs,
            self.split,
            computation,
            arguments,
            region,
            self.depth + 1,
        )
        return walk.result()

    def called(self, inst: Instruction, key: str) -> Computation:
        name = inst.attributes.get(key, "").lstrip("%")
        if name not in self.schedule.module.computations:
            self.fail(inst, f"{inst.opcode} {inst.name!r} has no {key}=")
        return self.schedule.module.computations[name]

    def same_shape(self, inst: Instruction, *trees: Any) -> None:
        """Raises ValueError unless the trees have the same indices."""
        shapes = {tuple(index for index, _ in leaves(tree)) for tree in trees}
        if len(shapes) != 1:
            self.fail(
                inst,
                f"what goes into {inst.opcode} {inst.name!r}, and what comes out of "
                "its computations, are tuples of different lengths",
            )


def _is_one_value(pieces: list[Any]) -> bool:
    """Whether all pieces are slices of one value on their way to one memory."""
    return (
        bool(pieces)
        and all(type(piece) is Leaf and piece.via for piece in pieces)
        and len({(piece.value, piece.space) for piece in pieces}) == 1
    )
