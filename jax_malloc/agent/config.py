"""The settings of a training run."""

from __future__ import annotations

import dataclasses

from jax_malloc.agent.network import NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    minutes: wall-clock length; the learning rate falls along it to a tenth.
    num_games: games side by side, over all devices of one process.
    num_simulations: of the search, per move.
    unroll: steps of learned dynamics that each update trains through.
    trace: lambda of the TD(lambda) value targets.
    replay_positions: size of the replay, and of that of demonstrations.
    updates: per batch of games, `batch` positions each, over all processes.
    demonstrated: share of the positions that come from demonstrations, at the start
      and at the end of the run.
    reanalysed: positions of the replay per batch of games whose targets are made anew
      with the latest parameters (Schrittwieser et al., 2021); 0 is none.
    curriculum: share of the run over which the longest program played grows from
      `shortest` accesses to all; 0 plays everything from the start.
    """

    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    seed: int = 0
    minutes: float = 30.0
    num_games: int = 64
    num_simulations: int = 16
    unroll: int = 5
    trace: float = 0.95
    replay_positions: int = 250_000
    updates: int = 40
    batch: int = 512
    learning_rate: float = 1e-3
    value_weight: float = 0.5
    demonstrated: tuple[float, float] = (0.5, 0.2)
    reanalysed: int = 4096
    curriculum: float = 0.2
    shortest: int = 128
    evaluate_every_minutes: float = 3.0
