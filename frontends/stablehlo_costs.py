"""What one StableHLO operation does: arithmetic, shares of operands, role in fusion.

Counts follow XLA's HloCostAnalysis where that is a count of work: two operations per
multiply-add, padding left out of convolutions, one per element for arithmetic, and
transcendentals apart (of CHLO's special functions one per element). Reads from and
writes to memory are decided later, once it is known what is fused with what; here
stands only which *share* of an operand is needed.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from frontends.stablehlo_types import Shape
from frontends.tiling import Tiling

_Shapes = list[Shape]
# FLOPs of a matrix product, and its sizes m, k, n: `[m, k] x [k, n]`, batched or not.
_Product = tuple[float, tuple[int, int, int]]


class Role(enum.Enum):
    """How an operation takes part in fusion.

    POINTWISE: one result element from one element of each operand.
    MOVEMENT: moves or repeats elements and computes nothing (broadcast, slice, pad).
    CONTRACTION: matrix products and convolutions.
    REDUCTION: `reduce`; its inputs are consumed in one sweep.
    WINDOW: gathers and windowed reductions; element-wise work may follow them.
    UPDATE: replaces part of an operand (dynamic_update_slice, scatter).
    OPAQUE: fused with nothing (sort, custom calls, collectives, unknown operations).
    VIEW: another name for its operands, and a wall for fusion (optimization_barrier).
    LOOP, BRANCH: while and case.
    """

    POINTWISE = enum.auto()
    MOVEMENT = enum.auto()
    CONTRACTION = enum.auto()
    REDUCTION = enum.auto()
    WINDOW = enum.auto()
    UPDATE = enum.auto()
    OPAQUE = enum.auto()
    VIEW = enum.auto()
    LOOP = enum.auto()
    BRANCH = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class InPlace:
    """Operand `operand` may become result `result`, of which only a part is touched."""

    operand: int
    result: int
    read_bytes: int
    write_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpCost:
    """What one execution of one operation needs.

    matmul_flops, matmul_dtype, vector_flops, transcendentals: as in `program.Op`.
    shares: share of each operand that it touches; empty if it touches all of each.
    in_place: results that may take an operand's place.
    side_effects: whether it must stay although nobody reads its results.
    known: False for an operation that this module does not know.
    """

    role: Role
    matmul_flops: float = 0.0
    matmul_dtype: str = ""
    vector_flops: float = 0.0
    transcendentals: float = 0.0
    shares: tuple[float, ...] = ()
    in_place: tuple[InPlace, ...] = ()
    side_effects: bool = False
    known: bool = True


def _names(text: str) -> frozenset[str]:
    """Opcodes of StableHLO, listed with blanks between them."""
    return frozenset(text.split())


_POINTWISE = _names(
    """abs add and ceil clamp compare complex convert count_leading_zeros divide floor
    imag is_finite maximum minimum multiply negate not or popcnt real reduce_precision
    remainder round_nearest_afz round_nearest_even select shift_left
    shift_right_arithmetic shift_right_logical sign subtract xor"""
)
_TRANSCENDENTAL = _names(
    """atan2 cbrt cosine exponential exponential_minus_one log log_plus_one logistic
    power rsqrt sine sqrt tan tanh"""
)
_MOVEMENT = _names(
    """bitcast_convert broadcast broadcast_in_dim concatenate iota pad partition_id
    replica_id reshape reverse transpose"""
)
_COLLECTIVE = _names(
    """all_gather all_reduce all_to_all collective_broadcast collective_permute
    reduce_scatter"""
)
_SIDE_EFFECTS = _names("infeed outfeed recv send")
_TOKENS = _names("after_all create_token")

# A sum over a window this wide is computed in blocks, as XLA rewrites cumulative sums.
_WINDOW_BLOCK = 128
# Integer operations per random number of the counter-based generators.
_FLOPS_PER_RANDOM_NUMBER = 40.0


def op_cost(
    op: ir.Operation,
    operands: _Shapes,
    results: _Shapes,
    tiling: Tiling | None = None,
) -> OpCost:
    """The cost of one operation with these operand and result shapes.

    With a tiling, matrix products are padded to the matrix unit.
    """
    dialect, _, name = op.name.partition(".")
    out = results[0].elements if results else 0
    if name in _POINTWISE:
        return OpCost(role=Role.POINTWISE, vector_flops=out)
    if name in _TRANSCENDENTAL:
        return OpCost(role=Role.POINTWISE, transcendentals=out)
    if name in _MOVEMENT:
        return OpCost(role=Role.MOVEMENT)
    if name in ("slice", "dynamic_slice"):
        return OpCost(role=Role.MOVEMENT, shares=_first_share(operands, results))
    if name in _PRODUCTS:
        flops, (m, k, n) = _PRODUCTS[name](op, operands, results)
        if tiling is not None:
            flops *= tiling.product_padding(m, k, n)
        return OpCost(
            role=Role.CONTRACTION,
            matmul_flops=flops,
            matmul_dtype=_wider_dtype(operands[:2]),
        )
    if name in _RULES:
        return _RULES[name](op, operands, results)
    if name in _COLLECTIVE:
        adds = sum(s.elements for s in operands) if "reduce" in name else 0
        return OpCost(role=Role.OPAQUE, vector_flops=adds)
    if dialect == "chlo" and {shape.elements for shape in (*operands, *results)} == {
        out
    }:
        return OpCost(role=Role.POINTWISE, transcendentals=out)
    return OpCost(
        role=Role.OPAQUE,
        side_effects=name in _SIDE_EFFECTS or _has_side_effect(op),
        known=name in _SIDE_EFFECTS | _TOKENS,
    )


def _first_share(operands: _Shapes, results: _Shapes) -> tuple[float, ...]:
    """Only as much of operand 0 as there is result; the other operands whole."""
    share = min(1.0, results[0].elements / max(1, operands[0].elements))
    return (share, *(1.0 for _ in operands[1:]))


def _has_side_effect(op: ir.Operation) -> bool:
    return "has_side_effect" in op.attributes and bool(
        ir.BoolAttr(op.attributes["has_side_effect"]).value
    )


def _body_flops(op: ir.Operation) -> int:
    """Operations per application of a reducer, comparator or combiner."""
    body = op.regions[0].blocks[0].operations
    return sum(
        o.operation.name not in ("stablehlo.constant", "stablehlo.return") for o in body
    )


def _ints(op: ir.Operation, name: str, default: int, rank: int) -> list[int]:
    """An integer array attribute, or `default` for every dimension."""
    if name not in op.attributes:
        return [default] * rank
    return [int(x) for x in op.attributes[name]]


def _wider_dtype(shapes: _Shapes) -> str:
    return max(shapes, key=lambda shape: shape.bits).dtype


def _macs_to_flops(macs: float, shapes: _Shapes) -> float:
    """Two operations per multiply-add; a complex one is four of the real ones."""
    is_complex = any(s.dtype in ("c64", "c128") for s in shapes)
    return macs * (8.0 if is_complex else 2.0)


def _dot_general(op: ir.Operation, operands: _Shapes, results: _Shapes) -> _Product:
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    lhs, rhs = operands[0].dims, operands[1].dims
    k = math.prod(lhs[d] for d in numbers.lhs_contracting_dimensions)
    batch = math.prod(lhs[d] for d in numbers.lhs_batching_dimensions)
    flops = _macs_to_flops(results[0].elements * k, operands)
    m = math.prod(lhs) // max(1, batch * k)
    return flops, (m, k, math.prod(rhs) // max(1, batch * k))


def _ragged_dot(op: ir.Operation, operands: _Shapes, results: _Shapes) -> _Product:
    k = operands[0].dims[-1] if operands[0].dims else 1
    flops = _macs_to_flops(results[0].elements * k, operands[:2])
    n = results[0].dims[-1] if results[0].dims else 1
    return flops, (results[0].elements // max(1, n), k, n)


def _convolution(op: ir.Operation, operands: _Shapes, results: _Shapes) -> _Product:
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    lhs, rhs, out = operands[0].dims, operands[1].dims, results[0].dims
    spatial = list(numbers.input_spatial_dimensions)
    rank = len(spatial)
    strides = _ints(op, "window_strides", 1, rank)
    lhs_dilation = _ints(op, "lhs_dilation", 1, rank)
    rhs_dilation = _ints(op, "rhs_dilation", 1, rank)
    padding = _ints(op, "padding", 0, 2 * rank)
    macs = float(
        out[numbers.output_batch_dimension]
        * out[numbers.output_feature_dimension]
        * rhs[numbers.kernel_input_feature_dimension]
    )
    for d in range(rank):
        # (output, kernel) positions that fall on an input element: neither on padding
        # nor on a hole of the dilated input.
        n_out = out[numbers.output_spatial_dimensions[d]]
        n_kernel = rhs[numbers.kernel_spatial_dimensions[d]]
        at = (
            np.arange(n_out)[:, None] * strides[d]
            + np.arange(n_kernel)[None, :] * rhs_dilation[d]
            - padding[2 * d]
        )
        inside = (at >= 0) & (at <= (lhs[spatial[d]] - 1) * lhs_dilation[d])
        macs *= int(np.count_nonzero(inside & (at % lhs_dilation[d] == 0)))
    # A batch group multiplies each output feature with its own part of the batch only,
    # and the output's batch dimension is already divided by it.
    n = out[numbers.output_feature_dimension]
    window = math.prod(rhs[d] for d in numbers.kernel_spatial_dimensions)
    k = rhs[numbers.kernel_input_feature_dimension] * window
    return _macs_to_flops(macs, operands), (results[0].elements // max(1, n), k, n)


def _reduce(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    combined = operands[0].elements - results[0].elements
    return OpCost(role=Role.REDUCTION, vector_flops=max(0, combined) * _body_flops(op))


def _reduce_window(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    per_result = 1
    for width in _ints(op, "window_dimensions", 1, len(results[0].dims)):
        blocks = width / _WINDOW_BLOCK
        per_result *= width if blocks <= 1 else _WINDOW_BLOCK + blocks
    flops = results[0].elements * per_result * _body_flops(op)
    return OpCost(role=Role.WINDOW, vector_flops=flops)


def _select_and_scatter(
    op: ir.Operation, operands: _Shapes, results: _Shapes
) -> OpCost:
    window = math.prod(_ints(op, "window_dimensions", 1, len(results[0].dims)))
    return OpCost(role=Role.WINDOW, vector_flops=operands[1].elements * (window + 1))


def _gather(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    return OpCost(role=Role.WINDOW, shares=_first_share(operands, results))


def _dynamic_update_slice(
    op: ir.Operation, operands: _Shapes, results: _Shapes
) -> OpCost:
    update = operands[1].size_bytes
    return OpCost(role=Role.UPDATE, in_place=(InPlace(0, 0, 0, update),))


def _scatter(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    n = len(results)
    body, updates = _body_flops(op), operands[n + 1 :]
    return OpCost(
        role=Role.UPDATE,
        vector_flops=float(sum(u.elements for u in updates) * body),
        # A combiner (add, max) reads what it combines with; an assignment does not.
        in_place=tuple(
            InPlace(i, i, u.size_bytes if body else 0, u.size_bytes)
            for i, u in enumerate(updates)
        ),
    )


def _sort(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    dim = ir.IntegerAttr(op.attributes["dimension"]).value
    length = max(2, operands[0].dims[dim]) if operands[0].dims else 2
    compares = operands[0].elements * math.ceil(math.log2(length))
    return OpCost(role=Role.OPAQUE, vector_flops=compares * _body_flops(op))


def _top_k(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    length = max(2, operands[0].dims[-1]) if operands[0].dims else 2
    compares = operands[0].elements * math.ceil(math.log2(length))
    return OpCost(role=Role.OPAQUE, vector_flops=compares)


def _scan(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    flops = float(results[0].elements * _body_flops(op))
    return OpCost(role=Role.OPAQUE, vector_flops=flops)


def _random(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    numbers = results[-1].elements
    return OpCost(role=Role.OPAQUE, vector_flops=_FLOPS_PER_RANDOM_NUMBER * numbers)


def _fft(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    length = math.prod(_ints(op, "fft_length", 1, 1))
    elements = max(operands[0].elements, results[0].elements)
    return OpCost(
        role=Role.OPAQUE, vector_flops=5.0 * elements * math.log2(max(2, length))
    )


def _cholesky(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    n = operands[0].dims[-1]
    return OpCost(
        role=Role.OPAQUE,
        matmul_flops=operands[0].elements * n / 3.0,
        matmul_dtype=operands[0].dtype,
    )


def _triangular_solve(op: ir.Operation, operands: _Shapes, results: _Shapes) -> OpCost:
    return OpCost(
        role=Role.OPAQUE,
        matmul_flops=float(results[0].elements * operands[0].dims[-1]),
        matmul_dtype=operands[0].dtype,
    )


_PRODUCTS = {
    "convolution": _convolution,
    "dot_general": _dot_general,
    "ragged_dot": _ragged_dot,
}
_RULES = {
    "cholesky": _cholesky,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _fft,
    "gather": _gather,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "rng": _random,
    "rng_bit_generator": _random,
    "scan": _scan,
    "scatter": _scatter,
    "select_and_scatter": _select_and_scatter,
    "sort": _sort,
    "top_k": _top_k,
    "triangular_solve": _triangular_solve,
}
