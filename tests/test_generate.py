"""Random programs: repeatable, of the asked-for kind, and near the asked-for size."""

import numpy as np
import pytest
import toy_problems

from frontends.program import BufferKind, Program
from jax_malloc import generate
from jax_malloc.generate import architectures
from jax_malloc.generate.draft import Draft

MIB = 2**20


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_a_seed_is_a_program(family):
    program = generate.random_program(7, num_ops=60, family=family)
    again = generate.random_program(7, num_ops=60, family=family)
    other = generate.random_program(8, num_ops=60, family=family)
    assert program == again
    assert program.fingerprint != other.fingerprint
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_ops", [60, 150, 400])
@pytest.mark.parametrize("seed", range(4))
def test_about_as_many_ops_as_asked_for(seed, num_ops, training):
    program = generate.random_program(seed, num_ops=num_ops, training=training)
    assert 0.7 * num_ops <= len(program.ops) <= 1.4 * num_ops


@pytest.mark.parametrize("pressure", [0.5, 1.5, 4.0])
def test_the_working_set_is_near_the_pressure(pressure):
    found = [
        generate.working_set_bytes(
            generate.random_program(seed, training=True, pressure=pressure)
        )
        for seed in range(12)
    ]
    found = np.array(found) / (112 * MIB) / pressure
    assert np.median(found) == pytest.approx(1.0, abs=0.1)
    assert found.max() < 2


def test_sizes_are_those_of_real_programs():
    for seed in range(20):
        program = generate.random_program(seed)
        sizes = np.array([b.size_bytes for b in program.buffers])
        large = sizes[sizes > 4096]  # without the biases
        assert large.min() >= 0.1 * MIB - 4096
        assert large.max() <= 60 * MIB


@pytest.mark.parametrize("seed", range(10))
def test_training_reads_activations_again_in_reverse_order(seed):
    """Of two activations, the one made first is mostly read last."""
    program = generate.random_program(seed, training=True, family="wide_mlp")
    backward = next(
        t for t, op in enumerate(program.ops) if op.op_name.startswith("transpose")
    )
    last_read = {}
    for t, b, _, reads, _ in program.accesses():
        if reads:
            last_read[b] = t
    lives = [
        (b.live.start, last_read[i])
        for i, b in enumerate(program.buffers)
        if b.kind is BufferKind.TEMPORARY
        and b.live.start < backward < last_read.get(i, 0)
    ]
    assert len(lives) > 4
    ends = [end for _, end in sorted(lives)]
    assert (np.diff(ends) <= 0).mean() > 0.7
    assert program.buffers[0].is_input


def test_weights_are_updated_in_place_or_donated():
    updated = donated = 0
    for seed in range(20):
        program = generate.random_program(seed, training=True)
        updated += any(b.is_input and b.is_output for b in program.buffers)
        groups = [b.alias_group for b in program.buffers if b.alias_group is not None]
        donated += bool(groups)
        assert len(groups) == 2 * len(set(groups))
    assert updated + donated == 20
    assert min(updated, donated) > 0


def test_loops_only_where_asked_for():
    for seed in range(10):
        program = generate.random_program(seed, num_ops=40, loops=True)
        assert len(program.regions) > 1
        for region in program.regions[1:]:
            assert program.ops[region.end].name == region.name
            assert program.ops[region.start].count == region.trip_count
        program = generate.random_program(seed, num_ops=40, loops=False)
        assert len(program.regions) == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_estimates_for_a_share_of_the_ops(share):
    program = generate.random_program(3, num_ops=300, estimated_share=share)
    estimated = [op for op in program.ops if op.estimates]
    assert len(estimated) / len(program.ops) == pytest.approx(share, abs=0.1)
    assert share == 0 or any(len(op.estimates) == 2 for op in estimated)
    for op in estimated:
        cycles = {e.slow_bytes: e.cycles for e in op.estimates}
        assert max(cycles) == sum(op.touched_bytes().values())
        assert cycles[max(cycles)] == max(cycles.values())


def test_compute_and_memory_bound_ops_are_mixed():
    shares = []
    for seed in range(20):
        problem = toy_problems.random_problem(seed, num_ops=60, estimated_share=0.0)
        latency = problem.latency
        bound = latency.floor_s > latency.base_s + (
            latency.slope_s_per_byte * problem.slow_bytes
        )
        shares.append(bound.mean())
    assert min(shares) < 0.2
    assert max(shares) > 0.5
    assert 0.1 < np.mean(shares) < 0.6


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"family": "rnn"}, "unknown family 'rnn'; choose one of wide_mlp"),
        ({"family": "unet", "loops": True}, "loops are in decoder_loop, layer_scan"),
        ({"training": True, "loops": True}, "Leave one of them out"),
        ({"num_ops": 0}, "num_ops is 0"),
        ({"pressure": 0}, "pressure is 0"),
        ({"pressure": float("inf")}, "pressure is inf"),
        ({"fast_bytes": 1024}, "at least 1 MiB"),
        ({"estimated_share": 1.5}, "estimated_share is 1.5"),
    ],
)
def test_arguments_are_checked(fields, match):
    with pytest.raises(ValueError, match=match):
        generate.random_program(0, **fields)


# --- drafts -------------------------------------------------------------------------


def test_a_draft_knows_loops_and_live_ranges():
    """The loop of the drawing in toy_problems, inside another."""
    draft = Draft("nested")
    w = draft.parameter(10)
    (state,) = draft.op("init", [], [10])
    with draft.loop(3, "outer"):
        (a,) = draft.op("a", [state], [10])
        with draft.loop(5, "inner"):
            (h,) = draft.op("h", [a, w], [10])
            draft.op("update", [h], updates=[(state, 4)])
    (y,) = draft.op("y", [state], [10])
    program = draft.build([y])
    names = ["init.1", "a.1", "h.1", "update.1", "inner", "outer", "y.1"]
    assert [op.name for op in program.ops] == names
    assert [op.count for op in program.ops] == [1, 3, 15, 15, 3, 1, 1]
    assert [op.region for op in program.ops] == [0, 1, 2, 2, 1, 0, 0]
    assert [(r.start, r.end, r.parent) for r in program.regions] == [
        (0, 7, -1),
        (1, 5, 0),
        (2, 4, 1),
    ]
    lives = {b.label: (b.live.start, b.live.end) for b in program.buffers}
    assert lives == {
        "param.1": (0, 6),  # all of the outer loop: read in every iteration
        "init.1": (0, 7),
        "a.1": (1, 5),  # all of the inner loop, not of the outer
        "h.1": (2, 4),
        "y.1": (6, 7),
    }
    update = program.ops[3]
    touched = {a.buffer_id: a.touched_bytes for a in (*update.reads, *update.writes)}
    assert touched == {h: 10, state: 4}
    assert state in {a.buffer_id for a in update.reads}  # with the bytes that it keeps
    assert program.buffers[y].kind is BufferKind.OUTPUT
