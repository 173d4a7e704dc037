"""The rows that every picture is drawn from, on plans small enough to work by hand."""

import itertools

import numpy as np
import pytest
import toy_problems
import viz_plans

import jax_malloc
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Direction, Mapping, Segment
from jax_malloc.viz import scopes, tables
from jax_malloc.viz.tables import Bound, Kind


@pytest.fixture(scope="module")
def waiting():
    return tables.build(viz_plans.waiting())


def test_ops_are_split_into_their_parts(waiting):
    a, y = waiting.ops
    assert (a.start_s, a.stall_s, a.fast_s, a.slow_s) == pytest.approx((0, 0, 5, 0))
    assert a.bound is Bound.COMPUTE
    assert (y.start_s, y.stall_s, y.slow_s) == pytest.approx((9, 4, 1))
    assert y.bound is Bound.SLOW_MEMORY
    assert y.end_s == pytest.approx(waiting.latency_s)
    assert waiting.stalls_s() == [pytest.approx((5, 9))]


def test_a_stay_is_on_its_way_until_its_first_access(waiting):
    written, fetched = waiting.stays
    assert (written.begin_s, written.first_s, written.end_s) == pytest.approx(
        (0, 0, 10)
    )
    assert (fetched.begin_s, fetched.first_s, fetched.end_s) == pytest.approx(
        (0, 9, 10)
    )
    assert (fetched.offset_bytes, fetched.size_bytes) == (2048, 8192)
    # Op 1 would take 8 s longer without w, and 1 s without a.
    assert fetched.saved_s == pytest.approx(8)
    assert [b.saved_s for b in waiting.buffers] == pytest.approx([0, 8, 1, 0])


def test_a_copy_moves_from_the_head_of_its_queue(waiting):
    (copy,) = waiting.copies
    assert copy.direction is Direction.PREFETCH
    times = (copy.issue_s, copy.begin_s, copy.done_s, copy.exposed_s)
    assert times == pytest.approx((0, 0, 9, 4))


def test_kinds_and_user_names_are_those_of_jax(waiting):
    assert [(b.name, b.kind, b.user_name) for b in waiting.buffers] == [
        ("x", Kind.PARAMETER, "x"),
        ("p__mlp____kernel__.1", Kind.PARAMETER, "p/mlp/kernel"),
        ("a", Kind.ACTIVATION, "jit(f)/jvp(Net)/mlp/dot_general"),
        ("y", Kind.OUTPUT, "jit(f)/transpose(jvp(Net))/mlp/dot"),
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("p__layers____0____mlp____kernel__.1", "p/layers/0/mlp/kernel"),
        ("params['layers']['0']['kernel']", "params/layers/0/kernel"),
        ("state[0].mu['Block_0']['bias']", "state/0/mu/Block_0/bias"),
        ("state_0_.mu__Block_0____bias__.3", "state/0/mu/Block_0/bias"),
        ("xs_0__1_.1", "xs/0/1"),
        ("weights_1_.1", "weights/1"),
        ("batch_size", "batch_size"),
    ],
)
def test_arguments_are_paths(name, path):
    draft = Draft("one argument")
    x = draft.parameter(1024, name)
    (y,) = draft.op("neg", [x], [1024])
    assert tables.user_names(draft.build([y]))[x] == path


def test_gradients_come_from_the_backward_pass():
    draft = Draft("kinds")
    last, paths = (
        draft.parameter(1024, "x"),
        {
            "jit(f)/jvp(Net)/dot": Kind.ACTIVATION,
            "jit(f)/transpose(jvp(Net))/dot": Kind.GRADIENT,
            "jit(f)/transpose(jvp(Net))/rematted_computation/dot": Kind.ACTIVATION,
            "jit(f)/mul": Kind.TEMPORARY,
        },
    )
    made = []
    for path in paths:
        (last,) = draft.op("dot", [last], [1024], op_name=path)
        made.append(last)
    (y,) = draft.op("neg", [last], [1024])
    kinds = tables.kinds(draft.build([y]))
    assert [kinds[b] for b in made] == list(paths.values())


