"""The agent's parts, and that training learns, resumes and is repeatable."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_problems

from jax_malloc import board as board_lib
from jax_malloc import game, observation, replay, validator
from jax_malloc.agent import (
    checkpoint,
    evaluation,
    learner,
    memory,
    parallel,
    reanalysis,
    rollout,
    search,
    self_play,
    trainer,
    training,
)
from jax_malloc.agent import lessons as lesson_lib
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.network import (
    MuZeroNetwork,
    NetworkConfig,
    to_scalar,
    to_two_hot,
)
from jax_malloc.solvers import milp

SMALL = NetworkConfig(hidden=16, latent=8, dynamics=16, atoms=21)


def agent(config=SMALL, seed=0):
    network = MuZeroNetwork(config)
    params = network.init(
        jax.random.key(seed),
        jnp.zeros((1, observation.size())),
        jnp.zeros(1, jnp.int32),
    )
    return network, params


def play(problem, *, num_simulations, temperature=(0.0, 1.0), length=None, seed=0):
    network, params = agent()
    board = board_lib.build(problem, length)
    return rollout.play(
        network,
        params,
        jax.random.key(seed),
        board,
        observation.outlook(board),
        jnp.array(temperature),
        slots=replay.slots_of(problem),
        num_simulations=num_simulations,
        record=True,
    )


@pytest.mark.parametrize("value", [-3.9, -1.0, -0.25, -1e-3, 0.0, 0.5, 2.0, 3.9])
def test_two_hot_keeps_the_value(value):
    probabilities = to_two_hot(jnp.float32(value), SMALL)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert int((probabilities > 0).sum()) <= 2
    logits = jnp.log(jnp.maximum(probabilities, 1e-30))
    assert float(to_scalar(logits, SMALL)) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("num_simulations", [0, 4])
def test_the_agent_only_plays_legal_actions(num_simulations):
    problem = toy_problems.random_problem(3, num_ops=20)
    games = play(problem, num_simulations=num_simulations, temperature=(0.0, 1.0, 3.0))
    n = len(board_lib.rows(problem).access)
    for g in range(3):
        moves = jax.tree.map(lambda x, g=g: np.asarray(x[g]), games.moves)
        legal = games.observation[g, :n, :3] > 0
        assert legal[np.arange(n), moves.action[:n]].all()
        mapping = replay.to_mapping(problem, moves)
        assert validator.find_violations(problem, mapping) == []


def test_the_search_prefers_the_action_that_the_model_says_pays():
    _, params = agent()

    class Rewarding(MuZeroNetwork):
        """Dynamics that pay for COPY and for nothing else."""

        def advance(self, latent, action):
            pays = jnp.where(action == game.Action.COPY, 1.0, -1.0)
            return jnp.log(to_two_hot(pays, self.config) + 1e-9), latent

    choice = search.choose(
        Rewarding(SMALL),
        params,
        jax.random.key(0),
        jnp.zeros((5, observation.size())),
        jnp.array([[True, True, True]] * 4 + [[True, False, True]]),
        num_simulations=12,
        temperature=jnp.zeros(5),
    )
    assert choice.action[:4].tolist() == [game.Action.COPY] * 4
    assert choice.action[4] != game.Action.COPY
    assert float(choice.policy[4, game.Action.COPY]) == 0


def test_the_search_can_use_the_game_itself():
    """Who would drop everything plays well once the tree has the game's rewards."""
    problem = toy_problems.problem(toy_problems.weight_reused())
    _, params = agent()

    class Dropping(MuZeroNetwork):
        def predict(self, latent):
            logits = jnp.zeros((*latent.shape[:-1], 3)).at[..., game.Action.DROP].set(1)
            return super().predict(latent)._replace(policy=logits)

    board = board_lib.build(problem)

    def latency_s(true_scale):
        games = rollout.play(
            Dropping(SMALL),
            jax.tree.map(jnp.zeros_like, params),
            jax.random.key(0),
            board,
            observation.outlook(board),
            jnp.zeros(2),
            slots=replay.slots_of(problem),
            num_simulations=48,
            true_scale=true_scale,
        )
        moves = jax.tree.map(lambda x: x[0], games.moves)
        return problem.evaluate(replay.to_mapping(problem, moves)).latency_s

    best_s = problem.evaluate(milp.solve(problem)).latency_s
    assert latency_s(jnp.float32(10.0)) <= 1.05 * best_s
    assert latency_s(None) == problem.all_slow_latency_s > 1.2 * best_s


