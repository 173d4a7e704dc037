"""Plans on disk, so that the same program is planned once per machine and version.

A cache that fails costs time and never a plan: whatever is wrong with the directory or
an entry is said once, as a warning, and the work goes on without it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import TypeVar

import jax_malloc
from frontends import cache_directory
from frontends.program import Program
from hwmodel.accelerator import Accelerator

T = TypeVar("T")


class PlanCache:
    """One file per key in one directory, shared by any number of processes.

    An entry is written beside its place and moved there, so a reader sees a whole one
    or none; of two writers the later wins, which had the same question to answer.
    """

    def __init__(self, directory: pathlib.Path | None) -> None:
        """A cache in `directory`, made when first written to; None for no cache."""
        self._directory = directory
        self._warned = False

    def get(self, key: str, decode: Callable[[str], T]) -> T | None:
        """The entry of `key`, or None.

        Args:
          key: as from `plan_key`.
          decode: makes the value from the entry's text; a ValueError from it means that
            the entry is damaged, which is warned of and treated as no entry.
        """
        if self._directory is None:
            return None
        path = self._path(key)
        try:
            return decode(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warn(f"{path} cannot be read ({error.strerror})")
        except (ValueError, RecursionError) as error:
            self.warn(f"{path} is damaged and will be made again ({error})")
        return None

    def put(self, key: str, text: str) -> None:
        """Stores an entry, all or nothing, or warns that it cannot."""
        if self._directory is None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(
                dir=self._directory, prefix=f".{key}.", suffix=".tmp"
            )
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as f:
                    f.write(text)
                os.replace(temporary, self._path(key))
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            self.warn(
                f"directory {self._directory} cannot be written to ({error.strerror})"
            )

    def _path(self, key: str) -> pathlib.Path:
        assert self._directory is not None  # who asks has seen to that
        return self._directory / f"{key}.json"

    def warn(self, what: str) -> None:
        """Says what is wrong, once."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"jax_malloc plan cache: {what}. Set {cache_directory.VARIABLE} or "
                "cache_dir= to another directory, or cache_dir=False to do without.",
                RuntimeWarning,
                stacklevel=4,  # where the plan was asked for
            )


def open_cache(directory: str | os.PathLike[str] | bool | None = None) -> PlanCache:
    """The plan cache in a directory, the same object for the same one.

    Args:
      directory: None for $JAX_MALLOC_CACHE_DIR or else the user's cache directory;
        False or "", also as the variable's value, for no cache.
    Raises:
      ValueError: it is True.
    """
    try:
        resolved = cache_directory.resolve(directory)
        return PlanCache(None) if resolved is None else _open(resolved)
    except RuntimeError as error:  # a user without a home, as in some containers
        cache = PlanCache(None)
        cache.warn(f"{error}")
        return cache


# Raised within a version when solvers find other plans.
_REVISION = 2


def plan_key(
    program: Program,
    accelerator: Accelerator,
    *,
    solver: str,
    seed: int,
    time_limit_s: float | None,
) -> str:
    """Hex digest of everything that a plan follows from, this package's version too."""
    parts = [
        jax_malloc.__version__,
        _REVISION,
        program.fingerprint,
        accelerator.cache_key,
        solver,
        seed,
        time_limit_s,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@functools.cache
def _open(directory: pathlib.Path) -> PlanCache:
    """One object per directory, so that each is warned of once in a process."""
    return PlanCache(directory)
