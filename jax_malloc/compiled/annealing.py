"""Simulated annealing over the action strings of one game: what is around the loops."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from jax_malloc.compiled import kernels
from jax_malloc.compiled.kernels import Proposals, Walk
from jax_malloc.compiled.tables import COLUMNS, Floats, Ints, Tables, neighbours

# Units of temperature, a thousandth of the all-slow latency each.
_HOT, _COLD = 1.0, 0.02
_LEAST_WEIGHT = 0.1  # of a decision on nothing, of the mean weight
_CHUNK_S = 0.05  # between looks at the clock
_UNIFORM = (0.4, 0.35, 0.25)  # of NO_COPY, COPY and DROP, where nothing is known


def anneal(
    t: Tables,
    actions: Ints,
    *,
    seed: int,
    tries: int | None = None,
    deadline_s: float | None = None,
    weights: NDArray[np.floating] | None = None,
    prior: NDArray[np.floating] | None = None,
    hot: float = _HOT,
) -> Walk:
    """The search from the game of `[N]` actions, cooling down along tries or time.

    Args:
      t: the board's tables.
      actions: to begin with; whatever is not legal falls back.
      seed: of all draws.
      tries: changes to try; None goes on until the deadline.
      deadline_s: absolute, on the clock of `time.monotonic()`.
      weights: `[N]` how often each decision is changed; None, by what is at stake.
      prior: `[N, 3]` probabilities of the new action; None, the same everywhere.
      hot: temperature at the start, units.
    Raises:
      ValueError: neither tries nor a deadline.
    """
    if tries is None and deadline_s is None:
        raise ValueError("annealing needs a number of tries or a deadline.")
    n = len(t.op)
    walk = start(t, actions)
    draws = proposals(
        t,
        at_stake(t) if weights is None else np.asarray(weights, np.float64),
        np.tile(_UNIFORM, (n, 1)) if prior is None else prior,
    )
    rng = np.random.default_rng(seed)
    began_s, done, chunk = time.monotonic(), 0, 64
    while True:
        now_s = time.monotonic()
        share = 0.0 if tries is None else done / tries
        if deadline_s is not None:
            share = max(share, (now_s - began_s) / max(deadline_s - began_s, 1e-9))
        if share >= 1:
            return walk
        if tries is not None:
            chunk = min(chunk, tries - done)
        cool = (_COLD / hot) ** share
        kernels.run(t, draws, walk, rng, chunk, hot * cool, hot * cool)
        done += chunk
        # Without a deadline the chunks are fixed, so that a seed repeats.
        took_s = time.monotonic() - now_s
        if deadline_s is not None:
            chunk = int(np.clip(chunk * _CHUNK_S / max(took_s, 1e-4), 8, 4 * chunk))
        else:
            chunk = 256


def at_stake(t: Tables) -> Floats:
    """`[N]` how much depends on each decision: the root of its time in slow memory."""
    root = np.sqrt(t.slow_time)
    return root + _LEAST_WEIGHT * root.mean() + 1e-9


def proposals(t: Tables, weights: Floats, prior: NDArray[np.floating]) -> Proposals:
    """Proposals that draw decisions by `[N]` weights and actions by `[N, 3]` prior."""
    following, before = neighbours(t)
    return Proposals(
        np.cumsum(weights),
        np.cumsum(prior, axis=1, dtype=np.float64),
        following,
        before,
    )


def start(t: Tables, actions: Ints) -> Walk:
    """A walk that begins at the game of `[N]` actions."""
    actions = np.array(actions[: len(t.op)], np.int32)
    moves = np.zeros((len(t.op), len(COLUMNS)), np.int32)
    kernels.play(t, kernels.init(t), actions, moves, 0, len(t.op))
    actions = moves[:, 0].copy()
    saved = kernels.saving(t, moves)
    return Walk(actions, moves, actions.copy(), moves.copy(), np.array([saved, saved]))
