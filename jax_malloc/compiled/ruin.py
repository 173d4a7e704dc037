"""The loops of ruin and recreate; `solvers.ruin_recreate` says what the search does."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from jax_malloc.compiled.placing import (
    needs_eviction,
    remove,
    retime,
    slow_run,
    try_place,
)
from jax_malloc.compiled.queues import blocking
from jax_malloc.compiled.stays import (
    BEGIN,
    BEST,
    BEST_TOP,
    BUFFER,
    COPIES,
    DUE,
    END,
    FIRST_USE,
    FROZEN,
    GRANULES,
    HIGHEST,
    LOWEST,
    OFFSET,
    READS,
    TOP,
    USE_BEGIN,
    USE_BUFFER,
    USE_END,
    USED,
    WAIT,
    Floats,
    Ints,
    Lives,
    State,
    assign,
    in_the_way,
    latency_s,
)

# Each step draws one of each.
_RULES = np.array([BEST_TOP, BEST_TOP, BEST, LOWEST, HIGHEST])
_EXPONENTS = np.array([1.0, 0.5, 0.5, 0.0])  # of size and time, in the refill's order
_NOISE = np.array([0.0, 0.3, 0.8])  # of that order, in logarithms of density
_RUINED = np.array([1, 2, 4, 8, 8, 16])  # stays taken out of a stretch, at most
_REACH = np.array([1, 2, 4, 8])  # ops on either side of it
# How often, of all steps and draws.
_FOR_A_USE = 0.5
_AT_A_STALL = 0.2
_PART_OF_RUN = 0.5
_MORE_RUINED = 0.3
_LONGER_RUN = 0.2
_RETIME = 0.1
_SPLIT_AT_LONGEST_GAP = 0.7
_MOST_RUNS = 40  # tried when a hole is refilled
_MOST_DRAWS = 20  # of a use, until one is in slow memory
_jit = numba.njit(cache=True, nogil=True)


class Values(NamedTuple):
    """What uses are worth, see `solvers.worth.Worth`.

    cumulative: `[U]` sums of what each use alone saves, to draw by. sums: `[U + 1]` of
    the same where it may be negative. clock: `[T + 1]` seconds before each boundary.
    """

    cumulative: Floats
    sums: Floats
    clock: Floats


@_jit
def search(
    p: Lives,
    w: Values,
    s: State,
    kept: State,
    best: State,
    rng: np.random.Generator,
    steps: int,
    temperature_s: float,
    target_s: float,
) -> None:
    """Some steps from the state `s`, which is `kept` whenever a step is refused."""
    for _ in range(steps):
        if latency_s(best) <= target_s:
            break
        slack_s = 0.0
        if temperature_s > 0:
            slack_s = temperature_s * rng.exponential(1.0)
        _step(p, w, s, rng)
        if latency_s(s) <= latency_s(kept) + slack_s:
            assign(kept, s)
            if latency_s(s) <= latency_s(best):
                assign(best, s)
        else:
            assign(s, kept)


@_jit
def _below(rng: np.random.Generator, number: int) -> int:
    """A random whole number from 0 on."""
    return int(rng.random() * number)


@_jit
def _step(p: Lives, w: Values, s: State, rng: np.random.Generator) -> None:
    kind = rng.random()
    first = last = -1
    if kind < _FOR_A_USE:
        rows, begin, end, first, last = _for_a_use(p, w, s, rng)
    elif kind < _FOR_A_USE + _AT_A_STALL:
        rows, begin, end = _around(s, rng, _stalled_op(s, rng))
    else:
        rows, begin, end = _around(s, rng, _below(rng, s.ops.shape[1]))
    for row in rows:
        begin, end = min(begin, s.stays[row, BEGIN]), max(end, s.stays[row, END])
    remove(p, s, rows)
    if first >= 0:
        b = p.uses[first, USE_BUFFER]
        try_place(p, s, b, first, last, _RULES[_below(rng, len(_RULES))])
    _recreate(p, w, s, rng, begin, end)
    if rng.random() < _RETIME:
        for row in blocking(s):
            if s.stays[row, BEGIN] < end and begin < s.stays[row, END]:
                retime(p, s, row)


@_jit
def _around(s: State, rng: np.random.Generator, t: int) -> tuple[Ints, int, int]:
    """Some of the stays around an op, and the span that they were looked for in."""
    reach = _REACH[_below(rng, len(_REACH))]
    begin, end = max(0, t - reach), min(s.ops.shape[1], t + reach + 1)
    near = _near(s, begin, end)
    number = _RUINED[_below(rng, len(_RUINED))]
    return _sample(rng, near, number), begin, end


@_jit
def _stalled_op(s: State, rng: np.random.Generator) -> int:
    """An op that waits for a copy, the longer the likelier; any, if none does."""
    num_ops, total_s = s.ops.shape[1], 0.0
    for q in range(len(s.copies)):
        for i in range(s.counts[COPIES + q]):
            total_s += s.times[q, i, WAIT]
    left_s = rng.random() * total_s
    if total_s > 0:
        for q in range(len(s.copies)):
            for i in range(s.counts[COPIES + q]):
                left_s -= s.times[q, i, WAIT]
                if left_s <= 0 and s.times[q, i, WAIT] > 0:
                    return min(s.copies[q, i, DUE], num_ops - 1)
    return _below(rng, num_ops)


@_jit
def _for_a_use(
    p: Lives, w: Values, s: State, rng: np.random.Generator
) -> tuple[Ints, int, int, int, int]:
    """What is in the way of a use that is in slow memory, at one offset.

    Returns:
      Rows to take out, ops `[begin, end)`, and the run of uses to put in first; -1
      where every use is in fast memory, or what is in the way is there for good: then
      some rows around an op.
    """
    num_ops, use = s.ops.shape[1], -1
    for _ in range(_MOST_DRAWS):
        drawn = rng.random() * w.cumulative[-1]
        use = np.searchsorted(w.cumulative, drawn, side="right")
        use = min(use, len(w.cumulative) - 1)
        if s.stay_of[use] < 0:
            break
        use = -1
    if use < 0:
        rows, begin, end = _around(s, rng, _below(rng, num_ops))
        return rows, begin, end, -1, -1
    first, last = slow_run(p, s, use)
    if first < last and rng.random() < _PART_OF_RUN:
        first += _below(rng, use - first + 1)
        last -= _below(rng, last - use + 1)
    b = p.uses[use, USE_BUFFER]
    begin = max(0, p.uses[first, USE_BEGIN] - _below(rng, 4))
    end = min(num_ops, p.uses[last, USE_END] + _below(rng, 3))
    near = _near(s, begin, end)
    offset = _edge(p, s, rng, near, p.buffers[b, GRANULES], begin, end)
    rows = in_the_way(p, s, b, first, last, offset, begin, end)
    for row in rows:
        if s.stays[row, BUFFER] == FROZEN:
            rows, begin, end = _around(s, rng, p.uses[use, USE_BEGIN])
            return rows, begin, end, -1, -1
    if rng.random() < _MORE_RUINED:
        rest = np.empty(len(near), np.int64)
        number = 0
        for row in near:
            if not (rows == row).any():
                rest[number] = row
                number += 1
        more = _sample(rng, rest[:number], _below(rng, 4))
        rows = np.concatenate((rows, more))
    return rows, begin, end, first, last


@_jit
def _near(s: State, begin: int, end: int) -> Ints:
    """Rows of the stays during ops `[begin, end)` that can be taken out.

    Only at their edges are offsets tried. Those beside frozen stays as well, with more
    tries until nothing frozen is in the way, brought less in the same time.
    """
    rows = np.empty(s.counts[USED], np.int64)
    number = 0
    for i in range(s.counts[USED]):
        row = s.order[i]
        if s.stays[row, BUFFER] == FROZEN:
            continue
        if s.stays[row, BEGIN] < end and s.stays[row, END] > begin:
            rows[number] = row
            number += 1
    return rows[:number]


@_jit
def _edge(
    p: Lives,
    s: State,
    rng: np.random.Generator,
    near: Ints,
    size: int,
    begin: int,
    end: int,
) -> int:
    """An offset at which a buffer would touch a neighbour or an end of the memory."""
    highest = p.capacity[begin:end].min() - size
    edges = np.zeros(2 + 2 * len(near), np.int64)
    number = 0
    if highest >= 0:
        edges[1] = highest
        number = 2
    for row in near:
        low = s.stays[row, OFFSET]
        for edge in (low, s.stays[row, TOP] - size):
            if 0 <= edge <= highest:
                edges[number] = edge
                number += 1
    return edges[_below(rng, max(number, 1))]


@_jit
def _sample(rng: np.random.Generator, rows: Ints, number: int) -> Ints:
    """Some of the rows, in random order; all, if there are not as many."""
    rows, number = rows.copy(), min(number, len(rows))
    for i in range(number):
        j = i + _below(rng, len(rows) - i)
        rows[i], rows[j] = rows[j], rows[i]
    return rows[:number]


@_jit
def _recreate(
    p: Lives, w: Values, s: State, rng: np.random.Generator, begin: int, end: int
) -> None:
    """Tries runs with a use in ops `[begin, end)` until none is left."""
    rule = _RULES[_below(rng, len(_RULES))]
    todo = _order(p, w, s, rng, begin, end)[:_MOST_RUNS]
    while len(todo):
        pieces = np.empty((2 * len(todo), 2), np.int64)
        number = 0
        for i in range(len(todo)):
            first, last = todo[i]
            b = p.uses[first, USE_BUFFER]
            if try_place(p, s, b, first, last, rule) or first == last:
                continue
            middle = _split(p, w, rng, first, last)
            pieces[number] = first, middle
            pieces[number + 1] = middle + 1, last
            number += 2
        todo = pieces[:number]


@_jit
def _order(
    p: Lives, w: Values, s: State, rng: np.random.Generator, begin: int, end: int
) -> Ints:
    """Slow runs `(first, last)` by perturbed density, `[R, 2]`."""
    exponent = _EXPONENTS[_below(rng, len(_EXPONENTS))]
    noise = _NOISE[_below(rng, len(_NOISE))]
    most = p.use_begin[end] - p.use_begin[begin]
    runs = np.empty((most, 2), np.int64)
    density = np.empty(most)
    seen = np.zeros(len(s.stay_of), np.bool_)
    number = 0
    for i in range(p.use_begin[begin], p.use_begin[end]):
        use = p.use_at[i]
        if s.stay_of[use] >= 0:
            continue
        first, last = slow_run(p, s, use)
        if seen[first]:
            continue
        seen[first] = True
        if rng.random() < _LONGER_RUN:  # into a stay beside it, if there is one
            b = p.uses[use, USE_BUFFER]
            first = max(first - 1, p.buffers[b, FIRST_USE])
            last = min(last + 1, p.buffers[b + 1, FIRST_USE] - 1)
        perturbed = math.exp(noise * rng.normal(0.0, 1.0))
        density[number] = perturbed * _density(p, w, first, last, exponent)
        runs[number] = first, last
        number += 1
    return runs[np.argsort(-density[:number])]


@_jit
def _density(p: Lives, w: Values, first: int, last: int, exponent: float) -> float:
    """Seconds saved by a run of uses over (granules x seconds)**exponent."""
    b = p.uses[first, USE_BUFFER]
    copies = int(p.uses[first, READS] > 0) + int(needs_eviction(p, b, first, last))
    held_s = w.clock[p.uses[last, USE_END]] - w.clock[p.uses[first, USE_BEGIN]]
    held_s += p.copy_s[b] * copies
    saved = w.sums[last + 1] - w.sums[first]
    return saved / max(p.buffers[b, GRANULES] * held_s, 1e-30) ** exponent


@_jit
def _split(p: Lives, w: Values, rng: np.random.Generator, first: int, last: int) -> int:
    """The use after which a run is cut in two."""
    if rng.random() >= _SPLIT_AT_LONGEST_GAP:
        return first + _below(rng, last - first)
    best, longest_s = first, -1.0
    for u in range(first, last):
        gap_s = w.clock[p.uses[u + 1, USE_BEGIN]] - w.clock[p.uses[u, USE_END]]
        if gap_s > longest_s:
            best, longest_s = u, gap_s
    return best
