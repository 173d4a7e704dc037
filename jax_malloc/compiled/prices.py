"""Prices of fast memory and of copying, by Lagrangian relaxation of the whole program.

Capacity at each op and copying time between ops each get a price. Under given prices
every buffer can be planned alone, exactly, by dynamic programming over its accesses:
left in slow memory, kept since the one before, or fetched anew. Prices rise where the
plans together take more than there is and fall where they take less. What the plans do
on average is close to the linear relaxation of the problem, found in milliseconds.

    prices ---> a plan of each buffer ---> load ---> prices

Left out: offsets, the order of the queue, and that the buffers of one op share what
it can save (each is given a fixed part). A copy runs in the shortest stretch of ops
that hides it.

Source: subgradient method, Held and Karp, "The traveling-salesman problem and minimum
spanning trees: part II", Mathematical Programming 1, 1971.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from jax_malloc.compiled.tables import Floats, Ints, Tables

_ITERATIONS = 200
_FIRST = 60  # iterations until plans count
_HALVED = 25.0  # iterations after which steps are half as long
_COPY_STEP = 0.3  # of a price of copying, per step of a price of space
_LEAST_OP = 0.05  # units: a very short op still has a price that moves
_NEVER = -1e18
_SLOW, _CLEAN, _DIRTY = 0, 1, 2  # where a buffer is after an access
_FETCHED = 3  # added to the place before it
_jit = numba.njit(cache=True, nogil=True)


class Relaxed(NamedTuple):
    """What the plans do, as shares of the iterations; `[N]` each.

    fast: the access is served by fast memory. kept: the buffer stays there until its
    next access. fetched: it is prefetched for this access.
    keep_cost: units that keeping it until the next access costs in the end.
    fetch_cost: units that prefetching it for this access costs in the end.
    """

    fast: Floats
    kept: Floats
    fetched: Floats
    keep_cost: Floats
    fetch_cost: Floats


class _Copies(NamedTuple):
    """The copies that each access may need, `[N]` each.

    fetch: boundary where a prefetch starts. evicted: boundary where an eviction of what
    is there after the access is done. fetch_wait, evict_wait: units that ops do not
    hide.
    """

    fetch: Ints
    fetch_wait: Floats
    evicted: Ints
    evict_wait: Floats


def relax(t: Tables, saving: Floats, before: Ints, following: Ints) -> Relaxed:
    """Prices the program.

    Args:
      t: the board's tables.
      saving: `[N]` units that each access saves in fast memory.
      before, following: `[N]` the same buffer's previous and next access, or -1.
    """
    spare = np.concatenate([[0.0], np.cumsum(t.careful_spare)])
    return _iterate(t, saving, before, following, spare, _copies(t, before, spare))


@_jit
def _copies(t, before, spare):
    n, num_ops = len(t.op), len(t.floor)
    fetch, evicted = np.zeros(n, np.int32), np.zeros(n, np.int32)
    fetch_wait, evict_wait = np.zeros(n), np.zeros(n)
    for i in range(n):
        ready, units = t.ready_by[i], t.copy_time[i]
        earliest = t.hold_until[before[i]] + 1 if before[i] >= 0 else 0
        boundary, fetch[i] = ready, ready
        while boundary > earliest and spare[ready] - spare[fetch[i]] < units:
            boundary -= 1
            if t.boundary_depth[boundary] == t.depth[i]:
                fetch[i] = boundary
        fetch_wait[i] = max(units - (spare[ready] - spare[fetch[i]]), 0.0)
        after, latest = t.hold_until[i] + 1, min(t.next_ready[i], num_ops)
        boundary, evicted[i] = after, after
        while boundary < latest and spare[evicted[i]] - spare[after] < units:
            boundary += 1
            if t.boundary_depth[boundary] == t.depth[i]:
                evicted[i] = boundary
        evict_wait[i] = max(units - (spare[evicted[i]] - spare[after]), 0.0)
    return _Copies(fetch, fetch_wait, evicted, evict_wait)


@_jit
def _copy_cost(size, units, begin, end, wait, spare, space, copying):
    """Units that a copy between two boundaries costs, with the place that it takes."""
    cost = wait + size * (space[end] - space[begin])
    hidden = spare[end] - spare[begin]
    if hidden > 0:
        cost += units * (copying[end] - copying[begin]) / hidden
    return cost


@_jit
def _load(size, begin, end, taken):
    """Adds a place to the differences of what is taken."""
    if end > begin:
        taken[begin] += size
        taken[end] -= size


@_jit
def _load_copy(size, units, begin, end, spare, taken, busy):
    """Adds a copy, and the place that it takes."""
    _load(size, begin, end, taken)
    hidden = spare[end] - spare[begin]
    if hidden > 0:
        busy[begin] += units / hidden
        busy[end] -= units / hidden


@_jit
def _iterate(t, saving, before, following, spare, copies):
    n, num_ops = len(t.op), len(t.floor)
    capacity = max(t.capacity, 1)  # an op may need all of it for itself
    fast, kept, fetched = np.zeros(n), np.zeros(n), np.zeros(n)
    keep_cost, fetch_cost = np.zeros(n), np.zeros(n)
    keep, fetch = np.zeros(n), np.zeros(n)
    # Prices: of all of fast memory during each op, and of a unit of copying beside it.
    space_price, copy_price = np.zeros(num_ops), np.zeros(num_ops)
    space, copying = np.zeros(num_ops + 1), np.zeros(num_ops + 1)  # running totals
    taken, busy = np.zeros(num_ops + 2), np.zeros(num_ops + 2)  # differences
    store = np.zeros(n)  # units that an eviction after each access costs
    value, came = np.zeros((n, 3)), np.zeros((n, 3), np.int8)
    for step in range(_ITERATIONS):
        for op in range(num_ops):
            space[op + 1] = space[op] + space_price[op] / capacity
            copying[op + 1] = copying[op] + copy_price[op] * t.careful_spare[op]
        weight = 1.0 / (_ITERATIONS - _FIRST) if step >= _FIRST else 0.0
        for i in range(n):
            size, units, after = t.size[i], t.copy_time[i], t.hold_until[i] + 1
            end, wait = copies.evicted[i], copies.evict_wait[i]
            store[i] = _copy_cost(size, units, after, end, wait, spare, space, copying)
            begin, wait = copies.fetch[i], copies.fetch_wait[i]
            ready = t.ready_by[i]
            fetch[i] = _copy_cost(
                size, units, begin, ready, wait, spare, space, copying
            )
            keep[i] = 0.0
            end = min(t.next_ready[i], num_ops)
            if following[i] >= 0 and end > after and not t.next_follows[i]:
                keep[i] = size * (space[end] - space[after])
            keep_cost[i] += weight * keep[i]
            fetch_cost[i] += weight * fetch[i]
        _plan(t, saving, before, space, keep, fetch, store, value, came)
        taken[:], busy[:] = 0.0, 0.0
        _collect(t, before, following, spare, copies, store, value, came, taken, busy,
                 weight, fast, kept, fetched)  # fmt: skip
        length = 1.0 / (1.0 + step / _HALVED)
        now_taken, now_busy = 0.0, 0.0
        for op in range(num_ops):
            now_taken += taken[op]
            now_busy += busy[op]
            latency = max(t.floor[op], t.base[op] + t.op_slow_time[op])
            change = length * (_LEAST_OP + latency) * (now_taken / capacity - 1.0)
            space_price[op] = max(0.0, space_price[op] + change)
            # A copy that is not hidden costs its time: copying is never dearer.
            change = _COPY_STEP * length * (now_busy - 1.0)
            copy_price[op] = min(1.0, max(0.0, copy_price[op] + change))
    return Relaxed(fast, kept, fetched, keep_cost, fetch_cost)


@_jit
def _plan(t, saving, before, space, keep, fetch, store, value, came):
    """The best value of being in each place after each access, and whence."""
    for i in range(len(before)):
        earlier = before[i]
        gain = saving[i] - t.size[i] * (
            space[t.hold_until[i] + 1] - space[t.ready_by[i]]
        )
        best, place, clean, dirty = 0.0, _SLOW, _NEVER, _NEVER
        if earlier >= 0:
            best = value[earlier, _SLOW]
            clean = value[earlier, _CLEAN] - keep[earlier]
            dirty = value[earlier, _DIRTY] - keep[earlier]
            if not t.follows[i]:
                if value[earlier, _CLEAN] > best:
                    best, place = value[earlier, _CLEAN], _CLEAN
                if value[earlier, _DIRTY] - store[earlier] > best:
                    best, place = value[earlier, _DIRTY] - store[earlier], _DIRTY
        entered = best - fetch[i]
        if t.follows[i]:
            entered = _NEVER
        elif t.defines[i]:
            entered = best
        whence = _CLEAN
        if t.writes[i] and dirty > clean:
            clean, whence = dirty, _DIRTY
        if entered > clean:
            clean, whence = entered, _FETCHED + place
        value[i, _SLOW], came[i, _SLOW] = best, place
        after, other = (_DIRTY, _CLEAN) if t.writes[i] else (_CLEAN, _DIRTY)
        value[i, after], came[i, after] = clean + gain, whence
        value[i, other] = _NEVER if t.writes[i] else dirty + gain
        came[i, other] = _DIRTY


@_jit
def _collect(
    t, before, following, spare, copies, store, value, came, taken, busy, weight,
    fast, kept, fetched,
):  # fmt: skip
    """Adds the best plan of every buffer to the load and, by weight, to the shares."""
    for last in range(len(before)):
        if following[last] >= 0:
            continue
        i, place, best = last, _SLOW, value[last, _SLOW]
        if value[i, _CLEAN] > best:
            place, best = _CLEAN, value[i, _CLEAN]
        if value[i, _DIRTY] - (store[i] if t.ends_slow[i] else 0.0) > best:
            place = _DIRTY
        evicts = place == _DIRTY and t.ends_slow[i]
        while i >= 0:
            size, units, after = t.size[i], t.copy_time[i], t.hold_until[i] + 1
            if evicts:
                end = copies.evicted[i]
                _load_copy(size, units, after, end, spare, taken, busy)
            earlier, whence = before[i], came[i, place]
            ready = t.ready_by[i]
            if place != _SLOW:
                fast[i] += weight
                _load(size, ready, after, taken)
            stays = place != _SLOW and whence < _FETCHED
            if whence >= _FETCHED:
                whence -= _FETCHED
                if not t.defines[i]:
                    fetched[i] += weight
                    begin = copies.fetch[i]
                    _load_copy(size, units, begin, ready, spare, taken, busy)
            if stays and earlier >= 0:
                kept[earlier] += weight
                if not t.follows[i]:
                    _load(size, t.hold_until[earlier] + 1, ready, taken)
            evicts = not stays and whence == _DIRTY
            place, i = whence, earlier
