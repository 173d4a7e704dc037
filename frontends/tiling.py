"""How an accelerator pads arrays in memory, and products in its matrix unit.

A TPU keeps an array in tiles of 8 rows of 128 lanes, spanned by its two minor
dimensions, and multiplies with a square array of cells. Dimensions that do not fill
them are padded:

    f32[1000, 64], minor dimension last     8 x 128 tiles: [1000, 128], 2 x the bytes
    f32[1000, 64], minor dimension first    [1024, 64], 1.02 x

    [4096, 64] x [64, 256] on 128 x 128     [4096, 128] x [128, 256], 2 x the work

Which dimensions are minor is the compiler's choice, here the one that pads least.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """The tile of an array's layout, and the shape of the matrix unit.

    rows, lanes: of a tile; the minor dimension is padded to lanes, the next to rows.
    matrix: rows and columns of the matrix unit; 1, any product fills it.
    image_passes: how often more the image and the result of a convolution over fewer
      images than `rows` go through memory, as float32. TPU compilers move space to
      batch around such convolutions: they cut each image into strips, with halos, and
      back. The default is fitted by examples/calibrate_stablehlo.py.
    Raises: ValueError if one is less than 1, or `image_passes` less than 0.
    """

    rows: int = 8
    lanes: int = 128
    matrix: int = 128
    image_passes: float = 5.4

    def __post_init__(self) -> None:
        for name in ("rows", "lanes", "matrix"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1.")
        if not 0 <= self.image_passes < math.inf:
            raise ValueError(
                f"image_passes is {self.image_passes}; it must be finite, at least 0."
            )

    @property
    def note(self) -> str:
        """What was padded, for the notes of a program."""
        return (
            f"Arrays are padded to tiles of {self.rows} x {self.lanes} and matrix "
            f"products to {self.matrix} x {self.matrix}."
        )

    def size_bytes(
        self,
        dims: Sequence[int],
        bits: int,
        minor: tuple[int, int] | None = None,
    ) -> int:
        """Bytes of an array with its tiles padded.

        Dimensions that do not fill a tile make it smaller, as far as the hardware has
        smaller ones: the second-minor dimension is padded to a power of two of at most
        `rows`, a vector to one of `lanes` to a whole tile, and both fill 32-bit words.

        Args:
          dims: its dimensions, in any order.
          bits: of an element.
          minor: the two dimensions that are minor, in either order; None, those that
            pad least.
        """
        elements = math.prod(dims)
        if not elements:
            return 0
        sizes = [n for n in dims if n > 1] if minor is None else list(dims)
        packing = max(1, 32 // bits)
        if len(sizes) < 2:
            tile = max(self.lanes * packing, _power_of_two(elements))
            return _up(elements, min(tile, self.rows * self.lanes)) * bits // 8
        pairs = [minor] if minor else itertools.combinations(range(len(sizes)), 2)
        padded = min(
            _padded(elements, (sizes[i], sizes[j]), self._tile(sizes[i], packing))
            for a, b in pairs
            for i, j in ((a, b), (b, a))
        )
        return padded * bits // 8

    def _tile(self, second_minor: int, packing: int) -> tuple[int, int]:
        """The tile of an array whose second-minor dimension is that long."""
        rows = min(self.rows, max(packing, _power_of_two(second_minor)))
        return rows, self.lanes

    def product_padding(self, m: int, k: int, n: int) -> float:
        """How many times the work of an `[m, k] x [k, n]` product it is, padded.

        The matrix unit holds a square of one operand, `k` by `m` or `n`, whichever pads
        less, while the rows of the other stream through it.
        """
        if not m * k * n:
            return 1.0
        depth = _up(k, self.matrix)
        rows = min(self.rows, self.matrix)
        least = min(
            _up(m, rows) * _up(n, self.matrix), _up(n, rows) * _up(m, self.matrix)
        )
        return depth * least / (m * k * n)


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _power_of_two(size: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, size - 1).bit_length()


def _padded(elements: int, sizes: tuple[int, int], tile: tuple[int, int]) -> int:
    """Elements of an array with these of its dimensions padded to a tile."""
    padded = math.prod(_up(size, t) for size, t in zip(sizes, tile, strict=True))
    return elements // math.prod(sizes) * padded
