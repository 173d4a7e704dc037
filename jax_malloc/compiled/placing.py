"""Stays that are put into fast memory and taken out again, with exact places and times.

The loops behind `solvers.allocation.Allocation`, which says what they do. A stay is a
row of one table, found from every use that it serves:

    uses        0    1    2    3    4        of one buffer
    stay_of     7    7   -1    2    2        rows; -1 is slow memory
    row 2       [prefetch | 3    4 | eviction]
                begin                end     ops for which it takes its place

What a change would cost is found out on copies of what it touches: the clock of spare
time and the queue of copies. Both are passes over short arrays, which takes less time
than to keep track of what they have in common with those before the change.

Source of the timing: `hwmodel.simulator`, with which `solvers.timing` agrees, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Columns of the table of stays. FILL and SAVE: where the prefetch and the eviction
# start, -1 where there is none; FILLED and SAVED: by when each must be over.
BUFFER, FIRST, LAST, OFFSET, BEGIN, END, FILL, FILLED, SAVE, SAVED, TOP = range(11)
STAY_COLUMNS = 11
# Of buffers, uses, copies, and the rows of `State.ops` and of `Lives.model`.
GRANULES, SIZE, HOME, STARTS_SLOW, ENDS_SLOW, FIRST_USE = range(6)
USE_BEGIN, USE_END, READS, USE_BUFFER, LAST_WRITE = range(5)
START, DONE, BYTES, IS_EVICTION, ROW, DUE = range(6)
SECONDS, SERVED, WAIT = range(3)
SLOW_BYTES, OP_S, SPARE_S = range(3)
FLOOR, BASE, SLOPE = range(3)
# Of `State.counts`: rows in use by offset, free rows, and copies of either queue.
USED, FREE, COPIES = 0, 1, 2
# Rules of `packing.FitRule`, in its order.
BEST, BEST_TOP, LOWEST, HIGHEST = range(4)

# Times its length of unused copy time that a copy gets, in the order of preference:
# just hidden; more, should an op wait for it even so; less, should that find no place.
_ROOMS = (1.0, 2.0, 0.5, 0.0)
# Boundaries from a deadline, or to one, that are tried when a stay is timed anew.
_DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_jit = numba.njit(cache=True, nogil=True)


class Lives(NamedTuple):
    """A problem's lives of buffers, op model and machine; nothing here changes.

    capacity: `[T]` granules; flat: what they are if all are alike, else -1.
    model: `[3, T]` floor, base and slope of each op's time.
    buffers: `[B + 1, 6]`; a buffer's uses end where those of the next begin.
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
    seconds before each boundary. stays: `[S, 11]`. stay_of: `[U]` rows. order: `[S]`
    rows in use, by offset. free: `[S]` rows not in use. copies: `[Q, C, 6]` and times:
    `[Q, C, 3]`, in the order of service; SERVED is on the clock. One queue, or one for
    each direction. numbers: `[2]` seconds of ops and of stalls. counts: `[4]`.
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
def clear(p: Lives, s: State) -> None:
    """Everything in slow memory; `ops[SLOW_BYTES]` must say how much that is."""
    s.stay_of[:] = -1
    s.counts[:] = 0
    rows = len(s.free)
    s.counts[FREE] = rows
    for i in range(rows):
        s.free[i] = rows - 1 - i
    for t in range(s.ops.shape[1]):
        s.ops[OP_S, t], s.ops[SPARE_S, t] = _op_times(
            p.model, p.dma_s_per_byte, t, s.ops[SLOW_BYTES, t]
        )
    refresh(p, s)


@_jit
def latency_s(s: State) -> float:
    """Seconds per program call."""
    return s.numbers[0] + s.numbers[1]


