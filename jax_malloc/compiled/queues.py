"""Queues of copies in the compiled loops: what a change would cost, and exact stalls.

What a change would cost is found out on copies of what it touches: the clock of spare
time and the queue of copies. Both are passes over short arrays, which takes less time
than to keep track of what they have in common with those before the change.

Source of the timing: `hwmodel.simulator`, with which `solvers.timing` agrees, too.
"""

from __future__ import annotations

import numba
import numpy as np

from jax_malloc.compiled.stays import (
    BASE,
    BUFFER,
    BYTES,
    COPIES,
    DONE,
    DUE,
    FILL,
    FILLED,
    FLOOR,
    FREE,
    IS_EVICTION,
    OP_S,
    ROW,
    SAVE,
    SAVED,
    SECONDS,
    SERVED,
    SIZE,
    SLOPE,
    SLOW_BYTES,
    SPARE_S,
    START,
    WAIT,
    Floats,
    Ints,
    Lives,
    State,
)

_jit = numba.njit(cache=True, nogil=True)


@_jit
def clear(p: Lives, s: State) -> None:
    """Everything in slow memory; `ops[SLOW_BYTES]` must say how much that is."""
    s.stay_of[:] = -1
    s.counts[:] = 0
    rows = len(s.free)
    s.counts[FREE] = rows
    for i in range(rows):
        s.free[i] = rows - 1 - i
    for t in range(s.ops.shape[1]):
        s.ops[OP_S, t], s.ops[SPARE_S, t] = op_times(
            p.model, p.dma_s_per_byte, t, s.ops[SLOW_BYTES, t]
        )
    refresh(p, s)


@_jit
def refresh(p: Lives, s: State) -> None:
    """The clock, the queues and the latency anew, from ops and copies."""
    num_ops = s.ops.shape[1]
    ops_s = now_s = 0.0
    for t in range(num_ops):
        s.clock[t] = now_s
        now_s += s.ops[SPARE_S, t]
        ops_s += s.ops[OP_S, t]
    s.clock[num_ops] = now_s
    stall_s = 0.0
    for q in range(len(s.copies)):
        number = s.counts[COPIES + q]
        stall_s += _serve(s.clock, s.copies[q], s.times[q], number)
    if len(s.copies) == 2:
        stall_s = _duplex_stall_s(s.clock, s.copies, s.times, s.counts)
    s.numbers[0], s.numbers[1] = ops_s, stall_s


@_jit
def op_times(
    model: Floats, dma_s_per_byte: float, t: int, slow_bytes: float
) -> tuple[float, float]:
    """Latency and spare time of an op."""
    op_s = max(model[BASE, t] + model[SLOPE, t] * slow_bytes, model[FLOOR, t])
    return op_s, max(op_s - slow_bytes * dma_s_per_byte, 0.0)


@_jit
def latency_after(
    p: Lives, s: State, moved: Ints, sign: float, added: Ints, gone: Ints
) -> float:
    """The latency with `moved` uses elsewhere, and other copies.

    Args:
      sign: 1 if the uses go to slow memory, -1 if they come from there.
      added: `[0 or 1, 11]` a stay whose copies come. gone: rows whose copies go.
    """
    num_ops = s.ops.shape[1]
    ops_s, clock = s.numbers[0], s.clock
    if len(moved):
        first, last = num_ops, -1
        for u in moved:
            for a in range(p.access_begin[u], p.access_begin[u + 1]):
                t = p.access_op[a]
                first, last = min(first, t), max(last, t)
        # Spare times of the ops in between, only while the clock is made.
        kept = s.ops[SPARE_S, first : last + 1].copy()
        for u in moved:
            for a in range(p.access_begin[u], p.access_begin[u + 1]):
                t = p.access_op[a]
                slow_bytes = s.ops[SLOW_BYTES, t] + sign * p.access_bytes[a]
                op_s, s.ops[SPARE_S, t] = op_times(
                    p.model, p.dma_s_per_byte, t, slow_bytes
                )
                ops_s += op_s - s.ops[OP_S, t]
        clock = np.empty(num_ops + 1)
        clock[: first + 1] = s.clock[: first + 1]
        for t in range(first, num_ops):
            clock[t + 1] = clock[t] + s.ops[SPARE_S, t]
        s.ops[SPARE_S, first : last + 1] = kept
    most = s.counts[COPIES:].max() + 2
    copies = np.empty((len(s.copies), most, s.copies.shape[2]), np.int64)
    times = np.empty((len(s.copies), most, 3))
    counts = s.counts.copy()
    stall_s = 0.0
    for q in range(len(s.copies)):
        number = _merged(p, s, q, added, gone, copies[q], times[q])
        counts[COPIES + q] = number
        if len(s.copies) == 1:
            stall_s = _serve(clock, copies[q], times[q], number)
    if len(s.copies) == 2:
        stall_s = _duplex_stall_s(clock, copies, times, counts)
    return ops_s + stall_s


