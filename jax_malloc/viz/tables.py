"""A plan as rows to draw: stays in fast memory, copies and ops, with their times.

    boundary_s   0         1         2    3
    ops          [-- op 0 -][-- op 1 -]....[- op 2 --]
    parts         fast slow  fast       stall  fast

Every picture reads these rows and nothing else, so that they cannot disagree. Times are
predicted, in seconds from the program's start; those of an op in a loop body cover all
its executions.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import TYPE_CHECKING

import numpy as np

from frontends.program import Buffer, BufferKind, Op, Program
from hwmodel.simulator import Timeline
from jax_malloc import report
from jax_malloc.mapping import Direction, Mapping, Segment
from jax_malloc.problem import Problem

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

# The backward pass as JAX writes it into op names; forward ops run again in it for want
# of memory carry one of the other two.
_BACKWARD = "transpose(jvp("
_RECOMPUTED = ("rematted_computation", "checkpoint")


class Kind(enum.Enum):
    """What a buffer is to the user.

    GRADIENT comes from the backward pass, ACTIVATION from the forward pass; TEMPORARY
    is what is left of a program with both.
    """

    PARAMETER = "parameter"
    CONSTANT = "constant"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    TEMPORARY = "temporary"
    OUTPUT = "output"


class Bound(enum.Enum):
    """What keeps an op from being faster.

    FAST_MEMORY is fast-memory traffic and overheads of the op: what it takes with all
    that it touches in fast memory.
    """

    COMPUTE = "compute"
    FAST_MEMORY = "fast memory"
    SLOW_MEMORY = "slow memory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BufferRow:
    """One buffer, wherever it is.

    user_name: the user's own path to it, or "". num_stays, num_copies: of it.
    saved_s: by its accesses in fast memory, each by itself; copies not counted.
    """

    buffer_id: int
    name: str
    user_name: str
    kind: Kind
    size_bytes: int
    live: tuple[int, int]
    num_stays: int
    num_copies: int
    saved_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StayRow:
    """One rectangle of the memory map.

    ops: `(begin, first, end)` of the segment, and the times of those boundaries. From
    `begin_s` to `first_s` its bytes are on their way. A buffer that is written over in
    place ends where its successor begins, so that rectangles never overlap.
    saved_s: by the accesses that it serves, each by itself; copies not counted.
    """

    buffer_id: int
    offset_bytes: int
    size_bytes: int
    ops: tuple[int, int, int]
    begin_s: float
    first_s: float
    end_s: float
    saved_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CopyRow:
    """One copy.

    issue_s: it joins its queue. begin_s: it is at the head of it. done_s: it is over.
    start, due: op boundaries that it is issued at, and due at. exposed_s: ops wait for
    it. size_bytes: of one execution; count: executions.
    """

    buffer_id: int
    direction: Direction
    size_bytes: int
    count: float
    start: int
    due: int
    issue_s: float
    begin_s: float
    done_s: float
    exposed_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One op.

    stall_s: the wait before `start_s`. fast_s: what it takes with everything in fast
    memory, and fast_bound what keeps that from being less. slow_s: what slow memory
    adds. Both together are its length.
    buffers: ids of all that it touches.
    """

    t: int
    op: Op
    start_s: float
    stall_s: float
    fast_s: float
    slow_s: float
    fast_bound: Bound
    buffers: tuple[int, ...]

    @property
    def bound(self) -> Bound:
        return Bound.SLOW_MEMORY if self.slow_s > 0 else self.fast_bound

    @property
    def end_s(self) -> float:
        return self.start_s + self.fast_s + self.slow_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """All rows of a plan.

    buffers: by id. stays: in time order. copies: in the order of the mapping. ops: in
    schedule order. latency_s: the program's end. final_stall_s: the wait at it.
    capacity_bytes: `[T]` free for buffers during each op. used_bytes: `[T]` taken.
    """

    buffers: tuple[BufferRow, ...]
    stays: tuple[StayRow, ...]
    copies: tuple[CopyRow, ...]
    ops: tuple[OpRow, ...]
    latency_s: float
    final_stall_s: float
    capacity_bytes: np.ndarray
    used_bytes: np.ndarray

    def stalls_s(self) -> list[tuple[float, float]]:
        """`(begin, end)` of every wait for a copy, in time order."""
        waits = [(o.start_s - o.stall_s, o.start_s) for o in self.ops if o.stall_s > 0]
        if self.final_stall_s > 0:
            waits.append((self.latency_s - self.final_stall_s, self.latency_s))
        return waits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A latency in parts: ops as if all were in fast memory, slow memory, waits."""

    fast_s: float
    slow_s: float
    stall_s: float

    @property
    def latency_s(self) -> float:
        return self.fast_s + self.slow_s + self.stall_s


def build(plan: Plan) -> Tables:
    """The rows of a plan."""
    problem, timeline = plan.problem, plan.timeline
    granule = problem.granule_bytes
    return Tables(
        buffers=_buffers(problem, plan.mapping),
        stays=_stays(problem, plan.mapping, timeline),
        copies=_copies(problem, plan.mapping, timeline),
        ops=_ops(problem, timeline),
        latency_s=timeline.latency_s,
        final_stall_s=float(timeline.stall_s[-1]),
        capacity_bytes=problem.op_capacity_granules * granule,
        used_bytes=report.taken_bytes(problem, plan.mapping),
    )


def breakdown(problem: Problem, timeline: Timeline) -> Breakdown:
    """Where the time of a mapping goes."""
    fast_s = _fast_s(problem)
    return Breakdown(
        fast_s=float(fast_s.sum()),
        slow_s=float((timeline.op_duration_s - fast_s).sum()),
        stall_s=float(timeline.stall_s.sum()),
    )


def kinds(program: Program) -> list[Kind]:
    """What each buffer is to the user, by the names that JAX gave the ops."""
    makers = _makers(program)
    trains = any(_BACKWARD in op.op_name for op in program.ops)
    return [_kind(b, makers.get(i), trains) for i, b in enumerate(program.buffers)]


def user_names(program: Program) -> list[str]:
    """The user's own path to each buffer, or "": the op that makes it, or its argument.

    Arguments are written as paths, `params/layers/0/kernel`, whether their names are
    JAX's (`params['layers']['0']['kernel']`) or what XLA makes of those.
    """
    makers = _makers(program)
    return [
        _argument_path(b.name)
        if b.kind is BufferKind.PARAMETER
        else makers[i].op_name
        if i in makers
        else ""
        for i, b in enumerate(program.buffers)
    ]


def _fast_s(problem: Problem) -> np.ndarray:
    """`[T]` seconds of each op with all that it touches in fast memory."""
    return np.maximum(problem.latency.floor_s, problem.latency.base_s)


def _makers(program: Program) -> dict[int, Op]:
    """The first op that writes each buffer."""
    makers: dict[int, Op] = {}
    for op in program.ops:
        for access in op.writes:
            makers.setdefault(access.buffer_id, op)
    return makers


def _kind(buffer: Buffer, maker: Op | None, trains: bool) -> Kind:
    if buffer.kind is not BufferKind.TEMPORARY:
        return Kind(buffer.kind.value)
    path = maker.op_name if maker is not None else ""
    if _BACKWARD in path:
        recomputed = any(word in path for word in _RECOMPUTED)
        return Kind.ACTIVATION if recomputed else Kind.GRADIENT
    return Kind.ACTIVATION if "jvp(" in path or not trains else Kind.TEMPORARY


def _argument_path(name: str) -> str:
    """`params['a'][0].mu`, or XLA's `params__a___0_.mu__.1`, as `params/a/0/mu`."""
    name = re.sub(r"\.\d+$", "", name)
    # XLA writes brackets and quotes as underscores: [0] as _0_, ['a'] as __a__.
    name = re.sub(r"_(\d+)_(?=__(?!_)|_\d|\.|$)", r"/\1/", name)
    name = re.sub(r"__+|\['?|'?\]", "/", name)
    return re.sub(r"/+\.?", "/", name).strip("/")


