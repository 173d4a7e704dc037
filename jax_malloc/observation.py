"""What the agent sees before each decision: one flat vector of numbers near [-2, 2].

    this access     what is legal, its size, what it saves now and later, how long until
                    the next access, what a copy would cost, whom a new stay would
                    displace, and what prices of the whole program say about it
    fast memory     a picture of the offsets in 32 bins: taken now, kept for later, how
                    soon
    what comes      the next 12 accesses, with whether their buffers are in fast memory
                    and what prices say, and the demand for fast memory at growing
                    distances
    the machine     size against working set, share of time that slow memory costs

Everything is relative (to capacity, to the program's latency, to a copy's time), so
that one agent serves programs and machines of any size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_malloc.board import NEVER, Board
from jax_malloc.game import GameState, Proposal

VERSION = 3  # of the vector's meaning; checkpoints name the one they were trained on

BINS = 32
AHEAD = 12
HORIZONS = (1, 2, 4, 8, 16, 32, 64, 128)  # ops ahead at which demand is sampled


class Outlook(NamedTuple):
    """What can be said about a board before the game; computed once per board.

    saving: `[N]` units that each access would save, its share of what its op can save.
    next_saving, later_saving: `[N]` of the buffer's next access, and of all later ones.
    keep_rank, rank: `[N]` in [0, 1], percentile of the saving of the next access per
      granule and unit of time for which the place must be kept, and of this access's
      own saving per granule.
    fast, kept, fetched, keep_cost, fetch_cost: `[N]` what prices of fast memory and of
      copying make of each access, over the whole program (`prices.Relaxed`).
    kept_before: `[N]` of the buffer's previous access, whether it is kept for this one.
    clock: `[T + 1]` units of the all-slow program before each boundary.
    demand: `[T + 1]` granules of live game buffers over capacity.
    machine: `[4]`: log of working set over capacity, share of latency that slow memory
      costs, share that copies would take, log of the number of accesses.
    """

    saving: jax.Array
    next_saving: jax.Array
    later_saving: jax.Array
    keep_rank: jax.Array
    rank: jax.Array
    fast: jax.Array
    kept: jax.Array
    kept_before: jax.Array
    fetched: jax.Array
    keep_cost: jax.Array
    fetch_cost: jax.Array
    clock: jax.Array
    demand: jax.Array
    machine: jax.Array


def outlook(board: Board) -> Outlook:
    """The outlook of a board, on the host."""
    # Not a top-level import: a plan that plays no game need not load the compiler.
    from jax_malloc.compiled import prices
    from jax_malloc.compiled.tables import neighbours, tables

    board = jax.tree.map(np.asarray, board)
    access, n = board.access, int(board.num_accesses)
    length = len(access.op)
    op, buffer = access.op[:n], access.buffer[:n]
    latency = np.maximum(board.floor, board.base + board.slow_time)
    decided = np.bincount(op, access.slow_time[:n], length)
    best = np.maximum(board.floor, board.base + board.slow_time - decided)
    share = access.slow_time[:n] / np.maximum(decided[op], 1e-9)
    saving = share * (latency - best)[op]
    clock = np.concatenate([[0.0], np.cumsum(latency)])

    later = np.zeros(n)
    to_next = np.zeros(n)
    next_saving = np.zeros(n)
    last: dict[int, int] = {}
    for i in reversed(range(n)):
        b = int(buffer[i])
        if b in last:
            j = last[b]
            later[i] = later[j] + saving[j]
            next_saving[i] = saving[j]
            to_next[i] = clock[op[j]] - clock[op[i]]
        last[b] = i
    size = np.maximum(access.size[:n], 1)
    keep = next_saving / (size * np.maximum(to_next, 1e-3))

    demand = np.zeros(length + 1)
    first_op = np.full(length, NEVER, np.int64)
    last_op = np.full(length, -1)
    np.minimum.at(first_op, buffer, op)
    np.maximum.at(last_op, buffer, op)
    sizes = np.zeros(length)
    sizes[buffer] = access.size[:n]
    used = last_op >= 0
    np.add.at(demand, first_op[used], sizes[used])
    np.add.at(demand, last_op[used] + 1, -sizes[used])
    capacity = max(int(board.capacity), 1)
    demand = np.cumsum(demand) / capacity
    copies = np.zeros(length)
    copies[buffer] = access.copy_time[:n]
    machine = [
        np.log2(max(demand.max(), 1e-3)),
        saving.sum() / 1000,
        copies.sum() / 1000,
        np.log2(max(n, 1)) / 8,
    ]

    t = tables(board, slots=0)
    following, before = neighbours(t)
    relaxed = prices.relax(t, saving, before, following)

    def padded(x):
        return np.pad(x, (0, length - n)).astype(np.float32)

    return Outlook(
        saving=padded(saving),
        next_saving=padded(next_saving),
        later_saving=padded(later),
        keep_rank=padded(_percentile(keep)),
        rank=padded(_percentile(saving / size)),
        fast=padded(relaxed.fast),
        kept=padded(relaxed.kept),
        kept_before=padded(np.where(before >= 0, relaxed.kept[before], 0.0)),
        fetched=padded(relaxed.fetched),
        keep_cost=padded(relaxed.keep_cost),
        fetch_cost=padded(relaxed.fetch_cost),
        clock=clock.astype(np.float32),
        demand=demand.astype(np.float32),
        machine=np.array(machine, np.float32),
    )


def _percentile(x: np.ndarray) -> np.ndarray:
    rank = np.empty(len(x))
    rank[np.argsort(x, kind="stable")] = np.arange(len(x))
    return rank / max(len(x) - 1, 1)


def size() -> int:
    """Length of the vector that `observe` returns."""
    return 3 + 36 + 3 * BINS + 11 * AHEAD + len(HORIZONS) + 4


def observe(
    board: Board, outlook: Outlook, state: GameState, proposal: Proposal
) -> jax.Array:
    """`[size()]` float32 about the decision that `proposal` is for."""
    capacity = jnp.maximum(jnp.asarray(board.capacity), 1).astype(jnp.float32)
    parts = [
        proposal.legal.astype(jnp.float32),
        _this_access(board, outlook, state, proposal, capacity),
        _picture(state, proposal, capacity),
        _what_comes(board, outlook, state, capacity),
        jnp.asarray(outlook.machine),
    ]
    return jnp.clip(jnp.concatenate(parts), -4.0, 4.0)


def _root(units):
    """Units on a scale where one unit, a thousandth of the latency, is 0.5."""
    return 0.5 * jnp.sign(units) * jnp.sqrt(jnp.abs(units))


def _log(count):
    return 0.25 * jnp.log2(1.0 + jnp.maximum(count, 0).astype(jnp.float32))


def _this_access(board, outlook, state, proposal, capacity):
    access, stays = proposal.access, state.stays
    i = state.cursor
    look = jax.tree.map(jnp.asarray, outlook)
    has_next = access.next_op < NEVER
    next_op = jnp.minimum(access.next_op, board.num_ops)
    last = state.credit.shape[0] - 1
    ahead = (
        state.credit[jnp.clip(jnp.minimum(access.next_ready, board.num_ops), 0, last)]
        - state.credit[jnp.clip(access.hold_until + 1, 0, last)]
    )
    next_saving = look.next_saving[i]
    relative_size = access.size / capacity
    taken = (stays.begin <= access.op) & (stays.end >= access.op)
    kept = stays.live & ~taken & (stays.kept_until >= access.op)
    kept &= stays.lost_at > access.op
    top = proposal.offset + access.size
    displaced = (
        kept
        & (stays.offset < top)
        & (proposal.offset < stays.offset + stays.size)
        & ~proposal.mine
    )
    sooner = displaced & (stays.kept_until <= access.next_op)
    flags = jnp.stack(
        [
            proposal.here,
            proposal.fits,
            proposal.evicts,
            proposal.over.any(),
            access.defines,
            access.writes,
            access.ends_slow,
            access.follows,
            has_next,
            state.slow_ready[access.buffer] < NEVER,
        ]
    ).astype(jnp.float32)
    copy = jnp.maximum(access.copy_time, 1e-6)
    numbers = jnp.stack(
        [
            relative_size,
            jnp.sqrt(relative_size),
            _root(look.saving[i]),
            _root(look.later_saving[i]),
            _root(access.copy_time),
            jnp.clip(look.saving[i] / copy, 0, 4),
            look.keep_rank[i],
            look.rank[i],
            _log(jnp.where(has_next, next_op - access.op, 0)),
            _root(jnp.where(has_next, look.clock[next_op] - look.clock[access.op], 0)),
            jnp.clip(ahead / copy, -1, 4) * has_next,
            proposal.prefetch.stall / copy,
            proposal.evict.stall / copy,
            _log(access.op - proposal.begin),
            (taken * stays.size).sum() / capacity,
            (kept * stays.size).sum() / capacity,
            (displaced * stays.size).sum() / capacity,
            (sooner * stays.size).sum() / capacity,
            look.fast[i],
            look.kept[i],
            look.kept_before[i],
            look.fetched[i],
            _root(look.keep_cost[i]),
            _root(look.fetch_cost[i]),
            _root(look.saving[i] - look.fetch_cost[i]),
            _root(next_saving - look.keep_cost[i]) * has_next,
        ]
    )
    return jnp.concatenate([flags, numbers])


def _picture(state, proposal, capacity):
    """Offsets in bins: taken now, kept for later, how soon the soonest is used."""
    access, stays = proposal.access, state.stays
    edges = jnp.arange(BINS + 1) * capacity / BINS
    low, high = edges[:-1, None], edges[1:, None]
    overlap = jnp.minimum(high, stays.offset + stays.size) - jnp.maximum(
        low, stays.offset
    )
    share = jnp.clip(overlap, 0.0, None) * BINS / capacity
    taken = (stays.begin <= access.op) & (stays.end >= access.op)
    kept = stays.live & (stays.kept_until > access.op) & (stays.lost_at > access.op)
    soon = 1.0 / (1.0 + 0.125 * jnp.maximum(stays.kept_until - access.op, 0))
    return jnp.concatenate(
        [
            jnp.minimum((share * taken).sum(axis=1), 1.0),
            jnp.minimum((share * kept).sum(axis=1), 1.0),
            jnp.max(share * kept * soon, axis=1, initial=0.0),
        ]
    )


def _what_comes(board, outlook, state, capacity):
    """The accesses after this one, and the demand for fast memory further on."""
    stays = state.stays
    look = jax.tree.map(jnp.asarray, outlook)
    length = look.saving.shape[0]
    rows = state.cursor + 1 + jnp.arange(AHEAD)
    real = rows < board.num_accesses
    rows = jnp.minimum(rows, length - 1)
    ahead = jax.tree.map(lambda x: jnp.asarray(x)[rows], board.access)
    now = jnp.asarray(board.access.op)[jnp.minimum(state.cursor, length - 1)]
    present = stays.live & (stays.lost_at == NEVER)
    resident = ((ahead.buffer[:, None] == stays.buffer) & present).any(axis=1)
    has_next = ahead.next_op < NEVER
    gap = jnp.where(has_next, ahead.next_op - ahead.op, 0)
    columns = jnp.stack(
        [
            ahead.size / capacity,
            _root(look.saving[rows]),
            ahead.defines,
            ahead.writes,
            resident,
            look.keep_rank[rows],
            look.fast[rows],
            look.kept_before[rows],
            look.fetched[rows],
            _log(gap),
            _log(ahead.op - now),
        ],
        axis=1,
    )
    times = jnp.minimum(now + jnp.array(HORIZONS), length)
    demand = jnp.log2(look.demand[times] + 0.0625)
    return jnp.concatenate([(columns * real[:, None]).ravel(), demand])
