"""Tensor types: dimensions, HLO's names of the element types, and bytes in memory."""

from __future__ import annotations

import dataclasses
import math

from jax.extend.mlir import ir


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A tensor type: dimensions, HLO's name of the element type, and its bits."""

    dims: tuple[int, ...]
    dtype: str
    bits: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Logical bytes, without the padding that a tiled layout adds."""
        return -(-self.elements * self.bits // 8)


TOKEN = Shape((0,), "token", 0)


def shape_of(mlir_type: ir.Type) -> Shape:
    """The shape of a tensor type; tokens are empty.

    Raises:
      ValueError: the type has a dimension that is not known.
    """
    if not isinstance(mlir_type, ir.RankedTensorType):
        if isinstance(mlir_type, ir.TupleType):
            parts = [
                shape_of(mlir_type.get_type(i)) for i in range(mlir_type.num_types)
            ]
            return Shape((sum(part.size_bytes for part in parts),), "tuple", 8)
        return TOKEN
    if not mlir_type.has_static_shape:
        raise ValueError(
            f"a tensor has type {mlir_type}, with a dimension that is not known. "
            "Lower the function for concrete shapes, without symbolic dimensions."
        )
    dtype, bits = _element_type(mlir_type.element_type)
    return Shape(tuple(mlir_type.shape), dtype, bits)


def _element_type(element: ir.Type) -> tuple[str, int]:
    """HLO's name and the bits in memory of an element type."""
    if isinstance(element, ir.ComplexType):
        bits = 2 * element.element_type.width
        return f"c{bits}", bits
    bits, text = getattr(element, "width", 64), str(element)
    if bits == 1:
        return "pred", 8  # one byte each, as every backend stores them
    if text.startswith("ui"):
        return "u" + text[2:], bits
    if text.startswith("i") and text[1:].isdigit():
        return "s" + text[1:], bits
    return text.lower(), bits
