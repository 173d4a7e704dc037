"""How good an agent is on given problems: one greedy game, and the best of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.agent import rollout
from jax_malloc.agent.network import MuZeroNetwork
from jax_malloc.problem import Problem

_GAMES = 16


def latencies_s(
    network: MuZeroNetwork,
    params: dict,
    problem: Problem,
    *,
    num_games: int = _GAMES,
    num_simulations: int = 0,
    seed: int = 0,
    length: int | None = None,
    true_scale: float | None = None,
) -> np.ndarray:
    """`[num_games]` seconds of each game's mapping; the first game is greedy.

    Boards are padded to `length`, so that many problems can share one compilation.
    `true_scale` is for `rollout.play`.
    """
    board = board_lib.build(problem, length)
    temperature = np.where(np.arange(num_games) == 0, 0.0, 1.0).astype(np.float32)
    games = rollout.play(
        network,
        params,
        jax.random.key(seed),
        board,
        observation.outlook(board),
        temperature,
        slots=replay.slots_of(problem),
        num_simulations=num_simulations,
        true_scale=None if true_scale is None else np.float32(true_scale),
    )
    saved = np.asarray(games.moves.reward).sum(axis=1)
    return problem.all_slow_latency_s - saved * float(board.unit_s)


def scores(
    network: MuZeroNetwork,
    params: dict,
    problems: Sequence[Problem],
    baseline_s: Mapping[int, float],
) -> dict[str, float]:
    """Geometric means of latency over a baseline's; lower is better.

    Returns: "one_game" and "score" (the best of several), policy alone; "searched", one
    game with 16 simulations per move.
    """
    one, best, searched = [], [], []
    length = max(len(board_lib.build(p).access.op) for p in problems)
    for i, problem in enumerate(problems):
        found = latencies_s(network, params, problem, length=length)
        one.append(np.log(found[0] / baseline_s[i]))
        best.append(np.log(found.min() / baseline_s[i]))
        found = latencies_s(
            network, params, problem, num_games=1, num_simulations=16, length=length
        )
        searched.append(np.log(found[0] / baseline_s[i]))
    return {
        "one_game": float(np.exp(np.mean(one))),
        "searched": float(np.exp(np.mean(searched))),
        "score": float(np.exp(np.mean(best))),
    }
