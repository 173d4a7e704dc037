"""Records as lines of JSON: a file that is only added to, so that a study can go on."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, TypeVar

Record = TypeVar("Record")


def read(path: str | os.PathLike[str], record: type[Record]) -> list[Record]:
    """The records of a file; none if there is no file. A line that was cut off is
    skipped.

    Args:
      record: the dataclass that the lines are of.
    Raises:
      ValueError: naming the line, if one is JSON and no such record.
    """
    if not os.path.exists(path):
        return []
    records = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                records.append(record(**json.loads(line)))
            except json.JSONDecodeError:
                continue  # the run ended while it was being written
            except TypeError as error:
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: not a row of this study "
                    f"({error}). Give another --output."
                ) from None
    return records


def append(path: str | os.PathLike[str], record: Any) -> None:
    """Adds a record to a file in one write, on a line of its own whatever the file
    ends in."""
    line = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
    with open(path, "a+b") as f:
        if f.tell() > 0:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        f.write(line)