def _buffers(problem: Problem, mapping: Mapping) -> tuple[BufferRow, ...]:
    program, num = problem.program, len(problem.program.buffers)
    stays = np.bincount([s.buffer_id for s in mapping.segments], minlength=num)
    copies = np.bincount([c.buffer_id for c in mapping.copies], minlength=num)
    saved_s = report.op_savings_s(problem, mapping)
    names, kind_of = user_names(program), kinds(program)
    return tuple(
        BufferRow(
            buffer_id=i,
            name=b.label,
            user_name=names[i],
            kind=kind_of[i],
            size_bytes=b.size_bytes,
            live=(b.live.start, b.live.end),
            num_stays=int(stays[i]),
            num_copies=int(copies[i]),
            saved_s=float(saved_s[i]),
        )
        for i, b in enumerate(program.buffers)
    )


def _stays(
    problem: Problem, mapping: Mapping, timeline: Timeline
) -> tuple[StayRow, ...]:
    boundary_s = np.append(
        timeline.op_start_s - timeline.stall_s[:-1], timeline.latency_s
    )
    start_s = np.append(timeline.op_start_s, timeline.latency_s)
    slower_s = report.access_changes_s(problem, mapping)
    # Accesses by buffer and then by op, so that those of a stay are a slice.
    order = np.lexsort((problem.access_op, problem.access_buffer))
    num_ops = len(problem.program.ops) + 1
    keys = (problem.access_buffer * num_ops + problem.access_op)[order]
    total_s = np.concatenate([[0.0], np.cumsum(slower_s[order])])
    written_over = _written_over(problem, mapping)
    rows = []
    for s in sorted(mapping.segments, key=lambda s: (s.begin, s.offset_bytes)):
        low, high = np.searchsorted(
            keys, [s.buffer_id * num_ops + s.first, s.buffer_id * num_ops + s.end]
        )
        rows.append(
            StayRow(
                buffer_id=s.buffer_id,
                offset_bytes=s.offset_bytes,
                size_bytes=problem.program.buffers[s.buffer_id].size_bytes,
                ops=(s.begin, s.first, s.end),
                begin_s=float(boundary_s[s.begin]),
                first_s=float((start_s if s.first > s.begin else boundary_s)[s.first]),
                end_s=float(boundary_s[s.end - (s in written_over)]),
                saved_s=float(total_s[high] - total_s[low]),
            )
        )
    return tuple(rows)


