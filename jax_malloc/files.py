"""Files that are written as a whole or not at all."""

from __future__ import annotations

import gzip
import os
import tempfile


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file, gzipped if `path` ends in .gz; a file that was there is replaced.

    Raises: OSError, naming `path`, if it cannot be written.
    """
    path = os.path.abspath(path)
    if path.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}."
        )
        try:
            with os.fdopen(descriptor, "wb") as f:
                f.write(data)
            # mkstemp's mode is for the owner only; this is an ordinary file.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        # Not the temporary file's name, which says nothing to the caller.
        raise OSError(
            error.errno, f"cannot be written: {error.strerror}", path
        ) from None


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
