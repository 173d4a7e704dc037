"""The replay: the latest positions, in host memory."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jax_malloc.agent.self_play import Positions


class Batch(NamedTuple):
    """Positions and what followed them, `[R, ...]`, for K unrolled steps.

    observation: `[R, F]` float16. action, reward: `[R, K]`. policy: `[R, K + 1, 3]`.
    value: `[R, K + 1]`. real: `[R, K + 1]` bool, before the game's end.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    policy: np.ndarray
    value: np.ndarray
    real: np.ndarray


class Replay:
    """A ring of positions. A game's positions lie side by side, oldest games go first.

    The newest write never reaches into the rest of a game that is still sampled from:
    what follows a position is younger than it, or of the same game.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: Positions | None = None
        self._next = self._count = 0

    @property
    def _held(self) -> Positions:
        if self._rows is None:
            raise ValueError("the replay is empty; add games before you sample.")
        return self._rows

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Positions) -> None:
        """Appends whole games.

        Raises:
          ValueError: more positions than the replay holds.
        """
        number = len(rows.value)
        if number > self._capacity:
            raise ValueError(
                f"{number} positions do not fit into a replay of {self._capacity}. "
                "Raise replay_positions or play fewer games at a time."
            )
        if self._rows is None:
            self._rows = jax.tree.map(
                lambda x: np.zeros((self._capacity, *x.shape[1:]), x.dtype), rows
            )
        at = (self._next + np.arange(number)) % self._capacity
        for mine, new in zip(self._rows, rows, strict=True):
            mine[at] = new
        self._next = int((self._next + number) % self._capacity)
        self._count = min(self._count + number, self._capacity)

    def sample(self, rng: np.random.Generator, number: int, unroll: int) -> Batch:
        """Positions drawn uniformly, each with `unroll` steps of what followed."""
        at = rng.integers(0, self._count, number)
        window = (at[:, None] + np.arange(unroll + 1)) % self._capacity
        real = np.arange(unroll + 1) < self._held.left[at, None]

        def column(x, width):
            mask = real[:, :width].reshape(number, width, *[1] * (x.ndim - 1))
            return np.where(mask, x[window[:, :width]], 0).astype(x.dtype)

        return Batch(
            observation=self._held.observation[at],
            action=column(self._held.action, unroll),
            reward=column(self._held.reward, unroll),
            policy=column(self._held.policy, unroll + 1),
            value=column(self._held.value, unroll + 1),
            real=real,
        )

    def some_games(self, rng: np.random.Generator, number: int) -> list[np.ndarray]:
        """Indices of the rests of games from random positions, `number` in all."""
        games, total = [], 0
        while total < number:
            at = int(rng.integers(0, self._count))
            game = (at + np.arange(self._held.left[at])) % self._capacity
            games.append(game[: number - total])
            total += len(games[-1])
        return games

    def read(self, at: np.ndarray) -> Positions:
        """The positions at `[R]` indices."""
        return jax.tree.map(lambda x: x[at], self._held)

    def write_targets(
        self, at: np.ndarray, policy: np.ndarray, root: np.ndarray, value: np.ndarray
    ) -> None:
        """Replaces the targets of the positions at `[R]` indices."""
        self._held.policy[at] = policy
        self._held.root[at] = root
        self._held.value[at] = value
