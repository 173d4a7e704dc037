"""Ruin and recreate: a search that takes stays out and refills the hole.

    ruin       some stays of one stretch of the schedule; or all that are in the way of
               one use in slow memory, at one offset; or some around a stall
    recreate   greedily, in a perturbed order
    accept     what is no slower; or, while it is warm, what is not much slower

Source: Schrimpf et al., "Record Breaking Optimization Results Using the Ruin and
Recreate Principle", J. Comput. Phys. 159, 2000.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.stay import Stay
from jax_malloc.solvers.worth import Worth

# Each step draws one of each.
_RULES = (
    FitRule.BEST_TOP,
    FitRule.BEST_TOP,
    FitRule.BEST,
    FitRule.LOWEST,
    FitRule.HIGHEST,
)
_EXPONENTS = (1.0, 0.5, 0.5, 0.0)  # of size and time, in the order of the refill
_NOISE = (0.0, 0.3, 0.8)  # of that order, in logarithms of density
_RUINED = (1, 2, 4, 8, 8, 16)  # stays taken out of a stretch, at most
_REACH = (1, 2, 4, 8)  # ops on either side of it
# How often, of all steps and draws.
_FOR_A_USE = 0.5
_AT_A_STALL = 0.2
_PART_OF_RUN = 0.5
_MORE_RUINED = 0.3
_LONGER_RUN = 0.2
_RETIME = 0.1
_SPLIT_AT_LONGEST_GAP = 0.7
_MOST_RUNS = 40  # tried when a hole is refilled
_MOST_DRAWS = 20  # of a use, until one is in slow memory


class _Ruin(NamedTuple):
    """What to take out of ops `[begin, end)`, and the run to put in first, if any."""

    stays: list[Stay]
    begin: int
    end: int
    run: tuple[int, int, int] | None = None


class RuinRecreate:
    """The search on one allocation, which it changes in place."""

    def __init__(self, allocation: Allocation, worth: Worth, seed: int) -> None:
        self._allocation, self._worth = allocation, worth
        self._rng = random.Random(seed)
        self._num_ops = len(allocation.problem.program.ops)
        self._uses: list[tuple[int, int]] = []
        self._uses_at: list[list[tuple[int, int]]] = [[] for _ in range(self._num_ops)]
        for b, life in allocation.lives.items():
            for k, use in enumerate(life.uses):
                self._uses.append((b, k))
                for t in dict.fromkeys(t for t, _ in use.accesses):
                    self._uses_at[t].append((b, k))
        weights = (max(worth.weights[b][k], 0.0) for b, k in self._uses)
        self._cumulative = list(itertools.accumulate(weights))

    def run(
        self,
        steps: int | None,
        deadline_s: float | None,
        target_s: float = 0.0,
        temperature_s: Callable[[float], float] | None = None,
    ) -> None:
        """Searches; afterwards the allocation is no slower than before.

        Args:
          steps: at most; None, until the deadline.
          deadline_s: absolute, on the clock of `time.monotonic()`.
          target_s: a latency that is good enough to stop at.
          temperature_s: by how much slower a change may be that is accepted one time in
            e (Metropolis), for every share of the budget from 0 to 1; None, by nothing.
            The budget is the steps, or the time where there are none.
        Raises:
          ValueError: neither is given.
        """
        if steps is None and deadline_s is None:
            raise ValueError("a search needs a number of steps or a deadline.")
        if not self._uses or self._cumulative[-1] <= 0:
            return
        begin_s = time.monotonic()
        state, state_s = self._allocation.save(), self._allocation.latency_s
        best, best_s = state, state_s
        for step in itertools.count() if steps is None else range(steps):
            if is_over(deadline_s) or best_s <= target_s:
                break
            slack_s = 0.0
            if temperature_s is not None:
                share = (
                    step / steps
                    if steps is not None
                    else (time.monotonic() - begin_s) / (deadline_s - begin_s)
                )
                slack_s = temperature_s(share) * self._rng.expovariate(1.0)
            self._step()
            if self._allocation.latency_s <= state_s + slack_s:
                state, state_s = self._allocation.save(), self._allocation.latency_s
                if state_s <= best_s:
                    best, best_s = state, state_s
            else:
                self._allocation.restore(state)
        self._allocation.restore(best)

    def _step(self) -> None:
        kind = self._rng.random()
        if kind < _FOR_A_USE:
            ruin = self._for_a_use()
        elif kind < _FOR_A_USE + _AT_A_STALL:
            ruin = self._at_a_stall()
        else:
            ruin = self._around(self._rng.randrange(self._num_ops))
        self._allocation.remove(ruin.stays)
        if ruin.run is not None:
            self._allocation.try_place(*ruin.run, self._rng.choice(_RULES))
        begin = min([s.begin for s in ruin.stays] + [ruin.begin])
        end = max([s.end for s in ruin.stays] + [ruin.end])
        self._recreate(begin, end)
        if self._rng.random() < _RETIME:
            for stay in self._allocation.blocking_stays():
                if stay.begin < end and begin < stay.end:
                    self._allocation.retime(stay)

    def _around(self, t: int) -> _Ruin:
        """Some of the stays around an op."""
        reach = self._rng.choice(_REACH)
        begin, end = max(0, t - reach), min(self._num_ops, t + reach + 1)
        near = self._near(begin, end)
        number = min(len(near), self._rng.choice(_RUINED))
        return _Ruin(self._rng.sample(near, number), begin, end)

    def _at_a_stall(self) -> _Ruin:
        """Some of the stays around an op that waits for a copy."""
        stalls = self._allocation.stalls()
        if not stalls:
            return self._around(self._rng.randrange(self._num_ops))
        boundaries, seconds = zip(*stalls, strict=True)
        (boundary,) = self._rng.choices(boundaries, seconds)
        return self._around(min(boundary, self._num_ops - 1))

    def _for_a_use(self) -> _Ruin:
        """What is in the way of a use that is in slow memory, at one offset."""
        rng, allocation = self._rng, self._allocation
        for _ in range(_MOST_DRAWS):
            ((b, k),) = rng.choices(self._uses, cum_weights=self._cumulative)
            run = self._slow_run(b, k)
            if run is not None:
                break
        else:
            return self._around(rng.randrange(self._num_ops))
        first, last = run
        if first < last and rng.random() < _PART_OF_RUN:
            first, last = rng.randint(first, k), rng.randint(k, last)
        life = allocation.lives[b]
        begin = max(0, life.uses[first].begin - rng.randrange(4))
        end = min(self._num_ops, life.uses[last].end + rng.randrange(3))
        near = self._near(begin, end)
        offset = rng.choice(self._edges(near, life.granules, begin, end))
        keys = allocation.in_the_way((b, first, last), offset, begin, end)
        ruined = [s for s in near if s.key in keys]
        if rng.random() < _MORE_RUINED:
            rest = [s for s in near if s.key not in keys]
            ruined += rng.sample(rest, min(len(rest), rng.randrange(4)))
        return _Ruin(ruined, begin, end, (b, first, last))

    def _near(self, begin: int, end: int) -> list[Stay]:
        stays = self._allocation.all_stays()
        return [s for s in stays if s.begin < end and s.end > begin]

    def _edges(self, near: list[Stay], size: int, begin: int, end: int) -> list[int]:
        """Offsets at which a buffer would touch a neighbour or an end of the memory."""
        problem, lives = self._allocation.problem, self._allocation.lives
        highest = int(problem.op_capacity_granules[begin:end].min()) - size
        edges = [0, highest]
        for stay in near:
            top = stay.offset + lives[stay.buffer_id].granules
            edges += [stay.offset, top - size]
        return [e for e in edges if 0 <= e <= highest] or [0]

    def _slow_run(self, buffer_id: int, k: int) -> tuple[int, int] | None:
        """The longest run of slow uses around use k; None if that is in fast memory."""
        for first, last in self._allocation.slow_runs(buffer_id):
            if first <= k <= last:
                return first, last
        return None

    def _recreate(self, begin: int, end: int) -> None:
        """Tries runs with a use in ops `[begin, end)` until none is left."""
        rng, allocation = self._rng, self._allocation
        rule = rng.choice(_RULES)
        todo = self._order(begin, end)[:_MOST_RUNS]
        while todo:
            pieces = []
            for b, first, last in todo:
                if allocation.try_place(b, first, last, rule) or first == last:
                    continue
                k = self._split(b, first, last)
                pieces += [(b, first, k), (b, k + 1, last)]
            todo = pieces

    def _order(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """Slow runs `(buffer, first, last)` by perturbed density."""
        rng, allocation = self._rng, self._allocation
        lives = allocation.lives
        exponent, noise = rng.choice(_EXPONENTS), rng.choice(_NOISE)
        touched: dict[int, set[int]] = {}
        for t in range(begin, end):
            for b, k in self._uses_at[t]:
                touched.setdefault(b, set()).add(k)
        order = []
        runs = (
            (buffer_id, *run)
            for buffer_id, used in sorted(touched.items())
            for run in allocation.slow_runs(buffer_id)
            if not used.isdisjoint(range(run[0], run[1] + 1))
        )
        for b, first, last in runs:
            if rng.random() < _LONGER_RUN:  # into a stay beside it, if there is one
                first, last = max(0, first - 1), min(len(lives[b].uses) - 1, last + 1)
            density = self._worth.density(lives[b], first, last, exponent)
            order.append((density * math.exp(rng.gauss(0, noise)), b, first, last))
        order.sort(reverse=True)
        return [run for _, *run in order]

    def _split(self, buffer_id: int, first: int, last: int) -> int:
        """The use after which a run is cut in two."""
        if self._rng.random() >= _SPLIT_AT_LONGEST_GAP:
            return self._rng.randrange(first, last)
        life = self._allocation.lives[buffer_id]
        return self._worth.longest_gap(life, first, last)
