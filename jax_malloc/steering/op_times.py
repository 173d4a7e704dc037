"""How long ops take under placements, learned from every compilation.

The two-point model knows an op from two placements, and a third one can be far off:
tilings change. Each compiled text is one more observation of every op. Between them,
an op takes its base plus a cost per access in slow memory; both are estimated by
Bayesian linear regression around the two-point model, and a placement that has been
observed has the observed time.
"""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from frontends.program import Program
from hwmodel import simulator
from jax_malloc.problem import Problem

# Prior standard deviations: of an op's base and of the cost of any access, as shares of
# its time with everything slow, and of an access's cost, as a share of that too. The
# placement of one small operand can change the tiling and with it the whole op.
_BASE_STD = 0.25
_ACCESS_STD = 0.1
_COST_STD = 0.5
_NOISE_STD = 0.01
# Accesses to less than this share of the bytes that an op touches do not make another
# placement of it.
_MIN_SHARE = 1e-3


class OpTimes:
    """Seconds of every op by which of its accesses are served from fast memory.

    Args:
      problem: the program on the machine; its latency model is the prior.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        num_ops = len(problem.program.ops)
        order = np.argsort(problem.access_op, kind="stable")
        share = (
            problem.access_bytes
            / np.maximum(problem.slow_bytes, 1.0)[problem.access_op]
        )
        self._order = order[share[order] >= _MIN_SHARE]
        self._starts = np.searchsorted(
            problem.access_op[self._order], np.arange(num_ops + 1)
        )
        model = problem.latency
        cost = model.slope_s_per_byte[problem.access_op] * problem.access_bytes
        small = np.where(share >= _MIN_SHARE, 0.0, cost)
        base = model.base_s + np.bincount(
            problem.access_op, weights=small, minlength=num_ops
        )
        twins: dict[tuple, list[int]] = collections.defaultdict(list)
        for t in range(num_ops):
            twins[self._kind(t)].append(t)
        self._ops: list[_OpTime] = [None] * num_ops
        for same in twins.values():
            shared = _OpTime(
                float(base[same].mean()),
                float(model.floor_s[same].min()),
                np.mean([cost[self._rows(t)] for t in same], axis=0),
            )
            for t in same:
                self._ops[t] = shared
        for t, op in enumerate(problem.program.ops):
            slow = max(op.estimates, key=lambda e: e.slow_bytes, default=None)
            if slow is not None and self._is_all_slow(t, slow.slow_bytes):
                self._observe(t, np.zeros(len(self._rows(t)), bool), slow.cycles)

    def sampled(self, rng: np.random.Generator) -> OpTimes:
        """One guess at what the times could be, given all that was observed.

        Searching under guesses asks where little is known, and less and less elsewhere:
        Thompson sampling.
        """
        guess = copy.copy(self)
        sampled = {id(op): op.sampled(rng) for op in self._ops}
        guess._ops = [sampled[id(op)] for op in self._ops]
        return guess

    def observe(self, compiled: Program) -> None:
        """Learns from the same program with another mapping and its estimates."""
        fast = compiler_fast(self._problem, compiled)
        for t, op in enumerate(compiled.ops):
            mine = fast[self._rows(t)]
            # With one estimate only, it is that of the slow text.
            if len(op.estimates) > 1 and mine.any():
                fewest = min(op.estimates, key=lambda e: e.slow_bytes)
                self._observe(t, mine, fewest.cycles)

    def timeline(
        self, fast: np.ndarray, copies: Sequence[simulator.Copy]
    ) -> simulator.Timeline:
        """When everything happens.

        Args:
          fast: `[M]` bool, accesses that are served from fast memory.
          copies: what is moved.
        """
        problem = self._problem
        duration = self.durations_s(fast)
        model = problem.latency._replace(
            floor_s=duration,
            base_s=duration,
            slope_s_per_byte=np.zeros_like(duration),
        )
        slow_bytes = np.bincount(
            problem.access_op,
            weights=np.where(fast, 0.0, problem.access_bytes),
            minlength=len(duration),
        )
        return simulator.simulate(model, slow_bytes, copies, problem.accelerator)

    def durations_s(self, fast: np.ndarray) -> np.ndarray:
        """`[T]` seconds of each op, all its executions."""
        ordered = fast[self._order]
        bounds = itertools.pairwise(self._starts.tolist())
        return np.array(
            [
                op.seconds(ordered[begin:end])
                for op, (begin, end) in zip(self._ops, bounds, strict=True)
            ]
        )

    def _kind(self, t: int) -> tuple:
        """Equal for ops that do the same on other buffers, as in another layer.

        What is learned of one of them holds for all.
        """
        op, rows = self._problem.program.ops[t], self._rows(t)
        return (
            op.opcode,
            op.count,
            op.matmul_flops,
            max((e.cycles for e in op.estimates), default=0),
            tuple(self._problem.access_bytes[rows]),
            tuple(self._problem.access_writes[rows]),
        )

    def _rows(self, t: int) -> np.ndarray:
        """The accesses of an op that make a difference."""
        return self._order[self._starts[t] : self._starts[t + 1]]

    def _observe(self, t: int, fast: np.ndarray, cycles: int) -> None:
        op = self._problem.program.ops[t]
        # Estimates of copies inside fast memory are implausibly small.
        if op.opcode != "copy":
            seconds = cycles * op.count / self._problem.accelerator.clock_hz
            self._ops[t].observe(fast, seconds)

    def _is_all_slow(self, t: int, slow_bytes: int) -> bool:
        op = self._problem.program.ops[t]
        return slow_bytes >= 0.99 * sum(op.touched_bytes().values())


def compiler_fast(problem: Problem, compiled: Program) -> np.ndarray:
    """`[M]` bool: the accesses that the compiler's mapping serves from fast memory."""
    served = compiled.compiler_mapping.fast_accesses
    rows = zip(problem.access_op.tolist(), problem.access_buffer.tolist(), strict=True)
    return np.array([row in served for row in rows], bool)


