"""What a person holds: figures, tables, explanations, files."""

import dataclasses
import gzip
import os
import re
import stat

import jax
import jax.numpy as jnp
import pytest
import toy_problems
from random_mappings import random_mapping
from toy_problems import KIB

import jax_malloc
from frontends import hlo, stablehlo
from jax_malloc import problem as problem_lib
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.plan import Plan

HLO = """\
HloModule tiny, is_scheduled=true

ENTRY %main (x: f32[256,256]) -> f32[256,256] {
  %x = f32[256,256]{1,0} parameter(0)
  %negate.1 = f32[256,256]{1,0} negate(f32[256,256]{1,0} %x)
  ROOT %exponential.2 = f32[256,256]{1,0} exponential(f32[256,256]{1,0} %negate.1)
}
"""


def make_plan(problem, mapping=None, **fields):
    mapping = Mapping() if mapping is None else mapping
    timeline = problem.evaluate(mapping)
    return Plan(
        **{
            "program": problem.program,
            "accelerator": problem.accelerator,
            "mapping": mapping,
            "solver": "by hand",
            "seed": 3,
            "latency_s": timeline.latency_s,
            "baselines": {"all_slow": problem.all_slow_latency_s},
            "timeline": timeline,
            **fields,
        }
    )


def weight_plan(**fields):
    """w is prefetched beside the first op's compute, and read twice."""
    problem = toy_problems.problem("weight_reused")
    w = problem.program.buffer_index["w", ()]
    mapping = Mapping(
        (Segment(buffer_id=w, offset_bytes=8 * KIB, begin=0, first=1, end=4),),
        (
            Copy(
                buffer_id=w,
                direction=Direction.PREFETCH,
                size_bytes=8 * KIB,
                start=0,
                done=1,
            ),
        ),
    )
    return make_plan(problem, mapping, **fields)


def test_speedups_are_over_the_baselines():
    """All slow: 10 + 10 + 10 + 10 s, of which w is 16 s, and its copy hides in 8 s."""
    plan = weight_plan(baselines={"all_slow": 40.0, "greedy": 30.0})
    assert plan.latency_s == pytest.approx(24.0)
    assert plan.speedup == pytest.approx(40 / 24)
    assert plan.speedup_over("greedy") == pytest.approx(30 / 24)
    with pytest.raises(ValueError, match=r"no baseline 'xla'; it has all_slow, greedy"):
        plan.speedup_over("xla")


def test_a_program_without_ops_is_not_sped_up():
    plan = make_plan(toy_problems.problem(Draft("empty").build()))
    assert (plan.latency_s, plan.speedup) == (0.0, 1.0)
    assert "every buffer is in slow memory" in str(plan)


def test_the_summary_says_predicted_and_against_what():
    text = weight_plan(baselines={"all_slow": 40.0, "xla": 30.0}, notes=("Rough.",))
    assert text.summary().splitlines() == [
        "plan of 'weight_reused' for toy by by hand (seed 3)",
        "predicted latency 24 s",
        "   1.667x over all_slow, 40 s (predicted)",
        "   1.250x over xla, 30 s (predicted)",
        "fast memory: at most 8.0 KiB of 16.0 KiB taken, by 1 of 6 buffers",
        "copies: 1, 8.0 KiB; ops wait 0 ns for them",
        "note: Rough.",
    ]


def test_the_table_says_where_and_what_it_saves():
    lines = str(weight_plan()).splitlines()
    (row,) = [line for line in lines if line.startswith("w ")]
    assert re.fullmatch(r"w +8\.0 KiB +0-4 +8\.0 KiB +1-4 +in 0-1 +16 s", row)
    assert max(map(len, lines)) <= 88


@pytest.mark.parametrize("seed", range(4))
def test_a_large_table_shows_what_saves_most(seed):
    problem = toy_problems.random_problem(seed, num_ops=60)
    plan = make_plan(problem, random_mapping(problem, seed))
    text = str(plan)
    placed = {s.buffer_id for s in plan.mapping.segments}
    rows = text.split("─\n", 1)[1].splitlines()
    shown = [line for line in rows if re.match(r"\S+ +[\d.]+ [KM]iB", line)]
    assert len(shown) == min(20, len(placed))
    assert max(map(len, text.splitlines())) <= 88
    if len(placed) > 20:
        assert f"and {len(placed) - 20} more buffers" in text


def test_the_repr_is_one_line():
    assert repr(weight_plan()) == (
        "<Plan of 'weight_reused' for toy by by hand: 24 s predicted>"
    )


# --- explain ------------------------------------------------------------------------


def test_explain_tells_accesses_and_saving():
    text = weight_plan().explain("w")
    assert text.startswith("w: 8.0 KiB, parameter, live over ops [0, 4)")
    assert "in fast memory from op b to y, at offset 8192" in text
    assert "prefetch between boundaries 0 and 1; ops wait 0 ns" in text
    # Op 1 moves a and b, 2 KiB, and as planned no w.
    assert re.search(r"1 b +read +8\.0 KiB +fast +2 s +10 s", text)
    assert "together save 16 s (predicted)" in text
    assert "slow memory would" not in text


def test_explain_names_what_is_in_the_way():
    """In 10 KiB there is no space for a (8) and b (4) at once."""
    problem = toy_problems.problem("diamond", toy_problems.toy(fast_kib=10))
    a = problem.program.buffer_index["a", ()]
    stay = Segment(buffer_id=a, offset_bytes=0, begin=0, first=0, end=3)
    plan = make_plan(problem, Mapping((stay,)))
    text = " ".join(plan.explain("b").split())
    assert "would save up to 8 s" in text
    assert "no space for it at op b" in text
    assert "make room: a (8.0 KiB, saves its ops 24 s)." in text


