"""The policy in the compiled game: it sees, thinks and plays as in the JAX game."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_problems
from test_compiled import PROBLEMS

from jax_malloc import board as board_lib
from jax_malloc import observation, replay, validator
from jax_malloc.agent import rollout
from jax_malloc.compiled import kernels, player
from jax_malloc.compiled.sight import look, sight
from jax_malloc.compiled.tables import COLUMNS, as_moves, tables
from jax_malloc.solvers import muzero

TEMPERATURES = np.array([0.0, 1.0, 2.0, 4.0])


def prepared(problem):
    board = board_lib.build(problem, board_lib.least_length(problem))
    slots = replay.slots_of(problem)
    return board, slots, tables(board, slots), observation.outlook(board)


def play(problem, *, seed=0, deadline_s=None):
    _, _, t, outlook = prepared(problem)
    return player.play(
        muzero.pretrained(),
        t,
        sight(outlook),
        TEMPERATURES,
        seed=seed,
        deadline_s=deadline_s,
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_engines_see_the_same(name):
    """Along games of every randomness; the JAX game records half precision."""
    board, slots, t, outlook = prepared(PROBLEMS[name])
    agent, n = muzero.pretrained(), len(t.op)
    expected = rollout.play(
        agent.network,
        agent.params,
        jax.random.key(0),
        board,
        outlook,
        jnp.asarray(TEMPERATURES, jnp.float32),
        slots=slots,
        num_simulations=0,
        record=True,
    )
    actions = np.asarray(expected.moves.action)[:, :n].astype(np.int32)
    number = len(actions)
    state = kernels.init(t)
    games = kernels.State(*(np.stack([x] * number) for x in state))
    seen, spare = np.zeros((number, observation.size())), np.zeros(len(t.floor))
    moves = np.zeros((number, n, len(COLUMNS)), np.int32)
    for i in range(n):
        look(t, sight(outlook), games, i, seen, spare)
        recorded = np.asarray(expected.observation[:, i], np.float32)
        np.testing.assert_allclose(seen, recorded, atol=2e-3, err_msg=f"access {i}")
        kernels.play_one(t, games, i, actions, moves)


def test_looking_changes_nothing():
    _, _, t, outlook = prepared(PROBLEMS["generated7"])
    state = kernels.init(t)
    games = kernels.State(*(x[None].copy() for x in state))
    seen, spare = np.zeros((1, observation.size())), np.zeros(len(t.floor))
    actions = np.zeros((1, len(t.op)), np.int32)
    moves = np.zeros((1, len(t.op), len(COLUMNS)), np.int32)
    for i in range(len(t.op)):
        before = [x.copy() for x in games]
        look(t, sight(outlook), games, i, seen, spare)
        for x, y in zip(before, games, strict=True):
            np.testing.assert_array_equal(x, y)
        kernels.play_one(t, games, i, actions, moves)


def test_the_network_thinks_the_same_in_numpy():
    agent = muzero.pretrained()
    seen = np.random.default_rng(0).normal(size=(5, observation.size()))
    latent = agent.network.apply(
        agent.params, jnp.asarray(seen, jnp.float32), method="represent"
    )
    expected = agent.network.apply(agent.params, latent, method="predict").policy
    found = player.logits_of(agent.params["params"], seen)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["random", "limited", "loop", "generated8"])
def test_games_are_valid_and_save_what_they_claim(name):
    problem = PROBLEMS[name]
    board, *_ = prepared(problem)
    games = play(problem)
    for moves, saved, policy in zip(
        *map(list, (games.moves, games.saved, games.policy)), strict=True
    ):
        mapping = replay.to_mapping(problem, as_moves(moves))
        assert validator.find_violations(problem, mapping) == []
        saved_s = problem.all_slow_latency_s - problem.evaluate(mapping).latency_s
        tolerance_s = 1e-5 * problem.all_slow_latency_s
        assert saved * float(board.unit_s) == pytest.approx(saved_s, abs=tolerance_s)
        np.testing.assert_allclose(policy.sum(axis=1), 1)
        taken = np.take_along_axis(policy, moves[:, :1], axis=1)
        assert (taken > 0).all()  # nothing that is not legal


def test_a_seed_repeats_and_the_first_game_is_greedy():
    problem = PROBLEMS["generated4"]
    one, other, another = play(problem), play(problem), play(problem, seed=1)
    np.testing.assert_array_equal(one.moves, other.moves)
    np.testing.assert_array_equal(one.moves[0], another.moves[0])
    assert (one.moves[2] != another.moves[2]).any()


def test_games_that_do_not_end_in_time_are_none():
    problem = toy_problems.random_problem(1, num_ops=30)
    assert play(problem, deadline_s=time.monotonic() - 1) is None


def test_games_are_given_up_as_soon_as_they_would_not_end_in_time(monkeypatch):
    problem = toy_problems.random_problem(1, num_ops=90)
    num_accesses = len(prepared(problem)[2].op)
    assert num_accesses > 256
    looks = itertools.count()
    monkeypatch.setattr(player.time, "monotonic", lambda: float(next(looks)))
    assert play(problem, deadline_s=1e9) is not None
    # A second per look at the clock: enough for some of them, and not for all.
    deadline_s = next(looks) + 5.0
    assert play(problem, deadline_s=deadline_s) is None
    assert next(looks) < deadline_s
