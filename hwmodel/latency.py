"""How long ops and copies take; ops depend on where the bytes are that they touch.

    seconds |                      /    latency = max(floor, base + slope * slow_bytes)
            |                    /
            |                  /        floor  compute-bound
      floor |----------------/          base   with everything in fast memory
            |             . '           slope  seconds per byte in slow memory
       base |. . . . . '
            +--------------------------- slow_bytes

Two ways to the three numbers: `roofline`, from FLOPs, bytes and the shares of the peak
rates that ops sustain, and `from_estimates`, from a compiler's cycle estimates of the
same op under different memory placements.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hwmodel.accelerator import Accelerator, Efficiency

# The rules of `from_estimates`. The byte thresholds say how much data must change place
# before the difference between two estimates is more than rounding and fixed overheads.
MIN_FAST_BYTES = 8192  # moved into fast memory: enough to take a slope from two points
MIN_SLOW_BYTES = 65536  # left in slow memory: enough that one point bounds the slope
# An op cannot be hurt more by slow memory than ten times the usual; steeper fits are
# tilings that changed with the placement.
MAX_SLOPE_OVER_DEFAULT = 10.0
# When most bytes were in slow memory under both, the fast end lies far outside of the
# two points, and a steep line through them is noise.
MAX_EXTRAPOLATED_SLOPE_OVER_DEFAULT = 2.0
# Slow memory never explains more than this much of an estimate; the rest is overhead.
MAX_SLOW_SHARE = 0.9
MIN_BASE_SHARE = 0.05  # of an estimate, kept even if the slope would explain it all
MAX_COMPUTE_SHARE = 0.98  # of an estimate: FLOP counts of padded shapes overshoot
# Estimates of copies inside fast memory are implausibly small: a copy moves its bytes
# at no more than this many times the rate of other ops.
COPY_SPEEDUP = 2.0


class LatencyKind(enum.IntEnum):
    """Where an op's three numbers come from."""

    ROOFLINE = 0  # FLOPs, bytes and peak rates
    ONE_POINT = 1  # one estimate of a compiler; the slope is the accelerator's
    TWO_POINT = 2  # two estimates of a compiler, under different placements
    FREE = 3  # it moves no data and computes nothing


class OpLatency(NamedTuple):
    """`latency_s = max(floor_s, base_s + slope_s_per_byte * slow_bytes)` of each op.

    All executions of one program call together: an op in a loop body counts as often as
    the loop turns, in floor and base as in the slow bytes it is given.

    floor_s: `[T]` float64 compute-bound seconds.
    base_s: `[T]` float64 seconds with everything in fast memory.
    slope_s_per_byte: `[T]` float64 seconds per byte touched in slow memory.
    kind: `[T]` uint8, a `LatencyKind`.
    """

    floor_s: npt.NDArray[np.float64]
    base_s: npt.NDArray[np.float64]
    slope_s_per_byte: npt.NDArray[np.float64]
    kind: npt.NDArray[np.uint8]


def op_latency_s(model: OpLatency, slow_bytes: Any) -> Any:
    """Seconds that each op takes over one program call.

    Args:
      model: numpy or jax arrays.
      slow_bytes: `[..., T]` bytes it touches in slow memory, all executions together;
        numpy or jax.
    Returns:
      `[..., T]` seconds; jax if any input is.
    """
    xp = _namespace(slow_bytes, model.base_s)
    return xp.maximum(model.floor_s, model.base_s + model.slope_s_per_byte * slow_bytes)


def spare_s(model: OpLatency, slow_bytes: Any, accelerator: Accelerator) -> Any:
    """Seconds of copying that fit beside each op: its latency less its own traffic.

    Args:
      model, slow_bytes: as in `op_latency_s`.
      accelerator: its DMA rate prices the op's own traffic to slow memory.
    Returns:
      `[..., T]` seconds, at least 0 and at most the op's latency; jax if any input is.
    """
    xp = _namespace(slow_bytes, model.base_s)
    latency = op_latency_s(model, slow_bytes)
    return xp.maximum(latency - slow_bytes / accelerator.dma_bytes_per_s, 0.0)


