"""Toy programs with a known optimum, and what must hold for every program."""

import time

import pytest
import toy_problems

from jax_malloc import validator
from jax_malloc.solvers import greedy


def latency_of(problem, **options):
    mapping = greedy.solve(problem, **options)
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


# Seconds on the toy machine, worked by hand: the optimum with 16 KiB of fast memory.
OPTIMA = {
    # x is read and y written by an op that computes nothing: no time to hide a copy.
    "single_op": 8,
    # a and b never leave fast memory; 4 s each for x and y.
    "chain": 8,
    # a, b and c fill the 16 KiB at op 2; 2 s each for x and y.
    "diamond": 4,
    # w comes in beside op 0, 10 s of compute; so do the 10 s of op 2; y takes 1 s.
    "weight_reused": 21,
    # x and the one written row, 1 s each, then cache and y, 9 s; a copy of the cache
    # would take 8 s that nothing hides.
    "cache_update": 11,
    # x and y 2 s each, 4 s of waiting for w instead of 4 s in each of 10 iterations.
    "loop": 8,
    # x 4 s, the two outputs 2 s each.
    "two_outputs": 8,
}


@pytest.mark.parametrize("name", OPTIMA)
def test_finds_the_optimum_of_toy_programs(name):
    assert latency_of(toy_problems.problem(name)) == pytest.approx(OPTIMA[name])


def test_memory_for_two_of_three():
    """In 12 KiB of the diamond one of b and c stays out: 4 s to write it, 4 to read."""
    problem = toy_problems.problem("diamond", toy_problems.toy(fast_kib=12))
    assert latency_of(problem) == pytest.approx(4 + 8)


def test_what_cannot_gain_stays_in_slow_memory():
    problem = toy_problems.problem("single_op")
    assert not greedy.solve(problem).segments


@pytest.mark.parametrize("name", sorted(toy_problems.PROGRAMS))
def test_more_memory_is_never_worse_on_toys(name):
    latencies = [
        latency_of(toy_problems.problem(name, toy_problems.toy(fast_kib=kib)))
        for kib in (2, 4, 6, 8, 10, 12, 14, 16, 20, 32)
    ]
    assert latencies == sorted(latencies, reverse=True)


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_valid_and_never_slower_than_all_slow(seed, loops):
    problem = toy_problems.random_problem(
        seed,
        num_ops=50,
        fast_mib=(16, 64)[seed % 2],
        loops=loops,
        pressure=3.0,
        max_in_flight=(None, 3)[seed % 2],
    )
    assert latency_of(problem) <= problem.all_slow_latency_s


def test_the_seed_does_not_matter():
    problem = toy_problems.random_problem(3, num_ops=40, pressure=3.0)
    assert greedy.solve(problem, seed=0) == greedy.solve(problem, seed=1)


def test_a_deadline_that_is_over_leaves_the_first_order():
    problem = toy_problems.random_problem(1, num_ops=300, training=True, pressure=3.0)
    begin = time.process_time()
    whole_s = latency_of(problem)
    middle = time.process_time()
    first_s = latency_of(problem, deadline_s=time.monotonic())
    end = time.process_time()
    assert whole_s <= first_s < problem.all_slow_latency_s
    assert end - middle < 0.7 * (middle - begin)
