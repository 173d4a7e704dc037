"""Games of the policy alone in the compiled game: no compilation per program.

    state ---> sight ---> network, in NumPy ---> logits ---> action ---> state

Games go side by side, an access at a time, so that their observations are one matrix.
Memory and time are linear in the length of a program, so that long ones need no
windows: each decision sees the prices of the whole.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from jax_malloc import observation
from jax_malloc.agent.checkpoint import Agent
from jax_malloc.compiled import kernels
from jax_malloc.compiled.sight import Sight, look
from jax_malloc.compiled.tables import COLUMNS, Floats, Ints, Tables
from jax_malloc.game import NUM_ACTIONS

_EPSILON = 1e-6  # of flax.linen.LayerNorm
_IMPOSSIBLE = -1e9  # the logit of what is not legal
_LOOK_AT_CLOCK = 64  # accesses


class Games(NamedTuple):
    """What `G` games did.

    moves: `[G, N, 10]`, see `tables.COLUMNS`. policy: `[G, N, 3]` probabilities.
    saved: `[G]` units, by exact copy queues.
    """

    moves: Ints
    policy: Floats
    saved: Floats


def play(
    agent: Agent,
    t: Tables,
    sight: Sight,
    temperature: Floats,
    *,
    seed: int,
    deadline_s: float | None = None,
) -> Games | None:
    """Plays one game per entry of `temperature`; None if they would not end in time.

    Args:
      agent: of which only the policy plays.
      t, sight: of the board.
      temperature: `[G]` randomness of each game's choices; 0 is greedy.
      seed: of all draws.
    """
    number, n, rng = len(temperature), len(t.op), np.random.default_rng(seed)
    state = kernels.init(t)
    games = kernels.State(
        **{k: np.stack([x] * number) for k, x in state._asdict().items()}
    )
    seen = np.zeros((number, observation.size()))
    spare = np.zeros(len(t.floor))
    actions = np.zeros((number, n), np.int32)
    moves = np.zeros((number, n, len(COLUMNS)), np.int32)
    policy = np.zeros((number, n, NUM_ACTIONS))
    params = agent.params["params"]
    # The matrices are small: threads would wait for each other most of the time.
    with threadpool_limits(1, "blas"):
        for i in range(n):
            if i == 1:
                began_s = time.monotonic()  # the move before may have compiled
            if deadline_s is not None and i % _LOOK_AT_CLOCK == 0:
                now_s = time.monotonic()
                left_s = (now_s - began_s) / (i - 1) * (n - i) if i else 0.0
                if now_s + left_s >= deadline_s:
                    return None
            look(t, sight, games, i, seen, spare)
            logits = np.where(
                seen[:, :NUM_ACTIONS] > 0, logits_of(params, seen), _IMPOSSIBLE
            )
            noise = rng.gumbel(size=logits.shape) * temperature[:, None]
            actions[:, i] = np.argmax(logits + noise, axis=1)
            policy[:, i] = np.exp(logits - logits.max(axis=1, keepdims=True))
            kernels.play_one(t, games, i, actions, moves)
    policy /= policy.sum(axis=2, keepdims=True)
    saved = np.array([kernels.saving(t, m) for m in moves])
    return Games(moves, policy, saved)


def logits_of(params: dict, seen: Floats) -> Floats:
    """`[G, 3]` logits of `network.predict` after `network.represent`, in NumPy."""
    encoder, head = params["encoder"], params["policy_head"]
    x = _dense(encoder["layers_0"], seen.astype(np.float32))
    x = np.maximum(_layer_norm(encoder["layers_1"], x), 0)
    x = _dense(encoder["layers_3"], x)
    x = np.maximum(_layer_norm(encoder["layers_4"], x), 0)
    x = _layer_norm(params["latent_norm"], _dense(encoder["layers_6"], x))
    return _dense(head["layers_2"], np.maximum(_dense(head["layers_0"], x), 0))


def _dense(layer: dict, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def _layer_norm(layer: dict, x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=-1, keepdims=True)
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + _EPSILON)
    return (x - mean) / spread * layer["scale"] + layer["bias"]
