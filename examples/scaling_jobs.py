"""What one process of `measure_scaling.py` measures; a program of its own.

    python scaling_jobs.py job.json

The parts of a training iteration are timed in the trainer itself, by clocks around the
functions that it calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import agent_problems
from jax_malloc import game, observation
from jax_malloc.agent import (
    learner,
    lessons,
    parallel,
    reanalysis,
    self_play,
    trainer,
)
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.memory import Batch
from jax_malloc.agent.network import MuZeroNetwork, NetworkConfig
from jax_malloc.problem import Problem

_PER_LENGTH = 4  # programs: their demonstrations are searched for before the first game
_FIRST = 2  # iterations that are not counted: they compile
_UPDATES = 4  # one after another, where updates alone are timed
_REPEATS = 10  # of updates alone and of all-reduces alone
_LIMIT_S = 2.0  # after which they are not repeated
_ITERATIONS_LIMIT_S = 30.0  # after which no other iteration of this length begins
_SHARE = 0.5  # of the run that is over, which sets the share of demonstrations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one process is to do.

    settings: of `TrainConfig`; network: of `NetworkConfig`; what is not named is as in
      a training run.
    seeds: of generated programs; those that training would leave out are left out.
    rows: per update and process, for which updates alone are timed.
    coordinator: address of the first of `processes`; None for a process by itself.
    run_dir: keeps demonstrations. result: path of the JSON that is written.
    """

    settings: dict[str, Any]
    network: dict[str, int]
    seeds: list[int]
    max_accesses: int
    iterations: int
    rows: list[int]
    run_dir: str
    result: str
    coordinator: str | None = None
    processes: int = 1
    process: int = 0

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(network=NetworkConfig(**self.network), **self.settings)


def measure(job: Job) -> dict[str, Any]:
    """All that this process measures.

    Returns:
      lengths: by padded length, `seeds` of the programs and a list of `iterations`.
      update_s: seconds of one update alone, by rows per process.
      all_reduce: `arrays`, `size_bytes` and `s` by name; only with several processes.
    """
    config = job.config
    network = MuZeroNetwork(config.network)
    found: dict[str, Any] = {
        "lengths": {
            length: {
                "seeds": list(problems),
                "iterations": iterations(job, network, list(problems.values())),
            }
            for length, problems in by_length(job).items()
        },
        "update_s": {},
        "all_reduce": {},
    }
    for rows in job.rows:
        found["update_s"][rows] = update_s(config, network, rows)
    if job.processes > 1:
        params = trainer.fresh(config, network).params
        for name, tree in (("flat", ravel_pytree(params)[0]), ("tree", params)):
            found["all_reduce"][name] = all_reduce(parallel.all_devices(), tree)
    return found


def by_length(job: Job) -> dict[int, dict[int, Problem]]:
    """The problems that training would play, by padded length and seed."""
    found: dict[int, dict[int, Problem]] = {}
    for seed in job.seeds:
        for problem in agent_problems.generated(range(seed, seed + 1)):
            usable = agent_problems.usable(problem, job.max_accesses)
            if usable and agent_problems.under_pressure(problem):
                for lesson in lessons.prepare([problem]):
                    found.setdefault(lesson.length, {})[seed] = problem
    return dict(sorted(found.items()))


def iterations(
    job: Job, network: MuZeroNetwork, problems: list[Problem]
) -> list[dict[str, float]]:
    """Moves and seconds of iterations, after some that compile."""
    few = problems[:_PER_LENGTH]
    training = trainer.Trainer(job.config, network, few, job.run_dir)
    for _ in range(_FIRST):
        training.iterate(_SHARE)
    found = [iteration(training, job.config)]
    while len(found) < job.iterations:
        if parallel.agree(sum(x["iteration_s"] for x in found)) > _ITERATIONS_LIMIT_S:
            break
        found.append(iteration(training, job.config))
    return found


