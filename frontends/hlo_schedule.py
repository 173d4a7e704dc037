"""The records of a module laid out as one schedule: steps on values.

A *value* is one definition of an array; views, and the compiler's copies between the
slow and the fast memory, hand values on. Which values share a place is left to
`hlo_places`: here it is only noted where they should (`Join`), and in which order they
come and go (`Event`). `hlo_layout` makes a schedule, `hlo_program` a `Program` of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from frontends.hlo_module import Computation, Instruction, Module
from frontends.hlo_types import ArrayType, leaves
from frontends.program import Region

# Behind the names of what a computation holds when it is called once more.
AGAIN = ".again"


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """One definition of an array: result of an instruction, parameter, loop state.

    origin: "parameter" or "constant" if its contents are there from the start, or "".
    depth: how many loops, branches and calls its computation is inside of.
    """

    name: str
    index: tuple[int, ...]
    type: ArrayType
    depth: int
    origin: str = ""


class Leaf(NamedTuple):
    """An array as an instruction hands it on.

    value: index into `Schedule.values`.
    space: the memory space in which it is at that point.
    via: the asynchronous copy that brought it there, or "".
    """

    value: int
    space: int
    via: str = ""


class Touch(NamedTuple):
    """An access to a value: bytes really touched, and the memory space of the value."""

    value: int
    touched_bytes: int
    space: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One op of the schedule; `computation` holds `inst`, `name` is unique.

    reuses: `(operand, result)` values that the compiler lets share a place.
    """

    name: str
    opcode: str
    inst: Instruction
    computation: Computation
    region: int
    reads: tuple[Touch, ...]
    writes: tuple[Touch, ...]
    reuses: tuple[tuple[int, int], ...] = ()


class Copy(NamedTuple):
    """A copy between the slow and the fast memory, between two boundaries of steps.

    region: the one in which it runs; boundaries alone do not tell the end of what comes
      before a loop from the begin of its body.
    """

    value: int
    is_eviction: bool
    size_bytes: int
    start: int
    done: int
    cross_program: bool
    region: int


class Join(NamedTuple):
    """Two values that share one place.

    reason: "in place", or "init", "next" and "exit" for what goes into a loop, on to
      its next iteration, and out of a loop, branch or call.
    via: the compiler's copy that brought the first value, or "".
    key: names the join, the same each time that the module is laid out.
    """

    first: int
    second: int
    reason: str
    via: str
    key: str


class Event(NamedTuple):
    """What happens to places in schedule order.

    kind: "reads" and "writes" say that values must be, and become, what their places
      hold; "fork", "branch" and "merge" stand before, between and after alternatives.
    """

    kind: str
    values: tuple[int, ...] = ()


def fast_space(module: Module) -> int:
    """The memory space beside the slow one that a compiler has put tensors into.

    On a TPU v4 that is CMEM, S(3), while ops reserve VMEM, S(1), for themselves; on
    others both is VMEM. Text without memory space assignment does not say.
    """
    spaces = {
        leaf.space
        for computation in module.computations.values()
        for inst in computation.instructions
        for _, leaf in leaves(inst.type)
    }
    return 3 if 3 in spaces else 1


class Schedule:
    """A module laid out, or being laid out.

    fast_space: the memory space that takes tensors beside slow memory, 0; see
      `fast_space`.
    same: values that are another one under a second name.
    kept: `(value, boundary)`: an asynchronous op needs the value until then.
    loops: indices of the regions that repeat.
    copies: the compiler's own, by instruction.
    names: the value of every instruction and tuple index.
    parameters: values of the entry's parameters, by parameter number and tuple index.
    outputs: leaves of the entry's result, by tuple index.
    notes: sentences for `Program.notes`, each once.
    """

    def __init__(self, module: Module, fast_space: int):
        self.module = module
        self.fast_space = fast_space
        self.values: list[Value] = []
        self.same: dict[int, int] = {}
        self.kept: list[tuple[int, int]] = []
        self.steps: list[Step] = []
        self.regions: list[Region] = []
        self.loops: list[int] = []
        self.copies: dict[str, Copy] = {}
        self.joins: list[Join] = []
        self.events: list[Event] = []
        self.names: dict[tuple[str, tuple[int, ...]], int] = {}
        self.parameters: dict[tuple[int, tuple[int, ...]], int] = {}
        self.outputs: dict[tuple[int, ...], Leaf] = {}
        self.notes: dict[str, None] = {}
        self._step_names: set[str] = set()
        self._value_names: set[tuple[str, tuple[int, ...]]] = set()

    @property
    def now(self) -> int:
        """The boundary before the next step."""
        return len(self.steps)

    def define(
        self,
        inst: Instruction,
        index: tuple[int, ...],
        array: ArrayType,
        depth: int,
        origin: str = "",
    ) -> Leaf:
        """A new value, named after an instruction."""
        name = inst.name
        while (name, index) in self._value_names:
            name += AGAIN
        self._value_names.add((name, index))
        self.values.append(Value(name, index, array, depth, origin))
        return Leaf(len(self.values) - 1, array.space)

    def join(self, first: Leaf, second: Leaf, reason: str) -> None:
        """Notes that two values should share a place."""
        a, b = self.values[first.value], self.values[second.value]
        key = f"{reason} {a.name}{a.index} {b.name}{b.index}"
        self.joins.append(Join(first.value, second.value, reason, first.via, key))

    def happen(self, kind: str, leaves_: Iterable[Leaf] = ()) -> None:
        """Appends an event."""
        self.events.append(Event(kind, tuple(leaf.value for leaf in leaves_)))

    def append(
        self,
        inst: Instruction,
        computation: Computation,
        region: int,
        reads: Iterable[Touch],
        writes: Iterable[Touch],
        opcode: str = "",
        reuses: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Appends a step that runs an instruction."""
        name = inst.name
        while name in self._step_names:
            name += AGAIN
        self._step_names.add(name)
        step = Step(
            name=name,
            opcode=opcode or inst.opcode,
            inst=inst,
            computation=computation,
            region=region,
            reads=tuple(reads),
            writes=tuple(writes),
            reuses=tuple(reuses),
        )
        self.steps.append(step)
        self.events.append(Event("reads", tuple(t.value for t in step.reads)))
        self.events.append(Event("writes", tuple(t.value for t in step.writes)))

    def open_region(self, name: str, parent: int, trip_count: float) -> int:
        """Begins a region at the next step; its index."""
        region = Region(
            name=name,
            start=self.now,
            end=self.now,
            parent=parent,
            trip_count=trip_count,
        )
        self.regions.append(region)
        return len(self.regions) - 1

    def close_region(self, region: int) -> None:
        """Ends a region after the last step."""
        self.regions[region] = dataclasses.replace(self.regions[region], end=self.now)
