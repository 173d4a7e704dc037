"""Training: vectorised self-play, replay, updates, and evaluation on held-out programs.

    corpus -> self-play (one jit per board length) -> targets -> replay -> updates
                 ^                                                          |
                 +------------------------ parameters ----------------------+

One process, resumable: a run directory holds the latest state, the best checkpoint and
`metrics.csv`. Killed at any moment, it loses what came after the last evaluation.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.agent import checkpoint, rollout
from jax_malloc.agent.network import (
    MuZeroNetwork,
    NetworkConfig,
    to_scalar,
    to_two_hot,
)
from jax_malloc.board import Board
from jax_malloc.observation import Outlook
from jax_malloc.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    minutes: wall-clock length; the learning rate falls along it to a tenth.
    num_games: games side by side. num_simulations: of the search, per move.
    unroll: steps of learned dynamics that each update trains through.
    trace: lambda of the TD(lambda) value targets.
    replay_positions: size of the replay. updates: per batch of games, `batch` positions
    each.
    """

    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    seed: int = 0
    minutes: float = 30.0
    num_games: int = 64
    num_simulations: int = 16
    unroll: int = 5
    trace: float = 0.95
    replay_positions: int = 250_000
    updates: int = 40
    batch: int = 512
    learning_rate: float = 1e-3
    value_weight: float = 0.5
    evaluate_every_minutes: float = 3.0


_SHORTEST = 128


class Lesson(NamedTuple):
    """A problem prepared for training.

    scale: units of latency that keeping everything loses against everything in fast
    memory, the unit of rewards and values.
    """

    name: str
    board: Board
    outlook: Outlook
    scale: np.float32
    slots: int  # rows of the game's table of stays


