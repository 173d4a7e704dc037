"""The compiler's own mapping, realised with our offsets."""

from __future__ import annotations

from collections.abc import Iterator

from frontends.program import CompilerMapping
from jax_malloc.mapping import Direction, Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.greedy import place_in_order
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.uses import Life
from jax_malloc.solvers.worth import Worth


def from_compiler(problem: Problem) -> Mapping | None:
    """A mapping that serves from fast memory what the compiler does, as far as it fits.

    HLO text says in which memory a buffer is, not where in it: stays are packed anew,
    the largest in size and time first. One that finds no place is cut in two, and left
    out when nothing is left to cut. Copies are timed anew.

    Returns:
      None if the program carries no mapping of the compiler.
    """
    compiled = problem.program.compiler_mapping
    if compiled is None:
        return None
    allocation = Allocation(problem)
    worth = Worth(problem, allocation.lives)
    runs = [
        (b, first, last)
        for b, life in allocation.lives.items()
        for first, last in _fast_runs(life, compiled)
    ]

    def space_time(life: Life, first: int, last: int) -> float:
        return life.granules * worth.held_s(life, first, last)

    place_in_order(allocation, worth, runs, space_time, FitRule.BEST_TOP)
    return allocation.to_mapping()


def _fast_runs(life: Life, compiled: CompilerMapping) -> Iterator[tuple[int, int]]:
    """Runs of uses that stay in fast memory from one prefetch to the next."""
    filled = {
        copy.done
        for copy in compiled.copies
        if copy.buffer_id == life.buffer_id
        and copy.direction == Direction.PREFETCH.value
    }
    first = None
    for k, use in enumerate(life.uses):
        fast = any(
            (t, life.buffer_id) in compiled.fast_accesses for t, _ in use.accesses
        )
        since = life.uses[k - 1].begin if k else -1
        again = any(since < done <= use.begin for done in filled)
        if first is not None and (again or not fast):
            yield first, k - 1
            first = None
        if first is None and fast:
            first = k
    if first is not None:
        yield first, len(life.uses) - 1
