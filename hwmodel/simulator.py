"""The reference timeline of a program under a memory mapping, in plain loops.

    boundary   0         1         2    3         4 (program end)
    ops        [-- op 0 -][-- op 1 -]....[- op 2 --]
    copy A     start=0    ~~~~~~~~~~ ~~~ done=2
                                    stall_s[2]

Op t runs between boundaries t and t + 1. Copies join a FIFO queue at the boundary where
they are issued, are served in the time that the running op leaves the slow memory idle,
and must be over at the boundary `done`: for what is not, the next op waits. Nothing
here is shared with the solvers or with the closed form in `queue`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwmodel.accelerator import Accelerator
from hwmodel.latency import OpLatency, copy_s, op_latency_s, spare_s


class Copy(NamedTuple):
    """One asynchronous copy between the memories.

    start, done: op boundaries that it runs between, `0 <= start <= done <= T`; boundary
      t lies before op t, boundary T is the program's end.
    size_bytes: of one execution.
    is_prefetch: True from slow to fast memory, False for an eviction.
    count: executions per program call, as of an op in a loop body.
    """

    start: int
    done: int
    size_bytes: int
    is_prefetch: bool
    count: float = 1.0  # type: ignore[assignment]  # hides tuple.count


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """When everything happens, in seconds from the program's start.

    op_start_s, op_duration_s: `[T]` each op's start, stalls before it over, and length.
    stall_s: `[T + 1]` wait before each op, and at the program's end.
    copy_issue_s: `[K]` when each copy joins its queue, in the order they were given.
    copy_done_s: `[K]` when its last byte has moved.
    copy_exposed_s: `[K]` how long ops stood still while it, being due or ahead of one
      that was, was moved. They sum to the stalls, but in full duplex two copies can be
      exposed at once.
    latency_s: the program's end.
    """

    op_start_s: npt.NDArray[np.float64]
    op_duration_s: npt.NDArray[np.float64]
    stall_s: npt.NDArray[np.float64]
    copy_issue_s: npt.NDArray[np.float64]
    copy_done_s: npt.NDArray[np.float64]
    copy_exposed_s: npt.NDArray[np.float64]
    latency_s: float


def simulate(
    model: OpLatency,
    slow_bytes: npt.ArrayLike,
    copies: Sequence[Copy],
    accelerator: Accelerator,
) -> Timeline:
    """Plays a program against the copies of its mapping.

    One queue holds all copies, ordered by start, then done, then size; on a full-duplex
    DMA each direction has its own, and during a stall both go on. A queue is served in
    order: a copy waits until those ahead of it are over, even if it is due first.
    Within an op the spare time is taken to be spread evenly.

    Args:
      model: `[T]` latencies of the ops.
      slow_bytes: `[T]` bytes that each op touches in slow memory, all executions
        together.
      copies: any order.
      accelerator: rate, fixed latency and duplex of the DMA.
    Returns:
      The timeline; its end is the program's latency.
    Raises:
      ValueError: a copy's boundaries are out of order or outside of the program, a size
        is negative, or `slow_bytes` does not have one entry per op.
    """
    slow = np.asarray(slow_bytes, np.float64)
    num_ops = len(model.base_s)
    if slow.shape != (num_ops,):
        raise ValueError(f"slow_bytes has shape {slow.shape}; expected ({num_ops},).")
    for k, copy in enumerate(copies):
        _check(k, copy, num_ops)
    duration = op_latency_s(model, slow)
    spare = spare_s(model, slow, accelerator)

    order = sorted(range(len(copies)), key=lambda k: copies[k][:3])
    if accelerator.dma.full_duplex:
        orders = [
            [k for k in order if copies[k].is_prefetch],
            [k for k in order if not copies[k].is_prefetch],
        ]
    else:
        orders = [order]
    left_s = [copy_s(c.size_bytes, accelerator, c.count) for c in copies]
    queues = [_Queue(order, copies, left_s, num_ops) for order in orders]
    boundary, stall = np.zeros(num_ops + 1), np.zeros(num_ops + 1)
    done, exposed = np.zeros(len(copies)), np.zeros(len(copies))

    now = 0.0
    for t in range(num_ops + 1):
        boundary[t] = now
        for queue in queues:
            for k in queue.must_end(t):
                exposed[k] = left_s[k]
        stall[t] = max(queue.must_serve_s(t) for queue in queues)
        for queue in queues:
            for k, spent_s in queue.serve(t, stall[t]):
                done[k] = now + spent_s
        now += stall[t]
        if t < num_ops:
            for queue in queues:
                for k, spent_s in queue.serve(t, spare[t]):
                    share = spent_s / spare[t] if spare[t] > 0 else 0.0
                    done[k] = now + share * duration[t]
            now += duration[t]
    return Timeline(
        op_start_s=boundary[:-1] + stall[:-1],
        op_duration_s=duration,
        stall_s=stall,
        copy_issue_s=boundary[[copy.start for copy in copies]],
        copy_done_s=done,
        copy_exposed_s=exposed,
        latency_s=float(now),
    )


class _Queue:
    """Copies in the order in which they are served.

    head: how many are over.
    left_s: seconds still to serve of every copy of the program; the queues share it.
    num_due: how many, from the front, must be over at each boundary.
    """

    def __init__(
        self,
        order: list[int],
        copies: Sequence[Copy],
        left_s: list[float],
        num_ops: int,
    ) -> None:
        self.order = order
        self.starts = [copies[k].start for k in order]
        self.left_s = left_s
        self.head = 0
        self.num_due = [0] * (num_ops + 1)
        for position, k in enumerate(order):
            self.num_due[copies[k].done] = position + 1
        self.num_due = list(itertools.accumulate(self.num_due, max))

    def must_end(self, t: int) -> list[int]:
        """The copies that boundary t waits for: due, or ahead of one that is."""
        return self.order[self.head : self.num_due[t]]

    def must_serve_s(self, t: int) -> float:
        # Not sum(), which rounds otherwise than `serve` adds up.
        return functools.reduce(lambda s, k: s + self.left_s[k], self.must_end(t), 0.0)

    def serve(self, t: int, budget_s: float) -> Iterator[tuple[int, float]]:
        """Serves what is issued by boundary t; yields each copy that ends, and when."""
        spent_s = 0.0
        while self.head < len(self.order) and self.starts[self.head] <= t:
            k = self.order[self.head]
            if spent_s + self.left_s[k] > budget_s:
                self.left_s[k] = max(self.left_s[k] - (budget_s - spent_s), 0.0)
                return
            spent_s += self.left_s[k]
            self.left_s[k] = 0.0
            self.head += 1
            yield k, spent_s


def _check(k: int, copy: Copy, num_ops: int) -> None:
    if not 0 <= copy.start <= copy.done <= num_ops:
        raise ValueError(
            f"copies[{k}] runs between boundaries {copy.start} and {copy.done}; "
            f"expected 0 <= start <= done <= {num_ops}, the number of ops."
        )
    if copy.size_bytes < 0 or copy.count < 0:
        raise ValueError(
            f"copies[{k}] has {copy.size_bytes} bytes and runs {copy.count} times; "
            "neither may be negative."
        )
