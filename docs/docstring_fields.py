"""Docstrings as the code writes them, in the form that the reference is made from.

A record's docstring names its fields in plain lines, several at once where they belong
together, and the items of a section such as `Args:` are written alike:

    fast, slow: the memory that is planned into, and the one that holds the rest.

mkdocstrings wants a section `Attributes:`, and one name to an item. This extension of
griffe, its parser, rewrites the one into the other; a line `Raises: ValueError if ...`
becomes a section, too.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

import griffe

_NAME = r"\*{0,2}[A-Za-z_]\w*"
_ITEM = re.compile(rf"(?P<names>{_NAME}(?:, {_NAME})*): +(?P<text>\S.*)")
_RAISES = re.compile(r"Raises: (?P<error>[\w.]+),? *(?P<text>.*)")


class Fields(griffe.Extension):
    """Rewrites every docstring of a package once all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for obj in _objects(pkg):
            if obj.docstring is not None:
                fields = obj.members if obj.is_class else ()
                obj.docstring.value = rewritten(obj.docstring.value, fields)


def rewritten(text: str, fields: Container[str]) -> str:
    """A docstring with one name to an item, and a section for every kind of item.

    Args:
      text: without common indentation.
      fields: what a line such as "name: what it is" may be about outside of sections.
    """
    lines, rest, section = [], text.splitlines(), ""
    while rest:
        line = rest.pop(0)
        item, raises = _ITEM.match(line.strip()), _RAISES.match(line)
        indent = len(line) - len(line.lstrip())
        if raises:
            told = [raises["text"], *_continued(rest, 0)]
            lines += ["", "Raises:", f"    {raises['error']}: {' '.join(told)}"]
            section = ""
        elif item and indent == 0 and _all_in(item["names"], fields):
            if section != "Attributes:":
                lines += ["", "Attributes:"]
            section = "Attributes:"
            lines += _items(item, _continued(rest, indent))
        elif item and indent == 2 and section == "Args:":
            lines += _items(item, _continued(rest, indent))
        else:
            if indent == 0 and line:
                section = line
            if line in ("Args:", "Returns:", "Raises:"):
                lines.append("")
            lines.append(line)
    return "\n".join(lines)


def _all_in(names: str, fields: Container[str]) -> bool:
    return all(name in fields for name in names.split(", "))


def _items(item: re.Match[str], more: list[str]) -> list[str]:
    """An item per name, all with the same text."""
    text = " ".join([item["text"], *more])
    return [f"    {name}: {text}" for name in item["names"].split(", ")]


def _continued(rest: list[str], indent: int) -> list[str]:
    """Takes the lines that go on with an item off the rest."""
    taken = []
    while rest and rest[0].startswith(" " * (indent + 1)):
        taken.append(rest.pop(0).strip())
    return taken


def _objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)
