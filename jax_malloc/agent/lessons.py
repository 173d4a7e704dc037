"""Problems prepared for training, and which of them are played when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.board import Board
from jax_malloc.observation import Outlook
from jax_malloc.problem import Problem

_SHORTEST = 128


class Lesson(NamedTuple):
    """A problem prepared for training.

    scale: units of latency that keeping everything loses against everything in fast
      memory, the unit of rewards and values.
    slots: rows of the game's table of stays.
    """

    name: str
    board: Board
    outlook: Outlook
    scale: np.float32
    slots: int

    @property
    def length(self) -> int:
        """Rows of the padded board."""
        return len(self.board.access.op)


def prepare(problems: Iterable[Problem]) -> list[Lesson]:
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
        slots = replay.slots_of(problem)
        possible = float(outlook.saving.sum())
        lost = possible - keep_all_saving(board, slots)
        scale = np.float32(max(lost, 0.02 * possible, 1e-3))
        lessons.append(Lesson(problem.program.name, board, outlook, scale, slots))
    return lessons


def keep_all_saving(board: Board, slots: int) -> float:
    """Units that the game saves which always plays NO_COPY: what no learning gives."""
    # Not a top-level import: a plan that plays no such game need not load the compiler.
    from jax_malloc.compiled import kernels
    from jax_malloc.compiled.tables import COLUMNS, tables

    t = tables(board, slots)
    moves = np.zeros((len(t.op), len(COLUMNS)), np.int32)
    actions = np.zeros(len(t.op), np.int32)
    kernels.play(t, kernels.init(t), actions, moves, 0, len(t.op))
    return float(kernels.saving(t, moves))


def by_length(lessons: Sequence[Lesson]) -> dict[int, list[Lesson]]:
    """Lessons that are played together, with one table size for each group."""
    groups: dict[int, list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(lesson.length, []).append(lesson)
    for group in groups.values():
        slots = max(lesson.slots for lesson in group)
        group[:] = [lesson._replace(slots=slots) for lesson in group]
    return dict(sorted(groups.items()))


def longest(share: float, curriculum: float, shortest: int, most: int) -> int:
    """The longest board to play once `share` of a run is over."""
    if curriculum <= 0 or share >= curriculum:
        return most
    return int(shortest * (most / shortest) ** (share / curriculum))
