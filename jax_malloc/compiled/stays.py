"""Stays in fast memory as the compiled loops hold them, and their places.

A stay is a row of one table, found from every use that it serves:

    uses        0    1    2    3    4        of one buffer
    stay_of     7    7   -1    2    2        rows; -1 is slow memory
    row 2       [prefetch | 3    4 | eviction]
                begin                end     ops for which it takes its place

Places are rectangles of ops by granules, see `solvers.packing`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns of the table of stays. FILL and SAVE: where the prefetch and the eviction
# start, -1 where there is none; FILLED and SAVED: by when each must be over.
BUFFER, FIRST, LAST, OFFSET, BEGIN, END, FILL, FILLED, SAVE, SAVED, TOP = range(11)
STAY_COLUMNS = 11
FROZEN = -1  # buffer of a stay that is there for good
# Of buffers, uses, copies, and the rows of `State.ops` and of `Lives.model`.
GRANULES, SIZE, HOME, STARTS_SLOW, ENDS_SLOW = range(5)
FIRST_USE, FREE_FROM, FREE_UNTIL = range(5, 8)
USE_BEGIN, USE_END, READS, USE_BUFFER, LAST_WRITE = range(5)
START, DONE, BYTES, IS_EVICTION, ROW, DUE = range(6)
SECONDS, SERVED, WAIT = range(3)
SLOW_BYTES, OP_S, SPARE_S = range(3)
FLOOR, BASE, SLOPE = range(3)
# Of `State.counts`: rows in use by offset, free rows, and copies of either queue.
USED, FREE, COPIES = 0, 1, 2
# Rules of `packing.FitRule`, in its order.
BEST, BEST_TOP, LOWEST, HIGHEST = range(4)
_jit = numba.njit(cache=True, nogil=True)


class Lives(NamedTuple):
    """A problem's lives of buffers, op model and machine; nothing here changes.

    capacity: `[T]` granules; flat: what they are if all are alike, else -1.
    model: `[3, T]` floor, base and slope of each op's time.
    buffers: `[B + 1, 8]`; a buffer's uses end where those of the next begin, and its
      stays are between boundaries FREE_FROM and FREE_UNTIL.
    copy_s: `[B]` of one copy. uses: `[U, 5]`; LAST_WRITE is the last use up to this one
    that writes the buffer, -1 if none does.
    access_begin: `[U + 1]` into access_op and access_bytes.
    over_begin: `[B + 1]` into over, buffers whose last use the first of this one may
    write over; under is the same the other way round.
    boundaries: `[2, H, T + 1]` the nearest boundary that copies of a home region may
    use, before and after each. use_begin: `[T + 1]` into use_at, the uses with an
    access at each op.
    """

    capacity: Ints
    model: Floats
    buffers: Ints
    copy_s: Floats
    uses: Ints
    access_begin: Ints
    access_op: Ints
    access_bytes: Floats
    over_begin: Ints
    over: Ints
    under_begin: Ints
    under: Ints
    boundaries: Ints
    use_begin: Ints
    use_at: Ints
    flat: int
    dma_s_per_byte: float
    max_in_flight: int
    noise_s: float


class State(NamedTuple):
    """One allocation; arrays that change in place.

    ops: `[3, T]` bytes in slow memory, seconds, spare seconds. clock: `[T + 1]` spare
    seconds before each boundary. stays: `[S, 11]`; one whose BUFFER is FROZEN is never
    taken out. stay_of: `[U]` rows. order: `[S]` rows in use, by offset. free: `[S]`
    rows not in use. copies: `[Q, C, 6]` and times: `[Q, C, 3]`, in the order of
    service; SERVED is on the clock. One queue, or one for each direction. numbers:
    `[2]` seconds of ops and of stalls. counts: `[4]`.
    """

    ops: Floats
    clock: Floats
    stays: Ints
    stay_of: Ints
    order: Ints
    free: Ints
    copies: Ints
    times: Floats
    numbers: Floats
    counts: Ints


def copy(state: State) -> State:
    """A state like this one, with arrays of its own."""
    return State._make(array.copy() for array in state)


@_jit
def assign(to: State, state: State) -> None:
    """Makes one state equal to another, of the same problem."""
    used, free = state.counts[USED], state.counts[FREE]
    to.ops[:] = state.ops
    to.clock[:] = state.clock
    to.stay_of[:] = state.stay_of
    for i in range(used):
        row = state.order[i]
        to.order[i] = row
        for column in range(STAY_COLUMNS):
            to.stays[row, column] = state.stays[row, column]
    to.free[:free] = state.free[:free]
    for q in range(len(state.copies)):
        for i in range(state.counts[COPIES + q]):
            for column in range(state.copies.shape[2]):
                to.copies[q, i, column] = state.copies[q, i, column]
            for column in range(state.times.shape[2]):
                to.times[q, i, column] = state.times[q, i, column]
    to.numbers[:] = state.numbers
    to.counts[:] = state.counts


@_jit
def latency_s(s: State) -> float:
    """Seconds per program call."""
    return s.numbers[0] + s.numbers[1]


@_jit
def find(
    p: Lives, s: State, size: int, begin: int, end: int, rule: int, beside: Ints
) -> int:
    """A place that is free, best one that is shared; -1 if there is none."""
    for other in beside:
        offset = s.stays[other, OFFSET]
        if is_free(p, s, size, offset, begin, end, beside):
            return offset
    capacity = _capacity(p, begin, end)
    best, best_room, bottom = -1, capacity + 1, 0
    # By offset: a gap reaches from the highest end so far to the next start.
    for i in range(s.counts[USED] + 1):
        if i < s.counts[USED]:
            row = s.order[i]
            if s.stays[row, BEGIN] >= end or s.stays[row, END] <= begin:
                continue
            low, high = s.stays[row, OFFSET], s.stays[row, TOP]
        else:
            low = high = capacity
        room = min(low, capacity) - bottom
        if size <= room and (room < best_room or rule == HIGHEST):
            best, best_room = bottom, room
            if rule == LOWEST:
                break
        bottom = max(bottom, high)
    if best < 0:
        return -1
    is_top = best + best_room == capacity
    if rule == HIGHEST or (rule == BEST_TOP and is_top):
        return best + best_room - size
    return best


@_jit
def _capacity(p: Lives, begin: int, end: int) -> int:
    """Granules that all ops of a span may use."""
    if p.flat >= 0:
        return p.flat
    capacity = p.capacity[begin]
    for t in range(begin + 1, end):
        capacity = min(capacity, p.capacity[t])
    return capacity


@_jit
def is_free(
    p: Lives, s: State, size: int, offset: int, begin: int, end: int, beside: Ints
) -> bool:
    """Whether a place can be taken; rows `beside` at the same offset may be there."""
    if begin >= end:
        return True
    if offset + size > _capacity(p, begin, end):
        return False
    found, rows = np.empty(1, np.int64), s.order[: s.counts[USED]]
    top = offset + size
    return not _obstacles(s.stays, rows, offset, top, begin, end, beside, found)


@_jit
def in_the_way(
    p: Lives, s: State, b: int, first: int, last: int, offset: int, begin: int, end: int
) -> Ints:
    """Rows of the stays that a run of uses would push out of a place."""
    beside = sharing(p, s, b, first, last)
    top = offset + p.buffers[b, GRANULES]
    found = np.empty(s.counts[USED], np.int64)
    rows = s.order[: s.counts[USED]]
    number = _obstacles(s.stays, rows, offset, top, begin, end, beside, found)
    return found[:number]


@_jit
def _obstacles(
    stays: Ints,
    rows: Ints,
    offset: int,
    top: int,
    begin: int,
    end: int,
    beside: Ints,
    found: Ints,
) -> int:
    """Rows of stays that overlap a place, until `found` is full; how many.

    Those `beside` may be there at the same offset.
    """
    number = 0
    for row in rows:
        if (
            stays[row, BEGIN] >= end
            or stays[row, END] <= begin
            or stays[row, OFFSET] >= top
            or stays[row, TOP] <= offset
        ):
            continue
        is_shared = False
        if stays[row, OFFSET] == offset:
            for other in beside:
                is_shared |= other == row
        if not is_shared:
            found[number] = row
            number += 1
            if number == len(found):
                break
    return number


@_jit
def sharing(p: Lives, s: State, b: int, first: int, last: int) -> Ints:
    """Rows of stays beside which a run of uses may be at one offset.

    At the op that writes one buffer over the other, and only there, both are in fast
    memory; neither has a copy to or from it at that time.
    """
    most = p.over_begin[b + 1] - p.over_begin[b] + p.under_begin[b + 1]
    rows = np.empty(most - p.under_begin[b], np.int64)
    number = 0
    if first == p.buffers[b, FIRST_USE]:
        for i in range(p.over_begin[b], p.over_begin[b + 1]):
            row = s.stay_of[p.buffers[p.over[i] + 1, FIRST_USE] - 1]
            if row >= 0:
                rows[number] = row
                number += 1
    if last == p.buffers[b + 1, FIRST_USE] - 1:
        for i in range(p.under_begin[b], p.under_begin[b + 1]):
            row = s.stay_of[p.buffers[p.under[i], FIRST_USE]]
            if row >= 0:
                rows[number] = row
                number += 1
    return rows[:number]


@_jit
def enter(s: State, row: int) -> None:
    """A stay takes its place."""
    at, offset = s.counts[USED], s.stays[row, OFFSET]
    while at > 0 and s.stays[s.order[at - 1], OFFSET] >= offset:
        s.order[at] = s.order[at - 1]
        at -= 1
    s.order[at] = row
    s.counts[USED] += 1


@_jit
def leave(s: State, row: int) -> None:
    """A stay gives its place back."""
    number = 0
    for i in range(s.counts[USED]):
        if s.order[i] != row:
            s.order[number] = s.order[i]
            number += 1
    s.counts[USED] = number
