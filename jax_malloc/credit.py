"""Copy credit: the time that running ops leave over for copies, as a running total.

`credit[t]` is the units of copying that the ops before boundary t can hide, less what
the copies scheduled so far take. A copy between boundaries q and d is hidden when
`credit[d] - credit[q]` covers it; it takes the first free time from q on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_malloc.board import NEVER


class CopyTime(NamedTuple):
    """When a copy runs.

    start, done: `[]` int32 boundaries. hidden: `[]` units that the ops in between
    cover, stall: `[]` units that ops wait.
    """

    start: jax.Array
    done: jax.Array
    hidden: jax.Array
    stall: jax.Array


def earliest_done(credit, allowed, units, start, deadline) -> CopyTime:
    """A copy that begins at `start` and is done as soon as it can be hidden.

    Args:
      credit: `[T + 1]` units. allowed: `[T + 1]` bool, boundaries where it may end; the
        start is one of them.
      units: `[]` time that the copy takes.
      start, deadline: `[]` int32 boundaries; done at the deadline if it cannot be
        hidden.
    """
    boundary = jnp.arange(credit.shape[0])
    allowed = allowed & (boundary >= start) & (boundary <= deadline)
    free = credit - credit[jnp.clip(start, 0, credit.shape[0] - 1)]
    enough = allowed & (free >= units)
    last = jnp.max(jnp.where(allowed, boundary, 0))
    done = jnp.where(enough.any(), jnp.argmax(enough), last)
    hidden = jnp.clip(free[done], 0.0, units)
    return CopyTime(start, done, hidden, units - hidden)


def latest_start(credit, allowed, units, earliest, deadline, due) -> CopyTime:
    """A copy that is done by `deadline` and begins as late as waits least.

    It waits for what ops do not hide; and copies that begin after it and are due before
    it wait for all of it, since copies are served in the order in which they begin.

    Args:
      credit, allowed, units, earliest, deadline: as for `earliest_done`; it may begin
        at `deadline` if nothing else is allowed.
      due: `[T + 1]` int32, when the first of the copies that begin at each boundary
        must be done; `NEVER` without one.
    """
    boundary = jnp.arange(credit.shape[0])
    last = credit.shape[0] - 1
    allowed = allowed & (boundary >= earliest) & (boundary <= deadline)
    free = credit[jnp.clip(deadline, 0, last)] - credit
    following = jnp.concatenate([due[1:], jnp.full(1, NEVER, due.dtype)])
    inner = jax.lax.cummin(following, reverse=True)
    free_until_inner = credit[jnp.clip(inner, 0, last)] - credit
    waits = jnp.maximum(units - free, 0.0)
    waits += jnp.where(
        inner < deadline, jnp.maximum(units - free_until_inner, 0.0), 0.0
    )
    waits = jnp.where(allowed, waits, jnp.inf)
    best = jnp.min(waits)
    start = jnp.where(
        allowed.any(), jnp.max(jnp.where(waits == best, boundary, 0)), deadline
    )
    hidden = jnp.clip(free[jnp.clip(start, 0, last)], 0.0, units)
    stall = jnp.where(allowed.any(), best, units)
    return CopyTime(start, deadline, hidden, stall)


def starting_at(credit, allowed, units, start, deadline) -> CopyTime:
    """A copy that begins at the first allowed boundary from `start` on."""
    boundary = jnp.arange(credit.shape[0])
    allowed = allowed & (boundary >= start) & (boundary <= deadline)
    start = jnp.min(jnp.where(allowed, boundary, deadline))
    last = credit.shape[0] - 1
    free = credit[jnp.clip(deadline, 0, last)] - credit[jnp.clip(start, 0, last)]
    hidden = jnp.clip(free, 0.0, units)
    return CopyTime(start, deadline, hidden, units - hidden)


def consume(credit, start, units):
    """`[T + 1]` credit once a copy took `units` of the first free time from `start`."""
    boundary = jnp.arange(credit.shape[0])
    free = credit - credit[jnp.clip(start, 0, credit.shape[0] - 1)]
    return credit - jnp.where(boundary > start, jnp.clip(free, 0.0, units), 0.0)
