"""Copy credit: the time that running ops leave over for copies, as a running total.

`credit[t]` is the units of copying that the ops before boundary t can hide, less what
the copies scheduled so far take. A copy between boundaries q and d is hidden when
`credit[d] - credit[q]` covers it; it takes the first free time from q on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CopyTime(NamedTuple):
    """When a copy runs.

    start, done: `[]` int32 boundaries. hidden: `[]` units that the ops in between
    cover, stall: `[]` units that they do not.
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


def latest_start(credit, allowed, units, earliest, deadline) -> CopyTime:
    """A copy that is done by `deadline` and begins as late as it can be hidden.

    It begins at the first allowed boundary from `earliest` on if nothing later hides
    it.
    """
    boundary = jnp.arange(credit.shape[0])
    allowed = allowed & (boundary >= earliest) & (boundary <= deadline)
    free = credit[jnp.clip(deadline, 0, credit.shape[0] - 1)] - credit
    enough = allowed & (free >= units)
    first = jnp.min(jnp.where(allowed, boundary, deadline))
    start = jnp.where(enough.any(), jnp.max(jnp.where(enough, boundary, 0)), first)
    hidden = jnp.clip(free[start], 0.0, units)
    return CopyTime(start, deadline, hidden, units - hidden)


def consume(credit, start, units):
    """`[T + 1]` credit once a copy took `units` of the first free time from `start`."""
    boundary = jnp.arange(credit.shape[0])
    free = credit - credit[jnp.clip(start, 0, credit.shape[0] - 1)]
    return credit - jnp.where(boundary > start, jnp.clip(free, 0.0, units), 0.0)
