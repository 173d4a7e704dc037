"""mallocGame in compiled loops, and simulated annealing over its action strings.

`jax_malloc.game` steps many games side by side on an accelerator, each step a pass over
whole arrays. A search on the host wants the opposite: one game after another, each from
the access where it first differs. Here a step touches only what it changes, and takes a
microsecond or two. Both give the same moves for the same actions; board times are
multiples of a power of two, so that their sums are exact in either precision.

    change     some decisions: of neighbours in the schedule, or of one buffer; drawn
               from a prior over actions at decisions drawn from weights
    replay     from the last snapshot before the first change
    accept     by Metropolis' rule on the latency saved, copy queues exact

A replay is given up once it is so far behind that later decisions hardly make it good.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from jax_malloc.board import NEVER
from jax_malloc.compiled.tables import Floats, Ints, Tables

# Columns of the table of stays, the fields of `fast_memory.Stays`.
BUFFER, OFFSET, SIZE, BEGIN, END = 0, 1, 2, 3, 4
KEPT, LOST, LIVE, DIRTY, WRITTEN, COPIED = 5, 6, 7, 8, 9, 10
_NO_COPY, _COPY, _DROP = 0, 1, 2
_SNAPSHOTS = 32
# A replay is given up when it is this many temperatures behind, and a little more.
_HOPELESS = 12.0
_SLACK = 1.0  # units
# Of all changes; the others are of neighbours.
_BY_BUFFER = 0.35
_MAKE_ROOM = 0.3
_AROUND = 24  # accesses
_jit = numba.njit(cache=True, nogil=True)


class State(NamedTuple):
    """One game in progress; arrays that a step changes in place.

    stays: `[11, K]`. slot: `[B]` row of the buffer's live stay, or -1. slow_ready:
    `[B]`. due, in_flight: `[T + 1]`. spare: `[T]` units that each op still has for
    copies. numbers: op_slow_time, op_slow_traffic, horizon and the reward so far.
    """

    stays: Ints
    slot: Ints
    slow_ready: Ints
    due: Ints
    in_flight: Ints
    spare: Floats
    numbers: Floats


class Proposals(NamedTuple):
    """Where and how actions are changed.

    cumulative: `[N]` running sum of the weights of decisions. prior: `[N, 3]` running
    sums of action probabilities. following, before: `[N]` the same buffer's next and
    previous access, else -1.
    """

    cumulative: Floats
    prior: Floats
    following: Ints
    before: Ints


class Walk(NamedTuple):
    """A search in progress; arrays that `run` changes in place.

    actions, moves: of the present game; best_actions, best_moves: of the best so far.
    saved: `[2]` units, of either.
    """

    actions: Ints
    moves: Ints
    best_actions: Ints
    best_moves: Ints
    saved: Floats


@_jit
def init(t: Tables) -> State:
    """The game before its first decision."""
    stays = np.zeros((11, t.slots), np.int32)
    stays[BUFFER] = -1
    stays[END] = -1
    stays[KEPT] = -1
    stays[LOST] = NEVER
    stays[WRITTEN] = -1
    stays[COPIED] = -1
    return State(
        stays,
        np.full(len(t.slow_ready), -1, np.int32),
        t.slow_ready.copy(),
        np.full(len(t.floor) + 1, NEVER, np.int32),
        np.zeros(len(t.floor) + 1, np.int32),
        t.careful_spare.copy(),
        np.zeros(4, np.float64),
    )


@_jit
def copy_state(source: State, target: State) -> None:
    """Makes `target` equal to `source`."""
    target.stays[:] = source.stays
    target.slot[:] = source.slot
    target.slow_ready[:] = source.slow_ready
    target.due[:] = source.due
    target.in_flight[:] = source.in_flight
    target.spare[:] = source.spare
    target.numbers[:] = source.numbers


@_jit
def play(t: Tables, s: State, actions: Ints, moves: Ints, begin: int, end: int) -> None:
    """Plays accesses `[begin, end)` and writes their rows of `moves`, `[N, 10]`."""
    stays = s.stays
    num_ops = len(t.floor)
    for i in range(begin, end):
        move = moves[i]
        move[2:] = -1
        b, op, hold = t.buffer[i], t.op[i], t.hold_until[i]
        has_next = t.next_op[i] < NEVER
        mine = s.slot[b]
        here = mine >= 0 and stays[LOST, mine] > hold
        may_release = (
            has_next
            and not t.follows[i]
            and not t.next_follows[i]
            and t.next_ready[i] > hold + 1
        )
        wanted = actions[i]
        offset, start, over, hidden, stall = -1, -1, -1, 0.0, 0.0
        written = stays[WRITTEN, mine] if mine >= 0 else -1
        if here:
            action = _fall_back(wanted, True, may_release, not t.follows[i])
            if action == _DROP:
                _leave(t, s, i, mine, move)
        else:
            has_slot = free_slot(stays, op) >= 0
            if mine >= 0:
                _leave(t, s, i, mine, move)
            fits = has_slot and not t.follows[i]
            if fits:
                earliest = max(s.slow_ready[b], int(s.numbers[2]))
                if t.defines[i]:
                    start = t.ready_by[i]
                else:
                    start, hidden, stall = latest_start(t, s, i, earliest)
                    fits = earliest <= t.ready_by[i]
                fits = fits and start >= s.numbers[2]
            if fits:
                over = operand(t, stays, i)
                if over >= 0:
                    offset = stays[OFFSET, over]
                else:
                    offset = find_place(t, stays, i, start)
                    if offset < 0 and not t.defines[i] and start < t.ready_by[i]:
                        start, hidden = late_start(t, s, i, start)
                        stall = t.copy_time[i] - hidden
                        offset = find_place(t, stays, i, start)
                fits = offset >= 0
            enters = fits and t.defines[i]
            action = _fall_back(
                wanted, enters, may_release if enters else fits and not enters, True
            )
        fast = action != _DROP
        move[0], move[1] = action, fast

        prefetches = False
        row = mine
        if fast and not here:
            if not t.defines[i]:
                prefetches = True
                consume(s.spare, start, hidden)
                s.numbers[3] -= stall
                _open(s, start, t.ready_by[i])
                move[5] = start
            if over >= 0:
                stays[COPIED, over] = NEVER
            row = free_slot(stays, op)
            s.numbers[2] = max(s.numbers[2], stays[END, row] + 1)
            _rob(stays, start, offset, t.size[i])
            stays[BUFFER, row] = b
            stays[OFFSET, row] = offset
            stays[SIZE, row] = t.size[i]
            stays[BEGIN, row] = start
            stays[END, row] = -1
            stays[LOST, row] = NEVER
            stays[DIRTY, row] = 0
            stays[COPIED, row] = -1
            move[3] = start

        after = hold + 1
        if fast:
            dirty = stays[DIRTY, row] != 0 or t.writes[i]
            if t.writes[i]:
                written = hold
            release = action == _COPY and not prefetches
            stores = dirty and (release or t.ends_slow[i])
            stays[END, row] = max(stays[END, row], hold)
            if stores:
                deadline = min(t.next_ready[i], num_ops)
                done, hidden = earliest_done(t, s, i, written + 1, deadline)
                consume(s.spare, written + 1, hidden)
                s.numbers[3] -= t.copy_time[i] - hidden
                _open(s, written + 1, done)
                stays[END, row] = max(stays[END, row], done - 1)
                s.slow_ready[b] = done
                stays[COPIED, row] = done
                move[8], move[9] = written + 1, done
            elif dirty:
                s.slow_ready[b] = NEVER
            s.slow_ready[b] = max(s.slow_ready[b], after)
            stays[KEPT, row] = -1 if release or not has_next else t.next_op[i]
            stays[LIVE, row] = has_next
            stays[DIRTY, row] = dirty and not stores
            stays[WRITTEN, row] = written
            s.slot[b] = row if has_next else -1
            move[2], move[4] = stays[OFFSET, row], stays[END, row]
        elif t.writes[i]:
            s.slow_ready[b] = after

        if t.first_of_op[i]:
            s.numbers[0], s.numbers[1] = t.op_slow_time[op], t.op_slow_traffic[op]
        if fast:
            before = max(t.floor[op], t.base[op] + s.numbers[0])
            s.numbers[0] -= t.slow_time[i]
            s.numbers[1] -= t.slow_traffic[i]
            s.numbers[3] += before - max(t.floor[op], t.base[op] + s.numbers[0])
        if t.last_of_op[i]:
            latency = max(t.floor[op], t.base[op] + s.numbers[0])
            spare = max(latency - s.numbers[1], 0.0)
            s.spare[op] += max(spare - t.careful_spare[op], 0.0)


@_jit
def play_one(t: Tables, games: State, i: int, actions: Ints, moves: Ints) -> None:
    """Plays access i in `G` games, the leading axis of all but the tables."""
    for g in range(len(actions)):
        state = State(
            games.stays[g],
            games.slot[g],
            games.slow_ready[g],
            games.due[g],
            games.in_flight[g],
            games.spare[g],
            games.numbers[g],
        )
        play(t, state, actions[g], moves[g], i, i + 1)


@_jit
def saving(t: Tables, moves: Ints) -> float:
    """Units of latency saved over all in slow memory, by exact copy queues."""
    num_ops = len(t.floor)
    time, traffic = t.op_slow_time.copy(), t.op_slow_traffic.copy()
    for i in range(len(t.op)):
        if moves[i, 1]:
            time[t.op[i]] -= t.slow_time[i]
            traffic[t.op[i]] -= t.slow_traffic[i]

    # The copies that start at each boundary, by the boundary where they must be done:
    # sorted by the latter first, each list is filled from its end.
    by_done = np.full(num_ops + 1, -1, np.int32)
    first = np.full((2, num_ops + 1), -1, np.int32)
    following = np.full(3 * len(t.op), -1, np.int32)
    for i in range(len(t.op)):
        for kind in range(3):
            if moves[i, _STARTS[kind]] >= 0:
                done = _done(t, moves, i, kind)
                following[3 * i + kind] = by_done[done]
                by_done[done] = 3 * i + kind
    for done in range(num_ops, -1, -1):
        copy = by_done[done]
        while copy >= 0:
            i, kind, after = copy // 3, copy % 3, following[copy]
            start = moves[i, _STARTS[kind]]
            which = 1 if kind > 0 and t.full_duplex else 0
            following[copy] = first[which, start]
            first[which, start] = copy
            copy = after

    due = np.zeros((2, num_ops + 1))
    issued, served = np.zeros(2), np.zeros(2)
    saved = 0.0
    for boundary in range(num_ops + 1):
        stall = 0.0
        for which in range(2):
            copy = first[which, boundary]
            while copy >= 0:
                issued[which] += t.copy_time[copy // 3]
                done = _done(t, moves, copy // 3, copy % 3)
                due[which, done] = max(due[which, done], issued[which])
                copy = following[copy]
            stall = max(stall, due[which, boundary] - served[which])
        give = stall
        if boundary < num_ops:
            slow = max(t.floor[boundary], t.base[boundary] + t.op_slow_time[boundary])
            latency = max(t.floor[boundary], t.base[boundary] + time[boundary])
            saved += slow - latency
            give += max(latency - traffic[boundary], 0.0)
        saved -= stall
        for which in range(2):
            served[which] = min(issued[which], served[which] + give)
    return saved


_STARTS = (5, 6, 8)  # columns where a prefetch, an eviction and a store start


@_jit
def _done(t, moves, i, kind):
    if kind == 0:
        return t.ready_by[i]
    return moves[i, 7] if kind == 1 else moves[i, 9]


@_jit
def _fall_back(action, no_copy, copy, drop):
    """The action, or the first legal one in its order of fall backs."""
    if action == _NO_COPY:
        return _NO_COPY if no_copy else (_COPY if copy else _DROP)
    if action == _COPY:
        return _COPY if copy else (_NO_COPY if no_copy else _DROP)
    return _DROP if drop else (_NO_COPY if no_copy else _COPY)


@_jit
def _leave(t, s, i, row, move):
    """Ends the buffer's stay, with the eviction that keeps what it holds."""
    stays, b = s.stays, t.buffer[i]
    if stays[DIRTY, row] and not t.defines[i]:
        start = stays[WRITTEN, row] + 1
        deadline = min(stays[LOST, row], t.ready_by[i])
        done, hidden = earliest_done(t, s, i, start, deadline)
        consume(s.spare, start, hidden)
        s.numbers[3] -= t.copy_time[i] - hidden
        _open(s, start, done)
        stays[END, row] = max(stays[END, row], done - 1)
        s.slow_ready[b] = stays[END, row] + 1
        move[6], move[7] = start, done
    stays[LIVE, row] = 0
    s.slot[b] = -1


