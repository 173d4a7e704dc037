"""What the documentation says to type, run as a reader would type it.

A page is a session in an empty folder. Its blocks run in the order in which they stand:

    ```python                      runs, in one namespace per page
    ```python title="model.py"     is written to that file
    ```sh                          lines `python -m jax_malloc ...` run, others do not
    ```text                        what the block before it printed, but for numbers
    ```                            a drawing

A comment above a block, with its reason after the colon, says that it is not run:

    <!-- not run: trains for half an hour -->
    <!-- needs libtpu: compiles for a TPU -->      run only if asked to
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import shlex
from typing import Any

DOCS = pathlib.Path(__file__).parent
# HLO text that pages load as if it were the reader's own.
DUMPS = sorted((DOCS.parent / "tests" / "testdata").glob("mlp_train.*.hlo.gz"))
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|needs libtpu): (?P<reason>[^\n]+) -->\n\n?)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(
    r"[+-]?\d[\d.,]*(?:e[+-]?\d+)?x?%?(?: ?(?:[KMG]i)?B\b| [mun]?s\b)?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    language: after the fence. title: the file that it is, or "".
    mark: "not run", "needs libtpu" or "". reason: for the mark.
    line: of the page on which its text begins, from 1.
    """

    language: str
    text: str
    title: str
    mark: str
    reason: str
    line: int

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of the command line and of the examples."""
        joined = self.text.replace("\\\n", " ")
        lines = (line.removeprefix("$ ") for line in joined.splitlines())
        starts = ("python -m jax_malloc", "python examples/")
        return [shlex.split(line)[1:] for line in lines if line.startswith(starts)]


def pages() -> list[pathlib.Path]:
    """Every page of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=match["language"],
            text=match["text"],
            title=match["title"] or "",
            mark=match["mark"] or "",
            reason=match["reason"] or "",
            line=text.count("\n", 0, match.start("text")) + 1,
        )
        for match in _BLOCK.finditer(text)
    ]


def run(page: pathlib.Path, *, with_libtpu: bool = False) -> None:
    """Runs a page in the working directory, which should hold `DUMPS` and no more.

    Args:
      page: of Markdown.
      with_libtpu: also the blocks that need it.
    Raises:
      AssertionError: a command failed, or the page shows what was not printed.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.mark == "not run" or (block.mark and not with_libtpu):
            continue
        where = f"{os.path.relpath(page, DOCS.parent)}, line {block.line}"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if block.title:
                pathlib.Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                # As many lines down as on the page, for tracebacks.
                code = "\n" * (block.line - 1) + block.text
                exec(compile(code, str(page), "exec"), scope)
            elif block.language == "sh":
                for words in block.commands:
                    _run_command(words, where)
        if block.language == "text":
            _check_shown(block.text, printed, where)
        else:
            printed = out.getvalue()


def _run_command(words: list[str], where: str) -> None:
    assert words[:2] == ["-m", "jax_malloc"], f"{where}: mark examples as not run"
    from jax_malloc.cli.main import main

    code = main(words[1:])
    assert code == 0, f"{where}: `python {shlex.join(words)}` ended with {code}"


def _check_shown(shown: str, printed: str, where: str) -> None:
    """Every line shown was printed, numbers and widths of columns left aside."""
    have = {_shape(line) for line in printed.splitlines()}
    for line in shown.splitlines():
        assert line.strip() in ("", "...") or _shape(line) in have, (
            f"{where}: the page shows {line!r}; printed was:\n{printed}"
        )


def _shape(line: str) -> str:
    return " ".join(_NUMBER.sub("#", re.sub("─+", "─", line)).split())


def main() -> None:
    """Prints what every page would run."""
    for page in pages():
        for block in blocks(page):
            mark = f"  [{block.mark}: {block.reason}]" if block.mark else ""
            print(f"{os.path.relpath(page)}:{block.line} {block.language}{mark}")


if __name__ == "__main__":
    main()
