"""What must hold between the parts of a `Program`, checked whenever one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frontends.program import Access, Buffer, Program, Region


def check(program: Program) -> None:
    """Raises ValueError where the parts of a program contradict each other."""
    where = f"program {program.name!r}"
    _check_buffers(program, where)
    _check_ops(program, where)
    _check_regions(program, where)
    _check_reuses(program, where)
    _check_mapping(program, where)


def _check_buffers(program: Program, where: str) -> None:
    n = len(program.ops)
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for b in program.buffers:
        if (b.name, b.index) in seen:
            raise ValueError(
                f"{where}: two buffers are named {b.label!r}; names must be unique."
            )
        seen.add((b.name, b.index))
        if b.size_bytes < 0:
            raise ValueError(f"{where}: buffer {b.label!r} has {b.size_bytes} bytes.")
        too_late = b.live.end > n or (b.is_input and b.live.start != 0)
        if too_late or (b.is_output and b.live.end != n):
            raise ValueError(
                f"{where}: buffer {b.label!r} ({b.kind.value}) lives over "
                f"[{b.live.start}, {b.live.end}) of a schedule of {n} ops. Inputs live "
                f"from 0, outputs until {n}."
            )


def _check_ops(program: Program, where: str) -> None:
    seen: set[str] = set()
    defined = [b.is_input for b in program.buffers]
    for t, op in enumerate(program.ops):
        what = f"{where}: op {op.name!r}"
        if op.name in seen:
            raise ValueError(
                f"{where}: two ops are named {op.name!r}; names must be unique."
            )
        seen.add(op.name)
        if not 0 <= op.region < len(program.regions):
            raise ValueError(
                f"{what} is in region {op.region}, there are {len(program.regions)}."
            )
        for accesses in (op.reads, op.writes):
            if len({a.buffer_id for a in accesses}) != len(accesses):
                raise ValueError(
                    f"{what} lists one buffer twice among its reads or its writes; "
                    "merge the accesses."
                )
        for access in (*op.reads, *op.writes):
            _check_access(program, what, t, access)
        for access in op.reads:
            if not defined[access.buffer_id]:
                label = program.buffers[access.buffer_id].label
                raise ValueError(
                    f"{what} reads {label!r} at t={t}, before anything writes it. The "
                    "module looks unscheduled."
                )
        for access in op.writes:
            defined[access.buffer_id] = True


def _check_access(program: Program, what: str, t: int, access: Access) -> None:
    if not 0 <= access.buffer_id < len(program.buffers):
        raise ValueError(
            f"{what} touches buffer {access.buffer_id}, there are "
            f"{len(program.buffers)}."
        )
    b = program.buffers[access.buffer_id]
    if access.touched_bytes < 0:
        raise ValueError(f"{what} touches {access.touched_bytes} bytes of {b.label!r}.")
    if not b.live.start <= t < b.live.end:
        raise ValueError(
            f"{what} touches {b.label!r} at t={t}, outside its live range "
            f"[{b.live.start}, {b.live.end}). The module looks unscheduled."
        )


def _check_regions(program: Program, where: str) -> None:
    n = len(program.ops)
    for i, r in enumerate(program.regions):
        parent = program.regions[r.parent] if 0 <= r.parent < i else None
        inside = parent is not None and parent.start <= r.start <= r.end <= parent.end
        if not (inside or (i == 0 and (r.start, r.end, r.parent) == (0, n, -1))):
            raise ValueError(
                f"{where}: region {i} ({r.name!r}) [{r.start}, {r.end}) is not inside "
                "its parent."
            )


def reuse_obstacle(region: Region, t: int, operand: Buffer, result: Buffer) -> str:
    """Why op t may not write `result` over `operand` in fast memory; "" if it may.

    That it computes element by element is for the frontend to know.

    Args:
      region: that of the op.
      operand, result: buffers that it only reads, and only writes.
    """
    if operand.size_bytes != result.size_bytes:
        return f"{operand.size_bytes} bytes are not {result.size_bytes}"
    if operand.is_output or operand.live.end != t + 1:
        return f"{operand.label!r} is needed after t={t}"
    if result.is_input or result.live.start != t:
        return f"{result.label!r} exists before t={t}"
    # What a loop takes in is needed again in its next iteration.
    inside = region.start <= operand.live.start and result.live.end <= region.end
    if not inside or (operand.is_input and region.parent >= 0):
        return "one of them outlives the loop"
    return ""


def _check_reuses(program: Program, where: str) -> None:
    for t, op in enumerate(program.ops):
        reads = {a.buffer_id for a in op.reads}
        writes = {a.buffer_id for a in op.writes}
        for pair in op.reuses:
            obstacle = "it needs one buffer that is only read and one only written"
            if pair[0] in reads - writes and pair[1] in writes - reads:
                operand, result = (program.buffers[i] for i in pair)
                region = program.regions[op.region]
                obstacle = reuse_obstacle(region, t, operand, result)
            if obstacle:
                raise ValueError(
                    f"{where}: op {op.name!r} cannot write buffer {pair[1]} over "
                    f"buffer {pair[0]}: {obstacle}."
                )


def _check_mapping(program: Program, where: str) -> None:
    mapping = program.compiler_mapping
    if mapping is None:
        return
    n, num_buffers = len(program.ops), len(program.buffers)
    for t, i in mapping.fast_accesses:
        if not (0 <= t < n and 0 <= i < num_buffers):
            raise ValueError(
                f"{where}: the compiler's mapping names op {t} and buffer {i}, there "
                f"are {n} ops and {num_buffers} buffers."
            )
    for c in mapping.copies:
        if not (0 <= c.buffer_id < num_buffers and 0 <= c.start <= c.done <= n):
            raise ValueError(
                f"{where}: the compiler's mapping copies buffer {c.buffer_id} over "
                f"[{c.start}, {c.done}], there are {n} ops and {num_buffers} buffers."
            )
