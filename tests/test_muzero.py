"""The agent as a solver, alone and in the hybrid."""

import time

import numpy as np
import pytest
import toy_problems

from jax_malloc import board as board_lib
from jax_malloc import validator
from jax_malloc.mapping import Mapping
from jax_malloc.solvers import greedy, hybrid, milp, muzero
from jax_malloc.solvers.uses import lives


@pytest.fixture(scope="module")
def problem():
    return toy_problems.random_problem(4, num_ops=30, pressure=3.0)


@pytest.fixture(scope="module")
def proposal(problem):
    return muzero.propose(muzero.pretrained(), problem)


def latency_of(problem, mapping):
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


def test_proposals_are_valid_and_pay(problem, proposal):
    assert len(proposal.mappings) == 2
    for mapping in proposal.mappings:
        assert latency_of(problem, mapping) < problem.all_slow_latency_s


def test_the_guide_speaks_of_every_use(problem, proposal):
    every = lives(problem)
    assert proposal.guide.keys() == every.keys()
    for b, factors in proposal.guide.items():
        assert len(factors) == len(every[b].uses)
        assert all(0 < f <= 1 for f in factors)


def test_changes_never_make_a_game_worse(problem):
    agent = muzero.pretrained()
    games = muzero.play(agent, problem, changes=False)
    searched = muzero.play(agent, problem)
    assert latency_of(problem, searched) <= latency_of(problem, games)


def test_without_a_deadline_a_seed_repeats(problem):
    one, other = (muzero.play(muzero.pretrained(), problem, seed=3) for _ in range(2))
    assert one == other


def test_a_deadline_that_is_over_leaves_everything_in_slow_memory(problem):
    over = time.monotonic() - 1
    assert muzero.solve(problem, deadline_s=over) == Mapping()


def test_the_hybrid_searches_from_what_the_agent_proposes(problem, monkeypatch):
    """The search is given the agent's mappings beside the best of the others."""
    best = hybrid.solve(problem)
    asked = []

    def search(problem, mappings, **options):
        asked.append((mappings, options["guide"]))
        return mappings[-1]

    guide = {b: [1.0] * len(life.uses) for b, life in lives(problem).items()}
    monkeypatch.setattr(
        muzero, "propose", lambda *_, **__: muzero.Proposal([best], guide)
    )
    monkeypatch.setattr(hybrid, "search", search)
    # Not proven to be the optimum, so the agent is asked.
    assert latency_of(problem, best) > milp.lower_bound_s(problem) * 1.01
    assert hybrid.solve(problem) == best
    ((mappings, given),) = asked
    assert len(mappings) == 2
    assert given == guide


def test_no_linear_program_is_begun_that_cannot_end(problem, monkeypatch):
    def solve_and_bound(*args, **kwargs):
        raise AssertionError("linear programming was asked")

    monkeypatch.setattr(milp, "solve_and_bound", solve_and_bound)
    limit_s = time.monotonic() + 0.5 * len(problem.access_op) * 2e-3
    mapping = hybrid.solve(problem, deadline_s=limit_s)
    assert latency_of(problem, mapping) < problem.all_slow_latency_s
    with pytest.raises(AssertionError, match="was asked"):
        hybrid.solve(problem, deadline_s=time.monotonic() + 60)


def test_where_one_search_takes_all_the_time_no_other_part_is_asked(
    problem, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(milp, "solve_and_bound", refuse)
    monkeypatch.setattr(muzero, "propose", refuse)
    one_order = greedy.solve(problem, deadline_s=time.monotonic())
    mapping = hybrid.solve(problem, deadline_s=time.monotonic() + 0.15)
    assert latency_of(problem, mapping) <= latency_of(problem, one_order)
    with pytest.raises(AssertionError, match="asked"):
        hybrid.solve(problem, deadline_s=time.monotonic() + 60)


def test_unpressed_accesses_are_all_wanted():
    """Where everything fits, prices take nothing from what the policy wants."""
    problem = toy_problems.problem(toy_problems.chain())
    proposal = muzero.propose(muzero.pretrained(), problem)
    rows = board_lib.rows(problem)
    made = np.flatnonzero(problem.access_writes[rows.access])
    assert len(made)
    best_s = problem.evaluate(milp.solve(problem)).latency_s
    assert latency_of(problem, proposal.mappings[-1]) == pytest.approx(best_s)