@_jit
def try_place(p: Lives, s: State, b: int, first: int, last: int, rule: int) -> bool:
    """Puts uses `[first, last]` into fast memory if that lowers the latency.

    Uses are numbered through all buffers. Stays of the buffer within the run are
    replaced; those that reach beyond it make it longer.
    """
    if s.stay_of[first] >= 0:
        first = s.stays[s.stay_of[first], FIRST]
    if s.stay_of[last] >= 0:
        last = s.stays[s.stay_of[last], LAST]
    inside = np.empty(last - first + 1, np.int64)
    moved = np.empty(last - first + 1, np.int64)
    num_inside = num_moved = 0
    u = first
    while u <= last:
        row = s.stay_of[u]
        if row < 0:
            moved[num_moved] = u
            num_moved += 1
            u += 1
        else:
            inside[num_inside] = row
            num_inside += 1
            u = s.stays[row, LAST] + 1
    moved, inside = moved[:num_moved], inside[:num_inside]
    saving_s = 0.0
    for u in moved:
        for a in range(p.access_begin[u], p.access_begin[u + 1]):
            t = p.access_op[a]
            bytes_left = s.ops[SLOW_BYTES, t] - p.access_bytes[a]
            saving_s += (
                s.ops[OP_S, t] - _op_times(p.model, p.dma_s_per_byte, t, bytes_left)[0]
            )
    if saving_s <= p.noise_s and not num_inside:
        return False
    for row in inside:
        _leave(s, row)
    now_s = latency_s(s)
    best = np.empty(STAY_COLUMNS, np.int64)
    if not _best_option(
        p, s, b, first, last, rule, moved, inside, now_s, saving_s, best
    ):
        for row in inside:
            _enter(s, row)
        return False
    _drop_copies(s, inside)
    for row in inside:
        s.stay_of[s.stays[row, FIRST] : s.stays[row, LAST] + 1] = -1
        _give_back(s, row)
    _move(p, s, moved, -1.0)
    _insert(p, s, best)
    refresh(p, s)
    return True


@_jit
def place(
    p: Lives, s: State, b: int, first: int, last: int, rule: int, start: int, done: int
) -> bool:
    """Puts slow uses into fast memory, paying or not, with copies near boundaries."""
    free_from, free_until = _free_span(p, s, b, first, last)
    fills = np.empty(1, np.int64)
    saves = np.empty((1, 2), np.int64)
    fills[0] = saves[0, 0] = -1
    if p.uses[first, READS]:
        earliest, due = _prefetch_span(p, b, first, free_from)
        if due < 0:
            return False
        fills[0] = _prefetch_near(p, b, earliest, min(start, due))
    if needs_eviction(p, b, first, last):
        begin, earliest, latest = _eviction_span(p, b, first, last, free_until)
        if begin < 0:
            return False
        saves[0, 0] = begin
        saves[0, 1] = _eviction_near(p, b, earliest, latest, done)
    elif p.uses[last, USE_END] > free_until:
        return False
    row = _row(p, b, first, last, fills[0], saves[0, 0], saves[0, 1])
    beside = _sharing(p, s, b, first, last)
    row[OFFSET] = _find(
        p, s, p.buffers[b, GRANULES], row[BEGIN], row[END], rule, beside
    )
    none = np.empty(0, np.int64)
    if row[OFFSET] < 0 or not _may_copy(p, s, row, none):
        return False
    _move(p, s, np.arange(first, last + 1), -1.0)
    _insert(p, s, row)
    refresh(p, s)
    return True


@_jit
def adopt(p: Lives, s: State, rows: Ints) -> None:
    """Takes over stays as they are, `[R, 11]`."""
    for row in rows:
        _move(p, s, np.arange(row[FIRST], row[LAST] + 1), -1.0)
        _insert(p, s, row)
    refresh(p, s)


@_jit
def remove(p: Lives, s: State, rows: Ints) -> None:
    """Puts the uses of stays back into slow memory."""
    _drop_copies(s, rows)
    for row in rows:
        first, last = s.stays[row, FIRST], s.stays[row, LAST]
        _leave(s, row)
        s.stay_of[first : last + 1] = -1
        _give_back(s, row)
        _move(p, s, np.arange(first, last + 1), 1.0)
    refresh(p, s)


@_jit
def latency_without(p: Lives, s: State, row: int) -> float:
    """The latency that `remove` of one stay would lead to."""
    uses = np.arange(s.stays[row, FIRST], s.stays[row, LAST] + 1)
    gone = np.full(1, row)
    return _latency_after(p, s, uses, 1.0, s.stays[:0], gone)


