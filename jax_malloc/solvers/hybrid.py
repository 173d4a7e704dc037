"""The default solver: linear programming, the classical solvers, the agent, a search.

    greedy ---------------+
    compiler's mapping ---+--> polish each --> ruin and recreate on the best
    linear program -------+
    agent ----------------+

As soon as a mapping is proven to be within a hundredth of a percent of the optimum,
that is it: to within as much, the result is never worse than any part. The agent plays
games of its policy alone, and changes the best of them; with little time there are only
the others. The compiler's mapping has no offsets in HLO text; it is packed anew as far
as it fits.
"""

from __future__ import annotations

import time

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import compiler_mapping, greedy, milp, muzero
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.polish import polish

# Compiling and playing the agent's games once takes about this long, and cannot be cut
# short: with less time than that, the search gets all of it.
_AGENT_S = 8.0
# Steps of the search without a deadline: a number, not a time, so that a seed gives the
# same plan everywhere. A step costs more in a long program.
_MIN_STEPS, _MAX_STEPS = 50, 1000
_SEARCHED_USES = 600_000
_LINEAR_SHARE = 0.3  # of the time until the deadline
_AGENT_SHARE = 0.4  # of what is left then
_GOOD_ENOUGH = 1e-4


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best mapping of all parts; with a deadline that is over, the greedy one."""
    candidates = [greedy.solve(problem, seed=seed, deadline_s=deadline_s)]
    if is_over(deadline_s):
        return candidates[0]
    compiled = compiler_mapping.from_compiler(problem)
    if compiled is not None:
        candidates.append(compiled)

    def latency_s(mapping: Mapping) -> float:
        return problem.evaluate(mapping).latency_s

    def polished_best() -> Mapping:
        polished = [
            polish(problem, m, deadline_s=deadline_s, seed=seed) for m in candidates
        ]
        return min(candidates + polished, key=latency_s)

    best = polished_best()
    if is_over(deadline_s):
        return best
    planned, bound_s = milp.solve_and_bound(
        problem,
        deadline_s=_share(deadline_s, _LINEAR_SHARE),
        good_enough=_GOOD_ENOUGH,
        known_s=latency_s(best),
    )
    target_s = bound_s * (1 + _GOOD_ENOUGH)
    candidates = [best, planned]
    if latency_s(best) > target_s:
        best = polished_best()
    if latency_s(best) <= target_s or is_over(deadline_s):
        return best
    if deadline_s is None or deadline_s - time.monotonic() > _AGENT_S:
        played = muzero.play(
            muzero.pretrained(),
            problem,
            seed=seed,
            deadline_s=_share(deadline_s, _AGENT_SHARE),
            rounds=muzero.POLICY,
        )
        candidates = [best, played]
        best = polished_best()
    steps = _SEARCHED_USES // max(len(problem.access_op), 1)
    steps = min(max(steps, _MIN_STEPS), _MAX_STEPS)
    return polish(
        problem,
        best,
        seed=seed,
        deadline_s=deadline_s,
        steps=None if deadline_s is not None else steps,
        target_s=target_s,
    )


def _share(deadline_s: float | None, share: float) -> float | None:
    """The deadline of a part that may take a share of the time that is left."""
    if deadline_s is None:
        return None
    now = time.monotonic()
    return now + share * (deadline_s - now)
