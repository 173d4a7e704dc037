"""Toy programs with a known optimum, a trap for greedy, and what must always hold."""

import itertools
import time

import pytest
import toy_problems
from test_greedy import OPTIMA
from toy_problems import KIB

from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.solvers import annealing, greedy, ruin_recreate
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.ruin_recreate import RuinRecreate
from jax_malloc.solvers.worth import Worth


def latency_of(problem, mapping):
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


def knapsack():
    """Three buffers of one lifetime in 10 KiB: large alone, or both the small ones.

    op     0    1
           make y
    x      =             1 KiB, parameter
    large  W----=        6 KiB: saves 12 s
    left   W----=        5 KiB, of which 4.5 KiB are read: saves 9.5 s
    right  W----=        5 KiB, of which 4.5 KiB are read: saves 9.5 s
    y           W        1 KiB, output
    """
    draft = Draft("knapsack")
    x = draft.parameter(KIB, "x")
    large, left, right = draft.op(
        "fusion", [x], [6 * KIB, 5 * KIB, 5 * KIB], name="make"
    )
    part = KIB * 9 // 2
    reads = [large, (left, part), (right, part)]
    (y,) = draft.op("fusion", reads, [KIB], name="y")
    return toy_problems.problem(draft.build([y]), toy_problems.toy(fast_kib=10))


@pytest.mark.parametrize("name", OPTIMA)
def test_finds_the_optimum_of_toy_programs(name):
    problem = toy_problems.problem(name)
    mapping = annealing.solve(problem, steps=20)
    assert latency_of(problem, mapping) == pytest.approx(OPTIMA[name])


def test_two_small_buffers_for_a_large_one():
    """1 s each for x and y, and 12 s for `large`."""
    problem = knapsack()
    mapping = annealing.solve(problem, steps=50)
    assert latency_of(problem, mapping) == pytest.approx(1 + 1 + 12)


@pytest.mark.parametrize("seed", range(6))
def test_valid_and_never_slower_than_greedy(seed):
    problem = toy_problems.random_problem(
        seed,
        num_ops=50,
        loops=bool(seed % 2),
        pressure=3.0,
        max_in_flight=(None, 3)[seed % 2],
    )
    found_s = latency_of(problem, annealing.solve(problem, seed=seed, steps=30))
    assert found_s <= latency_of(problem, greedy.solve(problem))


def test_a_seed_gives_the_same_mapping():
    problem = toy_problems.random_problem(3, num_ops=60, pressure=4.0)
    first, second, other = (
        annealing.solve(problem, seed=seed, steps=60) for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_without_steps_or_deadline_it_ends(monkeypatch):
    monkeypatch.setattr(annealing, "_MAX_STEPS", 5)
    monkeypatch.setattr(annealing, "_MIN_STEPS", 5)
    problem = toy_problems.problem("diamond")
    mapping = annealing.solve(problem)
    assert latency_of(problem, mapping) == pytest.approx(OPTIMA["diamond"])


def test_a_deadline_that_is_over_leaves_greedy(monkeypatch):
    monkeypatch.setattr(ruin_recreate.RuinRecreate, "run", None)  # not called
    problem = toy_problems.random_problem(2, num_ops=40, pressure=3.0)
    over_s = time.monotonic()
    mapping = annealing.solve(problem, deadline_s=over_s)
    assert mapping == greedy.solve(problem, deadline_s=over_s)


def test_a_deadline_ends_the_search():
    problem = toy_problems.random_problem(2, num_ops=40, pressure=3.0)
    deadline_s = time.monotonic() + 0.5
    mapping = annealing.solve(problem, deadline_s=deadline_s)
    assert time.monotonic() >= deadline_s
    assert latency_of(problem, mapping) <= latency_of(problem, greedy.solve(problem))


@pytest.fixture
def search():
    """A search from nothing on the knapsack, and its allocation."""
    allocation = Allocation(knapsack())
    return RuinRecreate(allocation, Worth(allocation.problem, allocation.lives), 0)


def test_a_hot_search_still_ends_at_its_best(search):
    """At such a temperature every step is accepted, so the last is rarely the best."""
    allocation, met_s = search._allocation, []
    shares = []

    def temperature_s(share):
        shares.append(share)
        met_s.append(allocation.latency_s)
        return 1e6

    search.run(40, None, temperature_s=temperature_s)
    assert shares == [step / 40 for step in range(40)]
    assert any(after > before for before, after in itertools.pairwise(met_s))
    assert allocation.latency_s <= min(met_s)


def test_a_search_without_temperature_only_goes_down(search):
    allocation, met_s = search._allocation, []

    def temperature_s(share):
        met_s.append(allocation.latency_s)
        return 0.0

    search.run(40, None, temperature_s=temperature_s)
    assert met_s == sorted(met_s, reverse=True)
