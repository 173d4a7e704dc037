"""Scheduled HLO text to a `Program`: the dumps of any XLA backend, no JAX needed.

    program = hlo.load("module_0001.jit_step.after_optimizations.txt")
    program = hlo.load("step.slow.hlo.gz", xla="step.xla.hlo.gz")

Text with memory space assignment applied (arrays in S(1), copy-start) is taken back to
the program before it, and the compiler's own mapping is kept beside it. With the same
function compiled both ways, ops and buffers come from the plain text, and the other
gives the mapping and a second estimate of every op.

The way through: `hlo_parser` (text to tree), `hlo_layout` (tree to one schedule of
values, with `hlo_costs` and `hlo_trip_counts`), `hlo_places` (values to places),
`hlo_program` (places to buffers), `hlo_pair` (two programs to one).
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Mapping

from frontends import hlo_pair, hlo_places, hlo_program
from frontends.hlo_module import Module
from frontends.hlo_parser import parse
from frontends.hlo_schedule import AGAIN, fast_space
from frontends.program import Program

__all__ = ["Module", "annotate", "from_text", "load", "parse", "read_text"]

PLACEMENT = "jax_malloc.placement"
_OLD_PLACEMENT = re.compile(re.escape(PLACEMENT) + r'="(?:[^"\\]|\\.)*",?')


def load(path: str | os.PathLike, *, xla: str | os.PathLike | None = None) -> Program:
    """The program of an HLO file.

    Args:
      path: scheduled HLO text, plain or gzipped.
      xla: the same function compiled with memory space assignment, if `path` is
        without; see `from_text`.
    Raises:
      ValueError: naming file and line, if one is not scheduled HLO text.
    """
    path = os.fspath(path)
    name = os.path.basename(path)
    for ending in (".gz", ".txt", ".hlo"):
        name = name.removesuffix(ending)
    return from_text(
        read_text(path),
        xla_text=None if xla is None else read_text(xla),
        name=name,
        where=path,
        xla_where="" if xla is None else os.fspath(xla),
    )


def from_text(
    text: str,
    *,
    xla_text: str | None = None,
    name: str = "",
    where: str = "HLO text",
    xla_where: str = "XLA's HLO text",
) -> Program:
    """The program of a scheduled HLO module.

    Args:
      text: what `--xla_dump_to` writes after scheduling, or `compiled.as_text()`.
      xla_text: the same function compiled with memory space assignment. Ops and buffers
        then come from `text`, the compiler's mapping and second estimates from here;
        where ops do not match, `notes` says so.
      name: of the program; "" takes the module's.
      where, xla_where: what to call the texts in messages.
    Raises:
      ValueError: with `where` and a line number, if a text is empty, cut off, not HLO,
        not scheduled, or contradicts itself.
    """
    module = parse(text, where=where)
    space = fast_space(module)
    if xla_text is None:
        return _program(module, space, name, text)
    xla_module = parse(xla_text, where=xla_where)
    space = max(space, fast_space(xla_module))  # plain text does not say which it is
    return hlo_pair.with_compiler_mapping(
        _program(module, space, name, text), _program(xla_module, space, "", xla_text)
    )


def read_text(path: str | os.PathLike) -> str:
    """The text of a file, unpacked if it is gzipped, whatever its name.

    Raises:
      ValueError: naming the file, if it is damaged or not text.
    """
    path = os.fspath(path)
    with open(path, "rb") as f:
        data = f.read()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: gzip data is damaged ({error}), expected gzipped HLO text. "
                "Copy the file again."
            ) from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not text, expected "
            "HLO text. Binary protos (*.pb) must be dumped with --xla_dump_hlo_as_text."
        ) from None


def annotate(
    text: str, placements: Mapping[str, str], *, where: str = "HLO text"
) -> str:
    """The text with a placement written beside each named instruction.

    It goes into `frontend_attributes={jax_malloc.placement="..."}`, which XLA carries
    along, beside those that are there already; an earlier placement is replaced.

    Args:
      text: scheduled HLO text.
      placements: what to write, by instruction name; those of a second call of the
        same computation are left out.
      where: what to call the text in messages.
    Raises:
      ValueError: the text cannot be read, or has no instruction of one of the names.
    """
    module = parse(text, where=where)
    todo = {name for name in placements if not name.endswith(AGAIN)}
    pieces, end = [], 0
    for computation in module.computations.values():
        for inst in computation.instructions:
            if inst.name not in placements:
                continue
            todo.discard(inst.name)
            value = re.sub(r'(["\\])', r"\\\1", placements[inst.name])
            attribute = f'{PLACEMENT}="{value}"'
            at = resume = inst.frontend_attributes_at
            if at >= 0:
                old = _OLD_PLACEMENT.match(text, at)
                resume = old.end() if old else at
                rest = text[resume : resume + 1]
                attribute += "," if rest != "}" else ""
            else:
                at = resume = inst.operands_end
                attribute = f", frontend_attributes={{{attribute}}}"
            pieces += [text[end:at], attribute]
            end = resume
    if todo:
        raise ValueError(
            f"{where}, line {module.entry.line}: no instruction is named "
            f"{', '.join(map(repr, sorted(todo)))}. Placements go by the names in this "
            "text."
        )
    return "".join([*pieces, text[end:]])


def _program(module: Module, space: int, name: str, text: str) -> Program:
    places = hlo_places.find_places(module, space)
    return hlo_program.build(places, name=name, text=text)