def test_padding_does_not_change_what_the_agent_does():
    problem = toy_problems.random_problem(5, num_ops=20)
    short = play(problem, num_simulations=0, temperature=(0.0,))
    long = play(
        problem,
        num_simulations=0,
        temperature=(0.0,),
        length=2 * short.value.shape[1],
    )
    n = len(board_lib.rows(problem).access)
    np.testing.assert_array_equal(short.moves.action[0, :n], long.moves.action[0, :n])
    np.testing.assert_allclose(
        short.observation[0, :n], long.observation[0, :n], atol=2e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_observations_are_bounded_and_scale_free(seed):
    """Twice the bytes on a machine twice as large and fast look the same."""
    program = toy_problems.random_program(seed, num_ops=20)
    big = dataclasses.replace(
        program,
        buffers=tuple(
            dataclasses.replace(b, size_bytes=2 * b.size_bytes) for b in program.buffers
        ),
        ops=tuple(
            dataclasses.replace(
                op,
                reads=tuple(_twice(a) for a in op.reads),
                writes=tuple(_twice(a) for a in op.writes),
                estimates=(),
            )
            for op in program.ops
        ),
    )
    program = dataclasses.replace(
        program,
        ops=tuple(dataclasses.replace(op, estimates=()) for op in program.ops),
    )
    machine = toy_problems.random_problem(seed).accelerator
    faster = machine.replace(
        fast_capacity_bytes=2 * machine.fast.capacity_bytes,
        fast_reserved_bytes=2 * machine.fast.reserved_bytes,
        fast_bandwidth_bytes_per_s=2 * machine.fast.bandwidth_bytes_per_s,
        slow_bandwidth_bytes_per_s=2 * machine.slow.bandwidth_bytes_per_s,
    )
    a = play(toy_problems.problem(program, machine), num_simulations=0)
    b = play(toy_problems.problem(big, faster), num_simulations=0)
    assert np.isfinite(a.observation).all()
    assert np.abs(a.observation).max() <= 4
    np.testing.assert_allclose(a.observation[0], b.observation[0], atol=0.01)


def _twice(access):
    return dataclasses.replace(access, touched_bytes=2 * access.touched_bytes)


def test_a_checkpoint_round_trips(tmp_path):
    network, params = agent()
    path = str(tmp_path / "a.msgpack")
    checkpoint.save(path, SMALL, params, {"seed": 7})
    loaded = checkpoint.load(path)
    assert loaded.network == network
    assert loaded.header["about"] == {"seed": 7}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), loaded.params, params
    )


def _rewrite_header(path, **changes):
    data = path.read_bytes()
    magic = b"jax_malloc.agent\n"
    at = len(magic) + 8
    length = int.from_bytes(data[len(magic) : at], "little")
    header = json.loads(data[at : at + length]) | changes
    text = json.dumps(header).encode()
    path.write_bytes(
        magic + len(text).to_bytes(8, "little") + text + data[at + length :]
    )


