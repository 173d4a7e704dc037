"""The trace for Perfetto, against the documented Trace Event Format.

Perfetto's own trace processor is a program that its Python package downloads, so it is
not called here; its rules on times are applied instead.
"""

import collections
import gzip
import json

import pytest
import viz_plans

# Fields that each type of event must have, beside those of all.
REQUIRED = {
    "X": {"ts", "dur", "cat", "args"},
    "C": {"ts", "args"},
    "M": {"args"},
    "s": {"ts", "id", "cat"},
    "f": {"ts", "id", "cat", "bp"},
}


@pytest.fixture(params=["waiting", "training_step", "chain"])
def plan(request):
    if request.param == "chain":
        return viz_plans.chain(200)
    return getattr(viz_plans, request.param)()


@pytest.fixture
def trace(plan, tmp_path):
    plan.to_perfetto(tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text())


def nanoseconds(us):
    """As Perfetto reads a number of microseconds: multiplied, and cut off."""
    return int(us * 1000.0)


def slices(trace):
    """`{track: [(begin, end, name)]}` in nanoseconds, in the file's order."""
    names = {
        e["tid"]: e["args"]["name"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name"
    }
    tracks = collections.defaultdict(list)
    for e in trace["traceEvents"]:
        if e["ph"] == "X":
            begin = nanoseconds(e["ts"])
            tracks[names[e["tid"]]].append(
                (begin, begin + nanoseconds(e["dur"]), e["name"])
            )
    return tracks


def test_every_event_has_the_fields_of_its_type(trace):
    for event in trace["traceEvents"]:
        assert set(event) >= {"ph", "name", "pid", "tid"} | REQUIRED[event["ph"]]
        assert isinstance(event["name"], str)
        for field in {"ts", "dur"} & set(event):
            assert event[field] >= 0


def test_time_never_goes_back(trace):
    times = [e["ts"] for e in trace["traceEvents"] if "ts" in e]
    assert times == sorted(times)


def test_slices_of_a_track_nest(trace):
    tracks = slices(trace)
    assert set(tracks) >= {"ops", "named scopes"}
    for found in tracks.values():
        open_ends = []
        for begin, end, _ in found:
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


@pytest.mark.parametrize("track", ["ops", "copy in", "copy out", "stalls"])
def test_slices_of_a_queue_follow_one_another(trace, track):
    last = 0
    for begin, end, _ in slices(trace)[track]:
        assert begin >= last
        last = end


def test_ops_are_where_the_timeline_has_them(plan, trace):
    found = slices(trace)["ops"]
    assert [name for *_, name in found] == [op.name for op in plan.program.ops]
    starts = [begin for begin, *_ in found]
    expected = (plan.timeline.op_start_s * 1e9).tolist()
    assert starts == pytest.approx(expected, abs=1)
    end_s = plan.latency_s - plan.timeline.stall_s[-1]
    assert found[-1][1] == pytest.approx(end_s * 1e9, abs=1)


def test_the_counter_is_fast_memory_in_use(plan, trace):
    counters = [e for e in trace["traceEvents"] if e["ph"] == "C"]
    assert {e["name"] for e in counters} == {"fast memory in use (MiB)"}
    values = [e["args"]["MiB"] for e in counters]
    assert values[-1] == 0
    capacity = plan.problem.capacity_granules * plan.problem.granule_bytes
    assert 0 < max(values) <= capacity / 2**20


def test_every_arrow_has_both_ends(plan, trace):
    flows = collections.defaultdict(str)
    for e in trace["traceEvents"]:
        if e["ph"] in "sf":
            flows[e["id"]] += e["ph"]
    assert set(flows.values()) <= {"sf"}
    assert len(flows) == sum(
        c.direction.value == "prefetch" and c.done < len(plan.program.ops)
        for c in plan.mapping.copies
    )


def test_the_stall_of_the_drawing_is_there():
    from jax_malloc.viz import perfetto

    trace = json.loads(perfetto.to_json(viz_plans.waiting()))
    second = 10**9
    assert slices(trace)["stalls"] == [(5 * second, 9 * second, "stall")]
    assert slices(trace)["copy in"] == [(0, 9 * second, "p__mlp____kernel__.1")]


def test_it_says_that_times_are_predicted(trace):
    assert trace["otherData"]["times"] == "predicted, not measured"


def test_it_is_gzipped_by_name(tmp_path):
    plan = viz_plans.waiting()
    plan.to_perfetto(tmp_path / "trace.json.gz")
    with gzip.open(tmp_path / "trace.json.gz") as f:
        assert json.load(f)["traceEvents"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "nowhere" / "trace.json"
    with pytest.raises(OSError, match=r"cannot be written.*nowhere/trace\.json"):
        viz_plans.waiting().to_perfetto(path)
