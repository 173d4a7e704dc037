"""The compiler's own mapping, realised with our offsets."""

from __future__ import annotations

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.worth import Worth


def from_compiler(problem: Problem) -> Mapping | None:
    """A mapping that serves from fast memory what the compiler does, as far as it fits.

    HLO text says in which memory a buffer is, not where in it: stays are packed anew,
    the largest in size and time first, and one that finds no place is left out. None if
    the program carries no mapping of the compiler.
    """
    compiled = problem.program.compiler_mapping
    if compiled is None:
        return None
    allocation = Allocation(problem)
    worth = Worth(problem, allocation.lives)
    runs = []
    for b, life in allocation.lives.items():
        fast = [
            any((t, b) in compiled.fast_accesses for t, _ in use.accesses)
            for use in life.uses
        ]
        first = None
        for k, is_fast in enumerate([*fast, False]):
            if is_fast and first is None:
                first = k
            elif not is_fast and first is not None:
                uses = life.uses
                held = worth.clock[uses[k - 1].end] - worth.clock[uses[first].begin]
                runs.append((life.granules * held, b, first, k - 1))
                first = None
    for _, b, first, last in sorted(runs, reverse=True):
        allocation.try_place(b, first, last, FitRule.BEST_TOP)
    return allocation.to_mapping()
