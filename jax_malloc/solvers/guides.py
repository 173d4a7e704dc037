"""Guides of the host solvers: how much each use is wanted in fast memory."""

from __future__ import annotations

import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation
from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import Life, lives
from jax_malloc.solvers.worth import Guide

_LEAST = 0.01  # a use that nothing wants is tried last, but tried


def of_accesses(problem: Problem, wanted: np.ndarray) -> Guide:
    """The guide that wants the game's accesses, `[n]` in board order, that much."""
    rows = board_lib.rows(problem)
    wishes: dict[int, list[tuple[int, float]]] = {}
    ops = problem.access_op[rows.access].tolist()
    buffers = problem.access_buffer[rows.access].tolist()
    for op, b, wish in zip(ops, buffers, wanted.tolist(), strict=True):
        wishes.setdefault(b, []).append((op, max(wish, _LEAST)))
    return {b: _per_use(life, wishes[b]) for b, life in lives(problem).items()}


def of_prices(problem: Problem) -> Guide:
    """The guide that wants what pays at the prices of the relaxed problem."""
    board = board_lib.build(problem, board_lib.least_length(problem))
    return of_accesses(problem, price_factor(observation.outlook(board), board))


def price_factor(outlook: observation.Outlook, board: board_lib.Board) -> np.ndarray:
    """`[n]` in [0, 1], one where every plan has the access in fast memory.

    The root: prices say what is wanted at all, and benefit per byte what comes first.
    """
    return np.sqrt(np.asarray(outlook.fast[: int(board.num_accesses)], np.float64))


def _per_use(life: Life, wishes: list[tuple[int, float]]) -> list[float]:
    """The first of the wishes `(op, factor)` within each use."""
    factors, i = [], 0
    for use in life.uses:
        while wishes[i][0] < use.begin:
            i += 1
        factors.append(wishes[i][1])
    return factors
