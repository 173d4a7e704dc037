"""What moved between two plans of one program."""

import dataclasses
import json

import pytest
import toy_problems
from random_mappings import random_mapping
from test_explain import golden
from test_plan import make_plan, weight_plan

import jax_malloc
from jax_malloc.mapping import Mapping


def test_what_moved_and_what_it_gained():
    """w is the only buffer that moves: 16 s, one prefetch."""
    after = weight_plan()
    before = make_plan(after.problem, solver="nothing")
    diff = before.diff(after)
    (moved,) = diff.moved
    assert (moved.buffer, str(moved.before), str(moved.after)) == (
        "w",
        "slow",
        "fast 1-4",
    )
    assert diff.gain_s == pytest.approx(16.0)
    assert moved.gain_s == pytest.approx(16.0)
    assert diff.together_s == 0
    text = str(diff)
    assert "nothing -> by hand\n40 s -> 24 s, 40.00% faster (predicted)" in text
    assert "0/0 -> 1/0" in text
    back = after.diff(before)
    assert back.gain_s == -diff.gain_s
    assert "slower" in str(back)


def test_a_plan_is_where_it_is():
    diff = weight_plan().diff(weight_plan())
    assert (diff.moved, diff.gain_s) == ((), 0)
    assert str(diff).endswith("every buffer is at the same place")


def test_another_offset_alone_is_told_apart():
    plan = weight_plan()
    stay = dataclasses.replace(plan.mapping.segments[0], offset_bytes=0)
    diff = plan.diff(plan.with_mapping(Mapping((stay,), plan.mapping.copies)))
    assert [m.offset_only for m in diff.moved] == [True]
    assert "only at another offset: 1 more" in str(diff)


@pytest.mark.parametrize("seed", range(4))
def test_gains_add_up(seed):
    problem = toy_problems.random_problem(seed, num_ops=40, pressure=2.0)
    a, b = (make_plan(problem, random_mapping(problem, s)) for s in (seed, seed + 9))
    diff = a.diff(b)
    total_s = diff.together_s + sum(m.gain_s for m in diff.moved)
    assert total_s == pytest.approx(a.latency_s - b.latency_s)
    assert max(map(len, str(diff).splitlines())) <= 88
    assert json.loads(json.dumps(diff.to_dict()))["gain_s"] == diff.gain_s


def test_plans_of_something_else_are_refused():
    plan = weight_plan()
    with pytest.raises(ValueError, match=r"'weight_reused' with one of 'chain'"):
        plan.diff(make_plan(toy_problems.problem("chain")))
    other = toy_problems.problem("weight_reused", toy_problems.toy(fast_kib=32))
    with pytest.raises(ValueError, match="the machines differ"):
        plan.diff(make_plan(other))


def test_xla_against_ours():
    """The compiler's own mapping is a plan like any other."""
    program = golden("mlp_train")
    xla = jax_malloc.solve(program, solver="xla")
    assert xla.solver == "xla"
    assert "packed anew" in xla.notes[-1]
    assert xla.mapping.segments
    ours = jax_malloc.solve(program, solver="greedy")
    assert xla.diff(ours).gain_s == pytest.approx(xla.latency_s - ours.latency_s)


def test_xla_needs_its_mapping():
    with pytest.raises(ValueError, match=r"'chain' carries no mapping .* xla="):
        jax_malloc.solve(toy_problems.chain(), solver="xla")