class _OpTime:
    """Base and cost per slow access of one op, and what was observed."""

    def __init__(self, base_s: float, floor_s: float, cost_s: np.ndarray) -> None:
        self._prior = np.concatenate([[base_s], cost_s])
        usual = max(base_s + cost_s.sum(), 0.0)
        access_std = _COST_STD * cost_s + _ACCESS_STD * usual
        self._variance = np.concatenate([[_BASE_STD * usual], access_std]) ** 2
        self._noise = (_NOISE_STD * usual) ** 2
        self._floor_s = floor_s
        self._all_seen: dict[bytes, list[float]] = {}
        self._seen: dict[bytes, float] = {}
        self._known: dict[bytes, float] = {}
        self._weights = self._prior

    def observe(self, fast: np.ndarray, seconds: float) -> None:
        self._all_seen.setdefault(fast.tobytes(), []).append(seconds)
        self._seen = {k: float(np.mean(v)) for k, v in self._all_seen.items()}
        self._fit(self._prior, 0.0)

    def sampled(self, rng: np.random.Generator) -> _OpTime:
        """A draw from the posterior: what a draw from the prior has to learn still."""
        guess = copy.copy(self)
        prior = rng.normal(self._prior, np.sqrt(self._variance))
        noise = rng.normal(0.0, self._noise**0.5, len(self._seen))
        guess._fit(prior, noise)
        return guess

    def _fit(self, prior: np.ndarray, noise: npt.ArrayLike) -> None:
        """The weights after all observations."""
        self._weights, self._known = prior, dict(self._seen)
        if not self._seen or not self._noise:
            return
        rows = [np.frombuffer(key, bool) for key in self._seen]
        design = np.array([np.concatenate([[1.0], ~row]) for row in rows])
        residual = np.array(list(self._seen.values())) + noise - design @ prior
        spread = design * self._variance
        covariance = spread @ design.T + self._noise * np.eye(len(rows))
        self._weights = prior + spread.T @ np.linalg.solve(covariance, residual)

    def seconds(self, fast: np.ndarray) -> float:
        key = fast.tobytes()
        known = self._known.get(key)
        if known is None:
            cost = np.maximum(self._weights[1:], 0.0)
            known = float(self._weights[0] + cost[~fast].sum())
            known = self._known[key] = max(known, self._floor_s, 0.0)
        return known
