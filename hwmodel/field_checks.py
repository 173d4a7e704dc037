"""Checks of the fields of records that describe a machine.

Each sets the field to a plain number of its kind, or raises a ValueError that names it.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def rate(name: str, value: Any, *, zero: bool = False) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        finite = number and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        finite = False
    if not finite or value < 0 or (value == 0 and not zero):
        need = "a finite number, " + ("at least 0" if zero else "above 0")
        raise ValueError(f"{name} is {value!r}; it must be {need}.")
    return float(value)


def set_rate(record: Any, name: str, *, zero: bool = False) -> None:
    value = rate(name, getattr(record, name), zero=zero)
    object.__setattr__(record, name, value)


def set_share(record: Any, name: str) -> None:
    set_rate(record, name)
    if getattr(record, name) > 1:
        raise ValueError(
            f"{name} is {getattr(record, name)!r}; a share of bandwidth is at most 1."
        )


def set_whole(record: Any, name: str, *, minimum: int) -> None:
    value = getattr(record, name)
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool) or whole < minimum:
        raise ValueError(
            f"{name} is {value!r}; it must be a whole number, at least {minimum}."
        )
    object.__setattr__(record, name, whole)


def check_bool(record: Any, name: str) -> None:
    if not isinstance(getattr(record, name), bool):
        raise ValueError(f"{name} is {getattr(record, name)!r}; it must be a bool.")
