"""Whole games: a string of actions played, its exact latency, the mapping it means."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hwmodel import queue
from jax_malloc import board as board_lib
from jax_malloc import fast_memory, game
from jax_malloc.board import Board
from jax_malloc.game import Move
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem


@functools.partial(jax.jit, static_argnames="slots")
def play(board: Board, actions: jax.Array, *, slots: int) -> Move:
    """Plays `[N]` actions from the start; `[N]` moves, rewards exact in their sum."""
    state = game.init(board, slots)
    _, moves = jax.lax.scan(functools.partial(game.step, board), state, actions)
    return settle(board, moves)


@functools.partial(jax.jit, static_argnames="slots")
def play_many(board: Board, actions: jax.Array, *, slots: int) -> Move:
    """`play` of `[G, N]` actions on one board, side by side."""
    return jax.vmap(lambda a: play(board, a, slots=slots))(actions)


def settle(board: Board, moves: Move) -> Move:
    """The moves with the last reward corrected by the stalls that really come about.

    During the game stalls are expected from the credit at hand; once all copies are
    known the queue decides. Afterwards the rewards add up to the latency saved.
    """
    saved, stall = saving(board, moves)
    last = jnp.arange(moves.reward.shape[0]) == board.num_accesses - 1
    correction = (saved - stall) - moves.reward.sum()
    return moves._replace(reward=moves.reward + jnp.where(last, correction, 0.0))


def saving(board: Board, moves: Move) -> tuple[jax.Array, jax.Array]:
    """`[]` units that the ops save over all in slow memory, `[]` units of stalls."""
    access = jax.tree.map(jnp.asarray, board.access)
    played = jnp.arange(moves.fast.shape[0]) < board.num_accesses
    fast = (moves.fast & played).astype(jnp.float32)
    base, floor = jnp.asarray(board.base), jnp.asarray(board.floor)
    slow_time = jnp.asarray(board.slow_time)
    before = jnp.maximum(floor, base + slow_time)
    time = slow_time.at[access.op].add(-fast * access.slow_time)
    traffic = jnp.asarray(board.slow_traffic)
    traffic = traffic.at[access.op].add(-fast * access.slow_traffic)
    latency = jnp.maximum(floor, base + time)
    spare = jnp.maximum(latency - traffic, 0.0)
    start = jnp.concatenate([moves.prefetch, moves.evict, moves.store])
    done = jnp.concatenate([access.ready_by, moves.evicted, moves.stored])
    first = jnp.arange(len(start)) < len(moves.prefetch)  # prefetches, or half duplex
    valid = (start >= 0) & jnp.tile(played, 3)
    service = jnp.tile(access.copy_time, 3)

    def one_queue(mine):
        ours = valid & mine
        return queue.arrivals_and_deadlines(
            jnp.where(ours, start, len(base)),
            jnp.where(ours, done, len(base)),
            jnp.where(ours, service, 0.0),
            len(base),
        )

    arrived, due = jax.vmap(one_queue)(
        jnp.stack([first | ~board.full_duplex, ~first & board.full_duplex])
    )
    stalls = queue.stalls_s(spare, arrived, due)
    return (before - latency).sum(), stalls.sum()


def to_mapping(problem: Problem, moves: Move) -> Mapping:
    """The mapping that one game's moves mean, in bytes and buffer ids."""
    rows = board_lib.rows(problem)
    host = jax.tree.map(np.asarray, moves)
    access = board_lib.build(problem, board_lib.least_length(problem)).access
    granule = problem.granule_bytes
    segments: list[Segment] = []
    copies: list[Copy] = []
    stay: dict[int, int] = {}  # buffer id -> index of its latest segment

    def copy(buffer_id, direction, start, done):
        size = problem.program.buffers[buffer_id].size_bytes
        copies.append(
            Copy(
                buffer_id=buffer_id,
                direction=direction,
                size_bytes=size,
                start=int(start),
                done=int(done),
            )
        )

    def extend(buffer_id, end):
        i = stay[buffer_id]
        old = segments[i]
        segments[i] = Segment(
            buffer_id=buffer_id,
            offset_bytes=old.offset_bytes,
            begin=old.begin,
            first=old.first,
            end=max(old.end, int(end)),
        )

    for i, row in enumerate(rows.access):
        b = int(problem.access_buffer[row])
        ready = int(access.ready_by[i])
        if host.evict[i] >= 0:
            extend(b, host.evicted[i])
            copy(b, Direction.EVICT, host.evict[i], host.evicted[i])
        if host.fast[i] and host.begin[i] >= 0:
            stay[b] = len(segments)
            segments.append(
                Segment(
                    buffer_id=b,
                    offset_bytes=int(host.offset[i]) * granule,
                    begin=int(host.begin[i]),
                    first=ready,
                    end=ready + 1,
                )
            )
        if host.prefetch[i] >= 0:
            copy(b, Direction.PREFETCH, host.prefetch[i], ready)
        if host.fast[i]:
            extend(b, host.end[i] + 1)
        if host.store[i] >= 0:
            copy(b, Direction.EVICT, host.store[i], host.stored[i])
    return Mapping(tuple(segments), tuple(copies))


def slots_of(problem: Problem) -> int:
    """Rows of the table of stays that a game of this problem plays with."""
    chosen = board_lib.rows(problem).access
    ops, buffers = problem.access_op[chosen], problem.access_buffer[chosen]
    num_ops = len(problem.program.ops)
    first = np.full(len(problem.program.buffers), num_ops)
    last = np.full(len(problem.program.buffers), -1)
    np.minimum.at(first, buffers, ops)
    np.maximum.at(last, buffers, ops)
    used = last >= 0
    change = np.bincount(first[used], minlength=num_ops + 1)
    change -= np.bincount(last[used] + 1, minlength=num_ops + 1)
    return fast_memory.num_slots(int(np.cumsum(change).max(initial=0)))
