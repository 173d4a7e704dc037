"""One trainer: games of its own, their replay, and updates that all trainers share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_malloc import observation
from jax_malloc.agent import (
    demonstrations,
    learner,
    lessons,
    parallel,
    reanalysis,
    self_play,
)
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.lessons import Lesson
from jax_malloc.agent.memory import Batch, Replay
from jax_malloc.agent.network import MuZeroNetwork
from jax_malloc.problem import Problem


class TrainState(NamedTuple):
    """What a run needs to go on."""

    params: dict
    opt_state: optax.OptState
    moves: int
    updates: int
    elapsed_s: float
    best: float


class Trainer:
    """Games, replay and updates; `iterate` does one round of each."""

    def __init__(
        self,
        config: TrainConfig,
        network: MuZeroNetwork,
        corpus: Sequence[Problem],
        run_dir: str | None = None,
        prepared: Callable[[int, int], None] = lambda done, total: None,
        state: TrainState | None = None,
    ) -> None:
        """Prepares lessons and demonstrations, which are kept in `run_dir` if given.

        Goes on from `state`, or begins untrained.

        Raises:
          ValueError: no problem of the corpus has anything to decide.
        """
        self._config, self._network = config, network
        self._groups = lessons.by_length(lessons.prepare(corpus))
        if not self._groups:
            raise ValueError("no program of the corpus has a decision to take.")
        self.state = fresh(config, network) if state is None else state
        process = jax.process_index()
        # A resumed run does not draw again what it drew before.
        self._rng = np.random.default_rng((config.seed, process, self.state.updates))
        self._memory = Replay(config.replay_positions)
        self._shown = Replay(config.replay_positions)
        self._mesh = parallel.all_devices()
        if any(config.demonstrated):
            self._find_demonstrations(run_dir, prepared)

    def _find_demonstrations(self, run_dir, prepared):
        every = [x for group in self._groups.values() for x in group]
        path = None
        if run_dir is not None:
            path = os.path.join(run_dir, f"demonstrations.{jax.process_index()}.npz")
        found = demonstrations.find(every, path, report=prepared)
        self._demonstrations = {id(x): a for x, a in zip(every, found, strict=True)}
        self._is_alone = len(every) == 1

    def iterate(self, share: float) -> dict[str, float]:
        """One batch of games and the updates that it pays for.

        Args:
          share: of the run that is over.
        Returns: metrics by name; rates are measured.
        """
        config, rng = self._config, self._rng
        params = parallel.own_copy(self.state.params)
        group = self._choose_group(share)
        chosen = [group[k] for k in rng.integers(0, len(group), config.num_games)]
        start_s = time.perf_counter()
        played, metrics = self_play.play(
            config, self._network, params, chosen, int(rng.integers(2**31))
        )
        metrics["moves_per_s"] = len(played.value) / (time.perf_counter() - start_s)
        self._memory.add(played)
        demonstrated = np.interp(share, (0, 1), config.demonstrated)
        if demonstrated > 0:
            self._show(group, params)
        if config.reanalysed:
            reanalysis.refresh(config, self._network, params, self._memory, rng)
        start_s = time.perf_counter()
        rate = parallel.agree(config.learning_rate * (1 - 0.9 * min(1, share)))
        params, opt_state, loss = learner.update(
            config,
            self._network,
            self._mesh,
            parallel.replicate(self._mesh, self.state.params),
            parallel.replicate(self._mesh, self.state.opt_state),
            parallel.shard(self._mesh, self._sample(demonstrated), axis=1),
            jnp.float32(rate),
        )
        self.state = self.state._replace(
            params=parallel.own_copy(params),
            opt_state=parallel.own_copy(opt_state),
            moves=self.state.moves + len(played.value) * jax.process_count(),
            updates=self.state.updates + config.updates,
        )
        metrics["updates_per_s"] = config.updates / (time.perf_counter() - start_s)
        return {**metrics, **{k: float(v) for k, v in loss.items()}}

    def _choose_group(self, share: float) -> list[Lesson]:
        config = self._config
        longest = lessons.longest(
            share, config.curriculum, config.shortest, max(self._groups)
        )
        lengths = [n for n in self._groups if n <= max(longest, min(self._groups))]
        weights = np.array([len(self._groups[n]) for n in lengths], float)
        return self._groups[self._rng.choice(lengths, p=weights / weights.sum())]

    def _show(self, group: list[Lesson], params: dict) -> None:
        """Adds some of a group's demonstrations to those to learn from."""
        number, simulations = max(1, self._config.num_games // 4), 0
        if self._is_alone:
            if len(self._shown):
                return  # it would be the same game again
            # As many as self-play plays, and as it does: that has been compiled.
            number, simulations = self._config.num_games, self._config.num_simulations
        chosen = [group[k] for k in self._rng.integers(0, len(group), number)]
        actions = [self._demonstrations[id(x)] for x in chosen]
        self._shown.add(
            self_play.demonstrate(
                self._network, params, chosen, actions, num_simulations=simulations
            )
        )

    def _sample(self, demonstrated: float) -> Batch:
        """This process's part of the batches, `[U, R, ...]`."""
        config, rng = self._config, self._rng
        own = config.batch // jax.process_count()
        shown = round(own * float(demonstrated))
        parts = [
            memory.sample(rng, config.updates * number, config.unroll)
            for memory, number in ((self._memory, own - shown), (self._shown, shown))
            if number
        ]
        return jax.tree.map(
            lambda *x: np.concatenate(
                [y.reshape(config.updates, -1, *y.shape[1:]) for y in x], axis=1
            ),
            *parts,
        )


def fresh(config: TrainConfig, network: MuZeroNetwork) -> TrainState:
    """An untrained state."""
    params = network.init(
        jax.random.key(config.seed),
        jnp.zeros((1, observation.size())),
        jnp.zeros(1, jnp.int32),
    )
    return starting_from(params)


def starting_from(params: dict) -> TrainState:
    """The state of a run that begins with these parameters."""
    # As one program: by itself, each array would be compiled.
    opt_state = jax.jit(learner.optimizer().init)(params)
    params, opt_state = parallel.own_copy((params, opt_state))
    return TrainState(params, opt_state, 0, 0, 0.0, float("inf"))
