"""Batches of games as training data: what was seen, done and obtained at each access.

Rewards are latency saved less what the access could save at best: 0 is perfect, and the
sum over a game is what it lost, -1 for keeping everything.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_malloc.agent import parallel, rollout
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.lessons import Lesson
from jax_malloc.agent.network import MuZeroNetwork

# A demonstrated action's share of the policy target; the rest goes to all actions.
_CERTAINTY = 0.9


class Positions(NamedTuple):
    """Positions of games, one game's after another, `[R, ...]`.

    observation: `[R, F]` float16. action: int8. reward: float32, of the action.
    policy: `[R, 3]`, the target. root: float32, the search's value. value: float32, the
    target. left: int32, positions to the end of the game, this one included.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    policy: np.ndarray
    root: np.ndarray
    value: np.ndarray
    left: np.ndarray


def play(
    config: TrainConfig,
    network: MuZeroNetwork,
    params: dict,
    lessons: Sequence[Lesson],
    seed: int,
) -> tuple[Positions, dict[str, float]]:
    """One batch of games of equal board length, sharded over this process's devices.

    Returns: the positions, and what the games lost in the mean, by the name "lost".
    """
    games = _roll(
        network,
        params,
        lessons,
        seed,
        actions=np.full((len(lessons), lessons[0].length), -1, np.int32),
        num_simulations=config.num_simulations,
    )
    rows, lost = _positions(config.trace, games, lessons)
    return rows, {"lost": float(lost.mean())}


def demonstrate(
    network: MuZeroNetwork,
    params: dict,
    lessons: Sequence[Lesson],
    actions: Sequence[np.ndarray],
    *,
    num_simulations: int = 0,
) -> Positions:
    """Given games, one `[n]` string of actions per lesson, as training data.

    Args:
      num_simulations: makes no difference to what is learnt; that of as many games of
        self-play saves compiling.
    """
    length = lessons[0].length
    padded = np.stack([np.pad(a, (0, length - len(a))) for a in actions])
    games = _roll(
        network,
        params,
        lessons,
        0,
        actions=padded.astype(np.int32),
        num_simulations=num_simulations,
    )
    taken = jax.nn.one_hot(games.moves.action, games.policy.shape[-1])
    policy = _CERTAINTY * taken + (1 - _CERTAINTY) / games.policy.shape[-1]
    rows, _ = _positions(1.0, games._replace(policy=policy), lessons)
    return rows


def _roll(network, params, lessons, seed, *, actions, num_simulations):
    mesh = parallel.own_devices()
    board = jax.tree.map(lambda *x: np.stack(x), *[x.board for x in lessons])
    outlook = jax.tree.map(lambda *x: np.stack(x), *[x.outlook for x in lessons])
    temperature = np.ones(len(lessons), np.float32)
    if len(lessons) % mesh.size == 0:
        params = parallel.local(mesh, params)
        board, outlook, temperature, actions = parallel.local(
            mesh, (board, outlook, temperature, actions), split=True
        )
    return rollout.play(
        network,
        params,
        jax.random.key(seed),
        board,
        outlook,
        temperature,
        actions=actions,
        slots=max(x.slots for x in lessons),
        num_simulations=num_simulations,
        batched=True,
        record=True,
    )


def _positions(trace, games, lessons):
    """Flat positions, and `[G]` what each game lost in units of its scale."""
    num = np.array([x.board.num_accesses for x in lessons])
    saving = np.stack([x.outlook.saving for x in lessons])
    scale = np.array([x.scale for x in lessons])
    real = np.arange(saving.shape[1]) < num[:, None]
    reward = np.asarray(games.moves.reward) - saving
    reward = np.where(real, reward / scale[:, None], 0).astype(np.float32)
    root = np.where(real, games.value, 0).astype(np.float32)
    rows = Positions(
        observation=np.asarray(games.observation),
        action=np.maximum(games.moves.action, 0).astype(np.int8),
        reward=reward,
        policy=np.asarray(games.policy, np.float32),
        root=root,
        value=np.asarray(value_targets(reward, root, trace)),
        left=np.maximum(num[:, None] - np.arange(saving.shape[1]), 0).astype(np.int32),
    )
    return jax.tree.map(lambda x: x[real], rows), reward.sum(axis=1)


@functools.partial(jax.jit, static_argnames="trace")
def value_targets(reward: jax.Array, root: jax.Array, trace: float) -> jax.Array:
    """TD(lambda) targets of `[G, N]` games, 0 past their ends, without discount.

    Args:
      reward: of each action. root: value of each position by the search.
      trace: lambda; 1 is the outcome, 0 the value one step ahead.
    """
    after = jnp.pad(root[:, 1:], ((0, 0), (0, 1)))

    def back(ahead, now):
        reward, after = now
        target = reward + (1 - trace) * after + trace * ahead
        return target, target

    start = jnp.zeros(len(reward), reward.dtype)
    _, target = jax.lax.scan(back, start, (reward.T, after.T), reverse=True)
    return target.T
