"""Long programs in windows: the parts of a board and of a state fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwmodel import presets
from jax_malloc import board as board_lib
from jax_malloc import game, generate, observation, replay, validator
from jax_malloc import problem as problem_lib
from jax_malloc.agent import rollout, windows
from jax_malloc.agent.checkpoint import Agent
from jax_malloc.agent.network import MuZeroNetwork, NetworkConfig
from jax_malloc.compiled import kernels
from jax_malloc.compiled.tables import COLUMNS, as_moves, tables


def agent():
    network = MuZeroNetwork(NetworkConfig(hidden=16, latent=8, dynamics=16, atoms=21))
    params = network.init(
        jax.random.key(0),
        jnp.zeros((1, observation.size())),
        jnp.zeros(1, jnp.int32),
    )
    return Agent(network, params, {})


def problem(num_ops, seed=5):
    program = generate.random_program(seed, num_ops=num_ops)
    return problem_lib.build(program, presets.get("tpu_v5e"))


def exact_board(p):
    return board_lib.build(p, board_lib.least_length(p))


def test_one_window_that_holds_everything_plays_the_whole_game():
    p = problem(40)
    board, slots = exact_board(p), replay.slots_of(p)
    outlook, player = observation.outlook(board), agent()
    temperature = np.zeros(1, np.float32)
    whole = rollout.play(
        player.network,
        player.params,
        jax.random.key(0),
        board_lib.build(p),
        observation.outlook(board_lib.build(p)),
        temperature,
        slots=slots,
        num_simulations=0,
    )
    played = windows.play(player, board, outlook, slots, temperature, seed=0)
    n = int(board.num_accesses)
    np.testing.assert_array_equal(
        played.moves[0, :, 0], np.asarray(whole.moves.action)[0, :n]
    )
    assert played.saved[0] == pytest.approx(float(whole.moves.reward.sum()), abs=1e-3)


@pytest.mark.parametrize("length", [64, 128])
def test_many_windows_make_a_valid_game_whose_saving_is_true(length):
    p = problem(220)
    board, slots = exact_board(p), replay.slots_of(p)
    played = windows.play(
        agent(),
        board,
        observation.outlook(board),
        slots,
        np.array([0.0, 1.0], np.float32),
        seed=0,
        length=length,
    )
    assert int(board.num_accesses) > 2 * length
    for g in range(2):
        mapping = replay.to_mapping(p, as_moves(played.moves[g]))
        assert validator.find_violations(p, mapping) == []
        saved_s = p.all_slow_latency_s - p.evaluate(mapping).latency_s
        claimed_s = played.saved[g] * float(board.unit_s)
        assert claimed_s == pytest.approx(saved_s, abs=1e-5 * p.all_slow_latency_s)
    np.testing.assert_allclose(played.policy.sum(axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize("begin", [0, 90, 200])
def test_a_window_goes_on_as_the_whole_board_does(begin):
    """The same actions from the same state: the same moves, boundaries shifted."""
    p = problem(160)
    board, slots = exact_board(p), replay.slots_of(p)
    t = tables(board, slots)
    n, length, steps = len(t.op), 256, 40
    actions = np.random.default_rng(0).choice(3, n, p=(0.6, 0.3, 0.1)).astype(np.int32)
    state, moves = kernels.init(t), np.zeros((n, len(COLUMNS)), np.int32)
    kernels.play(t, state, actions, moves, 0, begin)
    window = windows.choose(t, begin, length)
    assert window.end >= begin + steps
    own = windows.cut_state(state, window, length, limited=False)
    part = windows.cut_board(board, window, length)
    kernels.play(t, state, actions, moves, begin, begin + steps)
    step = jax.jit(game.step)
    for i in range(steps):
        own, move = step(part, own, actions[begin + i])
        expected = dict(zip(COLUMNS, moves[begin + i], strict=True))
        assert int(move.action) == expected["action"]
        assert bool(move.fast) == bool(expected["fast"])
        assert int(move.offset) == expected["offset"]
        for name in ("begin", "prefetch", "evict", "store"):
            at = int(move._asdict()[name])
            assert at + (window.first_op if at >= 0 else 0) == expected[name], name


def test_windows_cover_every_access_in_order():
    p = problem(300)
    t = tables(exact_board(p), replay.slots_of(p))
    begin = 0
    while begin < len(t.op):
        window = windows.choose(t, begin, 64)
        assert window.begin == begin < window.end <= begin + 64
        assert window.last_op - window.first_op <= 64
        assert window.first_op <= t.op[begin]
        assert t.op[window.end - 1] < window.last_op
        begin = window.end
