"""Stays that are put into fast memory and taken out again, with exact places and times.

The loops behind `solvers.allocation.Allocation`, which says what they do. A use has one
number among those of all buffers, a buffer its position among those with a life.
"""

from __future__ import annotations

import numba
import numpy as np

from jax_malloc.compiled.queues import (
    drop_copies,
    earliest_done,
    enqueue,
    latency_after,
    latest_start,
    may_copy,
    op_times,
    refresh,
)
from jax_malloc.compiled.stays import (
    BEGIN,
    BUFFER,
    END,
    ENDS_SLOW,
    FILL,
    FILLED,
    FIRST,
    FIRST_USE,
    FREE,
    FREE_FROM,
    FREE_UNTIL,
    GRANULES,
    HOME,
    LAST,
    LAST_WRITE,
    OFFSET,
    OP_S,
    READS,
    SAVE,
    SAVED,
    SLOW_BYTES,
    SPARE_S,
    STARTS_SLOW,
    STAY_COLUMNS,
    TOP,
    USE_BEGIN,
    USE_BUFFER,
    USE_END,
    Ints,
    Lives,
    State,
    enter,
    find,
    is_free,
    latency_s,
    leave,
    sharing,
)

# Times its length of unused copy time that a copy gets, in the order of preference:
# just hidden; more, should an op wait for it even so; less, should that find no place.
_ROOMS = (1.0, 2.0, 0.5, 0.0)
# Boundaries from a deadline, or to one, that are tried when a stay is timed anew.
_DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_jit = numba.njit(cache=True, nogil=True)


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
    for i in range(num_moved):
        for a in range(p.access_begin[moved[i]], p.access_begin[moved[i] + 1]):
            t = p.access_op[a]
            bytes_left = s.ops[SLOW_BYTES, t] - p.access_bytes[a]
            saving_s += (
                s.ops[OP_S, t] - op_times(p.model, p.dma_s_per_byte, t, bytes_left)[0]
            )
    if saving_s <= p.noise_s and not num_inside:
        return False
    for i in range(num_inside):
        leave(s, inside[i])
    now_s = latency_s(s)
    best = np.empty(STAY_COLUMNS, np.int64)
    if not _best_option(
        p, s, b, first, last, rule, moved, inside, now_s, saving_s, best
    ):
        for i in range(num_inside):
            enter(s, inside[i])
        return False
    drop_copies(s, inside)
    for i in range(num_inside):
        row = inside[i]
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
    fill = save = saved = -1
    if p.uses[first, READS]:
        earliest, due = _prefetch_span(p, b, first, free_from)
        if due < 0:
            return False
        fill = _prefetch_near(p, b, earliest, min(start, due))
    if needs_eviction(p, b, first, last):
        save, earliest, latest = _eviction_span(p, b, first, last, free_until)
        if save < 0:
            return False
        saved = _eviction_near(p, b, earliest, latest, done)
    elif p.uses[last, USE_END] > free_until:
        return False
    row = _row(p, b, first, last, fill, save, saved)
    beside = sharing(p, s, b, first, last)
    row[OFFSET] = find(p, s, p.buffers[b, GRANULES], row[BEGIN], row[END], rule, beside)
    none = np.empty(0, np.int64)
    if row[OFFSET] < 0 or not may_copy(p, s, row, none):
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
    drop_copies(s, rows)
    for row in rows:
        first, last = s.stays[row, FIRST], s.stays[row, LAST]
        leave(s, row)
        s.stay_of[first : last + 1] = -1
        _give_back(s, row)
        _move(p, s, np.arange(first, last + 1), 1.0)
    refresh(p, s)


@_jit
def latency_without(p: Lives, s: State, row: int) -> float:
    """The latency that `remove` of one stay would lead to."""
    uses = np.arange(s.stays[row, FIRST], s.stays[row, LAST] + 1)
    gone = np.full(1, row)
    return latency_after(p, s, uses, 1.0, s.stays[:0], gone)


@_jit
def retime(p: Lives, s: State, row: int) -> bool:
    """Moves the copies of a stay, at its offset, if that lowers the latency."""
    old = s.stays[row].copy()
    b, first, last = old[BUFFER], old[FIRST], old[LAST]
    free_from, free_until = _free_span(p, s, b, first, last)
    beside = sharing(p, s, b, first, last)
    gone, none = np.full(1, row), np.empty(0, np.int64)
    leave(s, row)
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
        if not is_free(
            p,
            s,
            p.buffers[b, GRANULES],
            other[OFFSET],
            other[BEGIN],
            other[END],
            beside,
        ):
            continue
        after_s = latency_after(p, s, none, 1.0, others[i : i + 1], gone)
        if after_s < best_s and may_copy(p, s, other, gone):
            best[:], best_s, found = other, after_s, True
    if found:
        drop_copies(s, gone)
        s.stays[row] = best
        enqueue(p, s, row)
        refresh(p, s)
    enter(s, row)
    return found


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
    beside = sharing(p, s, b, first, last)
    # Without copies it is shortest: most that find no place do not then, either.
    use_begin, use_end = p.uses[first, USE_BEGIN], p.uses[last, USE_END]
    if find(p, s, size, use_begin, use_end, rule, beside) < 0:
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
            start = latest_start(s, 0, earliest, due, p.copy_s[b] * room)
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
                done = earliest_done(s, len(s.copies) - 1, begin, latest, room_s)
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
            row[OFFSET] = find(p, s, size, row[BEGIN], row[END], rule, beside)
            if row[OFFSET] < 0:
                too_long[num_too_long] = row[BEGIN], row[END]
                num_too_long += 1
                continue
            rows[0] = row
            after_s = latency_after(p, s, moved, -1.0, rows, inside)
            if after_s < best_s and may_copy(p, s, row, inside):
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
    free_from, free_until = p.buffers[b, FREE_FROM], p.buffers[b, FREE_UNTIL]
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
def _move(p: Lives, s: State, uses: Ints, sign: float) -> None:
    """Uses to slow memory (1), or from there (-1)."""
    for u in uses:
        for a in range(p.access_begin[u], p.access_begin[u + 1]):
            t = p.access_op[a]
            s.ops[SLOW_BYTES, t] += sign * p.access_bytes[a]
            s.ops[OP_S, t], s.ops[SPARE_S, t] = op_times(
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
    enter(s, row)
    enqueue(p, s, row)


@_jit
def _give_back(s: State, row: int) -> None:
    s.free[s.counts[FREE]] = row
    s.counts[FREE] += 1