@_jit
def _merged(
    p: Lives, s: State, q: int, added: Ints, gone: Ints, copies: Ints, times: Floats
) -> int:
    """Copies of a queue without some and with those of a stay; how many they are.

    Of what they are, only what the latency depends on.
    """
    new = np.empty((2, copies.shape[1]), np.int64)
    where, num_new = np.empty(3, np.int64), 0
    for stay in added:
        num_new = _copies_of(p, stay, -1, q, len(s.copies), new)
    for i in range(num_new):
        where[i] = _position(s.copies[q], s.counts[COPIES + q], new[i])
    where[num_new] = -1
    number = i = 0
    for j in range(s.counts[COPIES + q] + 1):
        while j == where[i]:
            copies[number, START], copies[number, DONE] = new[i, START], new[i, DONE]
            times[number, SECONDS] = p.copy_s[added[0, BUFFER]]
            number += 1
            i += 1
        if j == s.counts[COPIES + q]:
            break
        is_gone = False
        for other in gone:
            is_gone |= other == s.copies[q, j, ROW]
        if not is_gone:
            copies[number, START] = s.copies[q, j, START]
            copies[number, DONE] = s.copies[q, j, DONE]
            times[number, SECONDS] = s.times[q, j, SECONDS]
            number += 1
    return number


@_jit
def _copies_of(p: Lives, stay: Ints, row: int, q: int, queues: int, to: Ints) -> int:
    """The copies of a stay that are served by a queue, in order; how many."""
    number = 0
    if stay[FILL] >= 0 and q == 0:
        to[number, START], to[number, DONE] = stay[FILL], stay[FILLED]
        to[number, IS_EVICTION] = 0
        number += 1
    if stay[SAVE] >= 0 and q == queues - 1:
        to[number, START], to[number, DONE] = stay[SAVE], stay[SAVED]
        to[number, IS_EVICTION] = 1
        number += 1
    for i in range(number):
        to[i, BYTES], to[i, ROW] = p.buffers[stay[BUFFER], SIZE], row
        to[i, DUE] = 0
    return number


@_jit
def _position(copies: Ints, number: int, copy: Ints) -> int:
    """Where a copy belongs in a queue."""
    at = _first_from(copies, number, copy[START])
    while at < number and copies[at, START] == copy[START]:
        is_before = False
        for column in (DONE, BYTES, IS_EVICTION):
            if copy[column] != copies[at, column]:
                is_before = copy[column] < copies[at, column]
                break
        if is_before:
            break
        at += 1
    return at


@_jit
def _first_from(copies: Ints, number: int, boundary: int) -> int:
    """Position of the first copy that starts at a boundary or later."""
    low, high = 0, number
    while low < high:
        middle = (low + high) // 2
        if copies[middle, START] < boundary:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _serve(clock: Floats, copies: Ints, times: Floats, number: int) -> float:
    """Fills in when each copy is due, over, and waited for; the stall in all."""
    due = len(clock) - 1
    for i in range(number - 1, -1, -1):
        due = min(due, copies[i, DONE])
        copies[i, DUE] = due
    served_s = stall_s = 0.0
    for i in range(number):
        served_s = max(served_s, clock[copies[i, START]]) + times[i, SECONDS]
        due_s = clock[copies[i, DUE]]
        wait_s = 0.0
        if served_s > due_s:
            wait_s = served_s - due_s
            served_s = due_s
        times[i, SERVED], times[i, WAIT] = served_s, wait_s
        stall_s += wait_s
    return stall_s


@_jit
def _duplex_stall_s(clock: Floats, copies: Ints, times: Floats, counts: Ints) -> float:
    """The stall of two queues served side by side; ops wait for the slower."""
    must, arrived = np.zeros((2, len(clock))), np.zeros((2, len(clock)))
    for q in range(2):
        total_s = 0.0
        for i in range(counts[COPIES + q]):
            total_s += times[q, i, SECONDS]
            must[q, copies[q, i, DONE]] = total_s
            arrived[q, copies[q, i, START]] = total_s
    served, come = np.zeros(2), np.zeros(2)
    stall_s, before_s = 0.0, clock[0]
    for t in range(len(clock)):
        now_s = clock[min(t + 1, len(clock) - 1)]
        wait_s = 0.0
        for q in range(2):
            come[q] = max(come[q], arrived[q, t])
            wait_s = max(wait_s, must[q, t] - served[q])
        stall_s += wait_s
        for q in range(2):
            served[q] = min(served[q] + wait_s + now_s - before_s, come[q])
        before_s = now_s
    return stall_s