@_jit
def retime(p: Lives, s: State, row: int) -> bool:
    """Moves the copies of a stay, at its offset, if that lowers the latency."""
    old = s.stays[row].copy()
    b, first, last = old[BUFFER], old[FIRST], old[LAST]
    free_from, free_until = _free_span(p, s, b, first, last)
    beside = _sharing(p, s, b, first, last)
    gone, none = np.full(1, row), np.empty(0, np.int64)
    _leave(s, row)
    best, best_s = old.copy(), latency_s(s) - p.noise_s
    found = False
    others = np.empty((2 * len(_DISTANCES) + 1, STAY_COLUMNS), np.int64)
    number = 0
    if old[FILL] >= 0:
        earliest, due = _prefetch_span(p, b, first, free_from)
        for distance in _DISTANCES:
            others[number] = old
            others[number, FILL] = _prefetch_near(p, b, earliest, due - distance)
            others[number, FILLED] = due
            others[number, BEGIN] = others[number, FILL]
            number += 1
    if old[SAVE] >= 0:
        begin, earliest, latest = _eviction_span(p, b, first, last, free_until)
        for i in range(len(_DISTANCES) + 1):
            done = latest if i == len(_DISTANCES) else earliest + _DISTANCES[i]
            others[number] = old
            others[number, SAVE] = begin
            others[number, SAVED] = _eviction_near(p, b, earliest, latest, done)
            number += 1
    for i in range(number):
        other = others[i]
        other[BEGIN] = p.uses[first, USE_BEGIN] if other[FILL] < 0 else other[FILL]
        other[END] = p.uses[last, USE_END]
        if other[SAVE] >= 0:
            other[END] = max(other[END], other[SAVED])
        if i and (other == others[i - 1]).all():
            continue
        if not _is_free(
            p,
            s,
            p.buffers[b, GRANULES],
            other[OFFSET],
            other[BEGIN],
            other[END],
            beside,
        ):
            continue
        after_s = _latency_after(p, s, none, 1.0, others[i : i + 1], gone)
        if after_s < best_s and _may_copy(p, s, other, gone):
            best[:], best_s, found = other, after_s, True
    if found:
        _drop_copies(s, gone)
        s.stays[row] = best
        _queue(p, s, row)
        refresh(p, s)
    _enter(s, row)
    return found


@_jit
def in_the_way(
    p: Lives, s: State, b: int, first: int, last: int, offset: int, begin: int, end: int
) -> Ints:
    """Rows of the stays that a run of uses would push out of a place."""
    beside = _sharing(p, s, b, first, last)
    top = offset + p.buffers[b, GRANULES]
    found = np.empty(s.counts[USED], np.int64)
    rows = s.order[: s.counts[USED]]
    number = _obstacles(s.stays, rows, offset, top, begin, end, beside, found)
    return found[:number]


@_jit
def blocking(s: State) -> Ints:
    """Rows of stays with a copy that ops wait for, or one just ahead of it."""
    found = np.zeros(len(s.stays), np.bool_)
    for q in range(len(s.copies)):
        blocks = False
        for i in range(s.counts[COPIES + q] - 1, -1, -1):
            blocks = blocks or s.times[q, i, WAIT] > 0
            if blocks:
                found[s.copies[q, i, ROW]] = True
                # The queue was idle before: what is further ahead is not to blame.
                before_s = s.times[q, i - 1, SERVED] if i else 0.0
                if before_s < s.clock[s.copies[q, i, START]]:
                    blocks = False
    return np.flatnonzero(found)


@_jit
def slow_run(p: Lives, s: State, u: int) -> tuple[int, int]:
    """The longest run of slow uses around a slow one, `(first, last)`."""
    b = p.uses[u, USE_BUFFER]
    first = last = u
    while first > p.buffers[b, FIRST_USE] and s.stay_of[first - 1] < 0:
        first -= 1
    while last + 1 < p.buffers[b + 1, FIRST_USE] and s.stay_of[last + 1] < 0:
        last += 1
    return first, last


