"""The game in compiled loops: the moves of the game in JAX, and a sound search."""

import dataclasses
import time

import jax
import numpy as np
import pytest
import toy_problems

from frontends import stablehlo
from hwmodel import presets
from jax_malloc import board as board_lib
from jax_malloc import credit as credit_lib
from jax_malloc import generate, replay, validator
from jax_malloc import problem as problem_lib
from jax_malloc.compiled import annealing, kernels
from jax_malloc.compiled.tables import COLUMNS, as_moves, tables


def limited(problem, most):
    dma = dataclasses.replace(problem.accelerator.dma, max_in_flight=most)
    machine = dataclasses.replace(problem.accelerator, dma=dma)
    return problem_lib.build(problem.program, machine)


def full_duplex(problem):
    dma = dataclasses.replace(problem.accelerator.dma, full_duplex=True)
    machine = dataclasses.replace(problem.accelerator, dma=dma)
    return problem_lib.build(problem.program, machine)


def generated(seed):
    program = generate.random_program(seed, num_ops=20 + 6 * seed)
    return problem_lib.build(program, presets.get("tpu_v5e"))


PROBLEMS = {
    "random": toy_problems.random_problem(1, num_ops=30),
    "limited": limited(toy_problems.random_problem(2, num_ops=40), 2),
    "full_duplex": full_duplex(toy_problems.random_problem(3, num_ops=40)),
    "loop": toy_problems.problem(toy_problems.loop()),
    **{f"generated{seed}": generated(seed) for seed in (1, 4, 7, 8)},
}


def play(t, actions):
    moves = np.zeros((len(t.op), len(COLUMNS)), np.int32)
    kernels.play(t, kernels.init(t), actions, moves, 0, len(t.op))
    return moves


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_engines_play_the_same_game(name):
    problem = PROBLEMS[name]
    board, slots = board_lib.build(problem), replay.slots_of(problem)
    t = tables(board, slots)
    rng = np.random.default_rng(0)
    shape = (len(board.access.op),)
    inclined = ((1, 0, 0), (0.7, 0.2, 0.1), (0.4, 0.3, 0.3), (0.2, 0.6, 0.2))
    actions = np.stack([rng.choice(3, shape, p=p) for p in inclined]).astype(np.int32)
    expected = replay.play_many(board, actions, slots=slots)
    for g in range(len(actions)):
        moves = play(t, actions[g])
        for k, column in enumerate(COLUMNS):
            np.testing.assert_array_equal(
                moves[:, k],
                np.asarray(getattr(expected, column)[g])[: len(t.op)].astype(int),
                err_msg=column,
            )
        reward = np.asarray(expected.reward[g], np.float64).sum()
        assert kernels.saving(t, moves) == pytest.approx(reward, abs=1e-3)


def test_a_game_may_be_played_in_parts():
    t = tables(board_lib.build(PROBLEMS["generated4"]), 64)
    actions = np.random.default_rng(0).integers(0, 3, len(t.op)).astype(np.int32)
    whole = play(t, actions)
    state, moves = kernels.init(t), np.zeros_like(whole)
    for begin in range(0, len(t.op), 7):
        copy = kernels.init(t)
        kernels.copy_state(state, copy)
        state = copy
        kernels.play(t, state, actions, moves, begin, min(begin + 7, len(t.op)))
    np.testing.assert_array_equal(moves, whole)


@pytest.mark.parametrize("name", PROBLEMS)
def test_annealing_finds_a_valid_mapping_of_the_latency_it_claims(name):
    problem = PROBLEMS[name]
    board, slots = board_lib.build(problem), replay.slots_of(problem)
    t = tables(board, slots)
    keep_all = np.zeros(len(t.op), np.int32)
    walk = annealing.anneal(t, keep_all, seed=0, tries=600)
    moves = play(t, walk.best_actions)
    np.testing.assert_array_equal(moves, walk.best_moves)
    mapping = replay.to_mapping(problem, as_moves(moves))
    assert validator.find_violations(problem, mapping) == []
    saved_s = problem.all_slow_latency_s - problem.evaluate(mapping).latency_s
    claimed_s = walk.saved[1] * float(board.unit_s)
    assert claimed_s == pytest.approx(saved_s, abs=1e-5 * problem.all_slow_latency_s)
    assert walk.saved[1] >= kernels.saving(t, play(t, keep_all))


