"""The version-1 file: names in and out, and every kind of damage told apart."""

import json

import pytest
import toy_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mappings import random_mapping
from toy_problems import KIB

from frontends.program import Program
from jax_malloc import placements, plan_file
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.plan import Plan


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


def loop_plan():
    """w prefetched for a loop, the state fast before, in and after it, y evicted."""
    problem = toy_problems.problem("loop")
    ids = {b.name: i for i, b in enumerate(problem.program.buffers)}

    def segment(name, offset_kib, begin, first, end):
        return Segment(
            buffer_id=ids[name],
            offset_bytes=offset_kib * KIB,
            begin=begin,
            first=first,
            end=end,
        )

    def copy(name, direction, size_kib, start, done):
        return Copy(
            buffer_id=ids[name],
            direction=direction,
            size_bytes=size_kib * KIB,
            start=start,
            done=done,
        )

    mapping = Mapping(
        segments=(
            segment("w", 0, 0, 1, 4),
            segment("init", 4, 0, 0, 5),
            segment("h", 6, 1, 1, 3),
            segment("y", 8, 4, 4, 5),
        ),
        copies=(
            copy("w", Direction.PREFETCH, 4, 0, 1),
            copy("y", Direction.EVICT, 2, 5, 5),
        ),
    )
    return make_plan(problem, mapping)


def as_sets(mapping):
    return set(mapping.segments), set(mapping.copies)


def test_the_file_says_what_the_design_says():
    body = json.loads(loop_plan().to_json())
    assert body["format"] == "jax_malloc.plan"
    assert body["version"] == 1
    assert (body["solver"], body["seed"]) == ("by hand", 3)
    assert body["program"]["name"] == "loop"
    assert body["program"]["fingerprint"] == toy_problems.loop().fingerprint
    assert body["accelerator"] == toy_problems.toy().to_dict()
    assert body["baselines"] == pytest.approx({"all_slow": 128.0})
    # Outside of its loop, "while" stands for all of it; inside, ops have their names.
    stays = {b["name"]: b["segments"] for b in body["buffers"]}
    assert stays.pop("x") == []
    assert stays == {
        name: [{"space": "fast", "offset_bytes": offset, "first": first, "last": last}]
        for name, offset, first, last in [
            ("w", 0, "while", "while"),
            ("init", 4 * KIB, "init", "y"),
            ("h", 6 * KIB, "h", "new"),
            ("y", 8 * KIB, "y", "y"),
        ]
    }
    assert {b["name"]: b["size_bytes"] for b in body["buffers"]}["w"] == 4 * KIB
    assert body["copies"] == [
        {
            "buffer": "w",
            "index": [],
            "direction": "prefetch",
            "bytes": 4 * KIB,
            "start_after": None,
            "done_before": "while",
        },
        {
            "buffer": "y",
            "index": [],
            "direction": "evict",
            "bytes": 2 * KIB,
            "start_after": "y",
            "done_before": None,
        },
    ]


def test_a_plan_by_hand_comes_back():
    plan = loop_plan()
    fields = plan_file.decode(plan.to_json())
    assert as_sets(fields["mapping"]) == as_sets(plan.mapping)
    assert fields["program"] == plan.program
    assert fields["accelerator"] == plan.accelerator


@pytest.mark.parametrize("seed", range(25))
def test_random_mappings_come_back(seed):
    problem = toy_problems.random_problem(seed, num_ops=30)
    mapping = random_mapping(problem, seed)
    plan = make_plan(problem, mapping, notes=("A note.",), wall_s={"by hand": 0.5})
    fields = plan_file.decode(plan.to_json())
    assert as_sets(fields["mapping"]) == as_sets(mapping)
    assert fields["program"] == problem.program
    names = ("solver", "seed", "latency_s", "baselines", "notes", "wall_s")
    assert {name: fields[name] for name in names} == {
        name: getattr(plan, name) for name in names
    }


def test_indices_of_tuples_are_kept():
    problem = toy_problems.problem("two_outputs")
    b = problem.program.buffer_index["a", (0,)]
    mapping = Mapping((Segment(buffer_id=b, offset_bytes=0, begin=0, first=0, end=2),))
    text = make_plan(problem, mapping).to_json()
    assert json.loads(text)["buffers"][1]["index"] == [0]
    assert plan_file.decode(text)["mapping"] == mapping


def edited(edit, plan=None):
    """The text of a plan, or of `loop_plan`, after `edit(body)`."""
    body = json.loads((plan or loop_plan()).to_json())
    edit(body)
    return json.dumps(body)


def test_one_stay_in_two_pieces_is_joined():
    """An update in place may be listed under a name of its own; slow segments do not
    count, nor do extra fields."""

    def split(body):
        (stay,) = body["buffers"][2]["segments"]
        assert body["buffers"][2]["name"] == "init"
        body["buffers"][2]["segments"] = [
            {**stay, "first": "y"},
            {**stay, "last": "while", "comment": "from the loop's result on"},
            {"space": "slow", "first": "init", "last": "init"},
        ]

    fields = plan_file.decode(edited(split))
    assert as_sets(fields["mapping"]) == as_sets(loop_plan().mapping)


def test_buffers_in_slow_memory_may_be_left_out():
    def leave_out(body):
        body["buffers"] = [b for b in body["buffers"] if b["segments"]]

    fields = plan_file.decode(edited(leave_out))
    assert as_sets(fields["mapping"]) == as_sets(loop_plan().mapping)


def test_the_program_given_must_be_the_one_planned():
    text = loop_plan().to_json()
    program = toy_problems.loop()
    assert plan_file.decode(text, program=program)["program"] is program
    with pytest.raises(ValueError, match=r"plan for program 'loop' .* 'chain' has"):
        plan_file.decode(text, program=toy_problems.chain())


