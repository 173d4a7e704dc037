"""Where files are kept between processes: one directory for all of this project."""

from __future__ import annotations

import os
import pathlib
import sys

VARIABLE = "JAX_MALLOC_CACHE_DIR"


def resolve(directory: str | os.PathLike[str] | bool | None) -> pathlib.Path | None:
    """The directory that is meant, made or not; None for no cache.

    Args:
      directory: None for $JAX_MALLOC_CACHE_DIR or else the user's cache directory;
        False or "", also as the variable's value, for no cache.
    Raises:
      ValueError: it is True.
      RuntimeError: the user has no home directory to keep it in.
    """
    if directory is True:
        raise ValueError(
            "cache_dir=True names no directory; leave it out for the usual."
        )
    if directory is None:
        directory = os.environ.get(VARIABLE)
    if directory is None:
        directory = _user_cache() / "jax_malloc"
    if directory is False or os.fspath(directory) == "":
        return None
    return pathlib.Path(directory).expanduser().absolute()


def _user_cache() -> pathlib.Path:
    """Where the platform keeps a user's caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base)
