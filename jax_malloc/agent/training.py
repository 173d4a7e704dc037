"""Training: vectorised self-play, replay, updates, and evaluation on held-out programs.

    lessons --> self-play (one jit per board length) --> replay <--> reanalysis
       |             ^                                     |
       |             +----------- parameters <------ joint updates
       +--> demonstrations (annealed games) ---------------^

A run directory holds the latest state, the best checkpoint, the demonstrations and the
metrics. Killed at any moment, a run loses what came after its last evaluation. With
several processes (`jax.distributed`) each plays games of its own and all update the
same parameters; the first one writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import serialization

from jax_malloc.agent import (
    checkpoint,
    parallel,
)
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.logs import Logs
from jax_malloc.agent.network import MuZeroNetwork
from jax_malloc.agent.trainer import Trainer, TrainState, fresh
from jax_malloc.problem import Problem


def train(
    config: TrainConfig,
    corpus: Sequence[Problem],
    evaluate: Callable[[MuZeroNetwork, dict], dict[str, float]],
    run_dir: str,
    *,
    header: dict,
    report: Callable[[dict], None] = lambda row: None,
    prepared: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Runs until `config.minutes` of training have passed, resuming what `run_dir`
    holds.

    Args:
      corpus: problems to play. Those of one bucket are played together.
      evaluate: scores by name on held-out programs; "score" picks the best, lowest
        wins.
      run_dir: gets `state.msgpack`, `best.msgpack` (a checkpoint), `metrics.csv`.
      header: goes into the checkpoint: command, seed, machine, corpus.
      report: called with each row of metrics.
      prepared: called with how many demonstrations are found, and of how many.
    """
    network = MuZeroNetwork(config.network)
    os.makedirs(run_dir, exist_ok=True)
    state = _restore(config, network, run_dir)
    trainer = Trainer(config, network, corpus, run_dir, prepared, state)
    logs = Logs(run_dir) if jax.process_index() == 0 else None  # one process writes
    began, evaluated = time.monotonic() - trainer.state.elapsed_s, -np.inf
    losses: list[dict] = []
    while True:
        elapsed = parallel.agree(time.monotonic() - began)
        done = elapsed >= 60 * config.minutes
        if done or elapsed - evaluated >= 60 * config.evaluate_every_minutes:
            evaluated = elapsed
            if logs is not None:
                row = {
                    "minutes": round(elapsed / 60, 2),
                    "moves": trainer.state.moves,
                    "updates": trainer.state.updates,
                    **{
                        k: float(np.mean([x[k] for x in losses])) for k in _keys(losses)
                    },
                    **evaluate(network, trainer.state.params),
                }
                logs.write(row)
                report(row)
                if row["score"] < trainer.state.best:
                    trainer.state = trainer.state._replace(best=row["score"])
                    checkpoint.save(
                        os.path.join(run_dir, "best.msgpack"),
                        config.network,
                        trainer.state.params,
                        {**header, "training": row},
                    )
                trainer.state = trainer.state._replace(elapsed_s=elapsed)
                _save(run_dir, trainer.state)
            losses = []
            # Evaluation is not training: its time does not count.
            began = time.monotonic() - elapsed
        if done:
            if logs is not None:
                logs.close()
            return
        losses.append(trainer.iterate(elapsed / (60 * config.minutes)))


def _restore(config, network, run_dir) -> TrainState:
    state = fresh(config, network)
    path = os.path.join(run_dir, "state.msgpack")
    if not os.path.exists(path):
        return state
    with open(path, "rb") as f:
        restored = serialization.from_bytes(state, f.read())
    same = jax.tree.map(
        lambda a, b: np.shape(a) == np.shape(b), restored.params, state.params
    )
    if not all(jax.tree.leaves(same)):
        raise ValueError(
            f"{path} is of a run with another network or observation. Go on with the "
            "settings of that run, or choose another run directory."
        )
    return restored


def _save(run_dir: str, state: TrainState) -> None:
    path = os.path.join(run_dir, "state.msgpack")
    checkpoint.write_atomically(path, serialization.to_bytes(state))


def _keys(rows: Sequence[dict]) -> list[str]:
    return list(rows[0]) if rows else []
