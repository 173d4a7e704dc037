"""Ruin and recreate in the stretches of a long program, where there is most to gain.

    where ops lose time ---> stretches around some of them, that do not overlap
          ^                                 |
          |                      each cut out, annealed anew, side by side
          |                                 |
    how often in vain <--- what got faster is put into the whole

A step changes little of a mapping, and takes time by the length of the whole: in a
stretch it is faster. And what is hard about a long program is often in few places, such
as where all gradients meet the states of an optimizer; the rest is soon as good as it
gets. So a stretch is chosen by what its ops lose against fast memory alone; each time
that a search of it was in vain makes it half as likely, and its next search longer. A
search begins hot, which leads to other valleys than the one that the stretch is in, and
only what is faster is kept. The loops need no lock, so threads can search.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from jax_malloc.compiled import stays
from jax_malloc.compiled.ruin import Values
from jax_malloc.compiled.stays import Floats, Ints, Lives, State
from jax_malloc.problem import Problem
from jax_malloc.solvers import ruin_recreate, stretches
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.stretches import Stretch

_ACCESSES = 600  # of a stretch, about
_LONG = 3_000  # accesses; below, the whole is as fast and sees more
# Of the budget, for the first search of a stretch; each in vain makes the next longer.
_FIRST_SHARE, _LEAST_S, _LEAST_STEPS, _GROWTH = 1 / 300, 0.01, 500, 1.5
_AT_A_TIME = 4  # stretches, in a search by steps
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
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Searches a state, which is no slower afterwards.

    Args:
      tables, values, state: of the problem.
      seed: of all draws; how many threads there are makes no difference to a search by
        steps.
      steps, deadline_s, target_s, is_stopped: as for `ruin_recreate.run`.
      temperature_s: as there, of each stretch that is searched.
    """
    threads = num_threads()
    number = _AT_A_TIME if deadline_s is None else threads
    start_s, done = time.monotonic(), 0
    # Not of the seed alone, whose draws are those of a search of the whole.
    rng = np.random.default_rng((seed, 1))
    in_vain = np.zeros(len(tables.capacity))
    while not is_over(deadline_s) and (steps is None or done < steps):
        if stays.latency_s(state) <= target_s or is_stopped():
            return
        weights = losses_s(tables, state) * 0.5**in_vain
        spans = choose(tables, weights, _uses_of_one(problem, tables), number, rng)
        if not spans:
            return  # every op is as fast as it can be
        longer = _GROWTH ** np.mean([in_vain[slice(*span)].mean() for span in spans])
        own_steps = own_deadline_s = None
        if deadline_s is not None:
            own_s = longer * max(_FIRST_SHARE * (deadline_s - start_s), _LEAST_S)
            own_deadline_s = min(deadline_s, time.monotonic() + own_s)
        elif steps is not None:
            own_steps = round(longer * max(_FIRST_SHARE * steps, _LEAST_STEPS))
            done += own_steps * len(spans)
        cuts = [stretches.cut(tables, values, state, *span) for span in spans]
        found = [stretch for stretch in cuts if stretch is not None]
        before_s = [stays.latency_s(stretch.state) for stretch in found]
        call = functools.partial(
            _search_one,
            found,
            rng.integers(2**63, size=len(found)),
            own_steps,
            own_deadline_s,
            temperature_s,
        )
        run_all(call, len(found), threads)
        faster = [
            stretch
            for stretch, own_s in zip(found, before_s, strict=True)
            if stays.latency_s(stretch.state) < own_s
        ]
        for span in spans:
            in_vain[slice(*span)] += 1
        for stretch in paste_faster(tables, state, faster):
            own = in_vain[stretch.begin : stretch.end]
            np.maximum(own - 2, 0, out=own)


def _uses_of_one(problem: Problem, tables: Lives) -> float:
    """About how many uses a stretch has."""
    return _ACCESSES * len(tables.uses) / max(len(problem.access_op), 1)


def losses_s(tables: Lives, state: State) -> Floats:
    """`[T]` seconds that each op takes longer than with all it touches in fast memory.

    With the time that it waits for copies.
    """
    model = tables.model
    fastest_s = np.maximum(model[stays.BASE], model[stays.FLOOR])
    losses = np.maximum(state.ops[stays.OP_S] - fastest_s, 0.0)
    for q in range(len(state.copies)):
        number = state.counts[stays.COPIES + q]
        due = np.minimum(state.copies[q, :number, stays.DUE], len(losses) - 1)
        np.add.at(losses, due, state.times[q, :number, stays.WAIT])
    return losses


def choose(
    tables: Lives,
    weights: Floats,
    uses: float,
    number: int,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Ops `[begin, end)` of stretches that do not overlap.

    Args:
      weights: `[T]` how likely each op is to be drawn; a stretch lies around it.
      uses: about so many are in a stretch, fewer where others are in the way.
      number: of stretches; fewer, if all ops with a weight are in those.
    """
    num_ops, weights = len(weights), weights.copy()
    begins = np.sort(tables.uses[:, stays.USE_BEGIN])
    before = np.searchsorted(begins, np.arange(num_ops + 1))
    spans: list[tuple[int, int]] = []
    while len(spans) < number and (total := weights.sum()) > 0:
        op = int(rng.choice(num_ops, p=weights / total))
        first = before[op] - rng.random() * uses
        begin = min(int(np.searchsorted(before, first)), op)
        end = max(int(np.searchsorted(before, first + uses)), op + 1)
        begin = max([begin, *(e for _, e in spans if e <= op)])
        end = min([end, num_ops, *(b for b, _ in spans if b > op)])
        weights[begin:end] = 0.0
        spans.append((begin, end))
    return spans


def _search_one(
    found: Sequence[Stretch],
    seeds: Ints,
    steps: int | None,
    deadline_s: float | None,
    temperature_s: Callable[[float], float],
    i: int,
    is_stopped: Callable[[], bool],
) -> None:
    ruin_recreate.run(
        found[i].tables,
        found[i].values,
        found[i].state,
        np.random.default_rng(seeds[i]),
        steps,
        deadline_s,
        temperature_s=temperature_s,
        is_stopped=is_stopped,
    )


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


def paste_faster(
    tables: Lives, state: State, found: Sequence[Stretch]
) -> list[Stretch]:
    """Pastes what makes the whole faster: all together, or else one by one.

    Returns:
      What it has pasted.
    """
    before = stays.copy(state)
    for stretch in found:
        stretches.paste(tables, state, stretch)
    if stays.latency_s(state) < stays.latency_s(before):
        return list(found)
    stays.assign(state, before)
    pasted = []
    for stretch in found:
        stretches.paste(tables, state, stretch)
        if stays.latency_s(state) < stays.latency_s(before):
            pasted.append(stretch)
            stays.assign(before, state)
        else:
            stays.assign(state, before)
    return pasted
