"""Every buffer in order of what it is worth, each tried until an attempt is kept.

Source: `MsaAlgorithm::Finish` and `MsaAlgorithm::RetryAllocateForJointProposal` in
xla/service/memory_space_assignment/algorithm.cc.
"""

from __future__ import annotations

import dataclasses
from collections import abc

import numpy as np

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.uses import CopyBoundaries, Life, lives
from jax_malloc.solvers.xla_msa import cross_program
from jax_malloc.solvers.xla_msa.attempt import Attempt, Result, Start, Workspace
from jax_malloc.solvers.xla_msa.costs import CostAnalysis
from jax_malloc.solvers.xla_msa.interval_picker import IntervalPicker
from jax_malloc.solvers.xla_msa.memory import FastMemory, Stay
from jax_malloc.solvers.xla_msa.options import Options
from jax_malloc.solvers.xla_msa.sort_order import sorted_lives


def assign(
    problem: Problem,
    options: Options,
    deadline_s: float | None = None,
    priorities: abc.Mapping[int, int] | None = None,
) -> Mapping:
    """The mapping that memory space assignment makes.

    Args:
      problem: a program on a machine.
      options: XLA's knobs.
      deadline_s: absolute, on the clock of `time.monotonic()`; buffers that were not
        reached by then stay in slow memory.
      priorities: overrides of the sort order by buffer id, as in `sorted_lives`.
    """
    costs = CostAnalysis(problem, options)
    workspace = Workspace(
        problem=problem,
        options=options,
        costs=costs,
        picker=IntervalPicker(problem, costs, options),
        boundaries=CopyBoundaries(problem),
        memory=FastMemory(problem, costs, options),
    )
    placeable = allowed_lives(problem)
    done = cross_program.prefetch(workspace, placeable)
    repacks_left = options.max_repacks
    for life in sorted_lives(placeable, costs, problem, priorities):
        if is_over(deadline_s):
            break
        if life.buffer_id not in done:
            joint = _joint(problem, placeable, life)
            repacks_left -= _place(workspace, joint, repacks_left > 0)
            done.update(x.buffer_id for x in joint)
    return workspace.memory.to_mapping()


def allowed_lives(problem: Problem) -> dict[int, Life]:
    """The life of every buffer that may be in fast memory at all.

    More than `Problem.eligible`, which leaves out what cannot matter: XLA places biases
    and the like as well.
    """
    pinned = np.array([bool(b.pinned_slow) for b in problem.program.buffers], bool)
    size, capacity = problem.size_granules, problem.capacity_granules
    allowed = ~pinned & (size > 0) & (size <= capacity)
    return lives(dataclasses.replace(problem, eligible=allowed))


def _joint(problem: Problem, placeable: dict[int, Life], life: Life) -> list[Life]:
    """The buffers that must share a place with one, it included, in order of time.

    A donated argument, and the output that the same op writes in its place: XLA sees
    one buffer.
    """
    group = problem.program.buffers[life.buffer_id].alias_group
    if group is None:
        return [life]
    chain = [life]
    while before := _partner(problem, placeable, group, chain[0].written_over):
        chain.insert(0, before)
    while after := _partner(problem, placeable, group, chain[-1].overwritten_by):
        chain.append(after)
    return chain


def _partner(
    problem: Problem, placeable: dict[int, Life], group: int, buffer_ids: tuple
) -> Life | None:
    """The one of the buffers that is in an alias group, if it may be placed."""
    for b in buffer_ids:
        if problem.program.buffers[b].alias_group == group and b in placeable:
            return placeable[b]
    return None


def _place(workspace: Workspace, joint: list[Life], may_repack: bool) -> bool:
    """Commits what the first acceptable attempt finds; whether it took a repacking.

    Without any, the buffers stay in slow memory.
    """
    retry, repacked = 0, False
    slow_uses = {life.buffer_id: frozenset() for life in joint}
    while True:
        attempts, result = _attempt(workspace, joint, slow_uses, retry)
        inefficient = {a.buffer_id: a.inefficient_uses() for a in attempts}
        if Result.REQUIRES_UNCOMMIT in result:
            _undo(attempts)
            if retry == workspace.options.max_retries:
                return repacked
            retry += 1
        elif Result.OUT_OF_MEMORY in result and may_repack and not repacked:
            _undo(attempts)
            workspace.memory.repack()
            repacked = True
        elif any(inefficient[b] - slow_uses[b] for b in inefficient):
            _undo(attempts)
            slow_uses = {b: slow_uses[b] | inefficient[b] for b in slow_uses}
        else:
            return repacked


def _attempt(
    workspace: Workspace,
    joint: list[Life],
    slow_uses: dict[int, frozenset[int]],
    retry: int,
) -> tuple[list[Attempt], Result]:
    """One attempt at each of the buffers that go together, as long as none fails."""
    attempts: list[Attempt] = []
    result = Result.SUCCESS
    for life in joint:
        start: Stay | Start = Start.ANYWHERE
        if attempts:
            # The op that writes it reads the buffer before it, and decides for both.
            define = life.uses[0]
            operand = attempts[-1].stay_at(define.begin)
            in_place = operand is not None and operand.end == define.end
            start = operand if in_place else Start.SLOW
        attempt = Attempt(
            workspace,
            life,
            start=start,
            slow_uses=slow_uses[life.buffer_id],
            retry=retry,
        )
        attempts.append(attempt)
        result |= attempt.run()
        if Result.REQUIRES_UNCOMMIT in result:
            break
    return attempts, result


def _undo(attempts: list[Attempt]) -> None:
    for attempt in reversed(attempts):
        attempt.undo()
