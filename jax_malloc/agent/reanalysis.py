"""Reanalysis: stored games get the targets of a search with the latest parameters.

Source: Schrittwieser et al., "Online and Offline Reinforcement Learning by Planning
with a Learned Model", NeurIPS 2021. The search runs in the learned model, so it needs
the stored observations and no game.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

from jax_malloc.agent import search
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.memory import Replay
from jax_malloc.agent.network import MuZeroNetwork
from jax_malloc.agent.self_play import value_targets
from jax_malloc.game import NUM_ACTIONS


def refresh(
    config: TrainConfig,
    network: MuZeroNetwork,
    params: dict,
    memory: Replay,
    rng: np.random.Generator,
) -> None:
    """Makes the targets of `config.reanalysed` positions of the replay anew."""
    games = memory.some_games(rng, config.reanalysed)
    at = np.concatenate(games)
    rows = memory.read(at)
    key = jax.random.key(int(rng.integers(2**31)))
    choice = _search(network, params, key, rows.observation, config.num_simulations)
    root = np.asarray(choice.value, np.float32)
    value = np.empty_like(root)
    begin = 0
    for game in games:
        mine = slice(begin, begin + len(game))
        # A game cut short goes on from the value that was stored for its rest.
        cut = rows.left[mine.stop - 1] > 1
        reward = rows.reward[mine].copy()
        if cut:
            reward[-1] = rows.value[mine.stop - 1]
        value[mine] = _returns(reward, root[mine], config.trace)
        begin = mine.stop
    memory.write_targets(at, np.asarray(choice.policy), root, value)


@functools.partial(jax.jit, static_argnames=("network", "num_simulations"))
def _search(network, params, key, observation, num_simulations):
    # The observation begins with what is legal.
    observation = observation.astype(np.float32)
    return search.choose(
        network,
        params,
        key,
        observation,
        observation[:, :NUM_ACTIONS] > 0.5,
        num_simulations=num_simulations,
        temperature=np.ones(len(observation), np.float32),
    )


def _returns(reward: np.ndarray, root: np.ndarray, trace: float) -> np.ndarray:
    """`value_targets` of one game, in lengths that compile few times."""
    padding = (1 << (len(reward) - 1).bit_length()) - len(reward)
    both = (np.pad(x, (0, padding))[None] for x in (reward, root))
    return np.asarray(value_targets(*both, trace))[0, : len(reward)]