def _written_over(problem: Problem, mapping: Mapping) -> set[Segment]:
    """Stays whose place their last op gives to a result of its own."""
    ending = {(s.end, s.buffer_id, s.offset_bytes): s for s in mapping.segments}
    found = set()
    for s in mapping.segments:
        for operand, result in problem.program.ops[s.begin].reuses:
            key = (s.begin + 1, operand, s.offset_bytes)
            if result == s.buffer_id and key in ending:
                found.add(ending[key])
    return found


def _copies(
    problem: Problem, mapping: Mapping, timeline: Timeline
) -> tuple[CopyRow, ...]:
    copies = mapping.copies
    counts = [c.count for c in problem.simulator_copies(mapping)]
    begin_s = np.zeros(len(copies))
    free_s: dict[object, float] = {}
    # The order in which the simulator serves them.
    for k in sorted(
        range(len(copies)),
        key=lambda k: (copies[k].start, copies[k].done, copies[k].size_bytes),
    ):
        duplex = problem.accelerator.dma.full_duplex
        queue = copies[k].direction if duplex else None
        begin_s[k] = max(timeline.copy_issue_s[k], free_s.get(queue, 0.0))
        free_s[queue] = float(timeline.copy_done_s[k])
    return tuple(
        CopyRow(
            buffer_id=c.buffer_id,
            direction=c.direction,
            size_bytes=c.size_bytes,
            count=counts[k],
            start=c.start,
            due=c.done,
            issue_s=float(timeline.copy_issue_s[k]),
            begin_s=float(min(begin_s[k], timeline.copy_done_s[k])),
            done_s=float(timeline.copy_done_s[k]),
            exposed_s=float(timeline.copy_exposed_s[k]),
        )
        for k, c in enumerate(copies)
    )


def _ops(problem: Problem, timeline: Timeline) -> tuple[OpRow, ...]:
    model, fast_s = problem.latency, _fast_s(problem)
    slow_s = timeline.op_duration_s - fast_s
    return tuple(
        OpRow(
            t=t,
            op=op,
            start_s=float(timeline.op_start_s[t]),
            stall_s=float(timeline.stall_s[t]),
            fast_s=float(fast_s[t]),
            slow_s=float(slow_s[t]),
            fast_bound=(
                Bound.COMPUTE
                if model.floor_s[t] >= model.base_s[t]
                else Bound.FAST_MEMORY
            ),
            buffers=tuple(op.touched_bytes()),
        )
        for t, op in enumerate(problem.program.ops)
    )
