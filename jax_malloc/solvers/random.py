"""Random play of the game, the best of many: a baseline for agents."""

from __future__ import annotations

import numpy as np

from jax_malloc import game
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over, rounds
from jax_malloc.solvers.strings import Strings

GAMES_PER_ROUND = 64
ROUNDS = 1  # without a deadline


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best game of uniformly random actions; all in slow memory if none helps.

    With a deadline it goes on with rounds of games as long as another should end in
    time; the first cannot be cut short.
    """
    strings = Strings(problem)
    if is_over(deadline_s) or not strings.num_accesses:
        return Mapping()
    rng = np.random.default_rng(seed)
    best, most = None, 0.0
    for _ in rounds(ROUNDS, deadline_s):
        shape = (GAMES_PER_ROUND, strings.num_accesses)
        played = rng.integers(0, game.NUM_ACTIONS, shape, np.int32)
        saved = strings.saved(played)
        if saved.max() > most:
            best, most = played[np.argmax(saved)], saved.max()
    return Mapping() if best is None else strings.mapping(best)