@_jit
def _op_times(
    model: Floats, dma_s_per_byte: float, t: int, slow_bytes: float
) -> tuple[float, float]:
    """Latency and spare time of an op."""
    op_s = max(model[BASE, t] + model[SLOPE, t] * slow_bytes, model[FLOOR, t])
    return op_s, max(op_s - slow_bytes * dma_s_per_byte, 0.0)


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
def _best_option(
    p: Lives,
    s: State,
    b: int,
    first: int,
    last: int,
    rule: int,
    moved: Ints,
    inside: Ints,
    now_s: float,
    saving_s: float,
    best: Ints,
) -> bool:
    """The fastest stay for a run of uses, into `best`; False if none pays."""
    size = p.buffers[b, GRANULES]
    beside = _sharing(p, s, b, first, last)
    # Without copies it is shortest: most that find no place do not then, either.
    use_begin, use_end = p.uses[first, USE_BEGIN], p.uses[last, USE_END]
    if _find(p, s, size, use_begin, use_end, rule, beside) < 0:
        return False
    free_from, free_until = _free_span(p, s, b, first, last)
    fills = np.full(len(_ROOMS), -1)
    num_fills = 1
    if p.uses[first, READS]:
        earliest, due = _prefetch_span(p, b, first, free_from)
        if due < 0:
            return False
        num_fills = 0
        for room in _ROOMS:
            start = _latest_start(s, 0, earliest, due, p.copy_s[b] * room)
            fill = _prefetch_near(p, b, earliest, start)
            if not (fills[:num_fills] == fill).any():
                fills[num_fills] = fill
                num_fills += 1
    saves = np.full(len(_ROOMS) + 1, -1)
    begin, num_saves = -1, 1
    if needs_eviction(p, b, first, last):
        begin, soonest, latest = _eviction_span(p, b, first, last, free_until)
        if begin < 0:
            return False
        num_saves = 0
        for i in range(len(saves)):
            done = latest
            if i < len(_ROOMS):
                room_s = p.copy_s[b] * _ROOMS[i]
                done = _earliest_done(s, len(s.copies) - 1, begin, latest, room_s)
            saved = _eviction_near(p, b, soonest, latest, done)
            if not (saves[:num_saves] == saved).any():
                saves[num_saves] = saved
                num_saves += 1
    elif use_end > free_until:
        return False
    best_s, found = now_s - p.noise_s, False
    # Spans that found no place: what holds one of them finds none, either.
    too_long = np.empty((len(saves) * len(fills), 2), np.int64)
    num_too_long = 0
    rows = np.empty((1, STAY_COLUMNS), np.int64)
    for saved in saves[:num_saves]:
        for fill in fills[:num_fills]:
            row = _row(p, b, first, last, fill, begin, saved)
            hopeless = False
            for i in range(num_too_long):
                if row[BEGIN] <= too_long[i, 0] and too_long[i, 1] <= row[END]:
                    hopeless = True
            if hopeless:
                continue
            row[OFFSET] = _find(p, s, size, row[BEGIN], row[END], rule, beside)
            if row[OFFSET] < 0:
                too_long[num_too_long] = row[BEGIN], row[END]
                num_too_long += 1
                continue
            rows[0] = row
            after_s = _latency_after(p, s, moved, -1.0, rows, inside)
            if after_s < best_s and _may_copy(p, s, row, inside):
                best[:], best_s, found = row, after_s, True
            if after_s <= now_s - saving_s + p.noise_s:
                return found  # no stall: it cannot get better
    return found


@_jit
def _row(
    p: Lives, b: int, first: int, last: int, fill: int, save: int, saved: int
) -> Ints:
    """A stay without an offset yet."""
    row = np.empty(STAY_COLUMNS, np.int64)
    row[BUFFER], row[FIRST], row[LAST], row[OFFSET] = b, first, last, -1
    row[BEGIN] = p.uses[first, USE_BEGIN] if fill < 0 else fill
    row[END] = p.uses[last, USE_END] if save < 0 else max(p.uses[last, USE_END], saved)
    row[FILL], row[FILLED] = fill, p.uses[first, USE_BEGIN]
    row[SAVE], row[SAVED] = save, saved
    return row


@_jit
def needs_eviction(p: Lives, b: int, first: int, last: int) -> bool:
    """Whether slow memory must learn what uses `[first, last]` wrote."""
    if p.uses[last, LAST_WRITE] < first:
        return False
    if last + 1 < p.buffers[b + 1, FIRST_USE]:
        return p.uses[last + 1, READS] > 0
    return p.buffers[b, ENDS_SLOW] > 0


@_jit
def _prefetch_span(p: Lives, b: int, first: int, free_from: int) -> tuple[int, int]:
    """Earliest start and deadline of a prefetch; -1 if there is no way."""
    done, home = p.uses[first, USE_BEGIN], p.buffers[b, HOME]
    earliest = free_from
    written = -1
    if first > p.buffers[b, FIRST_USE]:
        written = p.uses[first - 1, LAST_WRITE]
    if written >= 0:
        earliest = max(earliest, p.uses[written, USE_END])
    elif not p.buffers[b, STARTS_SLOW]:
        return -1, -1
    earliest = p.boundaries[1, home, earliest]
    if earliest > done or p.boundaries[0, home, done] != done:
        return -1, -1
    return earliest, done


