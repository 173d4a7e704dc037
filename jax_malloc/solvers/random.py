"""Random play of the game, the best of many: a baseline for agents."""

from __future__ import annotations

import jax
import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import replay
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over

NUM_GAMES = 64


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best of `NUM_GAMES` games of uniformly random legal actions."""
    board = board_lib.build(problem)
    if is_over(deadline_s) or not board.num_accesses:
        return Mapping()
    shape = (NUM_GAMES, len(board.access.op))
    actions = np.random.default_rng(seed).integers(0, 3, shape, np.int32)
    moves = replay.play_many(board, actions, slots=replay.slots_of(problem))
    best = int(np.argmax(np.asarray(moves.reward).sum(axis=1)))
    if np.asarray(moves.reward)[best].sum() <= 0:
        return Mapping()
    return replay.to_mapping(problem, jax.tree.map(lambda x: x[best], moves))
