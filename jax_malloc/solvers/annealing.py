"""Simulated annealing from greedy: the strongest search without learning that we know.

    greedy ---> small changes ---> ruin and recreate, ever colder ---> small changes
                                   the best of all mappings is kept

A neighbour is a stretch of the schedule that is taken out and filled again
(`ruin_recreate`), which moves many buffers at once and is valid and timed exactly; a
change to one access alone would mostly break what is around it. A slower neighbour is
accepted with the probability of Metropolis, at temperatures that fall by a constant
factor over the share of the budget that is used.

Tuned on random programs (`generate`) and on training and validation families of the
corpus, at 1 to 12 seconds each; on nothing that results are reported for. There,
starting temperatures from 1e-4 to 3e-3 of the latency end within 0.1 % of each other in
the mean, less than seeds do; small ruins matter more.

Source: Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing", Science
220, 1983; with ruin and recreate as in Schrimpf et al., 2000.
"""

from __future__ import annotations

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import greedy
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.polish import improve
from jax_malloc.solvers.ruin_recreate import RuinRecreate, cooling
from jax_malloc.solvers.worth import Worth

# Steps without a deadline, so that a seed gives the same plan everywhere: a step costs
# more in a long program.
_MIN_STEPS, _MAX_STEPS = 1_000, 20_000
_SEARCHED_USES = 12_000_000


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    steps: int | None = None,
) -> Mapping:
    """The best mapping met on the way from greedy's; never slower than that.

    Args:
      problem, seed, deadline_s: as for every solver. The schedule ends with the
        deadline.
      steps: of a search without a deadline; None chooses by the program's length.
    """
    start = greedy.solve(problem, seed=seed, deadline_s=deadline_s)
    if is_over(deadline_s):
        return start
    allocation = Allocation.from_mapping(problem, start)
    worth = Worth(problem, allocation.lives)
    improve(allocation, worth, deadline_s=deadline_s)
    if deadline_s is None and steps is None:
        steps = _SEARCHED_USES // max(len(problem.access_op), 1)
        steps = min(max(steps, _MIN_STEPS), _MAX_STEPS)
    RuinRecreate(allocation, worth, seed).run(
        steps if deadline_s is None else None,
        deadline_s,
        temperature_s=cooling(allocation.latency_s),
    )
    improve(allocation, worth, deadline_s=deadline_s)
    best = allocation.to_mapping()
    return min(start, best, key=lambda m: problem.evaluate(m).latency_s)