def test_annealing_repeats_with_its_seed_and_differs_without():
    t = tables(board_lib.build(PROBLEMS["generated7"]), 64)
    start = np.zeros(len(t.op), np.int32)

    def found(seed):
        return annealing.anneal(t, start, seed=seed, tries=500).actions

    np.testing.assert_array_equal(found(3), found(3))
    assert (found(3) != found(4)).any()


def test_annealing_solves_what_keeping_everything_does_not():
    """A problem small enough to try every string of actions."""
    problem = toy_problems.problem(
        toy_problems.diamond(), toy_problems.toy(fast_kib=12)
    )
    t = tables(board_lib.build(problem), replay.slots_of(problem))
    n = len(t.op)
    assert n <= 9
    strings = np.array(np.unravel_index(np.arange(3**n), (3,) * n)).T.astype(np.int32)
    best = max(kernels.saving(t, play(t, s)) for s in strings)
    walk = annealing.anneal(t, np.full(n, 2, np.int32), seed=0, tries=3000)
    assert walk.saved[1] == pytest.approx(best, abs=1e-6)


def test_annealing_needs_an_end_and_keeps_to_its_deadline():
    t = tables(board_lib.build(PROBLEMS["random"]), 64)
    start = np.zeros(len(t.op), np.int32)
    with pytest.raises(ValueError, match="tries or a deadline"):
        annealing.anneal(t, start, seed=0)
    over = annealing.anneal(t, start, seed=0, deadline_s=time.monotonic() - 1)
    np.testing.assert_array_equal(over.actions, play(t, start)[:, 0])


def test_a_result_is_written_over_its_operand():
    """Without that, 40 KiB would not hold two values of 24 KiB."""
    size = 24 * 1024

    def chain(x):
        for _ in range(4):
            x = jax.numpy.sin(x)
            x = jax.lax.optimization_barrier(x)
        return x

    program = stablehlo.from_jax(
        chain, jax.ShapeDtypeStruct((size // 4,), jax.numpy.float32)
    )
    assert any(op.reuses for op in program.ops)
    problem = toy_problems.problem(program, toy_problems.toy(fast_kib=40))
    t = tables(board_lib.build(problem), replay.slots_of(problem))
    moves = play(t, np.zeros(len(t.op), np.int32))
    mapping = replay.to_mapping(problem, as_moves(moves))
    assert validator.find_violations(problem, mapping) == []
    meeting = [
        (a, b)
        for a in mapping.segments
        for b in mapping.segments
        if a.buffer_id != b.buffer_id and a.begin < b.begin == a.end - 1
    ]
    assert meeting
    assert all(a.offset_bytes == b.offset_bytes for a, b in meeting)


@pytest.mark.parametrize(
    ("earliest", "start", "stall"),
    [
        # From 2 it is over before the other is due; from 3 that waits for 1 unit of it.
        (0, 2, 0.0),
        (3, 3, 1.0),
        (4, 4, 3.0),  # ops wait for 1 themselves, the other copy for 2
        (7, 9, 5.0),  # ahead of the other copy it would hide no more
    ],
)
def test_a_copy_begins_where_least_waits(earliest, start, stall):
    """Ten ops of one unit each; another copy, due at 9, takes the one of op 8."""
    spare = np.ones(10)
    spare[8] = 0
    credit = np.concatenate([[0], np.cumsum(spare)]).astype(np.float32)
    due = np.full(11, board_lib.NEVER, np.int32)
    due[8] = 9
    copy = credit_lib.latest_start(credit, np.ones(11, bool), 6.0, earliest, 10, due)
    assert (int(copy.start), float(copy.stall)) == (start, stall)
