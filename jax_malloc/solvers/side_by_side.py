"""Ruin and recreate in the stretches of a long program, side by side.

A step changes little of a mapping, and takes time by the length of the whole: in a
stretch it is faster. Stretches that do not overlap are searched in threads (the loops
need no lock), and what they find is put into the whole. Then borders are elsewhere.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

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
_LEAST_STEPS = 50  # in a stretch and round, of a search without a deadline
Result = TypeVar("Result")


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
    for i in range(_ROUNDS):
        if is_over(deadline_s) or stays.latency_s(state) <= target_s:
            return
        edges = stretches.borders(tables, number, between=i % 2 == 1)
        spans = itertools.pairwise(edges)
        cuts = [stretches.cut(tables, values, state, *span) for span in spans]
        found = [stretch for stretch in cuts if stretch is not None]
        own_steps = None
        if steps is not None and found:
            own_steps = max(_LEAST_STEPS, steps // _ROUNDS // len(found))
        run_all(
            functools.partial(
                _search_one,
                found,
                threads,
                (seed, 1 + i),
                own_steps,
                share_of(deadline_s, 1 / (_ROUNDS - i)),
                functools.partial(_in_round, temperature_s, i),
            ),
            len(found),
            threads,
        )
        paste_faster(tables, state, found)


def _search_one(
    found: Sequence[Stretch],
    threads: int,
    seeds: tuple[int, int],
    steps: int | None,
    limit_s: float | None,
    temperature_s: Callable[[float], float],
    j: int,
    is_stopped: Callable[[], bool],
) -> None:
    """Searches one of the stretches, in its share of the time until the limit."""
    turns = math.ceil((len(found) - j) / threads)
    ruin_recreate.run(
        found[j].tables,
        found[j].values,
        found[j].state,
        # Not of zeros at the end, which would be the draws of the seed alone.
        np.random.default_rng((j, *seeds)),
        steps,
        share_of(limit_s, 1 / turns),
        temperature_s=temperature_s,
        is_stopped=is_stopped,
    )


def _in_round(
    temperature_s: Callable[[float], float], number: int, share: float
) -> float:
    return temperature_s((number + share) / _ROUNDS)


def run_all(
    call: Callable[[int, Callable[[], bool]], Result], number: int, threads: int
) -> list[Result]:
    """What `call(i, is_stopped)` gives for each of a number, some at a time.

    An exception, such as that of Ctrl-C, makes `is_stopped` true for all others.
    """
    if min(number, threads) <= 1:
        return [call(i, lambda: False) for i in range(number)]
    stopped = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(call, i, stopped.is_set) for i in range(number)]
        try:
            concurrent.futures.wait(
                futures, return_when=concurrent.futures.FIRST_EXCEPTION
            )
        finally:
            stopped.set()  # whoever is not over by now is not to go on
            pool.shutdown(wait=False, cancel_futures=True)
    for future in futures:
        if not future.cancelled():
            future.result()  # raises what it raised
    return [future.result() for future in futures]


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
