"""The board of mallocGame: a Problem as padded device arrays.

One row per *access* that the game decides about, in schedule order; rows past
`num_accesses` are padding. Times are in units of `unit_s`, so that a whole program
takes about 1000 of them in float32; places in fast memory are int32 counts of granules,
since 2 GiB of bytes overflows int32.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import jax
import numpy as np

from hwmodel import latency as latency_lib
from jax_malloc.problem import Problem

# Array lengths that boards are padded to, so that few programs need a compilation of
# their own.
BUCKETS = tuple(
    int(2**k * m) for k in range(6, 15) for m in (1, 1.5)
)  # 64, 96, 128, ... 24576

# Times are whole multiples of this many units: sums of up to 1024 units are then exact
# in float32, in whatever order they are taken.
_TICK = 2.0**-14

NEVER = 2**30  # a time after every schedule


class Access(NamedTuple):
    """What the game knows about each access; every field is `[N]`.

    op: time of the op. buffer: row of the buffer among those in the game.
    size: int32 granules. copy_time: units that a copy of the buffer takes, all
      executions.
    slow_time, slow_traffic: units that the access adds to its op, and takes from the
      copies, in slow memory.
    defines: the first write of a buffer without earlier contents. writes: all or part.
    first_of_op, last_of_op: among the rows of one op.
    ready_by: boundary at which the buffer must be in place; hold_until: last op that
      needs it there. Both are `op` except in a loop that the buffer outlives: there its
      first access speaks for the whole loop.
    follows: the access is inside such a loop, and bound to its first access.
    next_ready, next_op: `ready_by` and `op` of the buffer's next access, else `NEVER`.
    next_follows: that access is bound to this one's loop.
    ends_slow: the last access of a program output, which must be in slow memory at the
      end.
    depth: loop depth of the boundaries at which the buffer's copies may start and end.
    over: `[N, 2]` rows of buffers whose last access is by the same op, and which the
      op may write this one over (`Op.reuses`); -1 for none.
    """

    op: jax.Array
    buffer: jax.Array
    size: jax.Array
    copy_time: jax.Array
    slow_time: jax.Array
    slow_traffic: jax.Array
    defines: jax.Array
    writes: jax.Array
    first_of_op: jax.Array
    last_of_op: jax.Array
    ready_by: jax.Array
    hold_until: jax.Array
    follows: jax.Array
    next_ready: jax.Array
    next_op: jax.Array
    next_follows: jax.Array
    ends_slow: jax.Array
    depth: jax.Array
    over: jax.Array


class Board(NamedTuple):
    """A problem as the game sees it.

    access: `[N]` rows. num_accesses, num_ops: `[]` int32, without padding.
    floor, base, slow_time, slow_traffic: `[T]` units; an op takes max(floor, base +
      slow_time of what is slow).
    careful_spare: `[T]` units that an op leaves for copies at least, whatever is
      decided about it.
    boundary_depth: `[T + 1]` int32, loops strictly around each boundary.
    slow_ready: `[B]` int32, boundary from which slow memory holds the contents at the
      start: 0 for inputs.
    capacity: `[]` int32 granules. full_duplex: `[]` bool. unit_s: `[]` float32 seconds
      per unit.
    max_in_flight: `[]` int32 copies that may be open at a time; None without a limit.
    """

    access: Access
    num_accesses: jax.Array
    num_ops: jax.Array
    floor: jax.Array
    base: jax.Array
    slow_time: jax.Array
    slow_traffic: jax.Array
    careful_spare: jax.Array
    boundary_depth: jax.Array
    slow_ready: jax.Array
    capacity: jax.Array
    full_duplex: jax.Array
    unit_s: jax.Array
    max_in_flight: jax.Array | None


class Rows(NamedTuple):
    """The host's way back from board rows to the problem.

    access: `[n]` index of each row among the problem's accesses. buffer: `[b]` buffer
      id of each game buffer.
    """

    access: np.ndarray
    buffer: np.ndarray


def bucket(length: int) -> int:
    """The smallest padded length that holds `length` rows.

    Raises:
      ValueError: there is none.
    """
    if length > BUCKETS[-1]:
        raise ValueError(
            f"the game has room for {BUCKETS[-1]} accesses or ops, the program has "
            f"{length}. Plan it in parts or with solver='greedy'."
        )
    return BUCKETS[bisect.bisect_left(BUCKETS, length)]


def rows(problem: Problem) -> Rows:
    """What the game decides about: the eligible buffers and their accesses."""
    access = np.flatnonzero(problem.eligible[problem.access_buffer])
    return Rows(access, np.unique(problem.access_buffer[access]))


def least_length(problem: Problem) -> int:
    """Rows that a board of the problem needs, without padding."""
    chosen = rows(problem)
    num_ops = len(problem.program.ops)
    return max(len(chosen.access), num_ops, len(chosen.buffer), 1)


def build(problem: Problem, length: int | None = None) -> Board:
    """The board of a problem, padded to `length` rows (default: its bucket)."""
    chosen = rows(problem)
    n, num_ops = len(chosen.access), len(problem.program.ops)
    length = length or bucket(least_length(problem))
    unit_s = max(problem.all_slow_latency_s, 1e-12) / 1000
    access, spare = _access_rows(problem, chosen, unit_s)
    model = problem.latency
    op_slow_time = model.slope_s_per_byte * problem.slow_bytes
    traffic = problem.slow_bytes / _copy_rate(problem)
    inputs = [problem.program.buffers[b].is_input for b in chosen.buffer]

    def padded(x, fill=0, size=length):
        x = np.asarray(x)
        out = np.full((size, *x.shape[1:]), fill, x.dtype)
        out[: len(x)] = x
        if x.dtype.kind == "f":
            return (np.round(out / _TICK) * _TICK).astype(np.float32)
        return out.astype(bool if x.dtype == bool else np.int32)

    return Board(
        access=Access(
            **{k: padded(v, -1 if k == "over" else 0) for k, v in access.items()}
        ),
        num_accesses=np.int32(n),
        num_ops=np.int32(num_ops),
        floor=padded(model.floor_s / unit_s),
        base=padded(model.base_s / unit_s),
        slow_time=padded(op_slow_time / unit_s),
        slow_traffic=padded(traffic / unit_s),
        careful_spare=padded(spare),
        boundary_depth=padded(_boundary_depth(problem), size=length + 1),
        slow_ready=padded(np.where(inputs, 0, NEVER).astype(np.int64)),
        capacity=np.int32(problem.capacity_granules),
        full_duplex=np.bool_(problem.accelerator.dma.full_duplex),
        unit_s=np.float32(unit_s),
        max_in_flight=None
        if problem.accelerator.dma.max_in_flight is None
        else np.int32(problem.accelerator.dma.max_in_flight),
    )


def _copy_rate(problem: Problem) -> float:
    machine = problem.accelerator
    return machine.dma_bytes_per_s


def _boundary_depth(problem: Problem) -> np.ndarray:
    """`[T + 1]` how many loop or branch bodies lie strictly around each boundary."""
    depth = np.zeros(len(problem.program.ops) + 1, np.int64)
    for region in problem.program.regions[1:]:
        depth[region.start + 1 : region.end + 1] += 1
    return depth


class _Block(NamedTuple):
    """A loop or all branches of a conditional: ops `[start, end)`, its own at `end`."""

    start: int
    end: int


def _blocks_below_home(problem: Problem) -> list[dict[int, _Block]]:
    """Per region r: `{home: outermost block inside home that holds r}`.

    Branches of one conditional share its name and follow each other in the schedule.
    """
    regions = problem.program.regions
    same = [(region.parent, region.name) for region in regions]
    blocks = {
        key: _Block(
            min(r.start for r, k in zip(regions, same, strict=True) if k == key),
            max(r.end for r, k in zip(regions, same, strict=True) if k == key),
        )
        for key in same
    }
    result = []
    for r in range(len(regions)):
        below, child = {}, r
        while child > 0:
            below[regions[child].parent] = blocks[same[child]]
            child = regions[child].parent
        result.append(below)
    return result


def _access_rows(problem: Problem, chosen: Rows, unit_s: float):
    """The fields of `Access`, unpadded, and `[T]` units of careful spare time."""
    program = problem.program
    ops = problem.access_op[chosen.access]
    buffers = problem.access_buffer[chosen.access]
    n, num_ops = len(ops), len(program.ops)
    below, home = _blocks_below_home(problem), problem.home_region
    rate, dma = _copy_rate(problem), problem.accelerator.dma
    counts = problem.region_counts[home[buffers]]
    sizes = np.array([b.size_bytes for b in program.buffers], np.float64)[buffers]
    slow_time = (
        problem.latency.slope_s_per_byte[ops] * problem.access_bytes[chosen.access]
    )
    traffic = problem.access_bytes[chosen.access] / rate

    ready_by, hold_until = ops.copy(), ops.copy()
    reads = problem.access_reads[chosen.access]
    follows = np.zeros(n, bool)
    defines = np.zeros(n, bool)
    following = np.full(n, -1)
    last_row: dict[int, int] = {}
    group: dict[int, _Block | None] = {}
    for i, (t, b) in enumerate(zip(ops.tolist(), buffers.tolist(), strict=True)):
        block, earlier = below[program.ops[t].region].get(home[b]), group.get(b)
        if block is None and earlier is not None and earlier.end == t:
            block = earlier  # the while op itself, which touches its state
        if block is not None:
            ready_by[i], hold_until[i] = block.start, min(block.end, num_ops - 1)
            follows[i] = earlier == block
        group[b] = block
        if b in last_row:
            following[last_row[b]] = i
        else:
            defines[i] = not (program.buffers[b].is_input or reads[i])
        last_row[b] = i
    has_next = following >= 0
    is_output = np.array([b.is_output for b in program.buffers], bool)[buffers]
    model, slow = problem.latency, problem.slow_bytes
    fast = slow - np.bincount(ops, problem.access_bytes[chosen.access], num_ops)
    machine = problem.accelerator
    spare = np.minimum(
        latency_lib.spare_s(model, slow, machine),
        latency_lib.spare_s(model, fast, machine),
    )
    return {
        "op": ops,
        "buffer": np.searchsorted(chosen.buffer, buffers),
        "size": problem.size_granules[buffers],
        "copy_time": counts * (dma.latency_s + sizes / rate) / unit_s,
        "slow_time": slow_time / unit_s,
        "slow_traffic": traffic / unit_s,
        "defines": defines,
        "writes": problem.access_writes[chosen.access],
        "first_of_op": np.diff(ops, prepend=-1) > 0,
        "last_of_op": np.diff(ops, append=num_ops) > 0,
        "ready_by": ready_by,
        "hold_until": hold_until,
        "follows": follows,
        "next_ready": np.where(has_next, ready_by[following], NEVER),
        "next_op": np.where(has_next, ops[following], NEVER),
        "next_follows": has_next & follows[following],
        "ends_slow": is_output & ~has_next,
        "depth": np.array([len(b) for b in below])[home[buffers]],
        "over": _over(
            problem, chosen, ops, buffers, defines & (ready_by == hold_until)
        ),
    }, spare / unit_s


def _over(problem: Problem, chosen: Rows, ops, buffers, possible) -> np.ndarray:
    """`[n, 2]` rows of the first buffers that each access may be written over."""
    over = np.full((len(ops), 2), -1)
    row = {b: i for i, b in enumerate(chosen.buffer.tolist())}
    for i in np.flatnonzero(possible):
        reuses = problem.program.ops[ops[i]].reuses
        operands = [row[x] for x, y in reuses if y == buffers[i] and x in row]
        over[i, : len(operands)] = operands[:2]
    return over
