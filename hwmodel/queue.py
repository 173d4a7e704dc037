"""The stalls of `simulator.simulate` in closed form, for solvers and for JAX arrays.

Let S be the running sum of service times of the copies in FIFO order. All that a queue
needs to know at op boundary t is

    arrived_s[t]   S of the last copy issued by then: it cannot have served more
    due_s[t]       S of the last copy that must be over: it must have served as much

    S |              ._____ arrived_s
      |       .______|  ._.
      |       |   .__.--|     served_s stays between the two. An op lifts it by its
      |  .____| .-'  |_____   spare time; a stall lifts it to due_s.
      |  |  .--------'   due_s
      |__|-'____|
      +------------------------ t

and served_s follows from a scan over t. A full-duplex DMA has two such queues; the op
waits for the slower one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp


def arrivals_and_deadlines(
    start: jax.Array,
    done: jax.Array,
    service_s: jax.Array,
    num_ops: int,
    active: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What one queue may have served, and must have served, at each boundary.

    Args:
      start, done: `[K]` integer boundaries of its copies, in any order,
        `0 <= start <= done <= T`.
      service_s: `[K]` seconds each takes, from `latency.copy_s`.
      num_ops: T, static.
      active: `[K]` bool, the copies that there are; False is padding, or a copy of
        another queue. None, all.
    Returns:
      `arrived_s, due_s`: `[T + 1]` each, as the module describes.
    """
    start, done = jnp.asarray(start), jnp.asarray(done)
    service_s = jnp.asarray(service_s)
    if active is not None:  # others come last, at the program's end, and take no time
        start = jnp.where(active, start, num_ops)
        done = jnp.where(active, done, num_ops)
        service_s = jnp.where(active, service_s, 0)
    order = jnp.lexsort((done, start))  # ties beyond that do not change a stall
    served_after = jnp.cumsum(service_s[order])
    zeros = jnp.zeros(num_ops + 1, served_after.dtype)
    arrived = jax.lax.cummax(zeros.at[start[order]].max(served_after))
    due = jax.lax.cummax(zeros.at[done[order]].max(served_after))
    return arrived, due


def stalls_s(spare_s: jax.Array, arrived_s: jax.Array, due_s: jax.Array) -> jax.Array:
    """The wait at each boundary; jit and vmap it freely.

    Args:
      spare_s: `[T]` seconds of copying that fit beside each op.
      arrived_s, due_s: `[T + 1]` from `arrivals_and_deadlines`, or `[Q, T + 1]` of Q
        queues that are served side by side.
    Returns:
      `[T + 1]` seconds; the last is the wait at the program's end.
    """
    arrived_s, due_s = jnp.atleast_2d(arrived_s), jnp.atleast_2d(due_s)
    spare_s = jnp.append(spare_s, jnp.zeros((), spare_s.dtype))

    def boundary(
        served_s: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        spare_s, arrived_s, due_s = at
        stall_s = jnp.max(jnp.maximum(due_s - served_s, 0))
        return jnp.minimum(arrived_s, served_s + stall_s + spare_s), stall_s

    nothing = jnp.zeros_like(due_s[:, 0])
    inputs = (spare_s, arrived_s.T, due_s.T)
    stall_s: jax.Array = jax.lax.scan(boundary, nothing, inputs)[1]
    return stall_s


def total_stall_s(
    spare_s: Sequence[float], *queues: Iterable[tuple[int, int, float]]
) -> float:
    """The sum of all stalls, in plain floats: for the inner loop of a host solver.

    Args:
      spare_s: `[T]` seconds of copying that fit beside each op; a list is fastest.
      *queues: the `(start, done, service_s)` of the copies of each queue, in any order:
        one queue, or prefetches and evictions apart where the DMA is full duplex.
    Returns:
      Seconds.
    """
    num_boundaries = len(spare_s) + 1
    # [queue][boundary]; due only where a copy is
    arrived: list[Iterable[float]] = []
    due: list[list[float]] = []
    for copies in queues:
        rise, must, total = [0.0] * num_boundaries, [0.0] * num_boundaries, 0.0
        for start, done, seconds in sorted(copies):
            total += seconds
            rise[start] = must[done] = total
        arrived.append(itertools.accumulate(rise, max))
        due.append(must)
    spare = itertools.chain(spare_s, (0.0,))
    total_stall = 0.0
    if len(queues) == 1:  # the common case, four times as fast as the general one
        served = 0.0
        for spare_t, most, least in zip(spare, arrived[0], due[0], strict=True):
            if least > served:
                total_stall += least - served
                served = least
            served += spare_t
            if served > most:
                served = most
        return total_stall
    each_served = [0.0] * len(queues)
    for spare_t, *at in zip(spare, *arrived, *due, strict=True):
        arrived_t, due_t = at[: len(queues)], at[len(queues) :]
        late = (d - s for d, s in zip(due_t, each_served, strict=True))
        stall = max(0.0, *late) if queues else 0.0
        total_stall += stall
        give = stall + spare_t
        each_served = [
            min(a, s + give) for a, s in zip(arrived_t, each_served, strict=True)
        ]
    return total_stall