def test_a_checkpoint_of_another_game_is_refused(tmp_path):
    path = tmp_path / "a.msgpack"
    checkpoint.save(str(path), SMALL, agent()[1], {})
    _rewrite_header(path, game_version=game.VERSION + 1)
    with pytest.raises(
        ValueError, match=r"game version \d+, this package has.*retrain"
    ):
        checkpoint.load(str(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: b"PK" + d, "does not begin"),
        (lambda d: d[:40], "damaged header"),
        (lambda d: d[:-100], "damaged arrays"),
        (lambda d: b"", "does not begin"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage, message):
    path = tmp_path / "a.msgpack"
    checkpoint.save(str(path), SMALL, agent()[1], {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(str(path))


@pytest.mark.parametrize("hidden", [0, -1, "x", None, 10**9])
def test_a_network_of_impossible_shape_is_refused(tmp_path, hidden):
    path = tmp_path / "a.msgpack"
    checkpoint.save(str(path), SMALL, agent()[1], {})
    _rewrite_header(path, network=dataclasses.asdict(SMALL) | {"hidden": hidden})
    with pytest.raises(ValueError, match="network hidden is"):
        checkpoint.load(str(path))


def test_a_network_that_does_not_fit_its_header_is_refused(tmp_path):
    path = tmp_path / "a.msgpack"
    checkpoint.save(str(path), SMALL, agent()[1], {})
    _rewrite_header(path, network=dataclasses.asdict(SMALL) | {"hidden": 17})
    with pytest.raises(ValueError, match="do not fit the network"):
        checkpoint.load(str(path))


CONFIG = TrainConfig(
    network=SMALL,
    num_games=8,
    num_simulations=4,
    updates=4,
    batch=64,
    replay_positions=2000,
    reanalysed=64,
    minutes=0.0,
)


def lessons(seeds=range(2)):
    return [toy_problems.random_problem(s, num_ops=12) for s in seeds]


def test_value_targets_are_what_is_still_to_be_lost():
    """With lambda 1 the first target is the whole game's loss in units of its scale."""
    config = dataclasses.replace(CONFIG, trace=1.0)
    network, params = agent()
    (lesson,) = lesson_lib.prepare(lessons([1]))
    rows, summary = self_play.play(config, network, params, [lesson] * 2, 0)
    n = int(lesson.board.num_accesses)
    assert len(rows.value) == 2 * n
    assert rows.value[[0, n]].mean() == pytest.approx(summary["lost"], rel=1e-4)
    np.testing.assert_allclose(
        rows.value[: n - 1], rows.reward[: n - 1] + rows.value[1:n], atol=1e-4
    )
    np.testing.assert_array_equal(rows.left, np.tile(np.arange(n, 0, -1), 2))


def test_value_targets_by_hand():
    reward = np.array([[-1.0, 0.0, -2.0]], np.float32)
    root = np.array([[5.0, -3.0, -1.0]], np.float32)
    outcome = self_play.value_targets(reward, root, 1.0)
    np.testing.assert_allclose(outcome, [[-3.0, -2.0, -2.0]])
    one_step = self_play.value_targets(reward, root, 0.0)
    np.testing.assert_allclose(one_step, [[-4.0, -1.0, -2.0]])
    half = self_play.value_targets(reward, root, 0.5)
    np.testing.assert_allclose(half, [[-1 - 1.5 - 0.75, -0.5 - 1.0, -2.0]])


def some_positions(lengths, first=0):
    """Games of given lengths, whose observations count through all positions."""
    left = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    count = first + np.arange(len(left))
    return self_play.Positions(
        observation=count[:, None].astype(np.float16),
        action=(count % 3).astype(np.int8),
        reward=-count.astype(np.float32),
        policy=np.tile(count[:, None], 3).astype(np.float32),
        root=count.astype(np.float32),
        value=count.astype(np.float32),
        left=left.astype(np.int32),
    )


def test_a_replayed_window_stays_within_its_game():
    replayed = memory.Replay(10)
    replayed.add(some_positions([4, 3]))
    replayed.add(some_positions([2, 3], first=100))  # the oldest two are gone
    batch = replayed.sample(np.random.default_rng(0), 400, unroll=3)
    first = batch.observation[:, 0].astype(int)
    assert set(first) == {2, 3, 4, 5, 6, 100, 101, 102, 103, 104}
    left = {2: 2, 3: 1, 4: 3, 5: 2, 6: 1, 100: 2, 101: 1, 102: 3, 103: 2, 104: 1}
    for at, real, value in zip(first, batch.real, batch.value, strict=True):
        assert real.sum() == left[at]
        np.testing.assert_array_equal(value[real], at + np.arange(left[at]))
        assert not value[~real].any()
    with pytest.raises(ValueError, match="replay_positions"):
        replayed.add(some_positions([11]))


def test_reanalysis_makes_the_targets_that_self_play_would():
    """With the parameters and the search of before, nothing but noise may change."""
    config = dataclasses.replace(CONFIG, num_simulations=0, reanalysed=200)
    network, params = agent()
    batch = lesson_lib.prepare(lessons())
    rows, _ = self_play.play(config, network, params, batch * 4, 0)
    replayed = memory.Replay(len(rows.value))
    replayed.add(rows)
    everything = np.arange(len(rows.value))
    reanalysis.refresh(config, network, params, replayed, np.random.default_rng(0))
    after = replayed.read(everything)
    np.testing.assert_allclose(after.policy, rows.policy, atol=2e-2)
    np.testing.assert_allclose(after.value, rows.value, atol=2e-2)
    other = agent(seed=5)[1]
    reanalysis.refresh(config, network, other, replayed, np.random.default_rng(0))
    assert np.abs(replayed.read(everything).policy - rows.policy).max() > 0.05


def test_updates_fit_the_replayed_games():
    network, _ = agent()
    config = dataclasses.replace(CONFIG, updates=60)
    batch = lesson_lib.prepare(lessons())
    (shared,) = {x.length for x in batch}
    assert shared
    state = trainer.fresh(config, network)
    params, opt_state = state.params, state.opt_state
    rows, _ = self_play.play(config, network, params, batch * 4, 0)
    replayed = memory.Replay(2000)
    replayed.add(rows)
    rng = np.random.default_rng(0)
    before = after = None
    for _ in range(4):
        drawn = replayed.sample(rng, config.updates * config.batch, config.unroll)
        batches = jax.tree.map(
            lambda x: x.reshape(config.updates, config.batch, *x.shape[1:]), drawn
        )
        params, opt_state, parts = learner.update(
            config,
            network,
            parallel.own_devices(),
            params,
            opt_state,
            batches,
            jnp.float32(3e-3),
        )
        after = {k: float(v) for k, v in parts.items()}
        before = before or after
    assert after["value_loss"] < 0.9 * before["value_loss"]
    assert after["reward_loss"] < 0.9 * before["reward_loss"]


@pytest.mark.parametrize("num_simulations", [0, 2])
def test_a_demonstrated_game_is_the_one_that_was_given(num_simulations):
    network, params = agent()
    (lesson,) = lesson_lib.prepare(lessons([1]))
    n = int(lesson.board.num_accesses)
    actions = np.random.default_rng(0).integers(0, 3, n).astype(np.int32)
    rows = self_play.demonstrate(
        network, params, [lesson], [actions], num_simulations=num_simulations
    )
    moves = replay.play(
        lesson.board, np.pad(actions, (0, lesson.length - n)), slots=lesson.slots
    )
    np.testing.assert_array_equal(rows.action, np.asarray(moves.action)[:n])
    np.testing.assert_array_equal(rows.policy.argmax(axis=1), rows.action)
    lost = float(lesson.outlook.saving.sum() - np.asarray(moves.reward).sum())
    assert rows.value[0] == pytest.approx(-lost / lesson.scale, rel=1e-4)


@pytest.mark.parametrize(("problems", "times"), [([1], 1), ([1, 2], 2)])
def test_the_demonstration_of_an_only_problem_is_shown_once(
    monkeypatch, problems, times
):
    shown = []

    def demonstrate(*args, **options):
        shown.append(options["num_simulations"])
        return demonstrate_games(*args, **options)

    demonstrate_games = self_play.demonstrate
    monkeypatch.setattr(self_play, "demonstrate", demonstrate)
    network, _ = agent()
    only = trainer.Trainer(CONFIG, network, lessons(problems))
    for share in (0.0, 0.5):
        only.iterate(share)
    searched = CONFIG.num_simulations if len(problems) == 1 else 0
    assert shown == [searched] * times


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 128), (0.1, 256), (0.2, 512), (0.9, 512)]
)
def test_the_curriculum_grows_to_all(share, expected):
    assert lesson_lib.longest(share, 0.2, 128, 512) == expected
    assert lesson_lib.longest(share, 0.0, 128, 512) == 512