@_jit
def earliest_done(t, s, i, start, deadline):
    """Where a copy from `start` is done, and how much of it ops hide."""
    units, depth = t.copy_time[i], t.depth[i]
    last, last_free, free = 0, 0.0, 0.0
    for boundary in range(start, deadline + 1):
        if boundary > start:
            free += s.spare[boundary - 1]
        if t.boundary_depth[boundary] == depth:
            last, last_free = boundary, free
            if free >= units:
                break
        if s.in_flight[boundary] >= t.max_in_flight:
            break
    return last, min(max(last_free, 0.0), units)


@_jit
def latest_start(t, s, i, earliest):
    """Where a copy starts, how much of it ops hide, and what it makes wait."""
    units, depth, deadline = t.copy_time[i], t.depth[i], t.ready_by[i]
    start, start_free, least, free, inner = deadline, 0.0, units, 0.0, NEVER
    free_from = np.empty(max(deadline - earliest, 0) + 1)
    found = False
    for boundary in range(deadline, earliest - 1, -1):
        if boundary < deadline:
            free += s.spare[boundary]
            inner = min(inner, s.due[boundary + 1])
            if s.in_flight[boundary] >= t.max_in_flight:
                break
        free_from[deadline - boundary] = free
        if t.boundary_depth[boundary] == depth:
            waits = max(units - free, 0.0)
            if inner < deadline:
                waits += max(units - (free - free_from[deadline - inner]), 0.0)
            if waits < least or not found:
                start, start_free, least, found = boundary, free, waits, True
                if waits == 0.0:
                    break
    return start, min(max(start_free, 0.0), units), least


