"""Array types of HLO text: element type, dimensions, padded size, memory space.

    bf16[16,512]{1,0:T(8,128)(2,1)S(1)}
    dtype  dims  minor_to_major  tiles  memory space

A type is an `ArrayType`, or a tuple of types for an HLO tuple.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

ELEMENT_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "bf16": 16,
    "c64": 64,
    "c128": 128,
    **{f"{kind}{bits}": bits for kind in "su" for bits in (16, 32, 64)},
    **{f"f{bits}": bits for bits in (16, 32, 64)},
    # Elements of less than a byte fill one, unless the layout packs them: E(4).
    **{f"{kind}{bits}": 8 for kind in "su" for bits in (1, 2, 4, 8)},
}
_MAX_BITS = 2**63
_LAYOUT_PROPERTY = re.compile(r"([A-Z]+)((?:\([\d,*]*\))+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=\s]*)\](?:\{([\d,\s]*)(:[^{}]*)?\})?")


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayType:
    """One array: `dims` elements of `dtype`.

    size_bytes: with the padding that the layout's tiles ask for.
    space: memory space of the layout; 0 is the slow memory.
    """

    dtype: str
    dims: tuple[int, ...]
    size_bytes: int
    space: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.dims)


Type = ArrayType | tuple["Type", ...]


@functools.lru_cache(maxsize=65536)
def parse_array_type(text: str) -> ArrayType | None:
    """The type that `text` spells out; None if it is none, or beyond any memory.

    A dynamic dimension (`<=8`) counts with its bound.
    """
    match = _ARRAY.fullmatch(text)
    if match is None:
        return None
    dtype, dims_text, order_text, properties_text = match.groups()
    bits = element_bits(dtype)
    if bits is None:
        return None
    try:
        dims = _numbers(dims_text)
        minor_to_major = _numbers(order_text or "")
        properties = dict(_LAYOUT_PROPERTY.findall(properties_text or ""))
        physical = list(dims)
        if minor_to_major and sorted(minor_to_major) == list(range(len(dims))):
            physical = [dims[d] for d in reversed(minor_to_major)]
        if "E" in properties:
            bits = int(properties["E"].strip("()"))
        tile = properties.get("T", "()")[1:].partition(")")[0]
        elements = math.prod(_pad_to_tile(physical, tile))
        tail = int(properties.get("L", "(1)").strip("()"))
        space = int(properties.get("S", "(0)").strip("()"))
        elements = -(-elements // tail) * tail
        if elements * bits > _MAX_BITS:
            return None
    except (ValueError, ZeroDivisionError):
        return None
    return ArrayType(dtype, dims, -(-elements * bits // 8), space)


def leaves(tree: Any, index: tuple[int, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """`(tuple index, leaf)` of every leaf of a nested tuple, in order."""
    if type(tree) is tuple:
        for i, part in enumerate(tree):
            yield from leaves(part, (*index, i))
    else:
        yield index, tree


def map_leaves(
    function: Callable[[tuple[int, ...], Any], Any],
    tree: Any,
    index: tuple[int, ...] = (),
) -> Any:
    """The same nested tuple with `function(index, leaf)` for every leaf."""
    if type(tree) is tuple:
        return tuple(
            map_leaves(function, part, (*index, i)) for i, part in enumerate(tree)
        )
    return function(index, tree)


def size_bytes(tree: Type) -> int:
    """Bytes of all arrays of a type."""
    return sum(leaf.size_bytes for _, leaf in leaves(tree))


def num_elements(tree: Type) -> int:
    """Elements of all arrays of a type."""
    return sum(leaf.num_elements for _, leaf in leaves(tree))


def element_bits(dtype: str) -> int | None:
    """Bits of one unpacked element; None for an unknown type."""
    if dtype.startswith(("f4e", "f6e", "f8e")):
        return 8
    return ELEMENT_BITS.get(dtype)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(
        int(part.strip().removeprefix("<=")) for part in text.split(",") if part
    )


def _pad_to_tile(physical: list[int], tile: str) -> list[int]:
    """Dimensions, major to minor, rounded up to the outermost tile.

    Inner tiles, `(2,1)` in `T(8,128)(2,1)`, only order the elements of the outer one. A
    `*` merges its dimension with the next minor one before tiling.
    """
    parts = [part.strip() for part in tile.split(",") if part.strip()]
    physical = [1] * (len(parts) - len(physical)) + physical
    padded = physical[: len(physical) - len(parts)]
    merged = 1
    for size, part in zip(physical[len(padded) :], parts, strict=True):
        if part == "*":
            merged *= size
            continue
        size, merged = size * merged, 1
        padded.append(-(-size // int(part)) * int(part))
    return [*padded, merged]
