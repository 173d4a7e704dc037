"""mallocGame: the memory mapping problem as a single-player game, in pure JAX.

One decision per access of a buffer, in schedule order, of at most three actions:

    action    at the definition              at a later access
    NO_COPY   write it into fast memory,     it is still there: serve it from there, and
              keep the place for its next    keep the place
              access
    COPY      write it into fast memory      still there: serve it from there, then give
              the and start an eviction: the     place free, evicting if slow memory is
              outdated; place is free after that       not there: prefetch it in time
              for this access
    DROP      write it to slow memory        serve it from slow memory (evicting first,
                                             if slow memory is outdated)

The environment picks offsets and copy times. A kept place is a *soft* reservation: a
new buffer avoids it, first every kept place, then only those needed sooner than itself,
then none; a buffer whose place is taken is simply not there at its next access. So no
game
gets stuck, and no decision has to be undone: an action that is not possible falls back,
and every string of actions is a valid mapping.

A result that its op may write over an operand takes the operand's place, if that is in
fast memory.

Latest start, best fit: a copy starts as late as the time that the running ops leave
over allows. If it finds no place from then on, it starts as soon as what is in the way
and gone before the access has gone, and the access waits for the rest. A buffer takes
the smallest gap that holds it, and the gap at the top of the memory is filled from the
top.

A buffer accessed inside a loop that it outlives is decided once, at its first access
there, for the whole loop; its copies run outside of the loop.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_malloc import credit as credit_lib
from jax_malloc import fast_memory
from jax_malloc.board import NEVER, Access, Board
from jax_malloc.credit import CopyTime
from jax_malloc.fast_memory import Stays

VERSION = 2  # of the rules; raised whenever the same actions give another mapping

NUM_ACTIONS = 3


class Action(enum.IntEnum):
    """The moves of the game; what they do depends on where the buffer is."""

    NO_COPY = 0
    COPY = 1
    DROP = 2


class GameState(NamedTuple):
    """One game in progress.

    cursor: `[]` int32, the access that the next action is about.
    stays: the table of fast memory, `[K]`.
    credit: `[T + 1]` units of copying that the ops before each boundary leave over,
      less what the copies so far take.
    slow_ready: `[B]` int32, boundary from which a prefetch finds the current contents
      in slow memory and no earlier place in fast memory; `NEVER` while only fast memory
      has them.
    due: `[T + 1]` int32, when the first of the copies that begin at each boundary must
      be done; `NEVER` without one.
    in_flight: `[T + 1]` int32, copies open beside each op; None without a limit on
      them.
    op_slow_time, op_slow_traffic: `[]` units, of what is in slow memory at the op of
      the last access.
    horizon: `[]` int32, the earliest boundary about which the table is still complete.
    """

    cursor: jax.Array
    stays: Stays
    credit: jax.Array
    slow_ready: jax.Array
    due: jax.Array
    in_flight: jax.Array | None
    op_slow_time: jax.Array
    op_slow_traffic: jax.Array
    horizon: jax.Array


class Move(NamedTuple):
    """What one step did; `[N]` each after a whole game. Boundaries are -1 where nothing
    ran.

    action: int32, the action taken after any fall back. fast: bool, served from fast
      memory.
    offset: int32 granules, -1 in slow memory. begin: int32, first op of a new stay, -1
      when it goes on with the stay it had. end: int32, last op of the stay as known
      now.
    prefetch: boundary at which a prefetch for this access starts.
    evict, evicted: boundaries of an eviction of the earlier stay.
    store, stored: boundaries of an eviction that follows the access.
    reward: float32 units of latency saved, less the stalls expected.
    """

    action: jax.Array
    fast: jax.Array
    offset: jax.Array
    begin: jax.Array
    end: jax.Array
    prefetch: jax.Array
    evict: jax.Array
    evicted: jax.Array
    store: jax.Array
    stored: jax.Array
    reward: jax.Array


class Proposal(NamedTuple):
    """What the environment would do for the next access, before an action is chosen.

    access: the row. mine: `[K]` bool, the live stay of the buffer. here: `[]` bool,
      that stay is untouched until the access ends, so it can serve it.
    evicts: `[]` bool, leaving that stay takes an eviction, `evict`.
    over: `[K]` bool, the stay of an operand whose place a new stay takes, if any.
    fits: `[]` bool, a new stay finds a place. offset: `[]` int32 granules, begin: `[]`
      int32 op. prefetch: the copy that fills it, of 0 units where the access defines
      it.
    legal: `[3]` bool.
    """

    access: Access
    mine: jax.Array
    here: jax.Array
    evicts: jax.Array
    evict: CopyTime
    over: jax.Array
    fits: jax.Array
    offset: jax.Array
    begin: jax.Array
    prefetch: CopyTime
    legal: jax.Array


def init(board: Board, slots: int) -> GameState:
    """The game before its first decision: everything is in slow memory.

    Args:
      board: the problem.
      slots: static rows of the table of stays, `fast_memory.num_slots`.
    """
    spare = jnp.asarray(board.careful_spare)
    return GameState(
        cursor=jnp.int32(0),
        stays=fast_memory.empty(slots),
        credit=jnp.concatenate([jnp.zeros(1), jnp.cumsum(spare)]),
        slow_ready=jnp.asarray(board.slow_ready),
        due=jnp.full(len(spare) + 1, NEVER, jnp.int32),
        in_flight=None
        if board.max_in_flight is None
        else jnp.zeros(len(spare) + 1, jnp.int32),
        op_slow_time=jnp.float32(0),
        op_slow_traffic=jnp.float32(0),
        horizon=jnp.int32(0),
    )


def propose(board: Board, state: GameState) -> Proposal:
    """Where the next access could be served from, and at what price."""
    access = jax.tree.map(lambda x: jnp.asarray(x)[state.cursor], board.access)
    stays = state.stays
    mine = stays.live & (stays.buffer == access.buffer)
    lost_at = fast_memory.field(mine, stays.lost_at, NEVER)
    here = mine.any() & (lost_at > access.hold_until)
    at_depth = jnp.asarray(board.boundary_depth) == access.depth

    # The eviction without which contents that are still wanted would be lost.
    evicts = (mine & stays.dirty).any() & ~access.defines
    evict_from = fast_memory.field(mine, stays.written, -1) + 1
    evict = credit_lib.earliest_done(
        state.credit,
        at_depth & _one_more_until(board, state, evict_from),
        jnp.where(evicts, access.copy_time, 0.0),
        evict_from,
        jnp.minimum(lost_at, access.ready_by),
    )
    credit = credit_lib.consume(state.credit, evict.start, evict.hidden)
    stays = _extend(stays, mine & evicts, evict.done)

    # A new stay: from the definition, or from the start of a prefetch.
    # It begins after the earlier one: a buffer has one place at a time.
    ready = jnp.where(
        evicts,
        fast_memory.field(mine, stays.end, -1) + 1,
        state.slow_ready[access.buffer],
    )
    earliest = jnp.maximum(ready, state.horizon)
    prefetch = credit_lib.latest_start(
        credit,
        at_depth & _one_more_since(board, state, access.ready_by),
        jnp.where(access.defines, 0.0, access.copy_time),
        jnp.where(access.defines, access.ready_by, earliest),
        access.ready_by,
        state.due,
    )
    capacity = jnp.asarray(board.capacity)
    begin = jnp.where(access.defines, access.ready_by, prefetch.start)
    found, offset = fast_memory.find_place(stays, mine, access, begin, capacity)
    late = credit_lib.starting_at(
        credit,
        at_depth,
        access.copy_time,
        fast_memory.clear_from(stays, begin, access.ready_by),
        access.ready_by,
    )
    found_late, offset_late = fast_memory.find_place(
        stays, mine, access, late.start, capacity
    )
    waits = ~found & found_late & ~access.defines & (begin < access.ready_by)
    prefetch = jax.tree.map(lambda a, b: jnp.where(waits, b, a), prefetch, late)
    begin = jnp.where(waits, late.start, begin)
    found, offset = found | waits, jnp.where(waits, offset_late, offset)
    over = fast_memory.operand(stays, access)
    found, offset = found | over.any(), fast_memory.field(over, stays.offset, offset)
    fits = (
        found
        & ~access.follows
        & (begin >= state.horizon)
        & (access.defines | (earliest <= access.ready_by))
        & fast_memory.has_free_slot(stays, access.op)
    )
    stays_or_enters = here | (access.defines & fits)
    may_release = (
        (access.next_op < NEVER)
        & ~access.follows
        & ~access.next_follows
        & (access.next_ready > access.hold_until + 1)  # no time to be gone
    )
    legal = jnp.stack(
        [
            stays_or_enters,
            jnp.where(stays_or_enters, may_release, fits & ~access.defines),
            ~(access.follows & here),
        ]
    )
    return Proposal(
        access=access,
        mine=mine,
        here=here,
        evicts=evicts,
        evict=evict,
        over=over,
        fits=fits,
        offset=offset,
        begin=begin,
        prefetch=prefetch,
        legal=legal & (state.cursor < board.num_accesses),
    )


def legal_action_mask(board: Board, state: GameState) -> jax.Array:
    """`[3]` bool, True is allowed; all False once the game is over."""
    return propose(board, state).legal


def step(board: Board, state: GameState, action: jax.Array) -> tuple[GameState, Move]:
    """Plays one action; one that is not legal falls back to one that is.

    NO_COPY falls back to COPY, COPY to NO_COPY, DROP to NO_COPY; then to whatever is
    legal. After the end of the game the state stays as it is and the reward is 0.
    """
    return apply(board, state, propose(board, state), action)


def apply(
    board: Board, state: GameState, proposal: Proposal, action: jax.Array
) -> tuple[GameState, Move]:
    """`step` with the proposal already made."""
    access, mine = proposal.access, proposal.mine
    playing = state.cursor < board.num_accesses
    action = _fall_back(proposal.legal, jnp.asarray(action, jnp.int32))
    fast = playing & (action != Action.DROP)
    stays_on = fast & proposal.here
    enters = fast & ~proposal.here
    leaves = playing & ~stays_on

    # Leave the earlier stay, if there is one.
    evicts = leaves & proposal.evicts
    credit = credit_lib.consume(
        state.credit, proposal.evict.start, evicts * proposal.evict.hidden
    )
    stays = _extend(state.stays, mine & evicts, proposal.evict.done)
    stays = stays._replace(live=stays.live & ~(mine & leaves))
    slow_ready = jnp.where(
        evicts,
        fast_memory.field(mine, stays.end, -1) + 1,
        state.slow_ready[access.buffer],
    )

    # Enter a new one, and take its place from whoever kept it.
    prefetches = enters & ~access.defines
    credit = credit_lib.consume(
        credit, proposal.prefetch.start, prefetches * proposal.prefetch.hidden
    )
    stays = stays._replace(
        copied=jnp.where(proposal.over & enters, NEVER, stays.copied)
    )
    slot = fast_memory.free_slot(stays, access.op)
    horizon = jnp.where(enters, stays.end[slot] + 1, 0)
    stays = fast_memory.rob(stays, enters, proposal.begin, proposal.offset, access.size)
    entered = enters & (jnp.arange(stays.end.shape[0]) == slot)
    now = (mine & stays_on) | entered

    # The access; an eviction follows a release and the last access of an output.
    kept_dirty = stays_on & (mine & stays.dirty).any()
    dirty = fast & (kept_dirty | access.writes)
    written = jnp.where(
        access.writes, access.hold_until, fast_memory.field(mine, stays.written, -1)
    )
    after = access.hold_until + 1
    slow_ready = jnp.where(access.writes & ~fast, after, slow_ready)
    release = (action == Action.COPY) & ~prefetches
    stores = dirty & (release | access.ends_slow)
    store = credit_lib.earliest_done(
        credit,
        (jnp.asarray(board.boundary_depth) == access.depth)
        & _one_more_until(board, state, written + 1),
        access.copy_time,
        written + 1,
        jnp.minimum(access.next_ready, board.num_ops),
    )
    credit = credit_lib.consume(credit, store.start, stores * store.hidden)
    slow_ready = jnp.where(stores, store.done, jnp.where(dirty, NEVER, slow_ready))
    slow_ready = jnp.where(fast, jnp.maximum(slow_ready, after), slow_ready)
    has_next = access.next_op < NEVER
    stays = Stays(
        buffer=jnp.where(now, access.buffer, stays.buffer),
        offset=jnp.where(entered, proposal.offset, stays.offset),
        size=jnp.where(now, access.size, stays.size),
        begin=jnp.where(entered, proposal.begin, stays.begin),
        end=jnp.where(entered, -1, stays.end),
        kept_until=jnp.where(
            now, jnp.where(release | ~has_next, -1, access.next_op), stays.kept_until
        ),
        lost_at=jnp.where(entered, NEVER, stays.lost_at),
        live=jnp.where(now, has_next, stays.live),
        dirty=jnp.where(now, dirty & ~stores, stays.dirty),
        written=jnp.where(now, written, stays.written),
        copied=jnp.where(
            now & stores, store.done, jnp.where(entered, -1, stays.copied)
        ),
    )
    stays = _extend(stays, now, after)
    stays = _extend(stays, now & stores, store.done)

    time, traffic, saved, spare = _op_after(board, state, access, fast)
    credit += jnp.where(
        playing & access.last_of_op & (jnp.arange(credit.shape[0]) > access.op),
        jnp.maximum(spare - jnp.asarray(board.careful_spare)[access.op], 0.0),
        0.0,
    )
    stall = (
        evicts * proposal.evict.stall
        + prefetches * proposal.prefetch.stall
        + stores * store.stall
    )
    in_flight = _open(state.in_flight, evicts, proposal.evict)
    in_flight = _open(in_flight, prefetches, proposal.prefetch)
    in_flight = _open(in_flight, stores, store)
    due = _due(state.due, evicts, proposal.evict)
    due = _due(due, prefetches, proposal.prefetch)
    due = _due(due, stores, store)
    row = jnp.arange(state.slow_ready.shape[0]) == access.buffer
    new = GameState(
        cursor=state.cursor + playing,
        stays=stays,
        credit=credit,
        slow_ready=jnp.where(row & playing, slow_ready, state.slow_ready),
        due=due,
        in_flight=in_flight,
        op_slow_time=time,
        op_slow_traffic=traffic,
        horizon=jnp.maximum(state.horizon, horizon),
    )
    move = Move(
        action=action,
        fast=fast,
        offset=fast_memory.field(now, stays.offset, -1),
        begin=jnp.where(enters, proposal.begin, -1),
        end=fast_memory.field(now, stays.end, -1),
        prefetch=jnp.where(prefetches, proposal.prefetch.start, -1),
        evict=jnp.where(evicts, proposal.evict.start, -1),
        evicted=jnp.where(evicts, proposal.evict.done, -1),
        store=jnp.where(stores, store.start, -1),
        stored=jnp.where(stores, store.done, -1),
        reward=jnp.where(playing, saved - stall, 0.0),
    )
    return new, move


def _fall_back(legal, action):
    """The action, or the first legal one in its order of fall backs."""
    order = jnp.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]], jnp.int32)[action]
    return order[jnp.argmax(legal[order])]


def _extend(stays, rows, boundary):
    """The table with the masked rows' places taken until `boundary`."""
    return stays._replace(
        end=jnp.where(rows, jnp.maximum(stays.end, boundary - 1), stays.end)
    )