@_jit
def late_start(t, s, i, begin):
    """Where a copy starts once what passes has gone, and how much of it ops hide."""
    deadline, start = t.ready_by[i], begin
    for row in range(s.stays.shape[1]):
        end = s.stays[END, row]
        if begin <= end < deadline and s.stays[BEGIN, row] < deadline:
            start = max(start, end + 1)
    while start < deadline and t.boundary_depth[start] != t.depth[i]:
        start += 1
    free = 0.0
    for op in range(start, deadline):
        free += s.spare[op]
    return start, min(max(free, 0.0), t.copy_time[i])


@_jit
def consume(spare, start, units):
    """Takes the first free time from boundary `start` on."""
    op = start
    while units > 0.0 and op < len(spare):
        taken = min(spare[op], units)
        spare[op] -= taken
        units -= taken
        op += 1


@_jit
def _open(s, start, done):
    s.due[start] = min(s.due[start], done)
    for boundary in range(start, done):
        s.in_flight[boundary] += 1


@_jit
def operand(t, stays, i):
    """The row of the stay that the access may be written over, or -1."""
    op = t.op[i]
    if t.over[i, 0] < 0:
        return -1
    for row in range(stays.shape[1]):
        buffer = stays[BUFFER, row]
        if (
            buffer >= 0
            and (buffer == t.over[i, 0] or buffer == t.over[i, 1])
            and stays[END, row] == op
            and stays[BEGIN, row] <= op
            and stays[COPIED, row] <= op
            and stays[SIZE, row] >= t.size[i]
        ):
            return row
    return -1


