"""The solvers by name. Same problem in, same mapping out, same evaluator for all.

A solver is a module of this package with a function `solve`; it is imported when it is
first asked for, so that naming one costs nothing and a cheap one never loads the agent.
"""

from __future__ import annotations

import collections.abc
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jax_malloc.mapping import Mapping
    from jax_malloc.problem import Problem


class Solver(Protocol):
    """Finds a mapping."""

    def __call__(
        self, problem: Problem, *, seed: int, deadline_s: float | None
    ) -> Mapping:
        """The best mapping found by the deadline.

        Args:
          problem: a program on a machine.
          seed: same seed, same mapping, unless the deadline cut the search short.
          deadline_s: absolute, on the clock of `time.monotonic()`; None for no limit. A
            solver whose deadline is over still returns its cheapest valid mapping.
        """
        ...


# From the cheapest to the most thorough.
_NAMES = (
    "all_slow",
    "random",
    "evolutionary",
    "xla_msa",
    "greedy",
    "annealing",
    "milp",
    "muzero",
    "hybrid",
)


class _LazySolvers(collections.abc.Mapping[str, Solver]):
    """`{name: solver}`, each imported on first use."""

    def __getitem__(self, name: str) -> Solver:
        if name not in _NAMES:
            raise KeyError(name)
        solver: Solver = importlib.import_module(f"{__name__}.{name}").solve
        return solver

    def __contains__(self, name: object) -> bool:
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


SOLVERS: collections.abc.Mapping[str, Solver] = _LazySolvers()
