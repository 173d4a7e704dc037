"""The ops that lose most."""

import json
import re

import pytest
import toy_problems
from random_mappings import random_mapping
from test_plan import make_plan, weight_plan

from hwmodel.latency import op_latency_s
from jax_malloc.mapping import Mapping
from jax_malloc.top import ORDERS


def test_losses_by_hand():
    """w of 8 KiB is slow at b and y; a and c compute for 10 s anyway."""
    plan = make_plan(toy_problems.problem("weight_reused"))
    top = plan.top(2)
    assert [r.name for r in top.rows] == ["b", "y"]
    assert [r.loss_s for r in top.rows] == pytest.approx([10, 10])
    assert top.rows[0].slow_buffers[0] == "w"
    assert top.rows[0].slow_bytes == 10 * 1024
    lines = str(top).splitlines()
    assert re.sub(" +", " ", lines[0]) == (
        "op takes in fast waits loses share slow bytes"
    )
    assert max(map(len, lines)) <= 88


@pytest.mark.parametrize("seed", range(4))
def test_losses_sum_to_what_all_in_fast_memory_would_save(seed):
    problem = toy_problems.random_problem(seed, num_ops=30, pressure=2.0)
    plan = make_plan(problem, random_mapping(problem, seed))
    fast_s = op_latency_s(problem.latency, 0 * problem.slow_bytes).sum()
    lost_s = sum(r.loss_s for r in plan.top(1000).rows)
    at_end_s = plan.timeline.stall_s[-1]
    assert lost_s == pytest.approx(plan.latency_s - fast_s - at_end_s)


@pytest.mark.parametrize("by", ORDERS)
def test_each_order_is_one(by):
    problem = toy_problems.random_problem(1, num_ops=30, pressure=2.0)
    plan = make_plan(problem, random_mapping(problem, 1))
    field = by if by == "slow_bytes" else f"{by}_s"
    values = [getattr(r, field) for r in plan.top(10, by).rows]
    assert values == sorted(values, reverse=True)
    assert json.loads(json.dumps(plan.top(3, by).to_dict()))["by"] == by


def test_a_figure_that_does_not_exist():
    with pytest.raises(ValueError, match=r"'los'; did you mean 'loss'\? choose"):
        weight_plan().top(by="los")
    with pytest.raises(ValueError, match="n is -1"):
        weight_plan().top(-1)


def test_a_program_without_ops_has_no_worst():
    plan = make_plan(
        toy_problems.problem(toy_problems.Draft("empty").build()), Mapping()
    )
    assert plan.top().rows == ()
    assert "0 ns" in str(plan.top())