@_jit
def _eviction_span(
    p: Lives, b: int, first: int, last: int, free_until: int
) -> tuple[int, int, int]:
    """Start, earliest and latest deadline of an eviction; -1 if there is no way."""
    home = p.buffers[b, HOME]
    start = p.boundaries[1, home, p.uses[p.uses[last, LAST_WRITE], USE_END]]
    limit = free_until
    if last + 1 < p.buffers[b + 1, FIRST_USE]:
        limit = min(limit, p.uses[last + 1, USE_BEGIN])
    latest = p.boundaries[0, home, limit]
    earliest = max(start, p.uses[last, USE_END])
    if earliest > latest:
        return -1, -1, -1
    return start, earliest, latest


@_jit
def _prefetch_near(p: Lives, b: int, earliest: int, start: int) -> int:
    return p.boundaries[0, p.buffers[b, HOME], max(start, earliest)]


@_jit
def _eviction_near(p: Lives, b: int, earliest: int, latest: int, done: int) -> int:
    return p.boundaries[1, p.buffers[b, HOME], min(max(done, earliest), latest)]


@_jit
def _free_span(p: Lives, s: State, b: int, first: int, last: int) -> tuple[int, int]:
    """Boundaries between which a buffer has no stay but those of these uses."""
    free_from, free_until = 0, s.ops.shape[1]
    for u in range(first - 1, p.buffers[b, FIRST_USE] - 1, -1):
        if s.stay_of[u] >= 0:
            free_from = s.stays[s.stay_of[u], END]
            break
    for u in range(last + 1, p.buffers[b + 1, FIRST_USE]):
        if s.stay_of[u] >= 0:
            free_until = s.stays[s.stay_of[u], BEGIN]
            break
    return free_from, free_until


@_jit
def _latest_start(s: State, q: int, earliest: int, done: int, seconds: float) -> int:
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
def _earliest_done(s: State, q: int, start: int, latest: int, seconds: float) -> int:
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
def _latency_after(
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
                op_s, s.ops[SPARE_S, t] = _op_times(
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
def _may_copy(p: Lives, s: State, added: Ints, gone: Ints) -> bool:
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
    in_flight = 0
    for step in steps:
        in_flight += step
        if in_flight > p.max_in_flight:
            return False
    return True


@_jit
def _move(p: Lives, s: State, uses: Ints, sign: float) -> None:
    """Uses to slow memory (1), or from there (-1)."""
    for u in uses:
        for a in range(p.access_begin[u], p.access_begin[u + 1]):
            t = p.access_op[a]
            s.ops[SLOW_BYTES, t] += sign * p.access_bytes[a]
            s.ops[OP_S, t], s.ops[SPARE_S, t] = _op_times(
                p.model, p.dma_s_per_byte, t, s.ops[SLOW_BYTES, t]
            )


@_jit
def _insert(p: Lives, s: State, stay: Ints) -> None:
    """A new row, its place and its copies; clock and queues are not refreshed."""
    s.counts[FREE] -= 1
    row = s.free[s.counts[FREE]]
    s.stays[row] = stay
    s.stays[row, TOP] = stay[OFFSET] + p.buffers[stay[BUFFER], GRANULES]
    s.stay_of[stay[FIRST] : stay[LAST] + 1] = row
    _enter(s, row)
    _queue(p, s, row)


@_jit
def _give_back(s: State, row: int) -> None:
    s.free[s.counts[FREE]] = row
    s.counts[FREE] += 1


@_jit
def _queue(p: Lives, s: State, row: int) -> None:
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
def _drop_copies(s: State, rows: Ints) -> None:
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
def _enter(s: State, row: int) -> None:
    """A stay takes its place."""
    at, offset = s.counts[USED], s.stays[row, OFFSET]
    while at > 0 and s.stays[s.order[at - 1], OFFSET] >= offset:
        s.order[at] = s.order[at - 1]
        at -= 1
    s.order[at] = row
    s.counts[USED] += 1


@_jit
def _leave(s: State, row: int) -> None:
    """A stay gives its place back."""
    number = 0
    for i in range(s.counts[USED]):
        if s.order[i] != row:
            s.order[number] = s.order[i]
            number += 1
    s.counts[USED] = number


@_jit
def _sharing(p: Lives, s: State, b: int, first: int, last: int) -> Ints:
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
def _find(
    p: Lives, s: State, size: int, begin: int, end: int, rule: int, beside: Ints
) -> int:
    """A place that is free, best one that is shared; -1 if there is none."""
    for row in beside:
        offset = s.stays[row, OFFSET]
        if _is_free(p, s, size, offset, begin, end, beside):
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
def _is_free(
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
