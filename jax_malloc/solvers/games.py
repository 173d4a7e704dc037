"""What solvers that play the game share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator


def is_over(deadline_s: float | None) -> bool:
    """Whether an absolute deadline on the clock of `time.monotonic()` has passed."""
    return deadline_s is not None and time.monotonic() >= deadline_s


def share_of(deadline_s: float | None, share: float) -> float | None:
    """The deadline of a part that may take a share of the time that is left."""
    if deadline_s is None:
        return None
    now = time.monotonic()
    return now + share * (deadline_s - now)


def rounds(number: int, deadline_s: float | None) -> Iterator[int]:
    """Counts rounds of games from 0: so many, or with a deadline as many as fit.

    There is always a first one. It compiles, so that only later ones say how long
    another takes; it begins if the longest of them would still end in time.
    """
    longest_s = 0.0
    for i in itertools.count():
        over = i >= number if deadline_s is None else is_over(deadline_s - longest_s)
        if i and over:
            return
        begin_s = time.monotonic()
        yield i
        if i:
            longest_s = max(longest_s, time.monotonic() - begin_s)
