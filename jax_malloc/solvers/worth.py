"""What a stay in fast memory is worth: the order in which solvers try them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from hwmodel import latency as latency_lib
from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import Life

# `{buffer_id: a factor for each use}`: above others, what is tried sooner.
Guide = Mapping[int, Sequence[float]]


class Worth:
    """Time saved per byte and time of fast memory, for runs of uses.

    clock: `[T + 1]` seconds of the all-in-slow-memory program before each op.
    weights: `{buffer_id: seconds saved by each use alone}`, times the guide's factor.
    """

    def __init__(
        self, problem: Problem, lives: dict[int, Life], guide: Guide | None = None
    ) -> None:
        model = problem.latency
        slow = latency_lib.op_latency_s(model, problem.slow_bytes)
        self.clock: list[float] = [0.0, *np.cumsum(slow).tolist()]
        self.weights: dict[int, list[float]] = {}
        self._sums: dict[int, list[float]] = {}
        for b, life in lives.items():
            weights = []
            for use in life.uses:
                saved = 0.0
                for t, touched in use.accesses:
                    bytes_left = problem.slow_bytes[t] - touched
                    fast = model.base_s[t] + model.slope_s_per_byte[t] * bytes_left
                    saved += float(slow[t] - max(model.floor_s[t], fast))
                weights.append(saved)
            if guide is not None:
                weights = [s * g for s, g in zip(weights, guide[b], strict=True)]
            self.weights[b] = weights
            self._sums[b] = [0.0, *itertools.accumulate(weights)]

    def gap_s(self, life: Life, k: int) -> float:
        """Seconds between use k of a buffer and the one after it."""
        return self.clock[life.uses[k + 1].begin] - self.clock[life.uses[k].end]

    def longest_gap(self, life: Life, first: int, last: int) -> int:
        """The use in `[first, last)` after which the next one is furthest away."""
        return max(range(first, last), key=lambda k: self.gap_s(life, k))

    def held_s(self, life: Life, first: int, last: int) -> float:
        """Seconds from the begin of use `first` to the end of use `last`."""
        return self.clock[life.uses[last].end] - self.clock[life.uses[first].begin]

    def density(self, life: Life, first: int, last: int, exponent: float) -> float:
        """Seconds saved by uses `[first, last]` over (granules x seconds)**exponent.

        The time in fast memory counts from the first use to the last, and the copies
        that begin and end it.
        """
        sums = self._sums[life.buffer_id]
        copies = life.uses[first].reads + life.needs_eviction(first, last)
        held = self.held_s(life, first, last) + life.copy_s * copies
        saved = sums[last + 1] - sums[first]
        return saved / max(life.granules * held, 1e-30) ** exponent
