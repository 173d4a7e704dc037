"""What a machine is made of: two memories, the copies between them, and compute rates.

          compute: peak_flops_per_s, vector_flops_per_s, transcendentals_per_s
             |                 |
             |                 | direct_slow_access, at slow_read_share of its bandwidth
        fast memory  ----  slow memory
                     dma, at bandwidth_share of the slow memory's

Every number is a field, so that a sweep is
`accelerator.replace(fast_capacity_bytes=...)` and a machine that nobody has built yet
is a JSON or TOML file.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from hwmodel import field_checks

_Record = TypeVar("_Record")

# For a dtype whose peak is not listed, the next one to ask for. f16 runs at bf16's
# rate wherever both exist. f64 -> f32 and the wide integers -> f32 are optimistic, but
# no preset has units for them and no program spends its time there. The narrow types
# widen until a unit takes them.
_NEXT_DTYPE = {
    "f16": "bf16",
    "bf16": "f16",
    "f32": "bf16",
    "f64": "f32",
    "c64": "f32",
    "c128": "f64",
    "f8": "bf16",
    "f4": "f8",
    "s4": "s8",
    "u4": "s8",
    "u8": "s8",
    "pred": "s8",
    "s8": "bf16",
    "s16": "f32",
    "u16": "f32",
    "s32": "f32",
    "u32": "f32",
    "s64": "f32",
    "u64": "f32",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """One memory space.

    capacity_bytes: all of it.
    bandwidth_bytes_per_s: what an op that does nothing else can move.
    alignment_bytes: offsets are multiples of it; a power of two.
    reserved_bytes: at the top of the space, kept for the ops themselves.
    Raises: ValueError naming the field.
    """

    capacity_bytes: int
    bandwidth_bytes_per_s: float
    alignment_bytes: int = 512
    reserved_bytes: int = 0

    def __post_init__(self) -> None:
        field_checks.set_whole(self, "capacity_bytes", minimum=1)
        field_checks.set_rate(self, "bandwidth_bytes_per_s")
        field_checks.set_whole(self, "alignment_bytes", minimum=1)
        field_checks.set_whole(self, "reserved_bytes", minimum=0)
        if self.alignment_bytes & (self.alignment_bytes - 1):
            raise ValueError(
                f"alignment_bytes is {self.alignment_bytes}; it must be a power of two."
            )
        if self.usable_bytes <= 0:
            raise ValueError(
                f"reserved_bytes is {self.reserved_bytes} of capacity_bytes "
                f"{self.capacity_bytes}; less than one aligned block of "
                f"{self.alignment_bytes} bytes is left to plan into. Reserve less."
            )

    @property
    def usable_bytes(self) -> int:
        """Bytes that a plan may use: offsets 0 to here."""
        left = self.capacity_bytes - self.reserved_bytes
        return left // self.alignment_bytes * self.alignment_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dma:
    """The engine that copies between the memories while ops run.

    bandwidth_share: of the slow memory's bandwidth, in (0, 1].
    latency_s: fixed cost of each copy; it occupies its queue for that long.
    max_in_flight: most copies issued and not yet waited for at any time; None, no
      limit.
    full_duplex: False, prefetches and evictions share the slow memory and one FIFO in
      issue order; True, each direction has a FIFO of its own at the full rate, as on a
      host link.
    Raises: ValueError naming the field.
    """

    bandwidth_share: float = 0.9
    latency_s: float = 0.0
    max_in_flight: int | None = None
    full_duplex: bool = False

    def __post_init__(self) -> None:
        field_checks.set_share(self, "bandwidth_share")
        field_checks.set_rate(self, "latency_s", zero=True)
        if self.max_in_flight is not None:
            field_checks.set_whole(self, "max_in_flight", minimum=1)
        field_checks.check_bool(self, "full_duplex")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What ops sustain of the peak rates, each a share in (0, 1].

    For `latency.roofline` only: a compiler's own estimates know better. The defaults
    are the plain roofline, in which everything runs at its peak at once.

    matmul, vector, transcendental: of the rates of those units.
    fast: of the fast memory's bandwidth.
    slow: of the slow memory's bandwidth; None, the accelerator's `slow_read_share`.
    overlap: whether an op computes while it moves data. If not, vector work and the
      traffic of both memories take turns; beside the matrix unit only vector work and
      traffic in fast memory go on.
    Raises: ValueError naming the field.
    """

    matmul: float = 1.0
    vector: float = 1.0
    transcendental: float = 1.0
    fast: float = 1.0
    slow: float | None = None
    overlap: bool = True

    def __post_init__(self) -> None:
        for name in ("matmul", "vector", "transcendental", "fast"):
            field_checks.set_share(self, name)
        if self.slow is not None:
            field_checks.set_share(self, "slow")
        field_checks.check_bool(self, "overlap")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A machine, as far as memory mapping cares. Hashable; equal when every field is.

    name: for tables and messages.
    fast, slow: the memory that is planned into, and the one that holds everything else.
    dma: copies between the two.
    peak_flops_per_s: of matrix products, by element type ("bf16", "f32", "s8", "f8").
      Read-only: do not change it in place.
    vector_flops_per_s: of element-wise operations and reductions.
    transcendentals_per_s: of exp, tanh, log and the like.
    clock_hz: turns a compiler's cycle estimates into seconds; None where there are
      none.
    direct_slow_access: whether ops can read and write slow memory themselves. Where
      they cannot, an access that is left in slow memory is a transfer the op waits for.
    slow_read_share: of the slow memory's bandwidth, what an op reaches by its own
      accesses, in (0, 1].
    efficiency: what ops sustain of all these rates.
    tile_rows, tile_lanes: of the tiles that arrays are padded to in memory; 1, they are
      not padded.
    matrix_size: rows and columns of the matrix unit, to which products are padded.
    Raises: ValueError naming the field.
    """

    name: str
    fast: Memory
    slow: Memory
    dma: Dma = dataclasses.field(default_factory=Dma)
    peak_flops_per_s: Mapping[str, float] = dataclasses.field(hash=False)
    vector_flops_per_s: float
    transcendentals_per_s: float
    clock_hz: float | None = None
    direct_slow_access: bool = True
    slow_read_share: float = 0.9
    efficiency: Efficiency = dataclasses.field(default_factory=Efficiency)
    tile_rows: int = 1
    tile_lanes: int = 1
    matrix_size: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name is {self.name!r}; it must be a non-empty string.")
        for field, kind in _PARTS.items():
            if not isinstance(getattr(self, field), kind):
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; it must be a "
                    f"{kind.__name__}(...)."
                )
        peaks = self.peak_flops_per_s
        if not isinstance(peaks, Mapping) or not peaks:
            raise ValueError(
                f"peak_flops_per_s is {peaks!r}; it must map at least one element type "
                'to a rate, such as {"bf16": 197e12}.'
            )
        checked = {}
        for dtype, rate in sorted(peaks.items(), key=lambda item: str(item[0])):
            field = f"peak_flops_per_s[{dtype!r}]"
            if not isinstance(dtype, str) or not dtype:
                raise ValueError(
                    f"{field}: an element type must be a name like 'bf16'."
                )
            checked[dtype] = field_checks.rate(field, rate)
        object.__setattr__(self, "peak_flops_per_s", checked)
        field_checks.set_rate(self, "vector_flops_per_s")
        field_checks.set_rate(self, "transcendentals_per_s")
        if self.clock_hz is not None:
            field_checks.set_rate(self, "clock_hz")
        field_checks.check_bool(self, "direct_slow_access")
        field_checks.set_share(self, "slow_read_share")
        for name in ("tile_rows", "tile_lanes", "matrix_size"):
            field_checks.set_whole(self, name, minimum=1)

    @property
    def dma_bytes_per_s(self) -> float:
        """Rate of a copy that has the slow memory to itself."""
        return self.dma.bandwidth_share * self.slow.bandwidth_bytes_per_s

    @property
    def direct_bytes_per_s(self) -> float:
        """Rate at which an op that only moves data reaches slow memory by itself."""
        return self.slow_read_share * self.slow.bandwidth_bytes_per_s

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products of `dtype`, in HLO's spelling ("bf16", "s8").

        A dtype that is not listed takes the rate of the nearest one that is: f16 and
          bf16
        stand for each other, 8-bit floats (f8e4m3fn, ...) are "f8", integers of 8 bits
        and fewer go s4 -> s8 -> bf16, everything wider goes f64 -> f32 -> bf16. If none
        of those is listed, the slowest listed rate is taken.
        """
        peaks = self.peak_flops_per_s
        for narrow in ("f8", "f4"):
            if dtype not in peaks and dtype.startswith(narrow):
                dtype = narrow
        seen = set()
        while dtype not in peaks and dtype in _NEXT_DTYPE and dtype not in seen:
            seen.add(dtype)
            dtype = _NEXT_DTYPE[dtype]
        return peaks[dtype] if dtype in peaks else min(peaks.values())

    def replace(self, **changes: Any) -> Accelerator:
        """A copy with some fields changed.

        Besides the fields themselves, `fast_`, `slow_`, `dma_` and `efficiency_` reach
        into the parts:
        `replace(fast_capacity_bytes=2**25, slow_bandwidth_bytes_per_s=1e12)`.

        Raises: ValueError for a name that is no field, with the nearest one that is.
        """
        top = [f.name for f in dataclasses.fields(self)]
        nested = {
            f"{part}_{f.name}": (part, f.name)
            for part in _PARTS
            for f in dataclasses.fields(getattr(self, part))
        }
        direct = {}
        parts: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            if name in top:
                direct[name] = value
            elif name in nested:
                part, field = nested[name]
                parts.setdefault(part, {})[field] = value
            else:
                raise ValueError(_unknown("replace", name, [*top, *nested]))
        for part, fields in parts.items():
            whole = direct.get(part, getattr(self, part))
            direct[part] = dataclasses.replace(whole, **fields)
        return dataclasses.replace(self, **direct)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(
        cls, fields: Mapping[str, Any], *, where: str = "accelerator"
    ) -> Accelerator:
        """The accelerator that `to_dict` described; fields with defaults may be left
        out.

        Args:
          fields: as from `to_dict`, JSON or TOML.
          where: what to call it in messages, such as the file's name.
        Raises:
          ValueError: a field is unknown, missing or has a value out of its range.
        """
        fields = dict(_check_fields(cls, fields, where))
        for part, kind in _PARTS.items():
            if part in fields:
                fields[part] = _build(kind, fields[part], f"{where}: {part}")
        return _build(Accelerator, fields, where)

    @property
    def cache_key(self) -> str:
        """Sixteen hex digits that change with any field, the same in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_PARTS = {"fast": Memory, "slow": Memory, "dma": Dma, "efficiency": Efficiency}


def load_accelerator(path: str | os.PathLike[str]) -> Accelerator:
    """The accelerator described in a JSON or TOML file with the fields of `to_dict`.

    Args:
      path: ends in .json or .toml.
    Raises:
      ValueError: the file is missing, of another kind, malformed, or has a field that
        is unknown, missing or out of range; the message names file and field.
    """
    path = os.fspath(path)
    parsers = {".json": json.loads, ".toml": tomllib.loads}
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in parsers:
        raise ValueError(f"{path}: an accelerator file must end in .json or .toml.")
    try:
        with open(path, encoding="utf-8") as f:
            fields = parsers[suffix](f.read())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid {suffix[1:].upper()} ({error}).") from None
    return Accelerator.from_dict(fields, where=path)


def _build(kind: type[_Record], fields: Mapping[str, Any], where: str) -> _Record:
    fields = _check_fields(kind, fields, where)
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_fields(kind: type, fields: Any, where: str) -> Mapping[str, Any]:
    """`fields`, if they are all fields of `kind` and every required one is there."""
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"{where}: found {type(fields).__name__}, expected the fields of "
            f"{kind.__name__}."
        )
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise ValueError(_unknown(where, name, list(known)))
    missing = [
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and name not in fields
    ]
    if missing:
        raise ValueError(
            f"{where}: {kind.__name__} needs {', '.join(missing)}; found "
            f"{', '.join(map(str, fields)) or 'no fields'}."
        )
    return fields


def _unknown(where: str, name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return f"{where}: unknown field {name!r}. {hint}"
