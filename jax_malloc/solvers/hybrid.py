"""The default solver: the agent, the classical solvers, and a polish of the best.

    greedy ---------------+
    compiler's mapping ---+--> polish each --> ruin and recreate on the best
    agent's games --------+

Never worse than its parts; of the agent these are games of the policy alone, and with
little time only the others. The compiler's mapping has no offsets in HLO text; it
is packed anew as far as it fits.
"""

from __future__ import annotations

import time

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import compiler_mapping, greedy, muzero
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.polish import polish

# Compiling and playing the agent's games once takes about this long, and cannot be cut
# short: with less time than that, the search gets all of it.
_AGENT_S = 8.0
# Steps of the search without a deadline: a number, not a time, so that a seed gives the
# same plan everywhere. A step costs more in a long program.
_MIN_STEPS, _MAX_STEPS = 50, 2000
_SEARCHED_USES = 300_000


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
    if deadline_s is None or deadline_s - time.monotonic() > _AGENT_S:
        candidates.append(
            muzero.play(
                muzero.pretrained(),
                problem,
                seed=seed,
                deadline_s=deadline_s,
                rounds=muzero.POLICY,
            )
        )
    polished = [
        polish(problem, m, deadline_s=deadline_s, seed=seed) for m in candidates
    ]
    best = min(candidates + polished, key=lambda m: problem.evaluate(m).latency_s)
    steps = _SEARCHED_USES // max(len(problem.access_op), 1)
    steps = min(max(steps, _MIN_STEPS), _MAX_STEPS)
    return polish(
        problem,
        best,
        seed=seed,
        deadline_s=deadline_s,
        steps=None if deadline_s is not None else steps,
    )
