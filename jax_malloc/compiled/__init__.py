"""Compiled loops on the host, for searches that replay or mend one program.

The game (`kernels` and what is around it), and stays of a mapping in the making
(`stays`, `queues`, `placing`, `ruin`).
"""

import contextlib
import pathlib
from collections.abc import Iterable

import numba


def drop_stale(kept: pathlib.Path, sources: Iterable[pathlib.Path]) -> None:
    """Drops machine code that is older than any of the sources.

    Numba keeps what it compiled until the file of a function changes, whatever becomes
    of the functions and the constants of other files that went into it.
    """
    changed = max(path.stat().st_mtime for path in sources)
    for path in kept.glob("*.nb[ci]"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to drop
            if path.stat().st_mtime < changed:
                path.unlink()


@numba.njit(cache=True)
def _nothing() -> None:
    """Knows where Numba keeps the machine code of this directory."""


_here = pathlib.Path(__file__).parent
_sources = [*_here.glob("*.py"), _here.parent / "board.py"]
_sources.append(_here.parent / "observation.py")
if _nothing.stats.cache_path is not None:
    drop_stale(pathlib.Path(_nothing.stats.cache_path), _sources)