@_jit
def may_copy(p: Lives, s: State, added: Ints, gone: Ints) -> bool:
    """Whether the DMA can hold all copies in flight, with a stay's and without some."""
    if p.max_in_flight < 0:
        return True
    steps = np.zeros(len(s.clock) + 1, np.int64)
    # A copy that is waited for as soon as it is issued is never in flight.
    for q in range(len(s.copies)):
        for i in range(s.counts[COPIES + q]):
            start, done = s.copies[q, i, START], s.copies[q, i, DONE]
            if start < done and not (gone == s.copies[q, i, ROW]).any():
                steps[start] += 1
                steps[done] -= 1
    if added[FILL] >= 0 and added[FILL] < added[FILLED]:
        steps[added[FILL]] += 1
        steps[added[FILLED]] -= 1
    if added[SAVE] >= 0 and added[SAVE] < added[SAVED]:
        steps[added[SAVE]] += 1
        steps[added[SAVED]] -= 1
    return np.cumsum(steps).max() <= p.max_in_flight


@_jit
def enqueue(p: Lives, s: State, row: int) -> None:
    """The copies of a stay into the queues."""
    new = np.empty((2, s.copies.shape[2]), np.int64)
    for q in range(len(s.copies)):
        for i in range(_copies_of(p, s.stays[row], row, q, len(s.copies), new)):
            number = s.counts[COPIES + q]
            at = _position(s.copies[q], number, new[i])
            for j in range(number, at, -1):
                s.copies[q, j] = s.copies[q, j - 1]
                s.times[q, j] = s.times[q, j - 1]
            s.copies[q, at] = new[i]
            s.times[q, at, SECONDS] = p.copy_s[s.stays[row, BUFFER]]
            s.counts[COPIES + q] += 1


@_jit
def drop_copies(s: State, rows: Ints) -> None:
    """Takes the copies of stays out of the queues."""
    for q in range(len(s.copies)):
        number = 0
        for i in range(s.counts[COPIES + q]):
            row, is_gone = s.copies[q, i, ROW], False
            for other in rows:
                is_gone |= other == row
            if is_gone:
                continue
            if number < i:
                s.copies[q, number] = s.copies[q, i]
                s.times[q, number] = s.times[q, i]
            number += 1
        s.counts[COPIES + q] = number


@_jit
def latest_start(s: State, q: int, earliest: int, done: int, seconds: float) -> int:
    """The last boundary with so much unused copy time from there to `done`."""
    copies, times, clock = s.copies[q], s.times[q], s.clock
    floor_s, at_s, more_s = clock[earliest], clock[done], seconds
    i = _first_from(copies, s.counts[COPIES + q], done) - 1
    while i >= 0 and at_s > floor_s:
        end_s = times[i, SERVED]
        if end_s < at_s:
            if at_s - end_s >= more_s:
                break
            more_s -= at_s - end_s
            at_s = end_s
        begun_s = clock[copies[i, START]]
        if i > 0 and times[i - 1, SERVED] > begun_s:
            begun_s = times[i - 1, SERVED]
        at_s = min(at_s, begun_s)
        i -= 1
    found = np.searchsorted(clock, at_s - more_s, side="right") - 1
    return max(earliest, min(found, done))


@_jit
def earliest_done(s: State, q: int, start: int, latest: int, seconds: float) -> int:
    """The first boundary with so much unused copy time since `start`."""
    copies, times, clock = s.copies[q], s.times[q], s.clock
    at_s, limit_s, more_s = clock[start], clock[latest], seconds
    i = _first_from(copies, s.counts[COPIES + q], start + 1)
    while i > 0 and times[i - 1, SERVED] > at_s:
        i -= 1
    while i < s.counts[COPIES + q] and at_s < limit_s:
        issued_s = clock[copies[i, START]]
        if issued_s > at_s:
            if issued_s - at_s >= more_s:
                break
            more_s -= issued_s - at_s
        at_s = max(at_s, times[i, SERVED])
        i += 1
    return min(latest, np.searchsorted(clock, at_s + more_s))


@_jit
def blocking(s: State) -> Ints:
    """Rows of stays with a copy that ops wait for, or one just ahead of it."""
    found = np.zeros(len(s.stays), np.bool_)
    for q in range(len(s.copies)):
        blocks = False
        for i in range(s.counts[COPIES + q] - 1, -1, -1):
            blocks = blocks or s.times[q, i, WAIT] > 0
            if blocks:
                if s.copies[q, i, ROW] >= 0:
                    found[s.copies[q, i, ROW]] = True
                # The queue was idle before: what is further ahead is not to blame.
                before_s = s.times[q, i - 1, SERVED] if i else 0.0
                if before_s < s.clock[s.copies[q, i, START]]:
                    blocks = False
    return np.flatnonzero(found)
