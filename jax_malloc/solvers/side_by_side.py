"""Ruin and recreate in the stretches of a long program, side by side.

A step changes little of a mapping, and takes time by the length of the whole: in a
stretch it is faster. Stretches that do not overlap are searched in threads (the loops
need no lock), and what they find is put into the whole. Then borders are elsewhere.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from jax_malloc.compiled import stays
from jax_malloc.compiled.ruin import Values
from jax_malloc.compiled.stays import Lives, State
from jax_malloc.problem import Problem
from jax_malloc.solvers import ruin_recreate, stretches
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.stretches import Stretch

_ACCESSES = 600  # of a stretch, about
_LONG = 3_000  # accesses; below, the whole is as fast and sees more
_ROUNDS = 4


def is_long(problem: Problem) -> bool:
    """Whether a program is better searched in stretches than as a whole."""
    return len(problem.access_op) >= _LONG


def num_threads() -> int:
    """Of searches side by side: as many as this process has cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def search(
    problem: Problem,
    tables: Lives,
    values: Values,
    state: State,
    seed: int,
    *,
    steps: int | None,
    deadline_s: float | None,
    target_s: float,
    temperature_s: Callable[[float], float],
) -> None:
    """Searches a state, which is no slower afterwards.

    Args:
      tables, values, state: of the problem.
      seed: of all draws; how many threads there are makes no difference to a search by
        steps.
      steps, deadline_s, target_s, temperature_s: as for `ruin_recreate.run`.
    """
    if not len(tables.uses):
        return  # nothing may be in fast memory
    number = max(1, round(len(problem.access_op) / _ACCESSES))
    threads = num_threads()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for i in range(_ROUNDS):
            if is_over(deadline_s) or stays.latency_s(state) <= target_s:
                return
            edges = stretches.borders(tables, number, between=i % 2 == 1)
            spans = list(itertools.pairwise(edges))
            cuts = [stretches.cut(tables, values, state, *span) for span in spans]
            found = [stretch for stretch in cuts if stretch is not None]
            limit_s = share_of(deadline_s, 1 / (_ROUNDS - i))

            def searched(
                j: int,
                i: int = i,
                found: Sequence[Stretch] = found,
                limit_s: float | None = limit_s,
            ) -> None:
                turns = math.ceil((len(found) - j) / threads)
                ruin_recreate.run(
                    found[j].tables,
                    found[j].values,
                    found[j].state,
                    np.random.default_rng((seed, i, j)),
                    None if steps is None else steps // _ROUNDS // len(found),
                    share_of(limit_s, 1 / turns),
                    temperature_s=lambda share: temperature_s((i + share) / _ROUNDS),
                )

            list(pool.map(searched, range(len(found))))  # raises what they raise
            paste_faster(tables, state, found)


def paste_faster(tables: Lives, state: State, found: Sequence[Stretch]) -> None:
    """Pastes what makes the whole faster: all together, or else one by one."""
    before = stays.copy(state)
    for stretch in found:
        stretches.paste(tables, state, stretch)
    if stays.latency_s(state) <= stays.latency_s(before):
        return
    stays.assign(state, before)
    for stretch in found:
        stretches.paste(tables, state, stretch)
        if stays.latency_s(state) <= stays.latency_s(before):
            stays.assign(before, state)
        else:
            stays.assign(state, before)