def copy_s(size_bytes: Any, accelerator: Accelerator, count: Any = 1.0) -> Any:
    """Seconds that copies between the memories occupy the DMA, undisturbed.

    Args:
      size_bytes: of one execution; a number, or an array for elementwise results.
      accelerator: rate and fixed latency of the DMA.
      count: executions per program call.
    """
    dma_s = size_bytes / accelerator.dma_bytes_per_s + accelerator.dma.latency_s
    return dma_s * count


def roofline(
    accelerator: Accelerator,
    *,
    matmul_flops: npt.ArrayLike,
    matmul_dtypes: Sequence[str],
    vector_flops: npt.ArrayLike,
    transcendentals: npt.ArrayLike,
    total_bytes: npt.ArrayLike,
    counts: npt.ArrayLike,
) -> OpLatency:
    """Latency from sustained rates: compute, fast memory and slow memory.

    Args:
      accelerator: the peak rates, and the efficiency with which they are used.
      matmul_flops: `[T]` floating-point operations of matrix products, one execution.
      matmul_dtypes: `[T]` their element types, "" where there are none.
      vector_flops: `[T]` element-wise and reduction operations, one execution.
      transcendentals: `[T]` exp, tanh and the like, one execution.
      total_bytes: `[T]` bytes it touches, wherever they are, one execution.
      counts: `[T]` executions per program call.
    Returns:
      floor: the slowest of the three compute units, all three running side by side.
      base: all bytes at the fast memory's bandwidth; without `efficiency.overlap` the
        vector work too, and at least the matrix unit's time.
      slope: one byte at the rate at which ops reach slow memory by themselves.
    Raises:
      ValueError: the lengths differ, or a number is negative, infinite or NaN.
    Source: the roofline bound, Williams et al., CACM 52(4), 2009.
    """
    matmul = _column("matmul_flops", matmul_flops)
    vector = _column("vector_flops", vector_flops, like=matmul)
    special = _column("transcendentals", transcendentals, like=matmul)
    total = _column("total_bytes", total_bytes, like=matmul)
    count = _column("counts", counts, like=matmul)
    share = accelerator.efficiency
    matmul_s = _matmul_s(accelerator, matmul, matmul_dtypes) / share.matmul
    vector_s = np.maximum(
        vector / (accelerator.vector_flops_per_s * share.vector),
        special / (accelerator.transcendentals_per_s * share.transcendental),
    )
    compute = np.maximum(matmul_s, vector_s)
    base = total / (accelerator.fast.bandwidth_bytes_per_s * share.fast)
    if not share.overlap:
        base = np.maximum(matmul_s, vector_s + base)
    slow_rate = accelerator.direct_bytes_per_s
    if share.slow is not None:
        slow_rate = accelerator.slow.bandwidth_bytes_per_s * share.slow
    free = (compute == 0) & (total == 0)
    return OpLatency(
        floor_s=compute * count,
        base_s=base * count,
        slope_s_per_byte=np.where(free, 0.0, 1 / slow_rate),
        kind=np.where(free, LatencyKind.FREE, LatencyKind.ROOFLINE).astype(np.uint8),
    )


