"""The contract between a frontend and all behind it: a schedule of ops and buffers.

A `Program` is what a compiler would run, reduced to what memory mapping needs: ops in
schedule order, the buffers they touch, how long those buffers live, and loops as
regions of the schedule. It holds no JAX types and no hardware numbers, is immutable,
and round-trips through a compact JSON.

    time (op index)   0        1        2        3
    ops               dot.1    fusion.2 dot.3    fusion.4
    x  (parameter)    [read------------ read)              live range [0, 3)
    dot.1             [write-- read)                       live range [0, 2)
    fusion.2                   [write-- read)              live range [1, 3)
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator

from frontends import program_check


class BufferKind(enum.Enum):
    """Where a buffer's first contents come from, and whether the caller sees it."""

    PARAMETER = "parameter"
    CONSTANT = "constant"
    TEMPORARY = "temporary"
    OUTPUT = "output"


@dataclasses.dataclass(frozen=True, slots=True)
class LiveRange:
    """Schedule times `[start, end)`, half-open, at which a buffer must exist."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(
                f"live range [{self.start}, {self.end}) is not ordered or begins "
                "before 0; the first op has time 0."
            )

    def overlaps(self, other: LiveRange) -> bool:
        return self.start < other.end and other.start < self.end


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """One op reads or writes `touched_bytes` of a buffer.

    buffer_id: index into `Program.buffers`.
    touched_bytes: a gather touches less than the whole buffer, an in-place update only
      the part that it replaces.
    """

    buffer_id: int
    touched_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class CycleEstimate:
    """A compiler's own estimate of one execution of an op.

    cycles: its duration with `slow_bytes` of the bytes it touches in slow memory.
    """

    cycles: int
    slow_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One step of the schedule.

    name: unique in the program; the HLO instruction's name where there is one.
    opcode: the instruction's opcode ("fusion", "convolution", "stablehlo.dot_general").
    op_name: the user's own path to it (`jax.named_scope` and module names), or "".
    reads, writes: the accesses, at most one of each per buffer. A buffer in both is
      updated in place.
    matmul_flops: floating-point operations of its matrix products and convolutions;
      with those on padding, where it is known how the matrix unit pads.
    matmul_dtype: their element type ("bf16", "f32", "s8"); "" when there are none.
    vector_flops: element-wise and reduction operations.
    transcendentals: exp, tanh, log and the like, counted apart.
    scoped_bytes: fast memory it reserves for itself while it runs.
    count: how often it runs per program call (inside a while body: the product of the
      trip counts).
    region: index into `Program.regions` of the innermost loop or branch body that holds
      it; 0 is the entry.
    estimates: the compiler's cycle estimates of one execution, at most one per memory
      placement.
    reuses: `(operand, result)` pairs of buffer ids: the op may write that result over
      that operand, which nobody needs afterwards, if both are at one place in fast
      memory. A possibility; in slow memory each has a place of its own.
    """

    name: str
    opcode: str
    op_name: str = ""
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    matmul_flops: float = 0.0
    matmul_dtype: str = ""
    vector_flops: float = 0.0
    transcendentals: float = 0.0
    scoped_bytes: int = 0
    count: float = 1.0
    region: int = 0
    estimates: tuple[CycleEstimate, ...] = ()
    reuses: tuple[tuple[int, int], ...] = ()

    def touched_bytes(self) -> dict[int, int]:
        """`{buffer_id: bytes}` that one execution moves, reads and writes added."""
        touched: dict[int, int] = {}
        for access in (*self.reads, *self.writes):
            touched[access.buffer_id] = (
                touched.get(access.buffer_id, 0) + access.touched_bytes
            )
        return touched


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One place in memory: a tensor value and every value that must share its place.

    name, index: the defining instruction and its tuple index, as in the HLO.
    size_bytes: of the tiled, padded layout where that is known.
    live: schedule times at which it must exist. A parameter's or constant's begins at
      0, an output's ends at `len(ops)`. A buffer carried through a loop lives over all
      of its body.
    kind: PARAMETER and CONSTANT have valid contents in slow memory from the start;
      OUTPUT is a temporary that the caller sees.
    is_output: must hold its final contents in slow memory when the program ends (also a
      parameter that is updated in place and returned).
    aliases: other `(name, index)` of the same place: views (bitcast,
      get-tuple-element), in-place updates, loop-carried values.
    alias_group: buffers with the same group share one place in *slow* memory (a donated
      argument and the output that replaces it); None for most.
    pinned_slow: why it may never be in fast memory, or "".
    """

    name: str
    index: tuple[int, ...] = ()
    size_bytes: int
    live: LiveRange
    kind: BufferKind
    is_output: bool = False
    aliases: tuple[tuple[str, tuple[int, ...]], ...] = ()
    alias_group: int | None = None
    pinned_slow: str = ""

    @property
    def is_input(self) -> bool:
        """Whether it holds valid contents in slow memory before the first op."""
        return self.kind in (BufferKind.PARAMETER, BufferKind.CONSTANT)

    @property
    def label(self) -> str:
        """`name` with its tuple index, as a person writes it: `fusion.3{1}`."""
        return self.name + "".join(f"{{{i}}}" for i in self.index)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Ops `[start, end)` of the schedule that form the body of a loop or branch.

    Region 0 is the whole entry.

    name: the while, conditional or call instruction; the op of that name stands at
      `end` in the schedule and costs nothing itself.
    parent: index of the enclosing region; -1 for the entry.
    trip_count: executions per execution of the parent.
    """

    name: str
    start: int
    end: int
    parent: int = -1
    trip_count: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompilerCopy:
    """An asynchronous copy of the compiler's own mapping.

    direction: "prefetch" or "evict".
    start, done: op boundaries between which it runs; boundary t lies before op t.
    cross_program: it begins before the program.
    region: index into `Program.regions` of the one it runs in, as often as that does.
    """

    buffer_id: int
    direction: str
    size_bytes: int
    start: int
    done: int
    cross_program: bool = False
    region: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompilerMapping:
    """Where the compiler itself put things: no offsets, HLO text does not hold them.

    fast_accesses: `(t, buffer_id)` of every access that it serves from fast memory.
    copies: what it moves between the memories, in order of their starts.
    source: what said so ("gpt2.xla.hlo").
    """

    fast_accesses: frozenset[tuple[int, int]]
    copies: tuple[CompilerCopy, ...] = ()
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A schedule of ops and the buffers they touch.

    ops: in schedule order; the index of an op is its time `t`.
    buffers: indexed by `buffer_id`.
    regions: regions[0] is the entry, `[0, len(ops))`.
    notes: what the frontend could not know or had to assume, one sentence each.
    source: which frontend made it ("stablehlo", "hlo", "tpu", "generated").
    compiler_mapping: the compiler's own mapping, if it came with one.
    text: the StableHLO or HLO text that it came from, for annotation; not part of JSON
      or equality.

    Raises:
      ValueError: ids, times or names do not fit together.
    """

    name: str
    ops: tuple[Op, ...]
    buffers: tuple[Buffer, ...]
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    compiler_mapping: CompilerMapping | None = None
    text: str = dataclasses.field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.regions:
            object.__setattr__(
                self, "regions", (Region(name="", start=0, end=len(self.ops)),)
            )
        program_check.check(self)

    def accesses(self) -> Iterator[tuple[int, int, int, bool, bool]]:
        """One `(t, buffer_id, touched_bytes, is_read, is_write)` per op and buffer.

        In schedule order.
        """
        for t, op in enumerate(self.ops):
            reads = {a.buffer_id for a in op.reads}
            writes = {a.buffer_id for a in op.writes}
            for buffer_id, touched in op.touched_bytes().items():
                yield t, buffer_id, touched, buffer_id in reads, buffer_id in writes

    @functools.cached_property
    def op_index(self) -> dict[str, int]:
        """Time of each op by name."""
        return {op.name: t for t, op in enumerate(self.ops)}

    @functools.cached_property
    def buffer_index(self) -> dict[tuple[str, tuple[int, ...]], int]:
        """`buffer_id` by `(name, tuple index)`, aliases included."""
        names: dict[tuple[str, tuple[int, ...]], int] = {}
        for i, b in enumerate(self.buffers):
            for key in b.aliases:
                names.setdefault(key, i)
        names.update({(b.name, b.index): i for i, b in enumerate(self.buffers)})
        return names

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that a plan depends on (not the name, notes or text)."""
        body = self.to_dict()
        for key in ("name", "notes", "source"):
            body.pop(key)
        text = json.dumps(body, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict:
        """The compact JSON form: a list per op and buffer, empty tails cut off."""
        from frontends import program_json  # it needs the records above

        return program_json.encode(self)

    def to_json(self) -> str:
        """The program as one line of JSON, without `text`."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, where: str = "program JSON") -> Program:
        """The program that `to_json` wrote.

        Raises:
          ValueError: naming `where`, if the text is not JSON, not a program, or of
            another version.
        """
        from frontends import program_json  # it needs the records above

        return program_json.decode(text, where=where)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the compact JSON, gzipped if `path` ends in .gz; all or nothing."""
        path = os.fspath(path)
        data = self.to_json().encode()
        if path.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(temporary, "wb") as f:
            f.write(data)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Program:
        """Reads what `save` wrote. Raises: ValueError if the file is not a program."""
        path = os.fspath(path)
        with open(path, "rb") as f:
            data = f.read()
        try:
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: cannot be read as (gzipped) text: {error}. Save the program "
                "again with Program.save."
            ) from None
        return cls.from_json(text, where=path)
