"""Games that evolve: toy programs with a known optimum, and what must always hold."""

import itertools
import time

import numpy as np
import pytest
import toy_problems
from test_greedy import OPTIMA

from jax_malloc import board as board_lib
from jax_malloc import game, validator
from jax_malloc.solvers import evolutionary, games, random
from jax_malloc.solvers.strings import Strings


def latency_of(problem, mapping):
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


@pytest.mark.parametrize(
    "name", ["single_op", "chain", "diamond", "two_outputs", "loop"]
)
def test_finds_the_optimum_of_toy_programs(name):
    problem = toy_problems.problem(name)
    mapping = evolutionary.solve(problem, generations=5)
    assert latency_of(problem, mapping) == pytest.approx(OPTIMA[name])


def test_later_generations_are_valid_and_no_worse():
    problem = toy_problems.random_problem(4, num_ops=20, pressure=3.0)
    first_s, later_s = (
        latency_of(problem, evolutionary.solve(problem, seed=1, generations=n))
        for n in (1, 5)
    )
    assert later_s < first_s < problem.all_slow_latency_s


def test_a_seed_gives_the_same_mapping():
    problem = toy_problems.random_problem(4, num_ops=20, pressure=3.0)
    first, second, other = (
        evolutionary.solve(problem, seed=seed, generations=3) for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("solver", [evolutionary, random])
def test_a_deadline_that_is_over_plays_nothing(solver, monkeypatch):
    monkeypatch.setattr(Strings, "saved", None)  # not called
    problem = toy_problems.problem("diamond")
    assert not solver.solve(problem, deadline_s=time.monotonic()).segments


@pytest.mark.parametrize("solver", [evolutionary, random])
def test_a_deadline_decides_how_many_rounds_there_are(solver, monkeypatch):
    """Of a solver whose clock allows five."""
    problem, deadline_s, played = toy_problems.problem("diamond"), 1e12, []

    def rounds(number, asked_s):
        assert asked_s == deadline_s
        return range(5)

    def saved(self, strings):
        played.append(strings)
        return original(self, strings)

    original = Strings.saved
    monkeypatch.setattr(solver, "rounds", rounds)
    monkeypatch.setattr(Strings, "saved", saved)
    mapping = solver.solve(problem, deadline_s=deadline_s)
    assert len(played) == 5
    assert all((a != b).any() for a, b in itertools.pairwise(played))
    assert latency_of(problem, mapping) < problem.all_slow_latency_s


@pytest.mark.parametrize("seed", range(3))
def test_what_strings_save_is_what_their_mappings_do(seed):
    problem = toy_problems.random_problem(
        seed, num_ops=20, loops=seed == 1, pressure=3.0
    )
    strings = Strings(problem)
    rng = np.random.default_rng(seed)
    shape = (4, strings.num_accesses)
    played = rng.integers(0, game.NUM_ACTIONS, shape, np.int32)
    unit_s = float(board_lib.build(problem).unit_s)
    for actions, saved in zip(played, strings.saved(played), strict=True):
        saved_s = problem.all_slow_latency_s - latency_of(
            problem, strings.mapping(actions)
        )
        assert saved * unit_s == pytest.approx(
            saved_s, abs=2e-5 * problem.all_slow_latency_s
        )


def test_children_change_accesses_and_mix_two_parents():
    rng = np.random.default_rng(0)
    buffers = np.repeat(np.arange(20), 5)
    actions = np.int32([[game.Action.NO_COPY], [game.Action.DROP]])
    parents = np.tile(actions, len(buffers))
    children = evolutionary._children(rng, parents, np.array([1.0, 1.0]), buffers)
    assert children.shape == parents.shape
    assert set(np.unique(children)) <= set(range(game.NUM_ACTIONS))
    assert (children != parents).any()
    # A fitter parent has nearly all the children.
    many = [
        evolutionary._children(rng, parents, np.array([0.0, 1.0]), buffers)
        for _ in range(50)
    ]
    assert np.mean(many) > 1.5


class Clock:
    """Time that passes only when it is told to."""

    now_s = 100.0

    def monotonic(self):
        return self.now_s


def test_rounds_end_before_the_deadline(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(games, "time", clock)
    begun = []
    for i in games.rounds(3, 120.0):
        begun.append(clock.now_s)
        clock.now_s += 10.0 if i == 0 else 4.0  # the first compiles
    # At 118 s another one would take until 122 s.
    assert begun == [100.0, 110.0, 114.0]


@pytest.mark.parametrize(("number", "deadline_s"), [(3, None), (1, None)])
def test_so_many_rounds_without_a_deadline(number, deadline_s):
    assert list(games.rounds(number, deadline_s)) == list(range(number))


def test_there_is_always_a_first_round():
    assert list(games.rounds(5, time.monotonic() - 1)) == [0]