def from_estimates(
    accelerator: Accelerator,
    *,
    matmul_flops: npt.ArrayLike,
    matmul_dtypes: Sequence[str],
    vector_flops: npt.ArrayLike,
    transcendentals: npt.ArrayLike,
    total_bytes: npt.ArrayLike,
    counts: npt.ArrayLike,
    on_cycles: npt.ArrayLike,
    on_slow_bytes: npt.ArrayLike,
    slow_cycles: npt.ArrayLike,
    slow_slow_bytes: npt.ArrayLike | None = None,
    is_copy: npt.ArrayLike | None = None,
) -> OpLatency:
    """Latency from a compiler's own estimates of each op, one execution each.

    Two estimates of one op, with few and with all of its bytes in slow memory, give
    base and slope; one estimate gives the base under the accelerator's usual slope; an
    op without any takes its bytes at the fast memory's bandwidth as base. The
    compute-bound time is part of the base, so that the floor never binds. If no op has
    an estimate, the answer is `roofline`'s.

    Args:
      accelerator, matmul_flops to counts: as in `roofline`.
      on_cycles: `[T]` estimate under a mapping that uses fast memory; NaN where
        missing.
      on_slow_bytes: `[T]` bytes that mapping leaves in slow memory; NaN counts as 0.
      slow_cycles: `[T]` estimate with everything in slow memory; NaN where missing.
      slow_slow_bytes: `[T]` bytes in slow memory then; None, all of `total_bytes`. It
        matters only where it is the only estimate.
      is_copy: `[T]` bool, ops that only copy (opcode "copy"); None, there are none.
    Returns:
      The model of each op; `kind` tells which of the three cases it was.
    Raises:
      ValueError: the lengths differ, a number is out of range, or the accelerator has
        no clock to turn cycles into seconds.
    """
    # Ops without an estimate stand beside the estimates of others: at peak rates.
    fallback = roofline(
        accelerator.replace(efficiency=Efficiency()),
        matmul_flops=matmul_flops,
        matmul_dtypes=matmul_dtypes,
        vector_flops=vector_flops,
        transcendentals=transcendentals,
        total_bytes=total_bytes,
        counts=counts,
    )
    total = _column("total_bytes", total_bytes)
    count = _column("counts", counts)
    on = _column("on_cycles", on_cycles, like=total, missing=True)
    on_bytes = _column("on_slow_bytes", on_slow_bytes, like=total, missing=True)
    slow = _column("slow_cycles", slow_cycles, like=total, missing=True)
    slow_bytes = total
    if slow_slow_bytes is not None:
        slow_bytes = _column(
            "slow_slow_bytes", slow_slow_bytes, like=total, missing=True
        )
    copies = np.zeros(total.shape, bool)
    if is_copy is not None:
        copies = np.asarray(is_copy, bool)
        if copies.shape != total.shape:
            raise ValueError(
                f"is_copy has shape {copies.shape}; the other columns {total.shape}."
            )
    estimated = ~(np.isnan(on) & np.isnan(slow))
    if not estimated.any():
        return roofline(
            accelerator,
            matmul_flops=matmul_flops,
            matmul_dtypes=matmul_dtypes,
            vector_flops=vector_flops,
            transcendentals=transcendentals,
            total_bytes=total_bytes,
            counts=counts,
        )
    if accelerator.clock_hz is None:
        raise ValueError(
            f"accelerator {accelerator.name!r} has no clock_hz, which turns the "
            "compiler's cycle estimates into seconds. Set it, or use roofline."
        )

    # One reference point per op: the mapping's estimate, or else the slow one.
    only_slow = np.isnan(on)
    point_s = np.where(only_slow, slow, on) / accelerator.clock_hz
    point_bytes = np.nan_to_num(np.where(only_slow, slow_bytes, on_bytes))
    other_s = np.where(only_slow, np.nan, slow) / accelerator.clock_hz
    # Matrix products only: their peak is sourced, and the estimate knows the rest.
    matmul_s = _matmul_s(
        accelerator, _column("matmul_flops", matmul_flops), matmul_dtypes
    )
    compute_s, base_s, slope, two = _fit(
        accelerator, total, matmul_s, point_s, point_bytes, other_s, copies
    )
    kind = np.where(two, LatencyKind.TWO_POINT, LatencyKind.ONE_POINT)
    # Compilers leave out the estimates of ops that shuffle data; FLOP counts of those
    # (window reductions) are upper bounds, so their floor is 0 here.
    return OpLatency(
        floor_s=np.where(estimated, compute_s * count, 0.0),
        base_s=np.where(estimated, base_s * count, fallback.base_s),
        slope_s_per_byte=np.where(estimated, slope, fallback.slope_s_per_byte),
        kind=np.where(estimated, kind, fallback.kind).astype(np.uint8),
    )


