"""Compiled loops on the host, for searches that replay or mend one program.

The game (`kernels` and what is around it), and stays of a mapping in the making
(`stays`, `queues`, `placing`, `ruin`).
"""

import contextlib
import pathlib


def drop_stale(directory: pathlib.Path) -> None:
    """Drops machine code that is older than any of the sources of a directory.

    Numba keeps what it compiled beside the sources until the file of a function
    changes, whatever becomes of the functions of other files that it calls.
    """
    changed = max(path.stat().st_mtime for path in directory.glob("*.py"))
    for path in directory.glob("__pycache__/*.nb[ci]"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to drop
            if path.stat().st_mtime < changed:
                path.unlink()


drop_stale(pathlib.Path(__file__).parent)
