"""What a plan says to a person: a summary, and a table of the buffers that matter.

A buffer's saving is what the program would take longer without its stays and copies, by
the evaluator that gave the plan's latency.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import rich.box
import rich.console
import rich.table

from hwmodel.latency import OpLatency, op_latency_s
from jax_malloc.mapping import Direction, Mapping
from jax_malloc.problem import Problem

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

WIDTH = 88
_MAX_ROWS = 20
_COPY_WORDS = {Direction.PREFETCH: "in", Direction.EVICT: "out"}


def format_s(seconds: float) -> str:
    """Four significant digits in the largest unit that keeps them above 1."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if abs(seconds) * scale >= 1:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def format_bytes(size_bytes: float) -> str:
    """Such as 8.0 MiB, or 512 B."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def summary(plan: Plan) -> str:
    """Latency, speedups and use of fast memory, in a few lines."""
    problem, mapping = plan.problem, plan.mapping
    lines = [
        f"plan of {plan.program.name!r} for {plan.accelerator.name} by {plan.solver} "
        f"(seed {plan.seed})",
        f"predicted latency {format_s(plan.latency_s)}",
    ]
    for name, latency_s in plan.baselines.items():
        lines.append(
            f"  {plan.speedup_over(name):6.3f}x over {name}, {format_s(latency_s)} "
            "(predicted)"
        )
    free_bytes = problem.capacity_granules * problem.granule_bytes
    num_buffers = len({s.buffer_id for s in mapping.segments})
    copied_bytes = sum(c.size_bytes for c in mapping.copies)
    lines += [
        f"fast memory: at most {format_bytes(peak_bytes(problem, mapping))} of "
        f"{format_bytes(free_bytes)} taken, by {num_buffers} of "
        f"{len(plan.program.buffers)} buffers",
        f"copies: {len(mapping.copies)}, {format_bytes(copied_bytes)}; ops wait "
        f"{format_s(float(plan.timeline.stall_s.sum()))} for them",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def table(plan: Plan) -> str:
    """The summary, and the buffers that save most by being in fast memory."""
    problem, mapping = plan.problem, plan.mapping
    if not mapping.segments:
        return summary(plan) + "\nevery buffer is in slow memory"
    # Which buffers to show is told without their copies, which is fast to work out.
    op_saved_s = op_savings_s(problem, mapping)
    placed = sorted({s.buffer_id for s in mapping.segments})
    placed.sort(key=lambda b: -op_saved_s[b])
    saved_s = {b: saving_s(plan, b) for b in placed[:_MAX_ROWS]}
    rows = text_table("buffer", "size", "live", "offset", "in fast", "copies", "saves")
    for b in sorted(saved_s, key=lambda b: -saved_s[b]):
        buffer, stays = plan.program.buffers[b], mapping.segments_of(b)
        copies = [c for c in mapping.copies if c.buffer_id == b]
        copies.sort(key=lambda c: (c.start, c.done))
        rows.add_row(
            buffer.label,
            format_bytes(buffer.size_bytes),
            f"{buffer.live.start}-{buffer.live.end}",
            "\n".join(format_bytes(s.offset_bytes) for s in stays),
            "\n".join(f"{s.first}-{s.end}" for s in stays),
            "\n".join(f"{_COPY_WORDS[c.direction]} {c.start}-{c.done}" for c in copies),
            format_s(saved_s[b]),
        )
    lines = [summary(plan), "", plain_text(rows)]
    if len(placed) > _MAX_ROWS:
        lines.append(f"and {len(placed) - _MAX_ROWS} more buffers in fast memory")
    lines.append(
        "live, in fast: ops [start-end). copies: in (prefetch), out (evict), between\n"
        "op boundaries. saves: predicted, against the same plan without the buffer."
    )
    return "\n".join(lines)


def peak_bytes(problem: Problem, mapping: Mapping) -> int:
    """Most bytes of fast memory taken during any op."""
    return int(taken_bytes(problem, mapping).max(initial=0))


def taken_bytes(problem: Problem, mapping: Mapping) -> np.ndarray:
    """`[T]` bytes of fast memory taken during each op."""
    change = np.zeros(len(problem.program.ops) + 1, np.int64)
    ends = {(s.end, s.buffer_id, s.offset_bytes) for s in mapping.segments}
    for s in mapping.segments:
        begin = s.begin
        for operand, result in problem.program.ops[begin].reuses:
            # The place of a result written over its operand is counted once.
            if result == s.buffer_id and (begin + 1, operand, s.offset_bytes) in ends:
                begin += 1
                break
        change[begin] += problem.size_granules[s.buffer_id]
        change[s.end] -= problem.size_granules[s.buffer_id]
    return np.cumsum(change)[:-1] * problem.granule_bytes


def saving_s(plan: Plan, buffer_id: int) -> float:
    """Seconds that the program would take longer with a buffer in slow memory."""
    mapping = Mapping(
        tuple(s for s in plan.mapping.segments if s.buffer_id != buffer_id),
        tuple(c for c in plan.mapping.copies if c.buffer_id != buffer_id),
    )
    return plan.problem.evaluate(mapping).latency_s - plan.timeline.latency_s


def op_savings_s(problem: Problem, mapping: Mapping) -> np.ndarray:
    """`[B]` seconds that ops save by finding each buffer in fast memory.

    One buffer at a time, the others as they are; copies and stalls are not counted.
    """
    slower_s = access_changes_s(problem, mapping)
    fast = problem.fast_mask(mapping)
    return np.bincount(
        problem.access_buffer,
        weights=np.where(fast, slower_s, 0.0),
        minlength=len(problem.program.buffers),
    )


def access_changes_s(problem: Problem, mapping: Mapping) -> np.ndarray:
    """`[M]` seconds that each access's op takes longer with that access moved.

    An access in fast memory is moved to slow memory and the other way round (negative,
    where that helps), the others of the op staying where they are.
    """
    fast, t = problem.fast_mask(mapping), problem.access_op
    slow_bytes = np.bincount(
        t,
        weights=np.where(fast, 0.0, problem.access_bytes),
        minlength=len(problem.program.ops),
    )
    moved_bytes = np.where(fast, problem.access_bytes, -problem.access_bytes)
    latency = OpLatency(*(column[t] for column in problem.latency))
    as_is_s = op_latency_s(latency, slow_bytes[t])
    moved_s = op_latency_s(latency, np.maximum(slow_bytes[t] + moved_bytes, 0))
    return np.asarray(moved_s - as_is_s)


def text_table(*columns: str) -> rich.table.Table:
    """An empty table, the first column on the left and the others on the right."""
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plain_text(table: rich.table.Table) -> str:
    """A table as text without colours, in 88 columns."""
    with io.StringIO() as out:
        console = rich.console.Console(file=out, width=WIDTH, color_system=None)
        console.print(table)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")
