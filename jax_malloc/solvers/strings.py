"""Strings of actions as whole games, for solvers that search among them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jax_malloc import board as board_lib
from jax_malloc import replay
from jax_malloc.compiled import kernels
from jax_malloc.compiled.tables import COLUMNS, as_moves, tables
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem


class Strings:
    """The games of one problem: a string has an action for each of its accesses.

    num_accesses: the length of a string. buffers: `[num_accesses]` of which game buffer
    each access is.
    """

    def __init__(self, problem: Problem) -> None:
        board = board_lib.build(problem, board_lib.least_length(problem))
        self.num_accesses = int(board.num_accesses)
        self._problem = problem
        self._tables = tables(board, replay.slots_of(problem))
        self.buffers = self._tables.buffer

    def saved(self, strings: NDArray[np.int32]) -> NDArray[np.float64]:
        """`[G]` units of latency that `[G, num_accesses]` strings save, exactly.

        An action that is not possible falls back, so that every string is a game.
        """
        return np.array([kernels.saving(self._tables, self._moves(s)) for s in strings])

    def mapping(self, actions: NDArray[np.int32]) -> Mapping:
        """The mapping that one string means."""
        return replay.to_mapping(self._problem, as_moves(self._moves(actions)))

    def _moves(self, actions: NDArray[np.int32]) -> NDArray[np.int32]:
        moves = np.zeros((self.num_accesses, len(COLUMNS)), np.int32)
        start = kernels.init(self._tables)
        kernels.play(self._tables, start, actions, moves, 0, self.num_accesses)
        return moves
