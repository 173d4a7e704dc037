"""The JSON form of a `Program`: one list per record, in field order.

Lists instead of objects keep a program of a thousand ops near 100 kB; fields at the end
of a list that have their default value are left out.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

from frontends import program as records

FORMAT = "jax_malloc.program"
VERSION = 1

_REQUIRED = object()

# Field order of the lists, with the defaults that are left out at the end of one.
_OP_FIELDS = {
    "name": _REQUIRED,
    "opcode": _REQUIRED,
    "reads": _REQUIRED,
    "writes": _REQUIRED,
    "op_name": "",
    "matmul_flops": 0.0,
    "matmul_dtype": "",
    "vector_flops": 0.0,
    "transcendentals": 0.0,
    "scoped_bytes": 0,
    "count": 1.0,
    "region": 0,
    "estimates": (),
    "reuses": (),
}
_BUFFER_FIELDS = {
    "name": _REQUIRED,
    "index": _REQUIRED,
    "size_bytes": _REQUIRED,
    "live": _REQUIRED,
    "kind": _REQUIRED,
    "is_output": False,
    "aliases": (),
    "alias_group": None,
    "pinned_slow": "",
}
_REGION_FIELDS = dict.fromkeys(
    ("name", "start", "end", "parent", "trip_count"), _REQUIRED
)
_COPY_FIELDS = {
    **dict.fromkeys(
        ("buffer_id", "direction", "size_bytes", "start", "done", "cross_program"),
        _REQUIRED,
    ),
    "region": 0,
}


def encode(program: records.Program) -> dict:
    """What `Program.to_dict` returns: plain lists, strings and numbers."""
    body = {
        "format": FORMAT,
        "version": VERSION,
        "name": program.name,
        "source": program.source,
        "notes": list(program.notes),
        "ops": [_row(op, _OP_FIELDS) for op in program.ops],
        "buffers": [_row(buffer, _BUFFER_FIELDS) for buffer in program.buffers],
        "regions": [_row(region, _REGION_FIELDS) for region in program.regions],
    }
    mapping = program.compiler_mapping
    if mapping is not None:
        body["compiler_mapping"] = {
            "source": mapping.source,
            "fast_accesses": sorted(map(list, mapping.fast_accesses)),
            "copies": [_row(copy, _COPY_FIELDS) for copy in mapping.copies],
        }
    return body


def decode(text: str, *, where: str) -> records.Program:
    """The program that `text`, the JSON of `encode`'s result, describes.

    Raises:
      ValueError: naming `where`, if the text is not JSON, not a program, of another
        version, or if its records are malformed or contradict each other.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: not JSON ({error}). Save it again with Program.save."
        ) from None
    found = body.get("format") if isinstance(body, dict) else type(body).__name__
    if not isinstance(body, dict) or found != FORMAT:
        raise ValueError(
            f"{where}: format is {found!r}, expected {FORMAT!r}. Save a program with "
            "Program.save and pass that file."
        )
    if body.get("version") != VERSION:
        raise ValueError(
            f"{where}: program version {body.get('version')!r}, this package reads "
            f"version {VERSION}. Make it again from the function or the HLO text."
        )
    try:
        return _program(body)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{where}: malformed program ({type(error).__name__}: {error}). Save it "
            "again with Program.save."
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _plain(value: Any) -> Any:
    """A field as JSON holds it: records become lists."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return list(dataclasses.astuple(value))
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _row(record: Any, fields: dict) -> list:
    """The fields of one record without the defaults at the end."""
    row = [_plain(getattr(record, key)) for key in fields]
    for default in reversed(list(fields.values())):
        if default is _REQUIRED or row[-1] != _plain(default):
            break
        row.pop()
    return row


def _program(body: dict) -> records.Program:
    mapping = body.get("compiler_mapping")
    return records.Program(
        name=body["name"],
        ops=tuple(_op(row) for row in body["ops"]),
        buffers=tuple(_buffer(row) for row in body["buffers"]),
        regions=tuple(
            records.Region(**dict(zip(_REGION_FIELDS, row, strict=True)))
            for row in body["regions"]
        ),
        notes=tuple(body["notes"]),
        source=body["source"],
        compiler_mapping=None if mapping is None else _mapping(mapping),
    )


def _op(row: list) -> records.Op:
    fields = dict(zip(_OP_FIELDS, row, strict=False))
    for key in ("reads", "writes"):
        fields[key] = tuple(records.Access(*access) for access in fields[key])
    estimates = fields.get("estimates", ())
    fields["estimates"] = tuple(records.CycleEstimate(*e) for e in estimates)
    fields["reuses"] = tuple((a, b) for a, b in fields.get("reuses", ()))
    return records.Op(**fields)


def _buffer(row: list) -> records.Buffer:
    fields = dict(zip(_BUFFER_FIELDS, row, strict=False))
    fields["index"] = tuple(fields["index"])
    fields["live"] = records.LiveRange(*fields["live"])
    fields["kind"] = records.BufferKind(fields["kind"])
    fields["aliases"] = tuple(
        (name, tuple(index)) for name, index in fields.get("aliases", ())
    )
    return records.Buffer(**fields)


def _mapping(mapping: dict) -> records.CompilerMapping:
    return records.CompilerMapping(
        fast_accesses=frozenset((t, b) for t, b in mapping["fast_accesses"]),
        copies=tuple(
            records.CompilerCopy(**dict(zip(_COPY_FIELDS, row, strict=False)))
            for row in mapping["copies"]
        ),
        source=mapping["source"],
    )