def test_a_run_resumes_where_it_stopped(tmp_path):
    run = str(tmp_path / "run")
    problems = lessons()
    seen = []

    def evaluate(network, params):
        seen.append(params)
        return {"score": 2.0 - len(seen)}

    def rows_after(minutes):
        config = dataclasses.replace(CONFIG, minutes=minutes)
        training.train(config, problems, evaluate, run, header={"seed": 0})
        with open(tmp_path / "run" / "metrics.csv") as f:
            return list(csv.DictReader(f))

    trained = float(rows_after(0.01)[-1]["minutes"])
    rows = rows_after(trained + 0.03)
    moves = [int(r["moves"]) for r in rows]
    assert moves[0] == 0
    assert moves == sorted(moves)
    assert moves[-1] > moves[1] > 0
    # The second run began with the parameters that the first one ended with.
    again = [i for i in range(1, len(moves)) if moves[i] == moves[i - 1]]
    assert again
    for i in again:
        jax.tree.map(np.testing.assert_array_equal, seen[i - 1], seen[i])
    best = checkpoint.load(str(tmp_path / "run" / "best.msgpack"))
    assert best.header["about"]["seed"] == 0


def test_evaluation_is_in_units_of_the_baseline():
    network, params = agent()
    problems = lessons()
    baseline = {i: p.all_slow_latency_s for i, p in enumerate(problems)}
    scores = evaluation.scores(network, params, problems, baseline)
    assert scores["score"] <= scores["one_game"]
    assert 0 < scores["score"] < 1