def test_without_a_backward_pass_temporaries_are_activations():
    assert tables.kinds(toy_problems.chain())[1:] == [
        Kind.ACTIVATION,
        Kind.ACTIVATION,
        Kind.OUTPUT,
    ]


def test_the_parts_add_up_to_the_latency():
    plan = viz_plans.training_step()
    for mapping in (plan.mapping, Mapping()):
        timeline = plan.problem.evaluate(mapping)
        parts = tables.breakdown(plan.problem, timeline)
        assert parts.latency_s == pytest.approx(timeline.latency_s)
        assert parts.stall_s == pytest.approx(timeline.stall_s.sum())
        assert parts.slow_s >= 0
    assert parts.slow_s > 0  # all in slow memory


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_random_plans_fit_together(seed):
    problem = toy_problems.random_problem(seed)
    plan = jax_malloc.solve(problem.program, problem.accelerator, solver="greedy")
    rows = tables.build(plan)
    ends = [0.0, *(o.end_s for o in rows.ops)]
    begins = [*(o.start_s - o.stall_s for o in rows.ops), rows.latency_s]
    begins[-1] -= rows.final_stall_s
    np.testing.assert_allclose(begins, ends, rtol=1e-9)
    assert (rows.used_bytes <= rows.capacity_bytes).all()
    for c in rows.copies:
        assert c.issue_s <= c.begin_s <= c.done_s
    for direction in Direction:
        queue = [c for c in rows.copies if c.direction is direction]
        queue.sort(key=lambda c: c.done_s)
        for one, other in itertools.pairwise(queue):
            assert one.done_s <= other.begin_s


def test_rectangles_do_not_overlap():
    """Not even where a result is written over its operand in place."""
    draft = Draft("in place")
    x = draft.parameter(1024, "x")
    (a,) = draft.op("dot", [x], [1024], name="a")
    (b,) = draft.op("fusion", [a], [1024], name="b", elementwise=True)
    (y,) = draft.op("dot", [b], [1024], name="y")
    program = draft.build([y])
    stays = (
        Segment(buffer_id=a, offset_bytes=0, begin=0, first=0, end=2),
        Segment(buffer_id=b, offset_bytes=0, begin=1, first=1, end=3),
    )
    rows = tables.build(viz_plans.by_hand(program, Mapping(stays)))
    assert rows.stays[0].end_s == rows.stays[1].begin_s
    assert rows.used_bytes.tolist() == [1024, 1024, 1024]


def test_scopes_leave_out_the_primitive():
    assert scopes.scope_of("jit(f)/jvp(Net)/0/dot_general") == (
        "jit(f)",
        "jvp(Net)",
        "0",
    )
    assert scopes.scope_of("jit(a/b)/dot") == ("jit(a/b)",)
    assert scopes.scope_of("add") == scopes.scope_of("") == ()


def test_the_tree_of_scopes_adds_up(waiting):
    root = scopes.tree(waiting.ops)
    (jit,) = root.children.values()
    assert (jit.path, jit.num_ops, list(jit.children)) == (
        "jit(f)",
        2,
        ["jvp(Net)", "transpose(jvp(Net))"],
    )
    assert jit.total_s == pytest.approx(waiting.latency_s)
    mlp = jit.children["jvp(Net)"].children["mlp"]
    assert [o.op.name for o in mlp.ops] == ["a"]
    assert mlp.path == "jit(f)/jvp(Net)/mlp"


def test_runs_of_scopes_nest():
    runs = scopes.runs(tables.build(viz_plans.chain(30)).ops)
    assert [(r.path, r.first.t, r.last.t) for r in runs if r.depth == 2] == [
        (f"jit(f)/layers/{i}", 10 * i, 10 * i + 9) for i in range(3)
    ]
    assert [(r.path, r.first.t, r.last.t) for r in runs if r.depth == 1] == [
        ("jit(f)/layers", 0, 29)
    ]
