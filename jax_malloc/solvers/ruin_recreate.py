"""Ruin and recreate: a search that takes stays out and refills the hole.

    ruin       some stays of one stretch of the schedule; or all that are in the way of
               one use in slow memory, at one offset; or some around a stall
    recreate   greedily, in a perturbed order
    accept     what is no slower; or, while it is warm, what is not much slower, with
               the probability of Metropolis

Temperatures fall by a constant factor over the share of the budget that is used.

The loops are those of `compiled.ruin`.

Source: Schrimpf et al., "Record Breaking Optimization Results Using the Ruin and
Recreate Principle", J. Comput. Phys. 159, 2000.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from jax_malloc.compiled import ruin, stays
from jax_malloc.compiled.stays import Lives, State
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.worth import Worth

# Temperatures, as shares of the program's latency.
_HOT, _COLD = 3e-4, 1e-6
# Seconds between looks at the clock, and at the temperature.
_CHUNK_S = 0.02
_CHUNKS = 100  # where there are only steps to go by


def cooling(latency_s: float) -> Callable[[float], float]:
    """Temperatures in seconds for shares of a budget, by the latency at the start."""
    return lambda share: latency_s * _HOT * (_COLD / _HOT) ** share


class RuinRecreate:
    """The search on one allocation, which it changes in place."""

    def __init__(self, allocation: Allocation, worth: Worth, seed: int) -> None:
        self._allocation = allocation
        self._rng = np.random.default_rng(seed)
        self.values = values_of(allocation, worth)

    def run(
        self,
        steps: int | None,
        deadline_s: float | None,
        target_s: float = 0.0,
        temperature_s: Callable[[float], float] | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Searches; afterwards the allocation is no slower than before.

        See `run` for what the arguments mean.
        """
        run(
            self._allocation.tables,
            self.values,
            self._allocation.state,
            self._rng,
            steps,
            deadline_s,
            target_s,
            temperature_s,
            is_stopped,
        )


def values_of(allocation: Allocation, worth: Worth) -> ruin.Values:
    """What the uses of an allocation are worth, as the loops see it."""
    weights = np.array([w for b in allocation.lives for w in worth.weights[b]], float)
    return ruin.Values(
        cumulative=np.cumsum(np.maximum(weights, 0.0)),
        sums=np.concatenate([[0.0], np.cumsum(weights)]),
        clock=np.array(worth.clock),
    )


def run(
    tables: Lives,
    values: ruin.Values,
    state: State,
    rng: np.random.Generator,
    steps: int | None,
    deadline_s: float | None,
    target_s: float = 0.0,
    temperature_s: Callable[[float], float] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Searches from a state, which is no slower afterwards.

    Args:
      steps: at most; None, until the deadline.
      deadline_s: absolute, on the clock of `time.monotonic()`.
      target_s: a latency that is good enough to stop at.
      temperature_s: by how much slower a change may be that is accepted one time in
        e (Metropolis), for shares of the budget from 0 to 1; None, by nothing. The
        budget is the steps, or the time where there are none.
      is_stopped: asked some fifty times a second; True ends the search.
    Raises:
      ValueError: neither is given.
    """
    if steps is None and deadline_s is None:
        raise ValueError("a search needs a number of steps or a deadline.")
    if not len(values.cumulative) or values.cumulative[-1] <= 0:
        return
    kept, best = stays.copy(state), stays.copy(state)
    began_s, done, chunk = time.monotonic(), 0, 1
    while (steps is None or done < steps) and not is_over(deadline_s):
        now_s = time.monotonic()
        if stays.latency_s(best) <= target_s or is_stopped():
            break
        if deadline_s is None:
            # Alike everywhere, so that a seed repeats.
            chunk = max(1, steps // _CHUNKS)
        if steps is not None:
            share = done / steps
            chunk = min(chunk, steps - done)
        else:
            share = (now_s - began_s) / (deadline_s - began_s)
        ruin.search(
            tables,
            values,
            state,
            kept,
            best,
            rng,
            chunk,
            0.0 if temperature_s is None else temperature_s(share),
            target_s,
        )
        done += chunk
        took_s = max(time.monotonic() - now_s, 1e-6)
        chunk = max(1, int(min(chunk * _CHUNK_S / took_s, 2 * chunk)))
    stays.assign(state, best)
