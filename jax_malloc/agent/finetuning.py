"""Fine-tuning: a few minutes of training on the very program that is to be planned.

The paper trains an agent per program from scratch; here training goes on from the
shipped weights, with the same self-play, replay and updates as `training`.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from jax_malloc.agent import parallel
from jax_malloc.agent.checkpoint import Agent
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.trainer import Trainer, starting_from
from jax_malloc.problem import Problem


def finetune(agent: Agent, problem: Problem, *, seconds: float, seed: int = 0) -> Agent:
    """The agent after `seconds` of training on one problem.

    At least one batch of games is played, however long it takes; a batch is over before
    the clock is looked at again.

    Args:
      agent: to begin with; it is not changed.
      problem: to train on. A problem without decisions gives the agent back.
      seconds: wall-clock, of which compiling a new program size takes some: about 20 on
        one core, a few where JAX has kept it in `JAX_COMPILATION_CACHE_DIR`.
      seed: of games and updates. Repeats only as far as the clock allows.
    """
    config = TrainConfig(
        network=agent.network.config,
        seed=seed,
        num_games=32,
        updates=20,
        batch=256,
        learning_rate=3e-4,
        replay_positions=max(50_000, 64 * len(problem.access_op)),
        demonstrated=(0.25, 0.25),
        reanalysed=1024,
        curriculum=0.0,
    )
    if not problem.eligible[problem.access_buffer].any():
        return agent
    began_s = time.monotonic()
    state = starting_from(agent.params)
    trainer = Trainer(config, agent.network, [problem], state=state)
    while True:
        share = (time.monotonic() - began_s) / max(seconds, 1e-9)
        trainer.iterate(min(share, 1.0))
        if time.monotonic() - began_s >= seconds:
            params = parallel.own_copy(trainer.state.params)
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
                return agent
            return agent._replace(params=params)