@_jit
def free_slot(stays, op):
    """The row to overwrite: of the stays that are over, the first to end; else -1."""
    best, soonest = -1, NEVER
    for row in range(stays.shape[1]):
        end = stays[END, row]
        if end < op and end < soonest and not stays[LIVE, row]:
            best, soonest = row, end
    return best


@_jit
def _rob(stays, begin, offset, size):
    for row in range(stays.shape[1]):
        if (
            stays[END, row] < begin
            and stays[OFFSET, row] < offset + size
            and offset < stays[OFFSET, row] + stays[SIZE, row]
        ):
            stays[LOST, row] = min(stays[LOST, row], begin)
            stays[KEPT, row] = -1


@_jit
def find_place(t, stays, i, begin):
    """An offset that is free from op `begin` until the access is over, else -1."""
    low = np.empty(stays.shape[1], np.int32)
    high = np.empty(stays.shape[1], np.int32)
    level = np.empty(stays.shape[1], np.int32)  # 2 taken, 1 kept for sooner, 0 kept
    hold, next_op, b = t.hold_until[i], t.next_op[i], t.buffer[i]
    count = 0
    for row in range(stays.shape[1]):
        if stays[BEGIN, row] <= hold and stays[END, row] >= begin:
            rank = 2
        elif (
            stays[LIVE, row]
            and stays[BUFFER, row] != b
            and stays[KEPT, row] >= begin
            and stays[LOST, row] > begin
        ):
            rank = 1 if stays[KEPT, row] <= next_op else 0
        else:
            continue
        offset = stays[OFFSET, row]
        at = count
        while at > 0 and low[at - 1] > offset:
            low[at], high[at], level[at] = low[at - 1], high[at - 1], level[at - 1]
            at -= 1
        low[at], high[at], level[at] = offset, offset + stays[SIZE, row], rank
        count += 1
    for least in range(3):
        best, best_gap, reached = -1, NEVER, 0
        for at in range(count + 1):
            if at < count and level[at] < least:
                continue
            edge = low[at] if at < count else t.capacity
            gap = edge - reached
            if t.size[i] <= gap < best_gap:
                best_gap = gap
                best = t.capacity - t.size[i] if edge == t.capacity else reached
            if at < count:
                reached = max(reached, high[at])
        if best >= 0:
            return best
    return -1


