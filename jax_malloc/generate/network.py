"""A random network in the making: a draft, and a tape for the backward pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jax_malloc.generate.draft import Draft

_MIB = 2**20
_MIN_BYTES, _MAX_BYTES = _MIB // 10, 60 * _MIB
_PAGE_BYTES = 4096  # sizes are multiples of it, as padded layouts of large arrays are
# FLOPs per byte touched, around the ridge of current machines (100 to 600).
_INTENSITY_RANGE = (30.0, 450.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One op of the forward pass, as the backward pass needs it."""

    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: tuple[int, ...]
    is_matmul: bool
    scope: str


class Network:
    """Layers on a tape; buffer sizes in units that one factor scales to bytes.

    rng: the draws of shapes and costs; none depends on `unit_bytes`.
    unit_bytes: bytes of one unit.
    draft: the ops so far.
    tape: the layers so far, in order.
    scope: the user's path to the layers that are added next.
    results: buffers that the caller gets back besides the last one (caches).
    """

    def __init__(
        self,
        rng: np.random.Generator,
        name: str,
        *,
        unit_bytes: float,
        fast_bytes: int,
    ) -> None:
        self.rng = rng
        self.unit_bytes = unit_bytes
        self.draft = Draft(name)
        self.tape: list[Layer] = []
        self.scope = ""
        self.results: list[int] = []
        self._units: dict[int, float] = {}
        self._intensity = math.exp(rng.uniform(*np.log(_INTENSITY_RANGE)))
        # Mostly within what machines reserve, an eighth; now and then beyond it.
        self._has_biases = rng.random() < 0.5
        self._scoped_bytes = fast_bytes // (4 if rng.random() < 0.1 else 10)

    @property
    def num_ops(self) -> int:
        return len(self.draft.ops)

    def units(self, buffer_id: int) -> float:
        """The size that a buffer was asked for, before scaling and clipping."""
        return self._units[buffer_id]

    def unit_bytes_range(self) -> tuple[float, float]:
        """Scales at which most buffers keep the ratios that were drawn."""
        small, large = np.quantile(list(self._units.values()), [0.5, 0.9])
        return _MIN_BYTES / max(small, 1e-6), _MAX_BYTES / large

    def parameter(self, units: float) -> int:
        """A new input of the program."""
        b = self.draft.parameter(self._bytes(units))
        self._units[b] = units
        return b

    def matmul(
        self, inputs: Sequence[int], out_units: float, *, weight: float = 0.0
    ) -> int:
        """A product or convolution, with a weight of that many units unless 0."""
        weights = [self.parameter(weight)] if weight else []
        return self._layer(inputs, weights, [out_units], is_matmul=True)[0]

    def split(self, x: int, out_units: Sequence[float], *, weight: float) -> list[int]:
        """One product with several results, such as query, key and value."""
        weights = [self.parameter(weight)]
        return self._layer([x], weights, out_units, is_matmul=True)

    def elementwise(self, inputs: Sequence[int], out_units: float | None = None) -> int:
        """A fusion without a product: a reduction where the output is small."""
        out = self.units(inputs[0]) if out_units is None else out_units
        return self._layer(inputs, [], [out], is_matmul=False)[0]

    def op(
        self,
        opcode: str,
        reads: Iterable[int | tuple[int, int]],
        out_units: Iterable[float] = (),
        *,
        is_matmul: bool = False,
        **fields,
    ) -> list[int]:
        """Any op, off the tape; its FLOPs are drawn around the bytes that it touches.

        Args:
          opcode, reads: as in `Draft.op`.
          out_units: sizes of its outputs.
          is_matmul: whether it has a matrix product.
          **fields: `updates`, `overwrites` or `op_name`, as in `Draft.op`.
        Returns:
          The ids of its outputs.
        """
        out_units = list(out_units)
        ids = self.draft.op(
            opcode,
            reads,
            [self._bytes(units) for units in out_units],
            **{"op_name": self.scope, **fields},
        )
        self._units.update(zip(ids, out_units, strict=True))
        jitter, special, scoped = (
            math.exp(self.rng.normal(0.0, 0.7)),
            self.rng.random() < 0.2,
            self.rng.random(),
        )
        op = self.draft.ops[-1]
        moved = sum(op.touched_bytes().values())
        self.draft.ops[-1] = dataclasses.replace(
            op,
            matmul_flops=float(round(self._intensity * jitter * moved * is_matmul)),
            matmul_dtype="bf16" if is_matmul else "",
            vector_flops=float(round(moved * min(jitter, 8.0))),
            transcendentals=float(round(moved / 8 * special)),
            scoped_bytes=round(self._scoped_bytes * scoped * is_matmul),
        )
        return ids

    def bytes_of(self, buffer_id: int) -> int:
        return self.draft.buffers[buffer_id].size_bytes

    def _layer(
        self,
        inputs: Sequence[int],
        weights: Sequence[int],
        out_units: Sequence[float],
        *,
        is_matmul: bool,
    ) -> list[int]:
        convolution = is_matmul and self.rng.random() < 0.5
        # Too small to be worth a place; real programs are full of them.
        biases = [self.draft.parameter(_PAGE_BYTES)] if self._has_biases else []
        outputs = self.op(
            "convolution" if convolution else "fusion",
            [*inputs, *weights, *biases],
            out_units,
            is_matmul=is_matmul,
            elementwise=not is_matmul,
        )
        layer = Layer(
            inputs=tuple(inputs),
            weights=tuple(weights),
            outputs=tuple(outputs),
            is_matmul=is_matmul,
            scope=self.scope,
        )
        self.tape.append(layer)
        return outputs

    def _bytes(self, units: float) -> int:
        size_bytes = min(max(units * self.unit_bytes, _MIN_BYTES), _MAX_BYTES)
        return math.ceil(size_bytes / _PAGE_BYTES) * _PAGE_BYTES
