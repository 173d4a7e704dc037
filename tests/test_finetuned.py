"""Plans of an agent that was trained on the very program."""

import jax
import numpy as np
import pytest
import toy_problems

import jax_malloc
from jax_malloc import validator
from jax_malloc.agent import finetuning
from jax_malloc.solvers import finetuned, muzero


@pytest.fixture(scope="module")
def problem():
    return toy_problems.random_problem(4, num_ops=20, pressure=3.0)


def test_finetuning_changes_a_copy_of_the_agent(problem):
    shipped = muzero.pretrained()
    before = jax.tree.map(np.copy, shipped.params)
    tuned = finetuning.finetune(shipped, problem, seconds=0.0)
    jax.tree.map(np.testing.assert_array_equal, before, shipped.params)
    changed = jax.tree.map(lambda a, b: (a != b).any(), before, tuned.params)
    assert any(jax.tree.leaves(changed))
    mapping = muzero.play(tuned, problem)
    assert validator.find_violations(problem, mapping) == []


def test_a_better_mapping_is_not_given_up(problem, monkeypatch):
    monkeypatch.setattr(finetuning, "finetune", lambda agent, *_, **__: agent)
    best = muzero.solve(problem)
    kept = finetuned.improve(problem, best, seed=1, finetune_s=1.0)
    before_s = problem.evaluate(best).latency_s
    assert problem.evaluate(kept).latency_s <= before_s


def test_the_plan_says_what_it_brought(problem, monkeypatch):
    monkeypatch.setattr(finetuning, "finetune", lambda agent, *_, **__: agent)
    plan = jax_malloc.solve(
        problem.program, problem.accelerator, solver="hybrid", finetune_s=1.0
    )
    assert any(note.startswith("Fine-tuning") for note in plan.notes)
    assert plan.wall_s["finetune"] >= 0
    assert plan.latency_s <= plan.baselines["greedy"]


@pytest.mark.parametrize(
    ("solver", "finetune_s", "message"),
    [("greedy", 1.0, "does not ask"), ("hybrid", -1.0, "seconds >= 0")],
)
def test_what_cannot_be_fine_tuned_is_refused(problem, solver, finetune_s, message):
    with pytest.raises(ValueError, match=message):
        jax_malloc.solve(
            problem.program,
            problem.accelerator,
            solver=solver,
            finetune_s=finetune_s,
        )
