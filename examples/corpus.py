"""The corpus: real programs as a TPU compiler schedules them, ready to load.

    for entry in corpus.entries(split="train", topology="tpu_v5e"):
        program = entry.load()

`build_corpus.py` compiled them; nothing here needs libtpu. The manifest has a line per
program and topology, with the settings that it was made from and its sizes; `tpu_v5e`
has all of the programs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frontends.program import Program

DIRECTORY = Path(__file__).with_name("corpus")
_FORMAT, _VERSION = "jax_malloc.corpus", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One program for one topology.

    name: "family/setting", the same for every topology.
    split: "train", "validation" or "test"; one per family.
    topology: the preset of the accelerator that it was compiled for, "tpu_v5e".
    file: of the program, below `directory`.
    file_bytes, sha256: of the file.
    setting: what the family's function in `corpus_families` was given.
    versions: of the packages that made it, "jax" and "libtpu".
    ops, accesses: of the program.
    touched_bytes: that all its ops touch in a call, those of loops once per trip.
    peak_bytes: its working set: the most bytes that are live at one time, of each
      buffer no more than an op touches.
    fast_bytes: what programs can use of the topology's fast memory.
    directory: where the manifest is.
    """

    name: str
    family: str
    split: str
    topology: str
    file: str
    file_bytes: int
    sha256: str
    setting: Mapping[str, Any]
    versions: Mapping[str, str]
    ops: int
    accesses: int
    touched_bytes: int
    peak_bytes: int
    fast_bytes: int
    directory: Path = DIRECTORY

    @property
    def path(self) -> Path:
        return self.directory / self.file

    def load(self) -> Program:
        """The program.

        Raises:
          ValueError: the file is not the one that the manifest was written for.
        """
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{self.path} has the SHA-256 {found[:12]}..., the manifest says "
                f"{self.sha256[:12]}...; make it again with examples/build_corpus.py."
            )
        return Program.load(self.path)


def entries(
    *,
    split: str | None = None,
    topology: str | None = None,
    family: str | None = None,
    directory: str | os.PathLike[str] = DIRECTORY,
) -> list[Entry]:
    """What the manifest lists, in its order; of one split, topology or family if given.

    Raises:
      ValueError: the manifest is no such manifest, or lists nothing that is asked for.
    """
    every = read(directory)
    found = [
        entry
        for entry in every
        if split in (None, entry.split)
        and topology in (None, entry.topology)
        and family in (None, entry.family)
    ]
    if not found:
        held = "; ".join(
            f"{what} {', '.join(sorted({getattr(entry, what) for entry in every}))}"
            for what in ("split", "topology", "family")
        )
        raise ValueError(
            f"{Path(directory) / 'manifest.json'} lists no program of {split=}, "
            f"{topology=}, {family=}; it has {held}."
        )
    return found


def read(directory: str | os.PathLike[str] = DIRECTORY) -> list[Entry]:
    """All entries of a directory's manifest; none if there is no manifest.

    Raises:
      ValueError: it is not a manifest of this version.
    """
    path = Path(directory) / "manifest.json"
    if not path.exists():
        return []
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {manifest['format']}, {manifest['version']}")
        return [Entry(**row, directory=Path(directory)) for row in manifest["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a corpus manifest of version {_VERSION}: {error}. Make it "
            "with examples/build_corpus.py."
        ) from error


def write(
    every: Iterable[Entry], directory: str | os.PathLike[str] = DIRECTORY
) -> None:
    """Replaces the manifest, an entry per line; all or nothing."""
    rows = []
    for entry in every:
        row = dataclasses.asdict(entry)
        del row["directory"]
        rows.append(json.dumps(row))
    head = json.dumps({"format": _FORMAT, "version": _VERSION})[:-1]
    text = head + ', "entries": [\n' + ",\n".join(rows) + "\n]}\n"
    path = Path(directory) / "manifest.json"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def peak_bytes(program: Program) -> int:
    """The most bytes live at one time, of each buffer no more than an op touches."""
    used = [0] * len(program.buffers)
    for op in program.ops:
        for access in (*op.reads, *op.writes):
            used[access.buffer_id] = max(used[access.buffer_id], access.touched_bytes)
    change = [0] * (len(program.ops) + 1)
    for buffer, touched in zip(program.buffers, used, strict=True):
        change[buffer.live.start] += min(touched, buffer.size_bytes)
        change[buffer.live.end] -= min(touched, buffer.size_bytes)
    return max(itertools.accumulate(change))
