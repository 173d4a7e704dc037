"""What solvers that play the game share."""

from __future__ import annotations

import time


def is_over(deadline_s: float | None) -> bool:
    """Whether an absolute deadline on the clock of `time.monotonic()` has passed."""
    return deadline_s is not None and time.monotonic() >= deadline_s