def iteration(training: trainer.Trainer, config: TrainConfig) -> dict[str, float]:
    """One iteration: this process's moves, and seconds by part."""
    seconds: dict[str, float] = {}
    moves = training.state.moves
    with clocks(seconds):
        start_s = time.perf_counter()
        metrics = training.iterate(_SHARE)
        seconds["iteration_s"] = time.perf_counter() - start_s
    # Whoever is early waits for the others where all agree on a step size.
    updates_s = config.updates / metrics["updates_per_s"] - seconds["waiting_s"]
    moves = (training.state.moves - moves) // jax.process_count()
    return {**seconds, "moves": moves, "updates_s": updates_s}


@contextlib.contextmanager
def clocks(seconds: dict[str, float]) -> Iterator[None]:
    """Adds to `seconds` what the parts of iterations take."""
    parts = {
        "self_play_s": (self_play, "play"),
        "demonstrations_s": (self_play, "demonstrate"),
        "reanalysis_s": (reanalysis, "refresh"),
        "waiting_s": (parallel, "agree"),
    }
    with contextlib.ExitStack() as stack:
        for part, (module, name) in parts.items():
            seconds[part] = 0.0
            timed = _timed(getattr(module, name), seconds, part)
            stack.enter_context(mock.patch.object(module, name, timed))
        yield


def _timed(call: Callable, seconds: dict[str, float], part: str) -> Callable:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start_s

    return timed


def update_s(config: TrainConfig, network: MuZeroNetwork, rows: int) -> float:
    """Seconds of one update with so many rows of each process."""
    config = dataclasses.replace(config, updates=_UPDATES)
    mesh, state = parallel.all_devices(), trainer.fresh(config, network)
    arguments = (
        config,
        network,
        mesh,
        parallel.replicate(mesh, state.params),
        parallel.replicate(mesh, state.opt_state),
        parallel.shard(mesh, random_rows(config, rows), axis=1),
        jnp.float32(config.learning_rate),
    )
    return median_s(lambda: learner.update(*arguments)) / config.updates


def random_rows(config: TrainConfig, rows: int) -> Batch:
    """`[U, rows, ...]` positions of nothing, for which an update takes as long."""
    rng = np.random.default_rng(0)
    shape, k = (config.updates, rows), config.unroll
    return Batch(
        observation=rng.random((*shape, observation.size())).astype(np.float16),
        action=rng.integers(0, game.NUM_ACTIONS, (*shape, k)).astype(np.int8),
        reward=rng.random((*shape, k), np.float32),
        policy=np.full((*shape, k + 1, game.NUM_ACTIONS), 1 / 3, np.float32),
        value=rng.random((*shape, k + 1), np.float32),
        real=np.ones((*shape, k + 1), bool),
    )


def all_reduce(mesh: Mesh, tree: Any) -> dict[str, float]:
    """Seconds to sum a tree over the processes, by the compiler's own collective."""
    parts = parallel.shard(mesh, jax.tree.map(lambda x: np.asarray(x)[None], tree))
    total = jax.jit(
        lambda tree: jax.tree.map(lambda x: x.sum(axis=0), tree),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    leaves = jax.tree.leaves(tree)
    return {
        "arrays": len(leaves),
        "size_bytes": sum(4 * math.prod(x.shape) for x in leaves),
        "s": median_s(lambda: total(parts)),
    }


def median_s(call: Callable[[], Any]) -> float:
    """Median seconds of a call and its results, after a first that is not counted.

    All processes make the same number of calls.
    """
    jax.block_until_ready(call())
    times_s: list[float] = []
    while len(times_s) < _REPEATS and parallel.agree(sum(times_s)) < _LIMIT_S:
        start_s = time.perf_counter()
        jax.block_until_ready(call())
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def main(path: str) -> None:
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    if job.coordinator is not None:
        jax.distributed.initialize(job.coordinator, job.processes, job.process)
    found = measure(job)
    Path(job.result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
