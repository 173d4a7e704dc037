"""Typed access to JSON that nobody has checked; errors say which file and entry."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable
from typing import Any

_KIND_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
}


class Reader:
    """Reads values of one file.

    where: what to call it in messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def error(self, problem: str) -> ValueError:
        """The error to raise for a problem with the file."""
        return ValueError(f"{self.where}: {problem}")

    def load(self, text: str) -> dict[str, Any]:
        """The object that all of the file is.

        Raises: ValueError if the text is not JSON, or another kind of value.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(
                f"not JSON, or cut off ({error}). Save it again."
            ) from None
        return self.value(body, dict, "the file")

    def value(self, value: Any, kind: type, what: str) -> Any:
        """`value`, if it is of a kind. Raises: ValueError naming `what` otherwise."""
        # JSON's true and false are ints in Python, its whole numbers no floats.
        wanted = (int, float) if kind is float else kind
        if isinstance(value, wanted) and not (
            isinstance(value, bool) and kind is not bool
        ):
            return value
        found = repr(value)
        found = found if len(found) <= 60 else found[:57] + "..."
        raise self.error(f"{what} is {found}, expected {_KIND_NAMES[kind]}.")

    def field(self, record: dict, key: str, kind: type, what: str) -> Any:
        """`record[key]`, of a kind. Raises: ValueError naming `what` otherwise."""
        if key not in record:
            raise self.error(f"{what} has no {key!r}.")
        return self.value(record[key], kind, f"{key!r} of {what}")

    def seconds(self, record: dict, key: str, what: str) -> float:
        """As `field`, finite and at least 0."""
        value = self.field(record, key, float, what)
        if not 0 <= value <= sys.float_info.max:
            raise self.error(f"{key!r} of {what} is {value}, expected seconds >= 0.")
        return float(value)

    def seconds_by_name(self, record: dict, key: str, what: str) -> dict[str, float]:
        """An object of seconds. Raises: as `seconds`."""
        times = self.field(record, key, dict, what)
        return {name: self.seconds(times, name, f"{key!r}") for name in times}


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause with the known name that is most like `name`, or "" if none is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