def test_explain_says_when_there_is_space():
    text = " ".join(weight_plan().explain("b").split())
    assert "There is space at op b; by hand left it where it is." in text
    text = " ".join(weight_plan().explain("x").split())
    assert "not worth a place: in fast memory they would save 0 ns" in text


def test_explain_prices_the_copy_of_an_output():
    text = " ".join(make_plan(toy_problems.problem("single_op")).explain("y").split())
    assert "but a copy takes 4 s" not in text  # as much as it would save
    assert "It is an output" in text
    assert "a copy of 4 s" in text


def test_explain_says_what_is_pinned_and_what_does_not_fit():
    draft = Draft("stuck")
    x = draft.parameter(KIB, "x", pinned_slow="it is on the host")
    (y,) = draft.op("fusion", [x], [32 * KIB], name="y")
    plan = make_plan(toy_problems.problem(draft.build([y])))
    assert "must stay in slow memory: it is on the host." in plan.explain("x")
    assert "does not fit: fast memory has 16.0 KiB" in plan.explain("y")


def test_explain_takes_names_labels_aliases_and_ops():
    plan = make_plan(toy_problems.problem("two_outputs"))
    assert plan.explain("a{1}").startswith("a{1}: 2.0 KiB")
    both = plan.explain("a")
    assert "a{0}: 4.0 KiB" in both
    assert "a{1}: 2.0 KiB" in both
    plan = make_plan(toy_problems.problem("cache_update"))
    touched = plan.explain("update")
    assert "row: 1.0 KiB" in touched
    assert "cache: 8.0 KiB" in touched
    assert "update" in touched
    with pytest.raises(ValueError, match=r"no buffer and no op 'cash'; .* 'cache'\?"):
        plan.explain("cash")


@pytest.mark.parametrize("seed", range(6))
def test_explain_has_an_answer_for_every_buffer(seed):
    problem = toy_problems.random_problem(seed, num_ops=25, pressure=3.0)
    plan = make_plan(problem, random_mapping(problem, seed))
    for buffer in problem.program.buffers:
        text = plan.explain(buffer.label)
        assert "predicted" in text or "slow memory" in text or "does not fit" in text
        assert max(map(len, text.splitlines())) <= 88


# --- text ---------------------------------------------------------------------------


def test_annotated_writes_placements_into_the_text():
    program = hlo.from_text(HLO)
    problem = problem_lib.build(program, toy_problems.toy(fast_kib=512))
    b = program.buffer_index["negate.1", ()]
    stay = Segment(buffer_id=b, offset_bytes=0, begin=0, first=0, end=2)
    text = make_plan(problem, Mapping((stay,))).annotated()
    lines = {line.split(" = ")[0].split("%")[-1]: line for line in text.splitlines()}
    assert '"fast:offset=0,first=negate.1,last=exponential.2"' in lines["negate.1"]
    assert '"slow"' in lines["exponential.2"]
    assert hlo.from_text(text) == program


def test_annotated_stablehlo_says_it_at_every_op():
    f = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w)
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = stablehlo.from_jax(f, shape, shape)
    problem = problem_lib.build(program, toy_problems.toy(fast_kib=512))
    b = program.ops[0].writes[0].buffer_id
    end = program.buffers[b].live.end
    stay = Segment(buffer_id=b, offset_bytes=KIB, begin=0, first=0, end=end)
    text = make_plan(problem, Mapping((stay,))).annotated()
    label = program.buffers[b].label
    dots = [line for line in text.splitlines() if "stablehlo.dot_general " in line]
    assert len(dots) == 2
    assert all(f"{label}=fast:offset=1024" in line for line in dots)
    assert "=slow" in text


def test_annotated_needs_a_text():
    with pytest.raises(ValueError, match=r"'weight_reused' .* Load the plan with prog"):
        weight_plan().annotated()
    program = dataclasses.replace(hlo.from_text(HLO), text="")
    problem = problem_lib.build(program, toy_problems.toy())
    with pytest.raises(ValueError, match="without the StableHLO or HLO text"):
        make_plan(problem).annotated()


# --- files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plan.json", "plan.json.gz"])
def test_a_saved_plan_comes_back(tmp_path, name):
    plan = weight_plan(notes=("Rough.",), wall_s={"by hand": 60.0})
    plan.save(tmp_path / name)
    loaded = jax_malloc.load_plan(tmp_path / name)
    assert loaded.to_json() == plan.to_json()
    assert str(loaded) == str(plan)
    assert loaded.timeline.latency_s == plan.timeline.latency_s
    assert loaded.explain("w") == plan.explain("w")


def test_a_plan_loaded_with_its_program_has_the_text(tmp_path):
    program = hlo.from_text(HLO)
    plan = make_plan(problem_lib.build(program, toy_problems.toy()))
    plan.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="without the StableHLO or HLO text"):
        jax_malloc.load_plan(tmp_path / "plan.json").annotated()
    loaded = jax_malloc.load_plan(tmp_path / "plan.json", program)
    assert loaded.annotated() == plan.annotated()


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    weight_plan().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        weight_plan(seed=4).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_saved_plan_has_an_ordinary_files_mode(tmp_path):
    weight_plan().save(tmp_path / "plan.json")
    (tmp_path / "other").write_text("")
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"{}" * 99)[:20], b"\xff\xfe\x00", b'{"format": "jax_malloc.pl'],
    ids=["gzip cut off", "not text", "json cut off"],
)
def test_a_damaged_file_is_named(tmp_path, data):
    path = tmp_path / "damaged.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.json: .* again"):
        jax_malloc.load_plan(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        jax_malloc.load_plan(tmp_path / "none.json")
