"""Reasons that hold: every change that an explanation suggests gains what it says."""

import json
import pathlib

import pytest
import toy_problems
from random_mappings import random_mapping
from test_plan import make_plan, weight_plan
from toy_problems import KIB

import jax_malloc
from hwmodel import presets
from jax_malloc import validator
from jax_malloc.explain import Rule
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Mapping, Segment

TESTDATA = pathlib.Path(__file__).parent / "testdata"


def pairs():
    return sorted(p.name.split(".")[0] for p in TESTDATA.glob("*.slow.hlo.gz"))


def golden(name):
    slow = TESTDATA / f"{name}.slow.hlo.gz"
    return jax_malloc.load_program(slow, xla=TESTDATA / f"{name}.xla.hlo.gz")


def assert_reasons_hold(plan, explanation):
    """Each forced mapping is valid, and gains what was predicted within 1 %."""
    for record in explanation.buffers:
        for reason in record.reasons:
            forced = reason.forced
            if forced is None:
                continue
            assert validator.find_violations(plan.problem, forced.mapping) == []
            latency_s = plan.problem.evaluate(forced.mapping).latency_s
            gain_s = plan.latency_s - latency_s
            assert forced.gain_s == pytest.approx(gain_s, rel=0.01, abs=1e-15)
            mine = forced.mapping.segments_of(record.buffer_id)
            assert forced.stay in mine
            assert reason.rule is not Rule.NO_SPACE or reason.blockers


@pytest.mark.parametrize("name", pairs())
def test_the_ten_worst_ops_of_a_compiled_program_have_reasons_that_hold(name):
    program = golden(name)
    # Less than the programs touch, so that something is left outside.
    machine = presets.get("tpu_v5e")
    for mib in (17, 20):
        tight = machine.replace(fast_capacity_bytes=mib * 2**20)
        plan = jax_malloc.solve(program, tight, solver="greedy")
        for row in plan.top(10).rows:
            assert_reasons_hold(plan, plan.explain(row.name))


@pytest.mark.parametrize("seed", range(6))
def test_reasons_hold_in_random_mappings(seed):
    problem = toy_problems.random_problem(seed, num_ops=25, pressure=3.0)
    plan = make_plan(problem, random_mapping(problem, seed))
    forced = 0
    for row in plan.top(10).rows:
        explanation = plan.explain(row.name)
        assert_reasons_hold(plan, explanation)
        forced += explanation.forced is not None
    assert forced


def rules(plan, name):
    return [reason.rule for reason in plan.explain(name).buffers[0].reasons]


def test_no_space_names_the_blockers_and_their_worth():
    """In 10 KiB a (8) leaves no space for b (4): b would save 8 s, a saves 24 s."""
    problem = toy_problems.problem("diamond", toy_problems.toy(fast_kib=10))
    a = problem.program.buffer_index["a", ()]
    stay = Segment(buffer_id=a, offset_bytes=0, begin=0, first=0, end=3)
    plan = make_plan(problem, Mapping((stay,)))
    explanation = plan.explain("b")
    reason = explanation.buffers[0].reasons[0]
    assert reason.rule is explanation.rule is Rule.NO_SPACE
    assert [(x.buffer, x.size_bytes, x.stay) for x in reason.blockers] == [
        ("a", 8 * KIB, stay)
    ]
    assert reason.blockers[0].worth_s == pytest.approx(24.0)
    assert reason.forced.gain_s == pytest.approx(8.0 - 24.0)
    assert plan.problem.evaluate(reason.forced.mapping).latency_s == pytest.approx(
        plan.latency_s + 16.0
    )


def test_what_the_solver_missed_gains_when_forced():
    plan = weight_plan()
    explanation = plan.explain("b")
    assert explanation.rule is Rule.MISSED
    assert explanation.buffers[0].reasons[0].blockers == ()
    assert explanation.forced.gain_s > 0
    better = plan.with_mapping(explanation.forced.mapping)
    assert better.latency_s == plan.latency_s - explanation.forced.gain_s
    assert better.explain("b").rule is Rule.FAST


def test_a_copy_that_hides_behind_nothing_is_no_bandwidth():
    """Op 0 is all traffic: the 4 s that x would save, its prefetch makes it wait."""
    plan = make_plan(toy_problems.problem("single_op"))
    assert rules(plan, "x") == [Rule.NO_BANDWIDTH]
    forced = plan.explain("x").forced
    assert forced.ops_gain_s == pytest.approx(4.0)
    assert forced.gain_s == pytest.approx(0.0, abs=1e-6)
    assert "no copy bandwidth in the window" in " ".join(plan.explain("x").split())


def test_an_output_is_said_to_be_one():
    assert rules(make_plan(toy_problems.problem("single_op")), "y") == [Rule.OUTPUT]


def test_pinned_too_large_and_not_worth_it():
    draft = Draft("stuck")
    x = draft.parameter(KIB, "x", pinned_slow="it is on the host")
    (y,) = draft.op("fusion", [x], [32 * KIB], name="y")
    plan = make_plan(toy_problems.problem(draft.build([y])))
    assert rules(plan, "x") == [Rule.PINNED]
    assert rules(plan, "y") == [Rule.TOO_LARGE]
    assert plan.explain("y").forced is None
    assert rules(weight_plan(), "x") == [Rule.NOT_WORTH]


def test_costs_of_each_access_as_it_is_and_moved():
    """w is fast at b and y: 2 s and 2 s; with 8 KiB to read, 10 s."""
    (record,) = weight_plan().explain("w").buffers
    found = [(a.t, a.op, a.kind, a.moved_bytes, a.is_fast) for a in record.accesses]
    assert found == [(1, "b", "read", 8 * KIB, True), (3, "y", "read", 8 * KIB, True)]
    assert [a.op_s for a in record.accesses] == pytest.approx([2, 2])
    assert [a.op_if_moved_s for a in record.accesses] == pytest.approx([10, 10])
    assert record.saved_s == pytest.approx(16.0)
    assert record.reasons == ()
    assert record.rule is Rule.FAST


def test_an_op_brings_in_the_operands_that_slow_it_down():
    """op b reads a and w; w is a parameter, and by itself the dearest."""
    plan = make_plan(toy_problems.problem("weight_reused"))
    explanation = plan.explain("b")
    assert explanation.startswith("op b (dot), 2 of 4: takes 10 s")
    assert [b.buffer for b in explanation.buffers] == ["b", "w", "a"]


def test_json_has_the_rule_and_the_gain():
    explanation = weight_plan().explain("b")
    body = json.loads(json.dumps(explanation.to_dict()))
    reason = body["buffers"][0]["reasons"][0]
    assert reason["rule"] == Rule.MISSED.value
    assert reason["forced"]["gain_s"] == explanation.forced.gain_s
    assert repr(explanation) == str(explanation)


def test_a_mapping_that_breaks_a_rule_makes_no_plan():
    plan = weight_plan()
    w = plan.mapping.segments[0].buffer_id
    stay = Segment(buffer_id=w, offset_bytes=0, begin=0, first=0, end=1)
    with pytest.raises(ValueError, match=r"breaks the rules \(violations: 1\).*'w'"):
        plan.with_mapping(Mapping((stay,)))
