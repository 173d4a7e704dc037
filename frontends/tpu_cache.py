"""Compiled texts on disk, gzipped, one file per key.

A cache that fails costs time and never a program: an entry that cannot be read is made
again, and one that cannot be written is said once, as a warning.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

from frontends import cache_directory

# Part of every key: other texts come out when the worker makes them differently.
_VERSION = 1


class TextCache:
    """Texts in the directory "tpu" of the cache directory."""

    def __init__(self, directory: str | os.PathLike[str] | bool | None) -> None:
        """A cache in a directory as `cache_directory.resolve` finds it."""
        root = cache_directory.resolve(directory)
        self._directory = None if root is None else root / "tpu"

    def get(self, key: str) -> str | None:
        """The text of a key; None if there is none that can be read."""
        if self._directory is None:
            return None
        with contextlib.suppress(OSError, EOFError, zlib.error, UnicodeDecodeError):
            return gzip.decompress(self._path(key).read_bytes()).decode()
        return None

    def put(self, key: str, text: str) -> None:
        """Stores a text, all or nothing, or warns that it cannot."""
        if self._directory is None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(
                dir=self._directory, prefix=f".{key}.", suffix=".tmp"
            )
            try:
                with os.fdopen(descriptor, "wb") as f:
                    f.write(gzip.compress(text.encode(), mtime=0))
                os.replace(temporary, self._path(key))
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            warnings.warn(
                f"directory {self._directory} cannot be written to "
                f"({error.strerror}); compiled programs are not kept. Set "
                f"{cache_directory.VARIABLE} or cache_dir= to another.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _path(self, key: str) -> pathlib.Path:
        return self._directory / f"{key}.hlo.gz"


def key(header: Mapping[str, Any], module: bytes) -> str:
    """Hex digest of all that a text follows from."""
    parts = json.dumps([_VERSION, header], sort_keys=True).encode()
    return hashlib.sha256(parts + b"\0" + module).hexdigest()[:32]
