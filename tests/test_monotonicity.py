"""A better machine never makes the best plan worse: a plan stays valid, no slower."""

import dataclasses

import pytest
import toy_problems

from jax_malloc import validator
from jax_malloc.solvers import greedy

_BETTER = {
    "twice the fast memory": ("fast_capacity_bytes", 2),
    "twice the slow bandwidth": ("slow_bandwidth_bytes_per_s", 2),
    "a tenth more of it": ("slow_bandwidth_bytes_per_s", 1.1),
}


@pytest.mark.parametrize("what", _BETTER)
@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_no_worse_on_a_better_machine(seed, what):
    drawn = toy_problems.random_problem(seed, num_ops=20 + 5 * seed)
    # Roofline only: a compiler's cycle estimates hold for the machine they are for.
    ops = tuple(dataclasses.replace(op, estimates=()) for op in drawn.program.ops)
    program = dataclasses.replace(drawn.program, ops=ops)
    small = toy_problems.problem(program, drawn.accelerator)
    field, factor = _BETTER[what]
    memory, _, name = field.partition("_")
    value = type(getattr(getattr(small.accelerator, memory), name))(
        factor * getattr(getattr(small.accelerator, memory), name)
    )
    better = toy_problems.problem(program, small.accelerator.replace(**{field: value}))
    mapping = greedy.solve(small)
    assert mapping.segments
    assert validator.find_violations(better, mapping) == []
    assert better.evaluate(mapping).latency_s <= small.evaluate(mapping).latency_s * (
        1 + 1e-9
    )
