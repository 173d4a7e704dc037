"""Good games to learn from, found by annealing: one string of actions per lesson.

They are kept in a file, so that a run that is resumed need not find them again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jax_malloc.agent.lessons import Lesson

# Tries per decision: about a second for 300 decisions.
_TRIES = 25
_MOST_WORK = 16_000_000  # tries times decisions


def find(
    lessons: Sequence[Lesson],
    path: str | None,
    *,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray]:
    """The actions of a good game of every lesson, `[n]` each, in their order.

    Args:
      lessons: with names of their own, by which the file knows them.
      path: of the file, which grows as games are found; None for none.
      report: called with how many are done, and of how many.
    """
    known = {} if path is None else _read(path)
    missing = [x for x in lessons if _key(x) not in known]
    # The compiled loops release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda x: _anneal(x, seed), missing)
        for i, (lesson, actions) in enumerate(zip(missing, found, strict=True)):
            known[_key(lesson)] = actions
            if path is not None and (i % 50 == 49 or i == len(missing) - 1):
                _write(path, known)
            report(i + 1, len(missing))
    return [known[_key(x)].astype(np.int32) for x in lessons]


def _anneal(lesson: Lesson, seed: int) -> np.ndarray:
    from jax_malloc.compiled import annealing
    from jax_malloc.compiled.tables import tables

    t = tables(lesson.board, lesson.slots)
    n = len(t.op)
    walk = annealing.anneal(
        t,
        np.zeros(n, np.int32),
        seed=seed,
        tries=min(_TRIES * n, _MOST_WORK // n),
        hot=3.0,
    )
    return walk.best_actions.astype(np.int8)


def _key(lesson: Lesson) -> str:
    return f"{lesson.name}|{lesson.board.num_accesses}|{lesson.board.capacity}"


def _read(path: str) -> dict[str, np.ndarray]:
    if not os.path.exists(path):
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _write(path: str, games: dict[str, np.ndarray]) -> None:
    temporary = f"{path}.{os.getpid()}.npz"
    arrays: dict[str, Any] = dict(games)
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
