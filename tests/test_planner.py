"""Solving from end to end: what comes out is checked, timed and compared."""

import dataclasses
import gzip
import json
import math
import time

import pytest
import toy_problems

import jax_malloc
from frontends.program import (
    CompilerCopy,
    CompilerMapping,
    CycleEstimate,
    Program,
)
from hwmodel import latency, presets
from jax_malloc import planner, validator
from jax_malloc.mapping import Mapping, Segment
from jax_malloc.solvers import SOLVERS

HLO = """\
HloModule tiny, is_scheduled=true

ENTRY %main (x: f32[256,256]) -> f32[256,256] {
  %x = f32[256,256]{1,0} parameter(0)
  %negate.1 = f32[256,256]{1,0} negate(f32[256,256]{1,0} %x)
  ROOT %exponential.2 = f32[256,256]{1,0} exponential(f32[256,256]{1,0} %negate.1)
}
"""


def only(monkeypatch, solver, name="fake"):
    """Makes `solver` known beside the real ones."""
    monkeypatch.setattr(planner, "SOLVERS", {**SOLVERS, name: solver})


def with_compiler_mapping(program, fast, copies=()) -> Program:
    mapping = CompilerMapping(fast_accesses=frozenset(fast), copies=tuple(copies))
    return dataclasses.replace(program, compiler_mapping=mapping)


@pytest.mark.parametrize("solver", ["all_slow", "greedy"])
@pytest.mark.parametrize("name", toy_problems.PROGRAMS)
def test_every_toy_program_is_planned_without_violations(name, solver):
    problem = toy_problems.problem(name)
    plan = jax_malloc.solve(problem.program, toy_problems.toy(), solver=solver)
    assert validator.find_violations(problem, plan.mapping) == []
    assert plan.latency_s == problem.evaluate(plan.mapping).latency_s
    assert plan.baselines["all_slow"] == problem.all_slow_latency_s
    assert plan.solver == solver


def test_all_slow_is_what_the_drawing_says():
    """Three ops of 4 KiB in and 4 KiB out, at 1 KiB/s."""
    plan = jax_malloc.solve(toy_problems.chain(), toy_problems.toy(), solver="all_slow")
    assert plan.mapping == Mapping()
    assert plan.latency_s == pytest.approx(24.0)
    assert plan.baselines["all_slow"] == pytest.approx(24.0)


def test_greedy_keeps_the_temporaries_of_a_chain():
    """x comes from and y goes to slow memory, 4 s each, and a and b cost nothing."""
    plan = jax_malloc.solve(toy_problems.chain(), toy_problems.toy(), solver="greedy")
    assert plan.latency_s == pytest.approx(8.0)
    assert plan.baselines == pytest.approx({"all_slow": 24.0, "greedy": 8.0})


@pytest.mark.parametrize(
    ("fast", "copies", "latency_s"),
    [
        ([], [], 24.0),
        ([("a", 0), ("a", 1)], [], 16.0),
        # The copy of x hides behind nothing: its 4 s are a stall, not an access.
        ([("x", 0)], [("x", "prefetch", 0, 0)], 24.0),
        # Writing y leaves b's eviction no bandwidth: 4 s to wait at the end.
        ([("b", 1), ("b", 2)], [("b", "evict", 2, 3)], 20.0),
    ],
)
def test_xla_is_timed_by_our_own_evaluator(fast, copies, latency_s):
    program = toy_problems.chain()
    ids = {b.name: i for i, b in enumerate(program.buffers)}
    program = with_compiler_mapping(
        program,
        [(t, ids[name]) for name, t in fast],
        [
            CompilerCopy(
                buffer_id=ids[name],
                direction=direction,
                size_bytes=program.buffers[ids[name]].size_bytes,
                start=start,
                done=done,
            )
            for name, direction, start, done in copies
        ],
    )
    plan = jax_malloc.solve(program, toy_problems.toy(), solver="all_slow")
    assert plan.baselines["xla"] == pytest.approx(latency_s)