@_jit
def run(
    t: Tables,
    p: Proposals,
    walk: Walk,
    rng: np.random.Generator,
    tries: int,
    hot: float,
    cold: float,
) -> tuple[int, int]:
    """Tries that many changes, while the temperature falls from `hot` to `cold` units.

    Returns: how many were accepted, and how many improved on the best.
    """
    n = len(t.op)
    every = max(1, -(-n // _SNAPSHOTS))
    count = -(-n // every)
    snapshots = [init(t) for _ in range(count + 1)]
    fresh = [init(t) for _ in range(count + 1)]
    state = init(t)
    for k in range(count):
        copy_state(state, snapshots[k])
        play(t, state, walk.actions, walk.moves, k * every, min(n, (k + 1) * every))
    copy_state(state, snapshots[count])
    actions, moves = walk.actions.copy(), walk.moves.copy()
    accepted, improved = 0, 0
    for step in range(tries):
        temperature = hot * (cold / hot) ** (step / tries)
        first, last = _change(p, walk.actions, actions, rng)
        if first < 0:
            continue
        k = first // every
        copy_state(snapshots[k], state)
        hopeless = False
        behind = _HOPELESS * temperature + _SLACK
        while k < count:
            end = min(n, (k + 1) * every)
            play(t, state, actions, moves, k * every, end)
            k += 1
            if end > last and (state.numbers[3] < snapshots[k].numbers[3] - behind):
                hopeless = True
                break
            copy_state(state, fresh[k])
        played = min(n, k * every)
        begin = first // every * every
        if not hopeless:
            saved = saving(t, moves)
            gain = saved - walk.saved[0]
            if gain >= 0 or rng.random() < np.exp(gain / temperature):
                accepted += 1
                walk.saved[0] = saved
                walk.moves[begin:] = moves[begin:]
                walk.actions[begin:] = moves[begin:, 0]
                actions[begin:] = moves[begin:, 0]
                for j in range(first // every + 1, count + 1):
                    snapshots[j], fresh[j] = fresh[j], snapshots[j]
                if saved > walk.saved[1] + 1e-9:
                    improved += 1
                    walk.saved[1] = saved
                    walk.best_actions[:] = walk.actions
                    walk.best_moves[:] = walk.moves
                continue
        actions[begin:played] = walk.actions[begin:played]
        actions[first : last + 1] = walk.actions[first : last + 1]
        moves[begin:played] = walk.moves[begin:played]
    return accepted, improved


@_jit
def _draw(cumulative, begin, end, rng):
    """An index of `[begin, end)` by a running sum of weights."""
    below = cumulative[begin - 1] if begin > 0 else 0.0
    at = below + rng.random() * (cumulative[end - 1] - below)
    return min(begin + np.searchsorted(cumulative[begin:end], at, "right"), end - 1)


@_jit
def _action(prior, rng):
    at = rng.random() * prior[2]
    return 0 if at < prior[0] else (1 if at < prior[1] else 2)


@_jit
def _change(p, old, new, rng):
    """Changes some of the actions; the first and the last that differ, or -1, -1."""
    n = len(old)
    i = _draw(p.cumulative, 0, n, rng)
    first, last = n, -1
    kind = rng.random()
    if kind < _MAKE_ROOM:
        # In with one access, out with some around it: before it, they are given up.
        begin = max(0, i - rng.integers(0, _AROUND))
        end = min(n, i + rng.integers(0, _AROUND))
        share = rng.random()
        for j in range(begin, end):
            if j != i and rng.random() < share:
                new[j] = _DROP
                if p.before[j] >= 0:
                    new[p.before[j]] = _COPY
                    first = min(first, p.before[j])
                first, last = min(first, j), max(last, j)
        new[i] = _NO_COPY if old[i] != _NO_COPY else _COPY
        if p.before[i] >= 0 and rng.random() < 0.5:
            new[p.before[i]] = _NO_COPY
            first = min(first, p.before[i])
        first, last = min(first, i), max(last, i)
    elif kind < _MAKE_ROOM + _BY_BUFFER:
        # A stretch of one buffer's accesses, all alike.
        action = _action(p.prior[i], rng)
        back, ahead = rng.integers(0, 3), rng.integers(0, 4)
        for _ in range(back):
            if p.before[i] >= 0:
                i = p.before[i]
        for _ in range(back + ahead + 1):
            if old[i] != action:
                new[i] = action
                first, last = min(first, i), max(last, i)
            i = p.following[i]
            if i < 0:
                break
    else:
        length = 1 << rng.integers(0, 5)
        share = 1.0 if length == 1 else rng.random()
        for j in range(i, min(n, i + length)):
            if rng.random() < share:
                action = _action(p.prior[j], rng)
                if old[j] != action:
                    new[j] = action
                    first, last = min(first, j), max(last, j)
    return (first, last) if last >= 0 else (-1, -1)
