"""What the agent sees in the compiled game: `observation.observe`, in loops.

Of several games side by side before the same access, so that one product of matrices
serves them all.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from jax_malloc import observation
from jax_malloc.board import NEVER
from jax_malloc.compiled.kernels import (
    BEGIN,
    BUFFER,
    DIRTY,
    END,
    KEPT,
    LIVE,
    LOST,
    OFFSET,
    SIZE,
    WRITTEN,
    State,
    consume,
    earliest_done,
    find_place,
    free_slot,
    late_start,
    latest_start,
    operand,
)
from jax_malloc.compiled.tables import Floats, Tables
from jax_malloc.observation import BINS, HORIZONS, Outlook

_AHEAD = observation.AHEAD
_HORIZONS = np.array(HORIZONS)
_LIMIT = 4.0
_jit = numba.njit(cache=True, nogil=True)


class Sight(NamedTuple):
    """An `Outlook` as the loops hold it; float64, without padding."""

    saving: Floats
    next_saving: Floats
    later_saving: Floats
    keep_rank: Floats
    rank: Floats
    fast: Floats
    kept: Floats
    kept_before: Floats
    fetched: Floats
    keep_cost: Floats
    fetch_cost: Floats
    clock: Floats
    demand: Floats
    machine: Floats


class Offer(NamedTuple):
    """What the environment would do for an access, as `game.Proposal` has it."""

    mine: int
    here: bool
    evicts: bool
    evict_stall: float
    reuses: bool
    fits: bool
    offset: int
    begin: int
    prefetch_stall: float
    keeps: bool
    copies: bool
    drops: bool


def sight(outlook: Outlook) -> Sight:
    """The outlook of a board for the loops."""
    return Sight(*(np.ascontiguousarray(x, np.float64) for x in outlook))


@_jit
def look(
    t: Tables, v: Sight, games: State, i: int, seen: Floats, spare: Floats
) -> None:
    """Writes what each game sees before access i.

    Args:
      t, v: of the board.
      games: each array with a leading axis `G`.
      seen: `[G, observation.size()]`, written; it begins with what is legal.
      spare: `[T]`, scratch.
    """
    for g in range(len(games.numbers)):
        s = State(
            games.stays[g],
            games.slot[g],
            games.slow_ready[g],
            games.due[g],
            games.in_flight[g],
            games.spare[g],
            games.numbers[g],
        )
        offer = _offer(t, s, i, spare)
        at = _this_access(t, v, s, i, offer, seen[g])
        at = _picture(t, s, i, at, seen[g])
        at = _what_comes(t, v, s, i, at, seen[g])
        for k in range(len(v.machine)):
            seen[g, at + k] = v.machine[k]
        for k in range(seen.shape[1]):
            seen[g, k] = min(max(seen[g, k], -_LIMIT), _LIMIT)


@_jit
def _offer(t, s, i, spare):
    """What `game.propose` says; the state is as before when it returns."""
    stays, b, op = s.stays, t.buffer[i], t.op[i]
    ready_by, defines = t.ready_by[i], t.defines[i]
    mine = s.slot[b]
    lost = stays[LOST, mine] if mine >= 0 else NEVER
    here = mine >= 0 and lost > t.hold_until[i]
    evicts = mine >= 0 and stays[DIRTY, mine] != 0 and not defines
    evict_stall, end = 0.0, -1
    ready = s.slow_ready[b]
    if evicts:
        spare[:] = s.spare
        end = stays[END, mine]
        start = stays[WRITTEN, mine] + 1
        done, hidden = earliest_done(t, s, i, start, min(lost, ready_by))
        consume(s.spare, start, hidden)
        evict_stall = t.copy_time[i] - hidden
        stays[END, mine] = max(end, done - 1)
        ready = stays[END, mine] + 1
    earliest = max(ready, int(s.numbers[2]))
    begin, prefetch_stall = ready_by, 0.0
    if not defines:
        begin, _, prefetch_stall = latest_start(t, s, i, earliest)
    offset = find_place(t, stays, i, begin)
    found = offset >= 0
    if not found:
        offset = _where_nothing_fits(t, stays, i, begin)
        if not defines and begin < ready_by:
            late, hidden = late_start(t, s, i, begin)
            place = find_place(t, stays, i, late)
            if place >= 0:
                found, offset, begin = True, place, late
                prefetch_stall = t.copy_time[i] - hidden
    over = operand(t, stays, i)
    if over >= 0:
        found, offset = True, stays[OFFSET, over]
    if evicts:
        s.spare[:] = spare
        stays[END, mine] = end
    fits = (
        found
        and not t.follows[i]
        and begin >= s.numbers[2]
        and (defines or earliest <= ready_by)
        and free_slot(stays, op) >= 0
    )
    keeps = here or (defines and fits)
    may_release = (
        t.next_op[i] < NEVER
        and not t.follows[i]
        and not t.next_follows[i]
        and t.next_ready[i] > t.hold_until[i] + 1
    )
    copies = may_release if keeps else fits and not defines
    drops = not (t.follows[i] and here)
    return Offer(
        mine, here, evicts, evict_stall, over >= 0, fits, offset, begin,
        prefetch_stall, keeps, copies, drops,
    )  # fmt: skip


@_jit
def _where_nothing_fits(t, stays, i, begin):
    """The offset that `fast_memory.best_fit` names where it finds none."""
    for row in range(stays.shape[1]):
        taken = stays[BEGIN, row] <= t.hold_until[i] and stays[END, row] >= begin
        kept = (
            stays[LIVE, row]
            and stays[BUFFER, row] != t.buffer[i]
            and stays[KEPT, row] >= begin
            and stays[LOST, row] > begin
        )
        if (taken or kept) and stays[OFFSET, row] > 0:
            return 0
    return t.capacity - t.size[i]


@_jit
def _root(units):
    return 0.5 * np.sign(units) * np.sqrt(np.abs(units))


@_jit
def _log(count):
    return 0.25 * np.log2(1.0 + max(count, 0))


@_jit
def _this_access(t, v, s, i, offer, seen):
    """What is legal, flags and numbers; returns how many."""
    stays, op, capacity = s.stays, t.op[i], float(t.capacity)
    num_ops = len(t.floor)
    has_next = t.next_op[i] < NEVER
    next_op = min(t.next_op[i], num_ops)
    ahead, after = 0.0, t.hold_until[i] + 1
    for k in range(after, min(t.next_ready[i], num_ops)):
        ahead += s.spare[k]
    for k in range(min(t.next_ready[i], num_ops), after):
        ahead -= s.spare[k]
    taken, kept, displaced, sooner = 0.0, 0.0, 0.0, 0.0
    top = offer.offset + t.size[i]
    for row in range(stays.shape[1]):
        size = stays[SIZE, row]
        if stays[BEGIN, row] <= op <= stays[END, row]:
            taken += size
        elif stays[LIVE, row] and stays[KEPT, row] >= op and stays[LOST, row] > op:
            kept += size
            low = stays[OFFSET, row]
            if low < top and offer.offset < low + size and row != offer.mine:
                displaced += size
                if stays[KEPT, row] <= t.next_op[i]:
                    sooner += size
    relative = t.size[i] / capacity
    copy = max(t.copy_time[i], 1e-6)
    known = s.slow_ready[t.buffer[i]] < NEVER
    flags = (
        bool(offer.keeps), bool(offer.copies), bool(offer.drops), bool(offer.here),
        bool(offer.fits), bool(offer.evicts), bool(offer.reuses), bool(t.defines[i]),
        bool(t.writes[i]), bool(t.ends_slow[i]), bool(t.follows[i]), bool(has_next),
        bool(known),
    )  # fmt: skip
    numbers = (
        relative,
        np.sqrt(relative),
        _root(v.saving[i]),
        _root(v.later_saving[i]),
        _root(t.copy_time[i]),
        min(max(v.saving[i] / copy, 0.0), 4.0),
        v.keep_rank[i],
        v.rank[i],
        _log(next_op - op if has_next else 0),
        _root(v.clock[next_op] - v.clock[op] if has_next else 0.0),
        min(max(ahead / copy, -1.0), 4.0) * has_next,
        offer.prefetch_stall / copy,
        offer.evict_stall / copy,
        _log(op - offer.begin),
        taken / capacity,
        kept / capacity,
        displaced / capacity,
        sooner / capacity,
        v.fast[i],
        v.kept[i],
        v.kept_before[i],
        v.fetched[i],
        _root(v.keep_cost[i]),
        _root(v.fetch_cost[i]),
        _root(v.saving[i] - v.fetch_cost[i]),
        _root(v.next_saving[i] - v.keep_cost[i]) * has_next,
    )
    for k in range(len(flags)):
        seen[k] = flags[k]
    for k in range(len(numbers)):
        seen[len(flags) + k] = numbers[k]
    return len(flags) + len(numbers)


@_jit
def _picture(t, s, i, at, seen):
    """Offsets in bins: taken now, kept for later, how soon the soonest is used."""
    stays, op, width = s.stays, t.op[i], t.capacity / BINS
    seen[at : at + 3 * BINS] = 0.0
    for row in range(stays.shape[1]):
        taken = stays[BEGIN, row] <= op <= stays[END, row]
        kept = stays[LIVE, row] and stays[KEPT, row] > op and stays[LOST, row] > op
        if not (taken or kept):
            continue
        low, high = stays[OFFSET, row], stays[OFFSET, row] + stays[SIZE, row]
        soon = 1.0 / (1.0 + 0.125 * max(stays[KEPT, row] - op, 0))
        for k in range(int(low / width), min(int(high / width) + 1, BINS)):
            share = max(min((k + 1) * width, high) - max(k * width, low), 0.0) / width
            if taken:
                seen[at + k] = min(seen[at + k] + share, 1.0)
            if kept:
                seen[at + BINS + k] = min(seen[at + BINS + k] + share, 1.0)
                place = at + 2 * BINS + k
                seen[place] = max(seen[place], share * soon)
    return at + 3 * BINS


@_jit
def _what_comes(t, v, s, i, at, seen):
    """The accesses after this one, and the demand for fast memory further on."""
    n, capacity, now = len(t.op), float(t.capacity), t.op[i]
    for j in range(i + 1, i + 1 + _AHEAD):
        if j >= n:
            seen[at : at + 11] = 0.0
            at += 11
            continue
        row = s.slot[t.buffer[j]]
        resident = row >= 0 and s.stays[LOST, row] == NEVER
        columns = (
            t.size[j] / capacity,
            _root(v.saving[j]),
            1.0 * t.defines[j],
            1.0 * t.writes[j],
            1.0 * resident,
            v.keep_rank[j],
            v.fast[j],
            v.kept_before[j],
            v.fetched[j],
            _log(t.next_op[j] - t.op[j] if t.next_op[j] < NEVER else 0),
            _log(t.op[j] - now),
        )
        for k in range(len(columns)):
            seen[at + k] = columns[k]
        at += len(columns)
    for k in range(len(_HORIZONS)):
        time = min(now + _HORIZONS[k], len(v.demand) - 1)
        seen[at + k] = np.log2(v.demand[time] + 0.0625)
    return at + len(_HORIZONS)
