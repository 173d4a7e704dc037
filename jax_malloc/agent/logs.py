"""What a run writes down as it goes: a CSV file, and event files for TensorBoard."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping

from tensorboardX import SummaryWriter


class Logs:
    """The metrics of a run directory; a resumed run goes on where it stopped.

    metrics.csv: a row per evaluation; columns are those of the fullest row.
    tensorboard/: the same as scalars over moves, `tensorboard --logdir` reads them.
    """

    def __init__(self, run_dir: str) -> None:
        self._path = os.path.join(run_dir, "metrics.csv")
        self._rows: list[Mapping[str, object]] = []
        if os.path.exists(self._path):
            with open(self._path, newline="") as f:
                self._rows = list(csv.DictReader(f))
        self._events = SummaryWriter(os.path.join(run_dir, "tensorboard"))

    def write(self, row: Mapping[str, float]) -> None:
        """Adds the metrics of one evaluation; "moves" is their step."""
        self._rows.append(row)
        columns = list(dict.fromkeys(k for r in self._rows for k in r))
        temporary = self._path + ".tmp"
        with open(temporary, "w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self._path)
        for name, value in row.items():
            self._events.add_scalar(name, value, int(row["moves"]))
        self._events.flush()

    def close(self) -> None:
        self._events.close()