@pytest.mark.parametrize("region", [0, 1])
def test_a_copy_of_the_compiler_runs_as_often_as_its_region(region):
    """Before the loop or in each of its ten turns: both begin at the same boundary."""
    program = toy_problems.loop()
    (w,) = (i for i, b in enumerate(program.buffers) if b.name == "w")
    size_bytes, start = program.buffers[w].size_bytes, program.regions[1].start
    copy = CompilerCopy(
        buffer_id=w,
        direction="prefetch",
        size_bytes=size_bytes,
        start=start,
        done=start,
        region=region,
    )
    problem = toy_problems.problem(with_compiler_mapping(program, [], [copy]))
    stall_s = problem.evaluate_compiler().latency_s - problem.all_slow_latency_s
    once_s = latency.copy_s(size_bytes, problem.accelerator)
    assert stall_s == pytest.approx([1, 10][region] * once_s)


def test_a_plan_says_what_share_of_it_the_compiler_did_not_estimate():
    program = toy_problems.chain()
    first = dataclasses.replace(program.ops[0], estimates=(CycleEstimate(8, 4096),))
    program = dataclasses.replace(program, ops=(first, *program.ops[1:]))
    plan = jax_malloc.solve(program, toy_problems.toy(), solver="all_slow")
    share = plan.timeline.op_duration_s[1:].sum() / plan.latency_s
    assert plan.notes == (
        f"{share:.1%} of the latency is of ops that only the roofline times.",
    )


def test_a_plan_says_how_long_its_solvers_took_and_what_the_frontend_assumed():
    program = dataclasses.replace(toy_problems.chain(), notes=("Something assumed.",))
    plan = jax_malloc.solve(program, toy_problems.toy(), solver="all_slow")
    assert list(plan.wall_s) == ["greedy", "all_slow"]
    assert all(0 <= seconds < 60 for seconds in plan.wall_s.values())
    assert plan.notes == ("Something assumed.",)


def test_a_program_without_the_compilers_mapping_has_no_such_baseline():
    plan = jax_malloc.solve(toy_problems.chain(), toy_problems.toy(), solver="all_slow")
    assert set(plan.baselines) == {"all_slow", "greedy"}


def test_an_invalid_mapping_is_never_let_out(monkeypatch):
    def overlapping(problem, *, seed, deadline_s):
        ids = [b.name for b in problem.program.buffers]
        return Mapping(
            segments=tuple(
                Segment(
                    buffer_id=ids.index(name),
                    offset_bytes=0,
                    begin=t,
                    first=t,
                    end=t + 2,
                )
                for name, t in (("a", 0), ("b", 1))
            )
        )

    only(monkeypatch, overlapping)
    with pytest.raises(RuntimeError, match=r"'fake', seed 7.*'chain'.*bug") as error:
        jax_malloc.solve(
            toy_problems.chain(), toy_problems.toy(), solver="fake", seed=7
        )
    assert "'a'" in str(error.value)
    assert "'b'" in str(error.value)


def test_an_unknown_solver_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'gredy'.*all_slow.*greedy.*hybrid"):
        jax_malloc.solve(toy_problems.chain(), solver="gredy")


def test_an_unknown_accelerator_is_a_value_error():
    with pytest.raises(ValueError, match="tpu_v99"):
        jax_malloc.solve(toy_problems.chain(), "tpu_v99", solver="all_slow")


@pytest.mark.parametrize("limit", [-1, -1e-9, math.nan, -math.inf])
def test_a_time_limit_below_zero_or_not_a_number_is_refused(limit):
    with pytest.raises(ValueError, match=r"time_limit_s is .*seconds >= 0"):
        jax_malloc.solve(toy_problems.chain(), solver="all_slow", time_limit_s=limit)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        jax_malloc.solve(toy_problems.chain(), solver="all_slow", seed=-1)