class Positions(NamedTuple):
    """Replay rows: an observation and what followed it, `[R, ...]`.

    observation: `[R, F]` float16. action: `[R, K]`. reward: `[R, K]`. policy:
    `[R, K + 1, 3]`. value: `[R, K + 1]`. real: `[R, K + 1]` bool, before the game's
    end.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    policy: np.ndarray
    value: np.ndarray
    real: np.ndarray


class TrainState(NamedTuple):
    """What a run needs to go on."""

    params: dict
    opt_state: optax.OptState
    moves: int
    updates: int
    elapsed_s: float
    best: float


def prepare(problems: Sequence[Problem]) -> list[Lesson]:
    """Boards, outlooks and scales; problems with nothing to decide are left out."""
    lessons = []
    for problem in problems:
        board = board_lib.build(problem)
        if board.num_accesses == 0:
            continue
        # Powers of two only: each length compiles the self-play once.
        length = 1 << (len(board.access.op) - 1).bit_length()
        board = board_lib.build(problem, max(length, _SHORTEST))
        outlook = observation.outlook(board)
        keep_all = np.zeros(len(board.access.op), np.int32)
        slots = replay.slots_of(problem)
        moves = replay.play(board, keep_all, slots=slots)
        possible = float(outlook.saving.sum())
        lost = possible - float(moves.reward.sum())
        scale = np.float32(max(lost, 0.02 * possible, 1e-3))
        lessons.append(Lesson(problem.program.name, board, outlook, scale, slots))
    return lessons


def train(
    config: TrainConfig,
    corpus: Sequence[Problem],
    evaluate: Callable[[MuZeroNetwork, dict], dict[str, float]],
    run_dir: str,
    *,
    header: dict,
    report: Callable[[dict], None] = lambda row: None,
) -> None:
    """Runs until `config.minutes` of training have passed, resuming what `run_dir`
    holds.

    Args:
      corpus: problems to play. Those of one bucket are played together.
      evaluate: scores by name on held-out programs; "score" picks the best, lowest
        wins.
      run_dir: gets `state.msgpack`, `best.msgpack` (a checkpoint), `metrics.csv`.
      header: goes into the checkpoint: command, seed, machine, corpus.
      report: called with each row of metrics.
    """
    network = MuZeroNetwork(config.network)
    by_length = _by_length(prepare(corpus))
    os.makedirs(run_dir, exist_ok=True)
    state = _restore(config, network, run_dir)
    rng = np.random.default_rng((config.seed, state.updates))
    memory = Replay(config)
    metrics = _Metrics(os.path.join(run_dir, "metrics.csv"))
    began, evaluated = time.monotonic() - state.elapsed_s, -np.inf
    lengths = sorted(by_length)
    weights = np.array([len(by_length[n]) for n in lengths], float)
    losses: list[dict] = []
    while True:
        elapsed = time.monotonic() - began
        done = elapsed >= 60 * config.minutes
        if done or elapsed - evaluated >= 60 * config.evaluate_every_minutes:
            evaluated = elapsed
            scores = evaluate(network, state.params)
            # Evaluation is not training: its time does not count.
            began += time.monotonic() - began - elapsed
            row = {
                "minutes": round(elapsed / 60, 2),
                "moves": state.moves,
                "updates": state.updates,
                **{k: float(np.mean([x[k] for x in losses])) for k in _keys(losses)},
                **scores,
            }
            losses = []
            metrics.write(row)
            report(row)
            if scores["score"] < state.best:
                state = state._replace(best=scores["score"])
                checkpoint.save(
                    os.path.join(run_dir, "best.msgpack"),
                    config.network,
                    state.params,
                    {**header, "training": row},
                )
            state = state._replace(elapsed_s=elapsed)
            _save(run_dir, state)
        if done:
            return
        length = lengths[rng.choice(len(lengths), p=weights / weights.sum())]
        lessons = [
            by_length[length][k]
            for k in rng.integers(0, len(by_length[length]), config.num_games)
        ]
        played, summary = self_play(
            config, network, state.params, lessons, int(rng.integers(2**31))
        )
        memory.add(played)
        rate = config.learning_rate * (
            1 - 0.9 * min(1, elapsed / (60 * config.minutes))
        )
        params, opt_state, loss = update(
            config,
            network,
            state.params,
            state.opt_state,
            memory.sample(rng, config.updates * config.batch),
            jnp.float32(rate),
        )
        losses.append({**{k: float(v) for k, v in loss.items()}, **summary})
        state = state._replace(
            params=params,
            opt_state=opt_state,
            moves=state.moves + len(played.value),
            updates=state.updates + config.updates,
        )


def self_play(
    config: TrainConfig,
    network: MuZeroNetwork,
    params: dict,
    lessons: Sequence[Lesson],
    seed: int,
) -> tuple[Positions, dict[str, float]]:
    """One batch of games of equal board length, as replay rows and a summary."""
    board = jax.tree.map(lambda *x: np.stack(x), *[x.board for x in lessons])
    outlook = jax.tree.map(lambda *x: np.stack(x), *[x.outlook for x in lessons])
    games = rollout.play(
        network,
        params,
        jax.random.key(seed),
        board,
        outlook,
        jnp.ones(len(lessons)),
        slots=max(x.slots for x in lessons),
        num_simulations=config.num_simulations,
        batched=True,
        record=True,
    )
    scale = np.array([x.scale for x in lessons])
    rows, loss = _targets(config, games, board.num_accesses, outlook.saving, scale)
    rows = jax.tree.map(np.asarray, rows)
    real = rows.real[:, :, 0]
    return jax.tree.map(lambda x: x[real], rows), {"lost": float(np.mean(loss))}


@functools.partial(jax.jit, static_argnames="config")
def _targets(config, games, num_accesses, saving, scale):
    """Replay rows `[G, N, ...]`, and `[G]` what each game lost in units of its scale.

    Rewards are latency saved less what the access could save at best: 0 is perfect, and
    the sum over a game is what it lost, -1 for keeping everything.
    """
    length = saving.shape[1]
    real = jnp.arange(length) < num_accesses[:, None]
    reward = jnp.where(real, (games.moves.reward - saving) / scale[:, None], 0.0)
    value = jnp.where(real, games.value, 0.0)
    after = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))

    def back(ahead, now):
        reward, after = now
        target = reward + (1 - config.trace) * after + config.trace * ahead
        return target, target

    _, target = jax.lax.scan(
        back, jnp.zeros(len(scale)), (reward.T, after.T), reverse=True
    )
    target = target.T

    def windows(x, width):
        pad = [(0, 0), (0, width)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad)
        return jnp.stack([x[:, k : k + length] for k in range(width)], axis=2)

    k = config.unroll
    rows = Positions(
        observation=games.observation,
        action=windows(jnp.maximum(games.moves.action, 0).astype(jnp.int8), k),
        reward=windows(reward, k),
        policy=windows(games.policy, k + 1),
        value=windows(target, k + 1),
        real=windows(real, k + 1),
    )
    return rows, reward.sum(axis=1)


class Replay:
    """The latest positions, in host memory."""

    def __init__(self, config: TrainConfig) -> None:
        self._capacity = config.replay_positions
        self._rows: Positions | None = None
        self._next = self._count = 0

    def add(self, rows: Positions) -> None:
        if self._rows is None:
            self._rows = jax.tree.map(
                lambda x: np.empty((self._capacity, *x.shape[1:]), x.dtype), rows
            )
        at = (self._next + np.arange(len(rows.value))) % self._capacity
        for mine, new in zip(self._rows, rows, strict=True):
            mine[at] = new
        self._next = int((self._next + len(at)) % self._capacity)
        self._count = min(self._count + len(at), self._capacity)

    def sample(self, rng: np.random.Generator, number: int) -> Positions:
        at = rng.integers(0, self._count, number)
        return jax.tree.map(lambda x: x[at], self._rows)


def _loss(config, network, params, rows: Positions):
    """Mean loss over `[R]` rows, and its parts."""
    latent = network.apply(
        params, rows.observation.astype(jnp.float32), method="represent"
    )
    real = rows.real.astype(jnp.float32)
    parts = {"policy_loss": 0.0, "value_loss": 0.0, "reward_loss": 0.0}
    for k in range(config.unroll + 1):
        weight = real[:, k] * (1.0 if k == 0 else 1.0 / config.unroll)
        prediction = network.apply(params, latent, method="predict")
        if k == 0:
            value = to_scalar(prediction.value, config.network)
        parts["policy_loss"] += _cross_entropy(
            prediction.policy, rows.policy[:, k], weight
        )
        parts["value_loss"] += _cross_entropy(
            prediction.value, to_two_hot(rows.value[:, k], config.network), weight
        )
        if k < config.unroll:
            # Half the gradient flows back through each step of the dynamics
            # (Schrittwieser et al., 2020, appendix G).
            latent = 0.5 * latent + 0.5 * jax.lax.stop_gradient(latent)
            reward, latent = network.apply(
                params, latent, rows.action[:, k].astype(jnp.int32), method="advance"
            )
            parts["reward_loss"] += _cross_entropy(
                reward,
                to_two_hot(rows.reward[:, k], config.network),
                real[:, k] / config.unroll,
            )
    total = (
        parts["policy_loss"]
        + config.value_weight * parts["value_loss"]
        + parts["reward_loss"]
    )
    parts["value_error"] = jnp.abs(value - rows.value[:, 0]).mean()
    return total, parts


def _cross_entropy(logits, target, weight):
    return (optax.softmax_cross_entropy(logits, target) * weight).mean()


def _optimizer() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-5),
    )


@functools.partial(jax.jit, static_argnames=("config", "network"))
def update(config, network, params, opt_state, rows: Positions, learning_rate):
    """`config.updates` gradient steps, and the means of their losses."""
    batches = jax.tree.map(
        lambda x: x.reshape(config.updates, config.batch, *x.shape[1:]), rows
    )
    optimizer = _optimizer()

    def one(carry, batch):
        params, opt_state = carry
        grads, parts = jax.grad(
            lambda p: _loss(config, network, p, batch), has_aux=True
        )(params)
        change, opt_state = optimizer.update(grads, opt_state, params)
        change = jax.tree.map(lambda x: -learning_rate * x, change)
        return (optax.apply_updates(params, change), opt_state), parts

    (params, opt_state), parts = jax.lax.scan(one, (params, opt_state), batches)
    return params, opt_state, jax.tree.map(jnp.mean, parts)


def _by_length(lessons: Sequence[Lesson]) -> dict[int, list[Lesson]]:
    """Lessons that are played together, with one table size for each group."""
    groups: dict[int, list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(len(lesson.board.access.op), []).append(lesson)
    for group in groups.values():
        slots = max(lesson.slots for lesson in group)
        group[:] = [lesson._replace(slots=slots) for lesson in group]
    return groups


def fresh(config: TrainConfig, network: MuZeroNetwork) -> TrainState:
    params = network.init(
        jax.random.key(config.seed),
        jnp.zeros((1, observation.size())),
        jnp.zeros(1, jnp.int32),
    )
    return TrainState(params, _optimizer().init(params), 0, 0, 0.0, float("inf"))


def _restore(config, network, run_dir) -> TrainState:
    state = fresh(config, network)
    path = os.path.join(run_dir, "state.msgpack")
    if not os.path.exists(path):
        return state
    with open(path, "rb") as f:
        return serialization.from_bytes(state, f.read())


def _save(run_dir: str, state: TrainState) -> None:
    path = os.path.join(run_dir, "state.msgpack")
    checkpoint.write_atomically(path, serialization.to_bytes(state))


def _keys(rows: Sequence[dict]) -> list[str]:
    return list(rows[0]) if rows else []


class _Metrics:
    """A CSV file that grows by rows; columns are fixed by the fullest row so far."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: list[dict] = []
        if os.path.exists(path):
            with open(path, newline="") as f:
                self._rows = list(csv.DictReader(f))

    def write(self, row: dict) -> None:
        self._rows.append(row)
        columns = list(dict.fromkeys(k for r in self._rows for k in r))
        temporary = self._path + ".tmp"
        with open(temporary, "w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self._path)
