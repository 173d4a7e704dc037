"""Improves a mapping: what does not pay goes, what fits comes in, then a search."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import side_by_side
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.greedy import construct, join
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.ruin_recreate import RuinRecreate, cooling
from jax_malloc.solvers.worth import Guide, Worth

_MOST_ROUNDS = 3
_FILL_EXPONENT = 0.3  # the best single one of greedy's
# Steps of a search without a deadline; a step costs more in a long program.
_MIN_STEPS, _MAX_STEPS = 1_000, 20_000
_SEARCHED_USES = 20_000_000
# Of a long program, its stretches are searched first; then the whole, begun colder.
_STRETCHES_SHARE, _COLD_SHARE = 0.85, 0.5
_STEPS_PER_ACCESS = 50  # in stretches, where a step takes as long in any program
_FIRST_SHARE = 0.5  # of the time, for all mappings alike
# A search that is shorter shows little; then fewer are begun. A longer program needs
# more steps, and each takes longer.
_WORTHWHILE_S, _WORTHWHILE_S_PER_PAIR = 0.1, 1e-6


def polish(
    problem: Problem,
    mapping: Mapping,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    steps: int | None = 0,
    target_s: float = 0.0,
    guide: Guide | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Mapping:
    """A mapping at least as fast as the given one.

    Args:
      mapping: valid; it may hold stays and copies that do not pay.
      seed: of the search.
      deadline_s: absolute, on the clock of `time.monotonic()`.
      steps: of ruin and recreate on the whole at most, of a long program also more of
        them on its stretches; None goes on until the deadline.
      target_s: a latency at which it may stop.
      guide: what the search tries first.
      is_stopped: True ends the search.
    Raises:
      ValueError: neither a number of steps nor a deadline.
    """
    before_s = problem.evaluate(mapping).latency_s
    allocation = Allocation.from_mapping(problem, mapping)
    worth = Worth(problem, allocation.lives)
    improve(allocation, worth, deadline_s=deadline_s)
    if steps != 0:
        guided = Worth(problem, allocation.lives, guide)
        _ruin_and_recreate(
            allocation, guided, seed, steps, deadline_s, target_s, is_stopped
        )
        improve(allocation, worth, deadline_s=deadline_s)
    return allocation.to_mapping() if allocation.latency_s < before_s else mapping


def _ruin_and_recreate(
    allocation: Allocation,
    worth: Worth,
    seed: int,
    steps: int | None,
    deadline_s: float | None,
    target_s: float,
    is_stopped: Callable[[], bool],
) -> None:
    """The search on all of a program; of a long one, first on its stretches."""
    search, cold = RuinRecreate(allocation, worth, seed), 0.0
    temperature_s = cooling(allocation.latency_s)
    problem = allocation.problem
    if side_by_side.is_long(problem):
        per_step = _STEPS_PER_ACCESS * len(problem.access_op) / num_steps(problem)
        side_by_side.search(
            problem,
            allocation.tables,
            search.values,
            allocation.state,
            seed,
            steps=None if steps is None else round(steps * per_step),
            deadline_s=share_of(deadline_s, _STRETCHES_SHARE),
            target_s=target_s,
            temperature_s=temperature_s,
            is_stopped=is_stopped,
        )
        cold = _COLD_SHARE
    search.run(
        steps,
        deadline_s,
        target_s,
        lambda share: temperature_s(cold + (1 - cold) * share),
        is_stopped,
    )


def search(
    problem: Problem,
    mappings: Sequence[Mapping],
    *,
    seed: int,
    deadline_s: float | None,
    target_s: float = 0.0,
    guide: Guide | None = None,
) -> Mapping:
    """Ruin and recreate from several mappings; the best that comes of any.

    The first half of the time goes to all of them alike, the rest to the best then:
    which one it is shows late, for each leads somewhere else. With little time only the
    first is searched from, and the fastest of the others. Where there are more cores
    and a deadline, the best is searched from with several seeds.

    Args:
      mappings: at least one, valid.
      seed: of all draws.
      deadline_s: absolute, on the clock of `time.monotonic()`. None makes it a number
        of steps, so that a seed gives the same plan everywhere.
      target_s: a latency at which it may stop.
      guide: what the search tries first.
    """

    def latency_s(mapping: Mapping) -> float:
        return problem.evaluate(mapping).latency_s

    if is_over(deadline_s):
        return min(mappings, key=latency_s)
    first, *others = mappings
    by_segments = {first.segments: first}
    for mapping in sorted(others, key=latency_s):
        by_segments.setdefault(mapping.segments, mapping)
    unlike = list(by_segments.values())[: affordable_searches(problem, deadline_s)]
    all_steps = num_steps(problem)
    threads = side_by_side.num_threads()

    def best_from(
        starts: Sequence[Mapping], share: float, seeds: Sequence[int]
    ) -> Mapping:
        """The best of searches from all starts, in a share of the time that is left."""
        end_s = share_of(deadline_s, share)

        def searched(i: int, is_stopped: Callable[[], bool]) -> Mapping:
            turns = math.ceil((len(starts) - i) / threads)
            return polish(
                problem,
                starts[i],
                seed=seeds[i],
                deadline_s=share_of(end_s, 1 / turns),
                steps=round(share * all_steps / len(starts)) if end_s is None else None,
                target_s=target_s,
                guide=guide,
                is_stopped=is_stopped,
            )

        found = side_by_side.run_all(searched, len(starts), threads)
        return min(found, key=latency_s)

    best = unlike[0]
    if len(unlike) > 1:
        best = best_from(unlike, _FIRST_SHARE, [seed] * len(unlike))
    # Without a deadline one, so that the plan does not depend on the machine.
    # Setting a search up holds Python's lock: no more than what the time is worth.
    number = 1
    if deadline_s is not None:
        number = min(threads, affordable_searches(problem, deadline_s))
    rest = 1.0 - _FIRST_SHARE if deadline_s is None and len(unlike) > 1 else 1.0
    best = best_from([best] * number, rest, range(seed + 1, seed + 1 + number))
    return min([best, *mappings], key=latency_s)


def num_steps(problem: Problem) -> int:
    """Of a search of the whole without a deadline."""
    steps = _SEARCHED_USES // max(len(problem.access_op), 1)
    return min(max(steps, _MIN_STEPS), _MAX_STEPS)


def affordable_searches(problem: Problem, deadline_s: float | None) -> int:
    """From how many mappings a `search` can begin, at least one.

    Of a long program it is one: its stretches keep all cores busy, and lead elsewhere
    of themselves.
    """
    if side_by_side.is_long(problem):
        return 1
    if deadline_s is None:
        return sys.maxsize
    pairs = len(problem.access_op) ** 2
    worthwhile_s = max(_WORTHWHILE_S, _WORTHWHILE_S_PER_PAIR * pairs)
    left_s = deadline_s - time.monotonic()
    return max(1, int(_FIRST_SHARE * left_s / worthwhile_s))


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
