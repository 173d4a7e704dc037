"""The default solver: linear programming, the classical solvers, the agent, a search.

    greedy, as it is -----+
    and at prices --------+
    compiler's mapping ---+--> the best, polished ---+
    linear program -------+                          +--> ruin and recreate on each,
    agent: a game, an order, and what to try first --+    then on the best

As soon as a mapping is proven to be within a hundredth of a percent of the optimum,
that is it: to within as much, the result is never worse than any part in the time that
it was given. Linear programming is left out where the time is too short for it, and all
but greedy and the compiler's where there is time for one search only. Of a long program
(`side_by_side`), too, the search is worth more than anything else in the same time. It
begins from greedy's mapping unless another is clearly faster, and from the agent's even
where they are slower at first, for they lead elsewhere. The compiler's mapping has no
offsets in HLO text; it is packed anew as far as it fits.
"""

from __future__ import annotations

import time

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import compiler_mapping, greedy, guides, milp, muzero
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.polish import affordable_searches, polish, search

_GREEDY_SHARE = 0.15  # of the time until the deadline, for each
_LINEAR_SHARE = 0.3  # of what is left then
_LINEAR_S_PER_ACCESS = 3e-3  # in less than this it hardly ever finds anything
_LINEAR_ACCESSES = 400  # without a deadline; it takes seconds, as a rule
_AGENT_SHARE = 0.25  # and then
_GOOD_ENOUGH = 1e-4
# Times greedy's latency: from what is hardly faster a search mostly gets less far.
_CLEARLY_FASTER = 0.995


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best mapping of all parts; with a deadline that is over, the greedy one."""
    limit_s = share_of(deadline_s, _GREEDY_SHARE)
    candidates = [greedy.solve(problem, seed=seed, deadline_s=limit_s)]
    if is_over(deadline_s):
        return candidates[0]
    compiled = compiler_mapping.from_compiler(problem)
    if compiled is not None:
        candidates.append(compiled)
    if affordable_searches(problem, deadline_s) < 2:
        return search(problem, candidates, seed=seed, deadline_s=deadline_s)
    priced = guides.of_prices(problem)
    limit_s = share_of(deadline_s, _GREEDY_SHARE)
    candidates.append(greedy.solve(problem, deadline_s=limit_s, guide=priced))

    def latency_s(mapping: Mapping) -> float:
        return problem.evaluate(mapping).latency_s

    def polished(mapping: Mapping) -> Mapping:
        return polish(problem, mapping, deadline_s=deadline_s)

    plain, *others = map(polished, candidates)
    best = min([plain, *others], key=latency_s)
    if is_over(deadline_s):
        return best
    target_s = 0.0
    if _is_affordable(problem, deadline_s):
        planned, bound_s = milp.solve_and_bound(
            problem,
            deadline_s=share_of(deadline_s, _LINEAR_SHARE),
            good_enough=_GOOD_ENOUGH,
            known_s=latency_s(best),
        )
        target_s = bound_s * (1 + _GOOD_ENOUGH)
        if latency_s(best) > target_s:
            best = min([best, polished(planned)], key=latency_s)
        if latency_s(best) <= target_s or is_over(deadline_s):
            return best
    is_clear = latency_s(best) < _CLEARLY_FASTER * latency_s(plain)
    proposal = muzero.Proposal([], None)
    if affordable_searches(problem, deadline_s) > 1:
        proposal = muzero.propose(
            muzero.pretrained(),
            problem,
            seed=seed,
            deadline_s=share_of(deadline_s, _AGENT_SHARE),
        )
    found = search(
        problem,
        [best if is_clear else plain, *proposal.mappings],
        seed=seed,
        deadline_s=deadline_s,
        target_s=target_s,
        guide=proposal.guide,
    )
    return min([found, best], key=latency_s)


def _is_affordable(problem: Problem, deadline_s: float | None) -> bool:
    """Whether linear programming may come to an end in its share of the time."""
    decided = int(problem.eligible[problem.access_buffer].sum())
    if deadline_s is None:
        return decided <= _LINEAR_ACCESSES
    share_s = _LINEAR_SHARE * (deadline_s - time.monotonic())
    return share_s >= _LINEAR_S_PER_ACCESS * decided
