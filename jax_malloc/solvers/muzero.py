"""The pretrained agent alone: many games, the best one kept by its true latency."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.agent import checkpoint, rollout
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over

WEIGHTS = pathlib.Path(__file__).parent.parent / "weights" / "agent.msgpack"

# Rounds of games, (simulations per move, games): a search sharpens a single game,
# sampling from the policy alone gives more games in the same time.
POLICY = ((0, 64),)
POLICY_THEN_SEARCH = ((0, 64), (16, 32))
_WORK_PER_ROUND = 250_000  # moves x cost of one: fewer games of long programs
_MAX_TEMPERATURE = 1.0


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best of the shipped agent's games; all in slow memory if none helps."""
    return play(pretrained(), problem, seed=seed, deadline_s=deadline_s)


@functools.cache
def pretrained() -> checkpoint.Agent:
    """The checkpoint that ships with the package."""
    return checkpoint.load(str(WEIGHTS))


def play(
    agent: checkpoint.Agent,
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    rounds: Sequence[tuple[int, int]] = POLICY_THEN_SEARCH,
) -> Mapping:
    """The best mapping that an agent's rounds of games find by the deadline."""
    board = board_lib.build(problem)
    if not board.num_accesses:
        return Mapping()
    outlook = observation.outlook(board)
    best, saved = None, 0.0
    slots = replay.slots_of(problem)
    affordable = _affordable(rounds, int(board.num_accesses), slots)
    for i, (simulations, games) in enumerate(affordable):
        if is_over(deadline_s):
            break
        # The first game of a round is greedy, the others ever more random.
        temperature = np.linspace(0.0, _MAX_TEMPERATURE, games, dtype=np.float32)
        moves = rollout.play(
            agent.network,
            agent.params,
            jax.random.fold_in(jax.random.key(seed), i),
            board,
            outlook,
            temperature,
            slots=slots,
            num_simulations=simulations,
        ).moves
        rewards = np.asarray(moves.reward).sum(axis=1)
        winner = int(np.argmax(rewards))
        if rewards[winner] > saved:
            saved = rewards[winner]
            best = jax.tree.map(lambda x, g=winner: np.asarray(x[g]), moves)
    return Mapping() if best is None else replay.to_mapping(problem, best)


def _affordable(
    rounds: Sequence[tuple[int, int]], num_accesses: int, slots: int
) -> Iterator[tuple[int, int]]:
    """The rounds with fewer games where a program is long."""
    cost = num_accesses * (1 + slots // 64)
    for simulations, games in rounds:
        most = _WORK_PER_ROUND // (cost * (1 + simulations // 4))
        # Powers of two, so that programs of one bucket share a compilation.
        yield simulations, min(games, 1 << max(most, 1).bit_length() - 1)
