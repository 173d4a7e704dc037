"""Parameters that are in fast memory before the program starts.

    ops     0                      first use       last use           end
            [prefetch, in the program before][======]                 |
            [               place of the parameter  ]     [prefetch for the next call]

Source: `FindCrossProgramPrefetchCandidates` and `AllocateCrossProgramPrefetchBuffer` in
xla/service/memory_space_assignment/algorithm.cc.
"""

from __future__ import annotations

from frontends.program import BufferKind
from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import Life
from jax_malloc.solvers.xla_msa.attempt import Workspace
from jax_malloc.solvers.xla_msa.memory import Transfer

# The place is given back after the last use if it was taken for less than this share of
# the program's time.
_MAX_HELD_SHARE = 0.6


def candidates(problem: Problem, lives: dict[int, Life]) -> list[Life]:
    """Parameters that could be prefetched so, the largest first.

    Only matrix products, convolutions and gathers read them, and no loop.
    """
    buffers = problem.program.buffers
    found = [
        life
        for b, life in lives.items()
        if buffers[b].kind is BufferKind.PARAMETER
        and not buffers[b].is_output
        and buffers[b].alias_group is None
        and all(_is_operand_of_product(problem, life, k) for k in range(len(life.uses)))
    ]
    return sorted(found, key=_order)


def prefetch(workspace: Workspace, lives: dict[int, Life]) -> set[int]:
    """Places the best candidates in empty memory; their buffer ids.

    The copy is free of charge here: the program before has the time.
    """
    memory, picker = workspace.memory, workspace.picker
    num_ops = len(workspace.problem.program.ops)
    found = candidates(workspace.problem, lives)
    total_bytes = sum(life.size_bytes for life in found)
    fast_bytes = workspace.problem.accelerator.fast.usable_bytes
    placed: set[int] = set()
    for life in found:
        if len(placed) == workspace.options.max_cross_program_prefetches:
            break
        end = life.uses[-1].end
        again = picker.program_end_start(life)
        held_s = picker.elapsed_s(0, end) + picker.elapsed_s(again, num_ops)
        is_freed = (
            total_bytes > fast_bytes
            and again > end
            and held_s < _MAX_HELD_SHARE * picker.elapsed_s(0, num_ops)
        )
        # Free for all of the program, so also at its end, if it is given back between.
        offset = memory.find(life, 0, [num_ops])
        if offset is None:
            continue
        first = life.uses[0].begin
        memory.add(
            life,
            offset,
            0,
            0,
            end=end if is_freed else num_ops,
            last_use=len(life.uses) - 1,
            prefetch=Transfer(0, first, 0.0),
            is_fixed=True,
        )
        if is_freed:
            memory.reserve(life, offset, again, num_ops)
        placed.add(life.buffer_id)
    return placed


def _order(life: Life) -> tuple[int, int, int]:
    return -life.size_bytes, life.uses[-1].begin, life.buffer_id


def _is_operand_of_product(problem: Problem, life: Life, k: int) -> bool:
    """Whether use k multiplies by a buffer, or gathers from it.

    Which operand of a fusion does what, a `Program` does not say. One that also has a
    result of the very same size is taken to update the buffer, element by element, if
    it is not the first to read it, or reads more of that size (an optimizer's state).
    """
    use, size_bytes = life.uses[k], life.size_bytes
    if use.writes or use.end - use.begin > 1:
        return False
    op, buffers = problem.program.ops[use.begin], problem.program.buffers
    read = [a for a in op.reads if buffers[a.buffer_id].size_bytes == size_bytes]
    if any(
        a.buffer_id == life.buffer_id and a.touched_bytes < size_bytes for a in read
    ):
        return True
    has_result = any(buffers[a.buffer_id].size_bytes == size_bytes for a in op.writes)
    is_updated = has_result and (k > 0 or len(read) > 1)
    return op.matmul_flops > 0 and not is_updated
