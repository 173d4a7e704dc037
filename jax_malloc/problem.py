"""The memory mapping problem: a Program on an Accelerator, as arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from frontends.program import CompilerCopy, Program
from frontends.tiling import Tiling
from hwmodel import latency as latency_lib
from hwmodel import simulator
from hwmodel.accelerator import Accelerator
from jax_malloc.mapping import Direction, Mapping

# A buffer whose best single access saves less than this share of the all-in-slow-memory
# latency is left in slow memory: it cannot matter, and half of all accesses are such
# (biases, scalars, statistics).
_NEGLIGIBLE_SAVING = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A program on a machine.

    Host arrays, one row per access (`M` accesses of any buffer, in schedule order), per
    op (`T`) or per buffer (`B`).

    access_op, access_buffer: `[M]` int. access_bytes: `[M]` float, bytes moved per
      program call (all executions). access_reads, access_writes: `[M]` bool. A write
      without a read replaces the contents.
    latency: `[T]` floor, base and slope of each op (`hwmodel.latency.OpLatency`).
    eligible: `[B]` bool, whether a solver may place the buffer in fast memory at all.
    size_granules: `[B]` int, bytes rounded up to the alignment of fast memory, in units
      of it.
    """

    program: Program
    accelerator: Accelerator
    latency: latency_lib.OpLatency
    access_op: np.ndarray
    access_buffer: np.ndarray
    access_bytes: np.ndarray
    access_reads: np.ndarray
    access_writes: np.ndarray
    eligible: np.ndarray
    size_granules: np.ndarray

    @property
    def granule_bytes(self) -> int:
        return self.accelerator.fast.alignment_bytes

    @functools.cached_property
    def slow_bytes(self) -> np.ndarray:
        """`[T]` bytes that each op moves with everything in slow memory."""
        return self._slow_bytes(np.zeros(len(self.access_op), bool))

    @functools.cached_property
    def all_slow_latency_s(self) -> float:
        """Seconds per call with everything in slow memory; no copies, so no stalls."""
        return float(latency_lib.op_latency_s(self.latency, self.slow_bytes).sum())

    @functools.cached_property
    def op_capacity_granules(self) -> np.ndarray:
        """`[T]` granules of fast memory free for buffers while each op runs.

        The accelerator's reserve covers what ops keep for themselves; an op that
        reserves more than that shortens the memory from its top while it runs.
        """
        scoped = np.array([op.scoped_bytes for op in self.program.ops], np.int64)
        excess = np.maximum(scoped - self.accelerator.fast.reserved_bytes, 0)
        return self._usable_granules - -(-excess // self.granule_bytes)

    @property
    def capacity_granules(self) -> int:
        """Granules that are free during every op: what the game plans into."""
        return int(self.op_capacity_granules.min(initial=self._usable_granules))

    @property
    def _usable_granules(self) -> int:
        return self.accelerator.fast.usable_bytes // self.granule_bytes

    @functools.cached_property
    def home_region(self) -> np.ndarray:
        """`[B]` innermost region with all accesses of a buffer; 0 for inputs, outputs.

        Copies of a buffer run directly in its home region, never inside a deeper loop.
        """
        regions = self.program.regions
        chains: dict[int, tuple[int, ...]] = {}

        def chain(r: int) -> tuple[int, ...]:
            if r not in chains:
                chains[r] = (chain(regions[r].parent) if r > 0 else ()) + (r,)
            return chains[r]

        home = np.full(len(self.program.buffers), -1)
        for op_t, b in zip(self.access_op, self.access_buffer, strict=True):
            r = self.program.ops[op_t].region
            if home[b] < 0:
                home[b] = r
            elif home[b] != r:
                common = [
                    x for x, y in zip(chain(home[b]), chain(r), strict=False) if x == y
                ]
                home[b] = common[-1]
        for i, b in enumerate(self.program.buffers):
            if b.is_input or b.is_output or home[i] < 0:
                home[i] = 0
        return home

    @functools.cached_property
    def region_counts(self) -> np.ndarray:
        """`[R]` executions of each region per program call."""
        counts: list[float] = []
        for r in self.program.regions:
            counts.append(r.trip_count * (counts[r.parent] if r.parent >= 0 else 1.0))
        return np.array(counts)

    def fast_mask(self, mapping: Mapping) -> np.ndarray:
        """`[M]` bool: the accesses that a segment of `mapping` serves."""
        mask = np.zeros(len(self.access_op), bool)
        if not mapping.segments:
            return mask
        order = np.argsort(self.access_buffer, kind="stable")
        bounds = np.searchsorted(
            self.access_buffer[order], np.arange(len(self.program.buffers) + 1)
        )
        for s in mapping.segments:
            rows = order[bounds[s.buffer_id] : bounds[s.buffer_id + 1]]
            ops = self.access_op[rows]
            mask[rows[(ops >= s.first) & (ops < s.end)]] = True
        return mask

    def evaluate(self, mapping: Mapping) -> simulator.Timeline:
        """Per-op durations and stalls, per-copy times and total latency of a mapping.

        Says what a mapping costs, not whether it is possible; that is
        `validator.find_violations`.
        """
        return simulator.simulate(
            self.latency,
            self._slow_bytes(self.fast_mask(mapping)),
            self.simulator_copies(mapping),
            self.accelerator,
        )

    def evaluate_compiler(self) -> simulator.Timeline | None:
        """The timeline of the compiler's own mapping under the same latency model.

        Its cross-program prefetches count as copies issued at the program's start.
        Returns None if the program carries no such mapping.
        """
        compiler = self.program.compiler_mapping
        if compiler is None:
            return None
        pairs = zip(self.access_op.tolist(), self.access_buffer.tolist(), strict=True)
        fast = np.array([pair in compiler.fast_accesses for pair in pairs], bool)
        copies = self.compiler_copies(compiler.copies)
        return simulator.simulate(
            self.latency, self._slow_bytes(fast), copies, self.accelerator
        )

    def simulator_copies(self, mapping: Mapping) -> list[simulator.Copy]:
        """The copies as the simulator takes them, with their execution counts."""
        counts = self.region_counts[self.home_region]
        return [
            simulator.Copy(
                c.start,
                c.done,
                c.size_bytes,
                c.direction is Direction.PREFETCH,
                float(counts[c.buffer_id]),
            )
            for c in mapping.copies
        ]

    def compiler_copies(self, copies: Iterable[CompilerCopy]) -> list[simulator.Copy]:
        """A compiler's copies as the simulator takes them."""
        return [
            simulator.Copy(
                c.start,
                c.done,
                c.size_bytes,
                c.direction == Direction.PREFETCH.value,
                float(self.region_counts[c.region]),
            )
            for c in copies
        ]

    def _slow_bytes(self, fast: np.ndarray) -> np.ndarray:
        return np.bincount(
            self.access_op,
            weights=np.where(fast, 0.0, self.access_bytes),
            minlength=len(self.program.ops),
        )


def tiling_of(accelerator: Accelerator) -> Tiling | None:
    """How the StableHLO frontend should pad for a machine; None, not at all."""
    rows, lanes = accelerator.tile_rows, accelerator.tile_lanes
    if rows == lanes == accelerator.matrix_size == 1:
        return None
    return Tiling(rows=rows, lanes=lanes, matrix=accelerator.matrix_size)


def build(
    program: Program,
    accelerator: Accelerator,
    *,
    estimated_for: Accelerator | None = None,
) -> Problem:
    """Joins a program and a machine.

    Args:
      program: any.
      accelerator: the machine.
      estimated_for: the machine that the program's cycle estimates are for, if that is
        another: what they say of slow memory is scaled with its bandwidth.
    Raises:
      ValueError: an op reserves more fast memory for itself than the machine has.
    """
    fast = accelerator.fast
    for op in program.ops:
        if op.scoped_bytes > fast.capacity_bytes:
            raise ValueError(
                f"op {op.name!r} of {program.name!r} needs "
                f"{op.scoped_bytes / 2**20:.1f} MiB of fast memory for itself; "
                f"accelerator {accelerator.name!r} has "
                f"{fast.capacity_bytes / 2**20:.1f} MiB. Choose an accelerator with a "
                "larger fast memory or split the op."
            )
    rows = list(program.accesses())
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    access_op = np.array(columns[0], np.int64)
    counts = np.array([op.count for op in program.ops], np.float64)
    access_bytes = np.array(columns[2], np.float64) * counts[access_op]
    problem = Problem(
        program=program,
        accelerator=accelerator,
        latency=_latency(program, accelerator, estimated_for or accelerator),
        access_op=access_op,
        access_buffer=np.array(columns[1], np.int64),
        access_bytes=access_bytes,
        access_reads=np.array(columns[3], bool),
        access_writes=np.array(columns[4], bool),
        eligible=np.zeros(len(program.buffers), bool),
        size_granules=np.array(
            [-(-b.size_bytes // fast.alignment_bytes) for b in program.buffers],
            np.int64,
        ),
    )
    return dataclasses.replace(problem, eligible=_eligible(problem))


def _eligible(problem: Problem) -> np.ndarray:
    """`[B]` buffers that may be placed, fit, and could save enough to matter."""
    slope = problem.latency.slope_s_per_byte[problem.access_op]
    best = np.zeros(len(problem.program.buffers))
    np.maximum.at(best, problem.access_buffer, slope * problem.access_bytes)
    worthwhile = best > _NEGLIGIBLE_SAVING * problem.all_slow_latency_s
    fits = (problem.size_granules > 0) & (
        problem.size_granules <= problem.capacity_granules
    )
    placeable = np.array([not b.pinned_slow for b in problem.program.buffers], bool)
    return placeable & fits & worthwhile


def _latency(
    program: Program, accelerator: Accelerator, estimated_for: Accelerator
) -> latency_lib.OpLatency:
    """Floor, base and slope of every op.

    From the compiler's estimates where there are any and the machine has a clock to
    read them by, from the roofline otherwise.
    """
    ops = program.ops
    total_bytes = np.array([float(sum(op.touched_bytes().values())) for op in ops])
    work: dict[str, Any] = {
        "matmul_flops": np.array([op.matmul_flops for op in ops], np.float64),
        "matmul_dtypes": [op.matmul_dtype for op in ops],
        "vector_flops": np.array([op.vector_flops for op in ops], np.float64),
        "transcendentals": np.array([op.transcendentals for op in ops], np.float64),
        "total_bytes": total_bytes,
        "counts": np.array([op.count for op in ops], np.float64),
    }
    if estimated_for.clock_hz is None or not any(op.estimates for op in ops):
        return latency_lib.roofline(accelerator, **work)
    on, on_bytes, slow, slow_bytes = np.full((4, len(ops)), np.nan)
    for t, op in enumerate(ops):
        if not op.estimates:
            continue
        ordered = sorted(op.estimates, key=lambda e: e.slow_bytes)
        fewest, most = ordered[0], ordered[-1]
        everything_slow = most.slow_bytes >= 0.99 * total_bytes[t]
        if len(ordered) > 1 or not everything_slow:
            on[t], on_bytes[t] = fewest.cycles, fewest.slow_bytes
        if len(ordered) > 1 or everything_slow:
            slow[t], slow_bytes[t] = most.cycles, most.slow_bytes
    model = latency_lib.from_estimates(
        estimated_for,
        **work,
        on_cycles=on,
        on_slow_bytes=on_bytes,
        slow_cycles=slow,
        slow_slow_bytes=slow_bytes,
        is_copy=np.array([op.opcode == "copy" for op in ops], bool),
    )
    slower = estimated_for.direct_bytes_per_s / accelerator.direct_bytes_per_s
    return model._replace(slope_s_per_byte=model.slope_s_per_byte * slower)