def _fit(
    accelerator: Accelerator,
    total: np.ndarray,
    matmul_s: np.ndarray,
    point_s: np.ndarray,
    point_bytes: np.ndarray,
    other_s: np.ndarray,
    is_copy: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(compute_s, base_s, slope, has two points) through the point and perhaps another.

    point_s: `[T]` seconds with `point_bytes` in slow memory, NaN for ops to ignore.
    other_s: `[T]` seconds with everything in slow memory, NaN where not known.
    """
    usual = 1 / accelerator.direct_bytes_per_s
    fast_s = total / accelerator.fast.bandwidth_bytes_per_s
    fast_bytes = total - point_bytes
    many_slow = point_bytes >= MIN_SLOW_BYTES
    per_byte = 1 / np.maximum(point_bytes, 1.0)

    # Slope: the line through both points; flat if there was nothing to move; or usual.
    moved = ~np.isnan(other_s) & (fast_bytes >= MIN_FAST_BYTES)
    nothing_to_move = ~np.isnan(other_s) & ~moved & ~many_slow
    line = (other_s - point_s) / np.maximum(fast_bytes, MIN_FAST_BYTES)
    slope = np.where(moved, np.clip(line, 0.0, MAX_SLOPE_OVER_DEFAULT * usual), usual)
    slope = np.where(nothing_to_move, 0.0, slope)
    extrapolated = point_bytes > fast_bytes
    steep = MAX_EXTRAPOLATED_SLOPE_OVER_DEFAULT * usual
    slope = np.where(extrapolated, np.minimum(slope, steep), slope)
    # What slow memory can explain of the point: not the time in fast memory.
    explained = np.minimum(point_s - fast_s, MAX_SLOW_SHARE * point_s)
    explained = np.maximum(explained, (1 - MAX_SLOW_SHARE) * point_s)
    slope = np.where(many_slow, np.minimum(slope, explained * per_byte), slope)

    base = np.maximum(point_s - slope * point_bytes, MIN_BASE_SHARE * point_s)
    base = np.where(is_copy, np.maximum(base, fast_s / COPY_SPEEDUP), base)
    compute_s = np.minimum(matmul_s, MAX_COMPUTE_SHARE * point_s)
    # Compute-bound in fast memory: slow memory explains the rest of the point. Only a
    # point with slow bytes has a base below MAX_COMPUTE_SHARE of it.
    slope = np.where(compute_s > base, (point_s - compute_s) * per_byte, slope)
    return compute_s, np.maximum(base, compute_s), slope, moved | nothing_to_move


def _matmul_s(
    accelerator: Accelerator, flops: np.ndarray, dtypes: Sequence[str]
) -> np.ndarray:
    if len(dtypes) != len(flops):
        raise ValueError(
            f"matmul_dtypes has {len(dtypes)} entries; matmul_flops has {len(flops)}."
        )
    peaks = {dtype: accelerator.peak(dtype) for dtype in set(dtypes)}
    return flops / np.array([peaks[dtype] for dtype in dtypes], np.float64)


def _column(
    name: str,
    values: npt.ArrayLike,
    *,
    like: np.ndarray | None = None,
    missing: bool = False,
) -> np.ndarray:
    """`values` as `[T]` float64, finite (NaN allowed if `missing`) and at least 0."""
    column = np.asarray(values, np.float64)
    if column.ndim != 1 or (like is not None and column.shape != like.shape):
        expected = "(T,)" if like is None else like.shape
        raise ValueError(f"{name} has shape {column.shape}; expected {expected}.")
    bad = ~(np.isfinite(column) | (missing & np.isnan(column))) | (column < 0)
    if bad.any():
        t = int(np.argmax(bad))
        raise ValueError(f"{name}[{t}] is {column[t]}; it must be finite, at least 0.")
    return column


def _namespace(*arrays: Any) -> Any:
    """The first array's own namespace that is not numpy's (jax.numpy), or numpy."""
    for array in arrays:
        if not isinstance(array, np.ndarray) and hasattr(array, "__array_namespace__"):
            return array.__array_namespace__()
    return np