def _one_more_until(board, state, start):
    """`[T + 1]` bool: boundaries up to which one more copy from `start` may be open."""
    boundary = jnp.arange(state.credit.shape[0])
    if state.in_flight is None:
        return boundary >= 0
    full = (state.in_flight >= board.max_in_flight) & (boundary >= start)
    return boundary <= jnp.min(jnp.where(full, boundary, NEVER))


def _one_more_since(board, state, deadline):
    """`[T + 1]` bool: boundaries from which one more copy to `deadline` may be open."""
    boundary = jnp.arange(state.credit.shape[0])
    if state.in_flight is None:
        return boundary >= 0
    full = (state.in_flight >= board.max_in_flight) & (boundary < deadline)
    return boundary > jnp.max(jnp.where(full, boundary, -1))


def _open(in_flight, runs, copy):
    """The copies open beside each op once one more runs."""
    if in_flight is None:
        return None
    boundary = jnp.arange(in_flight.shape[0])
    return in_flight + (runs & (boundary >= copy.start) & (boundary < copy.done))


def _due(due, runs, copy):
    """The first deadlines once one more copy runs."""
    begins = runs & (jnp.arange(due.shape[0]) == copy.start)
    return jnp.where(begins, jnp.minimum(due, copy.done), due)


def _op_after(board, state, access, fast):
    """Slow time and traffic of the op, units saved, and units it leaves for copies."""
    t = access.op
    floor, base = jnp.asarray(board.floor)[t], jnp.asarray(board.base)[t]
    first = access.first_of_op
    time = jnp.where(first, jnp.asarray(board.slow_time)[t], state.op_slow_time)
    traffic = jnp.where(
        first, jnp.asarray(board.slow_traffic)[t], state.op_slow_traffic
    )
    before = jnp.maximum(floor, base + time)
    time -= fast * access.slow_time
    traffic -= fast * access.slow_traffic
    after = jnp.maximum(floor, base + time)
    return time, traffic, before - after, jnp.maximum(after - traffic, 0.0)
