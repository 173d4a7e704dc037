"""The drawing libraries, which a plain installation does without."""

from __future__ import annotations

import importlib
import types


def load(module: str, what: str) -> types.ModuleType:
    """A module of a library that only the extra `viz` installs.

    Args:
      module: its full name.
      what: the caller wants it for ("Plan.plot").
    Raises:
      RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise  # it is there, but something that it needs is not
        raise RuntimeError(
            f"{what} needs {library}, which is not installed. Install it with: "
            "pip install 'jax_malloc[viz]'"
        ) from error