def test_a_file_without_the_program_needs_it():
    text = edited(lambda body: body["program"].pop("data"))
    with pytest.raises(ValueError, match=r"'loop'; pass that as program="):
        plan_file.decode(text)
    fields = plan_file.decode(text, program=toy_problems.loop())
    assert as_sets(fields["mapping"]) == as_sets(loop_plan().mapping)


def set_in(*path, value):
    def edit(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return edit


SEGMENT = ("buffers", 2, "segments", 0)  # of init
DAMAGES = [
    (set_in("format", value="x"), "format is 'x', expected 'jax_malloc.plan'"),
    (set_in("version", value=2), "plan version 2, this package reads version 1"),
    (set_in("program", "fingerprint", value="0"), "fingerprint .* was changed"),
    (set_in("program", "data", "ops", value=[]), "my.json: .*program 'loop'"),
    (set_in("accelerator", "speed", value=1), "my.json: accelerator.*'speed'"),
    (set_in("buffers", value=None), "'buffers' of the plan is None, expected a list"),
    (set_in("buffers", 0, value=[]), r"entry of 'buffers' is \[\], expected an object"),
    (set_in("buffers", 2, "name", value="inti"), "no buffer 'inti'; .* 'init'?"),
    (set_in("buffers", 2, "index", value=[0]), r"no buffer 'init\{0\}'; .* 'init'?"),
    (set_in("buffers", 2, "index", value=["0"]), "expected a whole number"),
    (set_in("buffers", 2, "size_bytes", value=1), "'init' has 1 bytes .* 2048 in the"),
    (set_in(*SEGMENT, "space", value="vmem"), "'vmem', expected 'fast' or 'slow'"),
    (set_in(*SEGMENT, "first", value="innit"), "'first' .* 'innit'; .* 'init'?"),
    (set_in(*SEGMENT, "last", value=None), "'last' of a segment of 'init' is None"),
    (set_in(*SEGMENT, "offset_bytes", value=1.5), "1.5, expected a whole number"),
    (set_in(*SEGMENT, "offset_bytes", value=True), "True, expected a whole number"),
    (set_in(*SEGMENT, "offset_bytes", value=13320), "violations: 1.* 13320"),
    (
        set_in(*SEGMENT, "first", value="y"),
        "segment of 'init' from op 'y' holds neither",
    ),
    (set_in(*SEGMENT, "offset_bytes", value=2**70), "violations: 1.* ends at byte"),
    (set_in("copies", 0, "direction", value="in"), "'in', expected 'prefetch' or"),
    (set_in("copies", 0, "bytes", value=1), "violations: 1.* 1 bytes"),
    (set_in("copies", 0, "done_before", value="hh"), "'done_before' .* 'hh'"),
    (set_in("copies", value=[]), "violations: 2.* 'w' .* prefetch"),
    (set_in("latency_s", value=-1), "'latency_s' of the plan is -1, expected seconds"),
    (set_in("latency_s", value="1"), "'latency_s' of the plan is '1'"),
    (set_in("baselines", "all_slow", value=None), "'all_slow' of 'baselines' is None"),
    (set_in("notes", value="none"), "'notes' of the plan is 'none', expected a list"),
    (set_in("seed", value=None), "'seed' of the plan is None"),
]


@pytest.mark.parametrize(("edit", "match"), DAMAGES, ids=[m for _, m in DAMAGES])
def test_damage_is_named(edit, match):
    with pytest.raises(ValueError, match=match) as error:
        plan_file.decode(edited(edit), where="my.json")
    assert str(error.value).startswith("my.json: ")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON, or cut off"),
        ("[" * 100_000, "not JSON, or cut off"),
        (loop_plan().to_json()[:-20], "not JSON, or cut off"),
        ("[1, 2]", r"the file is \[1, 2\], expected an object"),
        ("{}", "format is None"),
    ],
    ids=["empty", "deep", "cut off", "a list", "no fields"],
)
def test_texts_that_are_no_plan(text, match):
    with pytest.raises(ValueError, match=match):
        plan_file.decode(text)


LEAVES = st.sampled_from(
    [None, True, -1, 0, 1, 2**70, 1.5, "", "while", "init", "y", [], {}, [[]], [0]]
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_is_read_or_refused_with_a_value_error(data):
    """Follows a random path into the file and replaces or removes what is there."""
    body = json.loads(loop_plan().to_json())
    place, path = body, []
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        path.append(key)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(LEAVES)
    try:
        fields = plan_file.decode(json.dumps(body))
    except ValueError:
        return
    assert isinstance(fields["program"], Program)
    assert isinstance(fields["mapping"], Mapping)


def test_placements_by_definition():
    plan = loop_plan()
    assert placements.by_definition(plan.problem, plan.mapping) == {
        "x": "slow",
        "w": "fast:offset=0,first=while,last=while",
        "init": "fast:offset=4096,first=init,last=y",
        "h": "fast:offset=6144,first=h,last=new",
        "y": "fast:offset=8192,first=y,last=y",
    }
    problem = toy_problems.problem("two_outputs")
    found = placements.by_definition(problem, Mapping())
    assert found == {"x": "slow", "a": "{0}=slow;{1}=slow", "y": "slow"}


def test_placements_by_op():
    plan = loop_plan()
    assert placements.by_op(plan.problem, plan.mapping) == {
        "init": "x=slow;init=fast:offset=4096",
        "h": "init=fast:offset=4096;w=fast:offset=0;h=fast:offset=6144",
        "new": "h=fast:offset=6144;init=fast:offset=4096",
        "y": "init=fast:offset=4096;y=fast:offset=8192",
    }
