"""Improves a plan with an agent that is first trained on the very program."""

from __future__ import annotations

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem


def improve(
    problem: Problem, mapping: Mapping, *, seed: int, finetune_s: float
) -> Mapping:
    """The better of a mapping and of what the fine-tuned agent finds.

    Args:
      mapping: a valid one, to begin with.
      finetune_s: seconds of training; games and changes come on top.
    """
    # Here and not above: only this loads what training needs.
    from jax_malloc.agent import finetuning
    from jax_malloc.solvers import muzero

    tuned = finetuning.finetune(
        muzero.pretrained(), problem, seconds=finetune_s, seed=seed
    )
    played = muzero.play(tuned, problem, seed=seed)
    return min((mapping, played), key=lambda m: problem.evaluate(m).latency_s)