@pytest.mark.parametrize("limit", [None, math.inf])
def test_no_limit_is_no_deadline(monkeypatch, limit):
    deadlines = []
    only(
        monkeypatch,
        lambda p, *, seed, deadline_s: deadlines.append(deadline_s) or Mapping(),
    )
    jax_malloc.solve(
        toy_problems.chain(), toy_problems.toy(), solver="fake", time_limit_s=limit
    )
    assert deadlines == [None]


@pytest.mark.parametrize("limit", [0, 0.0, 100])
def test_the_limit_counts_from_the_call(monkeypatch, limit):
    deadlines = []
    only(
        monkeypatch,
        lambda p, *, seed, deadline_s: deadlines.append(deadline_s) or Mapping(),
    )
    before = time.monotonic()
    jax_malloc.solve(
        toy_problems.chain(), toy_problems.toy(), solver="fake", time_limit_s=limit
    )
    assert before + limit <= deadlines[0] <= time.monotonic() + limit


def test_the_seed_reaches_the_solver_and_the_plan(monkeypatch):
    seeds = []
    only(monkeypatch, lambda p, *, seed, deadline_s: seeds.append(seed) or Mapping())
    plan = jax_malloc.solve(
        toy_problems.chain(), toy_problems.toy(), solver="fake", seed=5
    )
    assert seeds == [5]
    assert plan.seed == 5


def test_without_time_greedy_is_still_found():
    plan = jax_malloc.solve(
        toy_problems.chain(), toy_problems.toy(), solver="greedy", time_limit_s=0
    )
    assert plan.latency_s == pytest.approx(8.0)


def test_an_accelerator_may_be_a_name_a_file_or_itself(tmp_path):
    machine = presets.get("tpu_v5e")
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine.to_dict()))
    program = toy_problems.chain()
    plans = [
        jax_malloc.solve(program, given, solver="all_slow")
        for given in ("tpu_v5e", machine, str(path), path)
    ]
    assert {plan.accelerator for plan in plans} == {machine}


def test_every_solver_in_the_table_can_be_called():
    names = ["all_slow", "random", "evolutionary", "xla_msa", "greedy", "annealing"]
    assert list(SOLVERS) == [*names, "milp", "muzero", "hybrid"]
    assert all(callable(SOLVERS[name]) for name in SOLVERS)
    with pytest.raises(KeyError):
        SOLVERS["gredy"]


@pytest.mark.parametrize("name", ["tiny.hlo", "tiny.txt", "tiny.hlo.gz", "tiny"])
def test_hlo_text_is_known_by_its_contents(tmp_path, name):
    path = tmp_path / name
    data = HLO.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    program = jax_malloc.load_program(path)
    assert [op.name for op in program.ops] == ["negate.1", "exponential.2"]


@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "p.txt", "p"])
def test_a_saved_program_is_known_by_its_contents(tmp_path, name):
    program = toy_problems.diamond()
    program.save(tmp_path / name)
    assert jax_malloc.load_program(tmp_path / name) == program


def test_xla_goes_with_hlo_text_only(tmp_path):
    path = tmp_path / "p.json"
    toy_problems.diamond().save(path)
    with pytest.raises(ValueError, match=r"p\.json is a saved program; xla= goes with"):
        jax_malloc.load_program(path, xla=tmp_path / "other.hlo")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"{}", "a.hlo"),
        (b'{"format": "jax_malloc.plan"}', "a.hlo"),
        (b"{ not json", "a.hlo"),
        (b"", "a.hlo"),
        (b"not HLO at all", "a.hlo"),
        (b"\x1f\x8b\x08 not gzip", "a.hlo"),
        (gzip.compress(b'{"a": 1}' * 1000)[:40], "a.hlo"),
        (b"\xff\xfe\x00binary", "a.hlo"),
    ],
)
def test_a_file_of_another_kind_is_a_value_error_with_its_name(
    tmp_path, contents, message
):
    path = tmp_path / "a.hlo"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        jax_malloc.load_program(path)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        jax_malloc.load_program(tmp_path / "nowhere.hlo")
