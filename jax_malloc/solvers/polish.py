"""Improves a mapping: what does not pay goes, what fits comes in, then a search."""

from __future__ import annotations

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.greedy import construct, join
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.ruin_recreate import RuinRecreate
from jax_malloc.solvers.worth import Worth

_MOST_ROUNDS = 3
_FILL_EXPONENT = 0.3  # the best single one of greedy's


def polish(
    problem: Problem,
    mapping: Mapping,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    steps: int | None = 0,
    target_s: float = 0.0,
) -> Mapping:
    """A mapping at least as fast as the given one.

    Args:
      mapping: valid; it may hold stays and copies that do not pay.
      seed: of the search.
      deadline_s: absolute, on the clock of `time.monotonic()`.
      steps: of ruin and recreate at most; None goes on until the deadline.
      target_s: a latency at which it may stop.
    Raises:
      ValueError: neither a number of steps nor a deadline.
    """
    before_s = problem.evaluate(mapping).latency_s
    allocation = Allocation.from_mapping(problem, mapping)
    worth = Worth(problem, allocation.lives)
    improve(allocation, worth, deadline_s=deadline_s)
    if steps != 0:
        RuinRecreate(allocation, worth, seed).run(steps, deadline_s, target_s)
        improve(allocation, worth, deadline_s=deadline_s)
    return allocation.to_mapping() if allocation.latency_s < before_s else mapping


def improve(
    allocation: Allocation, worth: Worth, *, deadline_s: float | None = None
) -> None:
    """Small changes one by one, as long as they help and there is time."""
    for _ in range(_MOST_ROUNDS):
        before_s = allocation.latency_s
        drop_losers(allocation, deadline_s=deadline_s)
        retime(allocation, deadline_s=deadline_s)
        join(allocation, deadline_s=deadline_s)
        construct(
            allocation, worth, _FILL_EXPONENT, FitRule.BEST_TOP, deadline_s=deadline_s
        )
        if allocation.latency_s >= before_s:
            return


def drop_losers(allocation: Allocation, *, deadline_s: float | None = None) -> None:
    """Takes out every stay without which the program is faster."""
    for stay in list(allocation.all_stays()):
        if is_over(deadline_s):
            return
        if allocation.latency_without(stay) < allocation.latency_s:
            allocation.remove([stay])


def retime(allocation: Allocation, *, deadline_s: float | None = None) -> None:
    """Moves copies that ops wait for, at the offsets that there are."""
    for stay in allocation.blocking_stays():
        if is_over(deadline_s):
            return
        allocation.retime(stay)
