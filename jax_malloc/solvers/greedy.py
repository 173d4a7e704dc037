"""Greedy by benefit per byte and second, with exact offsets and exact latency.

Runs of uses are tried in the order of their worth; each is accepted only if the
simulated latency, stalls included, falls. A run that finds no place is split at its
longest gap.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.uses import Life
from jax_malloc.solvers.worth import Guide, Worth

# Orders to try, best kept: exponent of size and time, offset rule, and the longest gap,
# in times of a copy, over which a buffer is first tried in one piece. No order is best
# for most programs; each of these is for some. The best single one comes first.
_ORDERS = (
    (0.3, FitRule.BEST_TOP, 20.0),
    (0.7, FitRule.BEST_TOP, math.inf),
    (0.0, FitRule.BEST_TOP, 20.0),
    (0.0, FitRule.BEST, math.inf),
    (1.0, FitRule.BEST_TOP, math.inf),
    (0.0, FitRule.BEST_TOP, 5.0),
    (0.5, FitRule.BEST, 20.0),
    (0.3, FitRule.BEST, math.inf),
)
# Long programs get fewer orders: each is quadratic in the number of uses.
_USES_OF_ALL_ORDERS = 24_000


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    guide: Guide | None = None,
) -> Mapping:
    """The best mapping over a few orders; the first order is always finished.

    Args:
      problem, seed, deadline_s: as for every solver.
      guide: factors of what each use is worth.
    """
    del seed  # nothing is random
    allocation = Allocation(problem)
    worth = Worth(problem, allocation.lives, guide)
    empty = allocation.save()
    num_uses = sum(len(life.uses) for life in allocation.lives.values())
    orders = _ORDERS[: max(2, _USES_OF_ALL_ORDERS // max(num_uses, 1))]
    best, best_s = Mapping(), problem.all_slow_latency_s
    for i, order in enumerate(orders):
        if i and is_over(deadline_s):
            break
        allocation.restore(empty)
        limit_s = deadline_s if i else None
        construct(allocation, worth, *order, deadline_s=limit_s)
        if join(allocation, deadline_s=limit_s):
            construct(allocation, worth, *order, deadline_s=limit_s)
        if allocation.latency_s < best_s:
            best, best_s = allocation.to_mapping(), allocation.latency_s
    return best


def construct(
    allocation: Allocation,
    worth: Worth,
    exponent: float,
    rule: FitRule,
    longest_gap: float = math.inf,
    *,
    deadline_s: float | None = None,
) -> None:
    """Adds stays, the greatest `Worth.density` first, until no run is left to try.

    Args:
      allocation: may hold stays, which are kept or made longer.
      exponent: of size and time, in the density.
      rule: where a stay goes.
      longest_gap: between uses that are first tried as one run, in times of a copy.
      deadline_s: absolute, on the clock of `time.monotonic()`.
    """
    runs = [
        (b, *piece)
        for b in allocation.lives
        for run in allocation.slow_runs(b)
        for piece in _split_at_gaps(allocation, worth, b, run, longest_gap)
    ]
    place_in_order(
        allocation,
        worth,
        runs,
        functools.partial(worth.density, exponent=exponent),
        rule,
        deadline_s=deadline_s,
    )


def place_in_order(
    allocation: Allocation,
    worth: Worth,
    runs: Iterable[tuple[int, int, int]],
    priority: Callable[[Life, int, int], float],
    rule: FitRule,
    *,
    deadline_s: float | None = None,
) -> None:
    """Tries runs `(buffer_id, first use, last use)`, those of highest priority first.

    What finds no place, or does not pay, is cut at its longest gap and tried again.
    """
    order = itertools.count()  # equal priorities: first come, first served
    heap: list[tuple[float, int, int, int, int]] = []

    def push(buffer_id: int, first: int, last: int) -> None:
        first_out = -priority(allocation.lives[buffer_id], first, last)
        heapq.heappush(heap, (first_out, next(order), buffer_id, first, last))

    for run in runs:
        push(*run)
    while heap and not is_over(deadline_s):
        _, _, b, first, last = heapq.heappop(heap)
        if allocation.try_place(b, first, last, rule) or first == last:
            continue
        split = worth.longest_gap(allocation.lives[b], first, last)
        push(b, first, split)
        push(b, split + 1, last)


def join(allocation: Allocation, *, deadline_s: float | None = None) -> int:
    """Makes one stay of two of the same buffer wherever that pays; how many times.

    The longer stay saves the copies in between, but not the space.
    """
    joined = 0
    for b in allocation.lives:
        k = 1
        while k < len(stays := allocation.stays_of(b)) and not is_over(deadline_s):
            before, after = stays[k - 1 : k + 1]
            if allocation.try_place(b, before.first_use, after.last_use):
                joined += 1
            else:
                k += 1
    return joined


def _split_at_gaps(
    allocation: Allocation,
    worth: Worth,
    buffer_id: int,
    run: tuple[int, int],
    longest_gap: float,
) -> Iterator[tuple[int, int]]:
    """The pieces of a run between gaps that are too long."""
    life = allocation.lives[buffer_id]
    first, last = run
    for k in range(first, last):
        if worth.gap_s(life, k) > longest_gap * life.copy_s:
            yield first, k
            first = k + 1
    yield first, last
