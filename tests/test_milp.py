"""The bound is below every mapping, and exact where it can be worked out by hand."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
import toy_problems
from random_mappings import random_mapping
from toy_problems import KIB

from jax_malloc import problem as problem_lib
from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Mapping
from jax_malloc.solvers import greedy, hybrid, milp, muzero
from jax_malloc.solvers.linear_program import LinearProgram

MACHINES = {
    "shared queue": {},
    "duplex": {"dma_full_duplex": True},
    "slow dma": {"dma_latency_s": 2e-6, "dma_bandwidth_share": 0.3},
}


def latency_of(problem, mapping):
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return problem.evaluate(mapping).latency_s


def on(problem, **changes):
    return problem_lib.build(problem.program, problem.accelerator.replace(**changes))


# --- linear programs ----------------------------------------------------------------


def test_a_knapsack():
    """Values 5, 4, 3 of weights 4, 3, 2 in 6: the first and last, 8; relaxed, 8.33."""
    program = LinearProgram()
    items = [program.variable(-value, integer=True) for value in (5.0, 4.0, 3.0)]
    program.at_most(list(zip(items, (4.0, 3.0, 2.0), strict=True)), 6.0)
    bound, values = program.minimize(integral=True)
    assert bound == pytest.approx(-8.0)
    assert values.round(6).tolist() == [1, 0, 1]
    assert program.minimize(integral=False)[0] == pytest.approx(-7.0 - 1.25)


def test_rows_of_every_kind():
    program = LinearProgram()
    x, y = program.variable(1.0, high=np.inf), program.variable(high=np.inf)
    program.set_cost(y, 2.0)
    program.at_least([(x, 1.0), (y, 1.0), (y, 1.0)], 6.0)
    program.equal([(x, 1.0), (y, -1.0)], 0.0)
    bound, values = program.minimize(integral=False)
    assert values == pytest.approx([2.0, 2.0])
    assert bound == pytest.approx(6.0)


def test_what_cannot_be_has_no_bound_and_no_values():
    program = LinearProgram()
    program.at_least([(program.variable(1.0), 1.0)], 2.0)
    assert program.minimize(integral=True) == (-np.inf, None)
    assert LinearProgram().minimize(integral=True)[0] == 0.0


# --- the bound ----------------------------------------------------------------------


def wide(**cost):
    """Three buffers of 6 KiB between two ops; two fit in 16 KiB."""
    draft = Draft("wide")
    x = draft.parameter(KIB, "x")
    made = draft.op("fusion", [x], [6 * KIB] * 3, name="make", **cost)
    (y,) = draft.op("fusion", made, [KIB], name="y")
    return draft.build([y])


@pytest.mark.parametrize(
    ("program", "fast_kib", "expected_s"),
    [
        # x is read, y written or stored, a second each: prefetched or not.
        (toy_problems.chain(), 16, 8.0),
        # Two of three 6 KiB buffers; the third is written and read in slow memory.
        (wide(), 16, 1 + 12 + 1),
        # 10 s of arithmetic hide as many bytes of slow memory of that op.
        (wide(matmul_flops=10.0, matmul_dtype="f32"), 16, 17.0),
        # w comes in while op 0 computes: 10 s for 8 KiB, then stays.
        (toy_problems.weight_reused(), 16, 21.0),
    ],
)
def test_bounds_worked_out_by_hand(program, fast_kib, expected_s):
    problem = toy_problems.problem(program, toy_problems.toy(fast_kib=fast_kib))
    best_s = latency_of(problem, hybrid.solve(problem))
    bound_s = milp.lower_bound_s(problem)
    assert bound_s <= best_s * (1 + 1e-9)
    assert best_s == pytest.approx(expected_s)
    assert bound_s == pytest.approx(expected_s, rel=1e-5)


def test_a_result_written_over_its_operand_is_in_the_bound():
    draft = Draft("over")
    x = draft.parameter(KIB, "x")
    (a,) = draft.op("dot", [x], [8 * KIB], name="a")
    (b,) = draft.op("fusion", [a], [8 * KIB], name="b", elementwise=True)
    (y,) = draft.op("fusion", [b], [KIB], name="y")
    program = draft.build([y])
    ops = tuple(dataclasses.replace(op, reuses=()) for op in program.ops)
    plain = dataclasses.replace(program, ops=ops)
    machine = toy_problems.toy(fast_kib=8)
    shared_s, apart_s = (
        milp.lower_bound_s(toy_problems.problem(p, machine)) for p in (program, plain)
    )
    assert shared_s == pytest.approx(2.0, rel=1e-5)
    assert apart_s == pytest.approx(2.0 + 16.0, rel=1e-5)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_mapping_is_below_the_bound(seed, loops, machine):
    problem = toy_problems.random_problem(
        seed, num_ops=30, fast_mib=24, loops=loops, pressure=2.5
    )
    problem = on(problem, **MACHINES[machine])
    relaxed_s = milp.lower_bound_s(problem, time_limit_s=0)
    bound_s = milp.lower_bound_s(problem)
    assert 0 < milp.everything_fast_s(problem) <= relaxed_s <= bound_s * (1 + 1e-9)
    mappings = [greedy.solve(problem), milp.solve(problem), Mapping()]
    mappings += [random_mapping(problem, k) for k in range(5)]
    # What a solver may not place can still save a little, in a mapping made at random.
    for mapping in mappings:
        eligible = all(problem.eligible[s.buffer_id] for s in mapping.segments)
        assert latency_of(problem, mapping) >= bound_s or not eligible


def every_choice(problem):
    """The latency of every choice of whole lives in fast memory, copies for nothing.

    A relaxation by other means: capacity counted op by op, no offsets.
    """
    lives = [
        (b, problem.program.buffers[b].live) for b in np.flatnonzero(problem.eligible)
    ]
    for chosen in itertools.product([False, True], repeat=len(lives)):
        used = np.zeros(len(problem.program.ops))
        fast = np.zeros(len(problem.program.buffers), bool)
        for (b, live), is_fast in zip(lives, chosen, strict=True):
            if is_fast:
                fast[b] = True
                used[live.start : live.end] += problem.size_granules[b]
        if (used <= problem.op_capacity_granules).all():
            slow = np.bincount(
                problem.access_op,
                weights=np.where(fast[problem.access_buffer], 0, problem.access_bytes),
                minlength=len(problem.program.ops),
            )
            model = problem.latency
            roof = model.base_s + model.slope_s_per_byte * slow
            yield np.maximum(model.floor_s, roof).sum()


@pytest.mark.parametrize("seed", range(6))
def test_exact_where_every_buffer_lives_for_two_ops(seed):
    """Random sizes between neighbours: no gaps and no copies, so nothing is relaxed."""
    rng = np.random.default_rng(seed)
    draft = Draft("pairs")
    before = []
    for _ in range(5):
        sizes = [int(n) * KIB for n in rng.integers(1, 8, size=2)]
        before = draft.op("fusion", before, sizes)
    problem = toy_problems.problem(draft.build([]), toy_problems.toy(fast_kib=16))
    expected_s = min(every_choice(problem))
    assert milp.lower_bound_s(problem) == pytest.approx(expected_s, rel=1e-5)


# --- the solver ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_close_to_its_own_bound(seed):
    problem = toy_problems.random_problem(seed, num_ops=50, fast_mib=24, pressure=2.0)
    first, again = milp.solve(problem, seed=1), milp.solve(problem, seed=1)
    assert first == again
    found_s = latency_of(problem, first)
    assert found_s <= problem.all_slow_latency_s
    assert found_s <= 1.15 * milp.lower_bound_s(problem)


def test_a_deadline_that_is_over_and_nothing_to_place():
    problem = toy_problems.random_problem(0, num_ops=30)
    late = time.monotonic() - 1.0
    mapping, bound_s = milp.solve_and_bound(problem, deadline_s=late)
    assert mapping == Mapping()
    assert bound_s == milp.everything_fast_s(problem)
    assert latency_of(problem, milp.solve(problem, deadline_s=late)) > 0
    draft = Draft("scalar")
    x = draft.parameter(4, "x", pinned_slow="is a scalar")
    draft.op("neg", [x])
    nothing = toy_problems.problem(draft.build([]))
    assert milp.solve(nothing) == Mapping()
    assert milp.lower_bound_s(nothing) == pytest.approx(nothing.all_slow_latency_s)


def test_a_program_too_long_for_a_model_has_a_bound_all_the_same(monkeypatch):
    problem = toy_problems.random_problem(1, num_ops=30)
    monkeypatch.setattr(milp, "_LONGEST_SPANS", 10)
    assert milp.lower_bound_s(problem) == milp.everything_fast_s(problem)
    assert milp.solve_and_bound(problem)[0] == Mapping()


def test_a_proven_optimum_needs_no_agent(monkeypatch):
    problem = toy_problems.problem("chain")

    def propose(*args, **kwargs):
        raise AssertionError("the agent was asked")

    monkeypatch.setattr(muzero, "propose", propose)
    found_s = latency_of(problem, hybrid.solve(problem))
    assert found_s <= milp.lower_bound_s(problem) * (1 + 1e-4)


@pytest.mark.parametrize("machine", MACHINES)
def test_an_op_that_touches_nothing_of_its_operands(machine):
    """As a slice of no elements does: the buffers live, and no byte of them moves."""
    program = toy_problems.chain()
    t = len(program.ops) // 2
    op = program.ops[t]
    untouched = dataclasses.replace(
        op,
        reads=tuple(dataclasses.replace(a, touched_bytes=0) for a in op.reads),
        writes=tuple(dataclasses.replace(a, touched_bytes=0) for a in op.writes),
    )
    ops = (*program.ops[:t], untouched, *program.ops[t + 1 :])
    accelerator = toy_problems.toy().replace(**MACHINES[machine])
    problem = problem_lib.build(dataclasses.replace(program, ops=ops), accelerator)
    bound_s = milp.lower_bound_s(problem)
    assert 0 < bound_s <= latency_of(problem, greedy.solve(problem)) * (1 + 1e-9)
    assert bound_s <= latency_of(problem, hybrid.solve(problem)) * (1 + 1e-9)
