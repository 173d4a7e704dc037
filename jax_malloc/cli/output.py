"""What a command says: text, JSON or a page, to a file or to standard output.

Nothing is coloured, and a bar is drawn on a terminal only, so that all of it works in a
pipe.
"""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

FORMATS = ("table", "json", "html")
_SUFFIXES = {".json": "json", ".html": "html", ".htm": "html"}
# A command that is over sooner shows no bar.
_BAR_AFTER_S = 2.0

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body><pre>{text}</pre></body>
</html>
"""


def choose_format(asked: str | None, path: str | None) -> str:
    """The format asked for, or else the one that the file's name says, or a table."""
    if asked is not None:
        return asked
    name = (path or "").lower().removesuffix(".gz")
    return _SUFFIXES.get(os.path.splitext(name)[1], "table")


def check_writable(path: str | None) -> None:
    """Raises ValueError if a file cannot be written; before any work is done for it."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        why = "it is a directory"
    elif not os.path.isdir(folder):
        why = f"there is no directory {folder}"
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        why = "permission denied"
    else:
        return
    raise ValueError(f"cannot write {path}: {why}. Choose another --output.")


def write(text: str, path: str | None) -> None:
    """Puts text into a file, gzipped if it ends in .gz, or on standard output.

    Raises: OSError if it cannot be written.
    """
    text = text if text.endswith("\n") else text + "\n"
    if path is None:
        # A terminal or pipe that cannot show a line of a table gets a question mark.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
        return
    with gzip.open(path, "wb") if path.endswith(".gz") else open(path, "wb") as f:
        f.write(text.encode())
    wrote(path)


def wrote(path: str) -> None:
    """Says on standard error that a file is there."""
    print(f"wrote {path}", file=sys.stderr)


def render(form: str, text: str, body: Any, title: str) -> str:
    """One answer in a format.

    Args:
      form: one of `FORMATS`.
      text: it as a table.
      body: it as plain JSON values.
      title: of the page.
    """
    if form == "json":
        return json.dumps(body, indent=2, allow_nan=False)
    if form == "html":
        return _PAGE.format(title=html.escape(title), text=html.escape(text))
    return text


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while something runs, if that is a terminal.

    It appears after two seconds and leaves nothing behind.

    Yields:
      What to call with how much is done, and of how much; until then the bar pulses.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    import rich.console
    import rich.progress

    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
        console=rich.console.Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=None)
    timer = threading.Timer(_BAR_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
