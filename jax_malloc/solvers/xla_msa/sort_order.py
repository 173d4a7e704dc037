"""The order in which buffers are placed: what fast memory is worth to them, first.

Source: `MemoryBoundednessBufferIntervalComparator` in
xla/service/memory_space_assignment/buffer_interval_comparator.cc.
"""

from __future__ import annotations

from collections.abc import Mapping

from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import Life
from jax_malloc.solvers.xla_msa.costs import CostAnalysis


def sorted_lives(
    lives: dict[int, Life],
    costs: CostAnalysis,
    problem: Problem,
    priorities: Mapping[int, int] | None = None,
) -> list[Life]:
    """Buffers by memory-boundedness, then size, both descending.

    Ties go to the longer life, then to the one that ends, then starts first.
    Overrides of the sort order, by buffer id and 0 where there is none, go before all
    of that, low ones first.
    """
    priorities = priorities or {}

    def key(life: Life) -> tuple:
        live = problem.program.buffers[life.buffer_id].live
        return (
            priorities.get(life.buffer_id, 0),
            -costs.memory_boundedness(life),
            -life.size_bytes,
            live.start - live.end,
            life.uses[-1].begin,
            live.start,
            life.buffer_id,
        )

    return sorted(lives.values(), key=key)
