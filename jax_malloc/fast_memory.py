"""The table of stays in fast memory, and where in it a buffer finds a place."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_malloc.board import NEVER


class Stays(NamedTuple):
    """A table of the latest stays in fast memory, `[K]` each; dead ones are
    overwritten.

    buffer: int32, -1 in unused slots. offset, size: int32 granules.
    begin, end: int32, first and last op during which the place is taken.
    kept_until: int32, op of the next access for which it is kept; -1 if it is not.
    lost_at: int32, boundary from which another stay has the place; `NEVER` if none.
    live: bool, it still counts as the buffer's place in fast memory.
    dirty: bool, slow memory does not hold its contents. written: int32, last op that
      wrote it. copied: int32, boundary at which its last eviction is done, -1 without;
      `NEVER` once another buffer has been written over it.
    """

    buffer: jax.Array
    offset: jax.Array
    size: jax.Array
    begin: jax.Array
    end: jax.Array
    kept_until: jax.Array
    lost_at: jax.Array
    live: jax.Array
    dirty: jax.Array
    written: jax.Array
    copied: jax.Array


# Rows for stays that are over, so that prefetches can reach back past them.
_ENDED = 32
_SLOTS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)


def num_slots(most_live: int) -> int:
    """Rows of the table of stays for a program with that many buffers live at a time.

    A full table refuses new stays. It never depends on the padding of the board.
    """
    wanted = most_live + _ENDED
    return next((s for s in _SLOTS if s >= wanted), _SLOTS[-1])


def empty(slots: int) -> Stays:
    """A table of `slots` unused rows."""
    whole = jnp.zeros(slots, jnp.int32)
    return Stays(
        buffer=whole - 1,
        offset=whole,
        size=whole,
        begin=whole,
        end=whole - 1,
        kept_until=whole - 1,
        lost_at=whole + NEVER,
        live=whole < 0,
        dirty=whole < 0,
        written=whole - 1,
        copied=whole - 1,
    )


def field(mask, values, default):
    """The value in the one masked row, or the default if there is none."""
    return jnp.where(mask.any(), jnp.where(mask, values, 0).sum(), default)


def free_slot(stays, t):
    """The row to overwrite at op t: of the stays that are over, the first to end."""
    busy = stays.live | (stays.end >= t)
    return jnp.argmin(jnp.where(busy, NEVER, stays.end))


def has_free_slot(stays, t):
    return (~(stays.live | (stays.end >= t))).any()


def rob(stays, takes, begin, offset, size):
    """The table after a new stay takes `[offset, offset + size)` from op `begin` on."""
    robbed = (
        takes
        & (stays.end < begin)
        & (stays.offset < offset + size)
        & (offset < stays.offset + stays.size)
    )
    return stays._replace(
        lost_at=jnp.where(robbed, jnp.minimum(stays.lost_at, begin), stays.lost_at),
        kept_until=jnp.where(robbed, -1, stays.kept_until),
    )


def find_place(stays, mine, access, begin, capacity):
    """A place that is free from op `begin` until the access is over.

    Avoids every kept place if it can, else those needed sooner than this buffer's next
    access, else only what is really taken then.

    Args:
      stays: the table. mine: `[K]` bool, rows of the same buffer, which it need not
        avoid beyond their end.
      access: the row of the board. begin: `[]` int32 op. capacity: `[]` int32 granules.
    Returns:
      `[]` bool, whether there is one; `[]` int32 offset in granules.
    """
    taken = (stays.begin <= access.hold_until) & (stays.end >= begin)
    kept = stays.live & ~mine & (stays.kept_until >= begin) & (stays.lost_at > begin)
    sooner = kept & (stays.kept_until <= access.next_op)
    avoid = jnp.stack([taken | kept, taken | sooner, taken])
    fits, offset = jax.vmap(
        lambda blocked: best_fit(
            stays.offset, stays.size, blocked, access.size, capacity
        )
    )(avoid)
    return fits.any(), offset[jnp.argmax(fits)]


def clear_from(stays, begin, deadline):
    """The boundary up to `deadline` from which what was there since `begin` has gone.

    What stays beyond the deadline does not count.
    """
    passing = (stays.end >= begin) & (stays.end < deadline) & (stays.begin < deadline)
    return jnp.max(jnp.where(passing, stays.end, begin - 1)) + 1


def operand(stays, access):
    """`[K]` bool, the stay that the access may be written over, if there is one.

    Its last op is this one, no copy still reads it, and it is at least as large.
    """
    mine = (stays.buffer == access.over[0]) | (stays.buffer == access.over[1])
    candidates = (
        mine
        & (stays.buffer >= 0)
        & (stays.begin <= access.op)
        & (stays.end == access.op)
        & (stays.copied <= access.op)
        & (stays.size >= access.size)
    )
    first = jnp.argmax(candidates)
    return candidates & (jnp.arange(candidates.shape[0]) == first)


def best_fit(offsets, sizes, blocked, size, capacity):
    """The smallest free gap that holds `size`; the topmost gap is filled from its top.

    Of gaps of one size the lowest.

    Large buffers then grow down from the top and small ones up from the bottom.

    Args:
      offsets, sizes: `[K]` int32 granules. blocked: `[K]` bool, rows in the way.
    Returns:
      `[]` bool, whether there is one; `[]` int32 offset in granules.
    """
    starts = jnp.where(blocked, offsets, NEVER)
    ends = jnp.where(blocked, offsets + sizes, 0)
    low = jnp.concatenate([jnp.zeros(1, ends.dtype), ends])  # every gap begins at one
    covered = ((starts <= low[:, None]) & (ends > low[:, None])).any(axis=1)
    high = jnp.where(starts > low[:, None], starts, NEVER).min(axis=1)
    high = jnp.minimum(high, capacity)
    gap = jnp.where(covered | (high - low < size), NEVER, high - low)
    smallest = gap.min()
    best = jnp.argmin(jnp.where(gap == smallest, low, NEVER))
    is_top = high[best] == capacity
    return smallest < NEVER, jnp.where(is_top, capacity - size, low[best])
