"""The rules, by hand on toy programs and by random play on generated ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_problems

from frontends import stablehlo
from hwmodel import presets
from jax_malloc import board as board_lib
from jax_malloc import fast_memory, game, replay, validator
from jax_malloc.game import Action
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Direction, Mapping

KIB = 1024
NO_COPY, COPY, DROP = Action.NO_COPY, Action.COPY, Action.DROP


def play(problem, actions, length=None):
    """The moves of one game, on the host; missing actions are DROP."""
    board = board_lib.build(problem, length)
    padded = np.full(len(board.access.op), DROP, np.int32)
    padded[: len(actions)] = actions
    moves = replay.play(board, padded, slots=replay.slots_of(problem))
    return jax.tree.map(np.asarray, moves)


def play_all(problem, action):
    return play(problem, [action] * len(board_lib.rows(problem).access))


def random_games(problem, seed, games=4):
    """Mappings and rewards of games with ever more inclination to keep things."""
    board = board_lib.build(problem)
    rng = np.random.default_rng(seed)
    shape = (len(board.access.op),)
    actions = np.stack(
        [rng.choice(3, shape, p=(p, 0.3, 0.7 - p)) for p in np.linspace(0, 0.7, games)]
    )
    moves = replay.play_many(board, actions, slots=replay.slots_of(problem))
    for g in range(games):
        one = jax.tree.map(lambda x, g=g: np.asarray(x[g]), moves)
        yield replay.to_mapping(problem, one), float(one.reward.sum() * board.unit_s)


def only(mapping, problem, name):
    """The segments of one buffer."""
    (buffer_id,) = [i for i, b in enumerate(problem.program.buffers) if b.label == name]
    return mapping.segments_of(buffer_id)


def test_keeping_a_chain_serves_every_inner_access_from_fast_memory():
    problem = toy_problems.problem(toy_problems.chain())
    mapping = replay.to_mapping(problem, play_all(problem, NO_COPY))
    assert [(s.begin, s.first, s.end) for s in only(mapping, problem, "a")] == [
        (0, 0, 2)
    ]
    assert [(s.begin, s.first, s.end) for s in only(mapping, problem, "b")] == [
        (1, 1, 3)
    ]
    # x has nowhere to be prefetched from: no op runs before its only use.
    assert problem.evaluate(mapping).latency_s < problem.all_slow_latency_s


def test_dropping_everything_is_all_in_slow_memory():
    problem = toy_problems.problem(toy_problems.diamond())
    moves = play_all(problem, DROP)
    assert replay.to_mapping(problem, moves) == Mapping()
    assert moves.reward.sum() == 0


def copy_at_definition(problem, name):
    """The evictions of a game that says COPY wherever this buffer is, else DROP."""
    rows = board_lib.rows(problem)
    mine = [b.label for b in problem.program.buffers].index(name)
    actions = [COPY if problem.access_buffer[i] == mine else DROP for i in rows.access]
    mapping = replay.to_mapping(problem, play(problem, actions))
    assert not validator.find_violations(problem, mapping)
    evictions = [c for c in mapping.copies if c.direction is Direction.EVICT]
    return mine, [(c.buffer_id, c.start) for c in evictions]


def test_copy_at_the_definition_starts_an_eviction_right_after_it():
    problem = toy_problems.problem(toy_problems.diamond())
    b, evictions = copy_at_definition(problem, "b")
    assert evictions == [(b, 2)]


def test_a_place_is_not_given_up_for_a_use_that_comes_at_once():
    """There would be no time to be gone: the eviction would be all stall."""
    problem = toy_problems.problem(toy_problems.chain())
    _, evictions = copy_at_definition(problem, "a")
    assert evictions == []


def test_a_prefetch_begins_as_late_as_the_ops_in_between_hide_it():
    problem = toy_problems.problem(
        reread_past_a_large_value(), toy_problems.toy(fast_kib=16)
    )
    mapping = replay.to_mapping(problem, play_all(problem, NO_COPY))
    # w comes back for op 5: op 4 computes for 10 s, which hides the copy's 8 s.
    (copy,) = [
        c for c in mapping.copies if c.direction is Direction.PREFETCH and c.start > 0
    ]
    assert (copy.start, copy.done) == (4, 5)
    later = dataclasses.replace(copy, start=5)
    copies = tuple(later if c is copy else c for c in mapping.copies)
    worse = problem.evaluate(Mapping(mapping.segments, copies)).latency_s
    assert worse > problem.evaluate(mapping).latency_s


@pytest.mark.parametrize("seed", range(12))
def test_random_play_ends_in_a_valid_mapping_worth_its_rewards(seed):
    problem = toy_problems.random_problem(seed, num_ops=10 + 5 * seed)
    for mapping, reward_s in random_games(problem, seed):
        assert validator.find_violations(problem, mapping) == []
        saved_s = problem.all_slow_latency_s - problem.evaluate(mapping).latency_s
        assert reward_s == pytest.approx(saved_s, abs=2e-5 * problem.all_slow_latency_s)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_limit_on_open_copies_is_kept(seed, limit):
    problem = toy_problems.random_problem(seed, num_ops=40)
    dma = dataclasses.replace(problem.accelerator.dma, max_in_flight=limit)
    machine = dataclasses.replace(problem.accelerator, dma=dma)
    problem = toy_problems.problem(problem.program, machine)
    for mapping, _ in random_games(problem, seed):
        assert validator.find_violations(problem, mapping) == []


@pytest.mark.parametrize("seed", range(4))
def test_padding_is_inert(seed):
    problem = toy_problems.random_problem(seed, num_ops=30)
    n = len(board_lib.rows(problem).access)
    actions = np.random.default_rng(seed).integers(0, 3, n)
    short = play(problem, actions)
    long = play(problem, actions, length=2 * len(short.fast))
    for a, b in zip(short, long, strict=True):
        np.testing.assert_array_equal(a[:n], b[:n])
    assert not long.fast[n:].any()
    assert not long.reward[n:].any()


@pytest.mark.parametrize("seed", range(4))
def test_games_side_by_side_do_not_see_each_other(seed):
    problem = toy_problems.random_problem(seed, num_ops=25)
    board = board_lib.build(problem)
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 3, (3, len(board.access.op)))
    together = replay.play_many(board, actions, slots=replay.slots_of(problem))
    for g in range(3):
        alone = replay.play(board, actions[g], slots=replay.slots_of(problem))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b[g]), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_an_illegal_action_falls_back_and_the_mask_says_which_is_taken(seed):
    problem = toy_problems.random_problem(seed, num_ops=25)
    board = board_lib.build(problem)
    rng = np.random.default_rng(seed)
    step = jax.jit(game.step)
    mask = jax.jit(game.legal_action_mask)
    state = game.init(board, replay.slots_of(problem))
    for _ in range(int(board.num_accesses)):
        legal = np.asarray(mask(board, state))
        action = int(rng.integers(0, 3))
        state, move = step(board, state, action)
        assert legal.any()
        assert legal[int(move.action)]
        assert int(move.action) == action or not legal[action]
    assert not np.asarray(mask(board, state)).any()
    after, move = step(board, state, 0)
    assert float(move.reward) == 0
    assert int(after.cursor) == int(state.cursor)


@pytest.mark.parametrize(
    ("blocked", "size", "expected"),
    [
        # 0    4    8    12   16        capacity 16
        ([], 4, 12),  # empty memory is one gap at the top, filled from its top
        ([(0, 4)], 4, 12),
        ([(0, 4), (8, 8)], 4, 4),  # the one gap
        ([(2, 2), (8, 8)], 2, 0),  # the smaller of two gaps
        ([(4, 4), (10, 6)], 3, 0),  # the gap of 2 is too small
        ([(0, 4), (2, 4), (12, 4)], 6, 6),  # rows that overlap at other times
        ([(0, 8), (8, 8)], 1, None),
    ],
)
def test_best_fit(blocked, size, expected):
    offsets = np.array([b[0] for b in blocked] + [0], np.int32)
    sizes = np.array([b[1] for b in blocked] + [16], np.int32)
    mask = np.arange(len(offsets)) < len(blocked)  # the last row is not in the way
    fits, offset = fast_memory.best_fit(offsets, sizes, mask, size, np.int32(16))
    assert bool(fits) == (expected is not None)
    assert expected is None or int(offset) == expected


def reread_past_a_large_value():
    """A weight read twice, and in between a value that needs most of the memory.

    op     0    1    2    3    4    5
           a    b    big  c    d    y
    w           =-------------------=      8 KiB, parameter
    big              W----=               10 KiB
    FLOPs  10        10   10   10
    """
    draft = Draft("reread")
    x, w = draft.parameter(KIB, "x"), draft.parameter(8 * KIB, "w")
    compute = {"matmul_flops": 10.0, "matmul_dtype": "f32"}
    (a,) = draft.op("fusion", [x], [KIB], name="a", **compute)
    (b,) = draft.op("dot", [a, w], [KIB], name="b")
    (big,) = draft.op("fusion", [b], [10 * KIB], name="big", **compute)
    (c,) = draft.op("fusion", [big], [KIB], name="c", **compute)
    (d,) = draft.op("fusion", [c], [KIB], name="d", **compute)
    (y,) = draft.op("dot", [d, w], [KIB], name="y")
    return draft.build([y])


@pytest.mark.parametrize(("fast_kib", "stays"), [(32, 1), (16, 2)])
def test_a_kept_place_is_taken_only_when_nothing_else_is_left(fast_kib, stays):
    problem = toy_problems.problem(
        reread_past_a_large_value(), toy_problems.toy(fast_kib=fast_kib)
    )
    mapping = replay.to_mapping(problem, play_all(problem, NO_COPY))
    # Without room for both, w is not there at its second use and falls back to COPY.
    assert len(only(mapping, problem, "w")) == stays
    assert len(only(mapping, problem, "big")) == 1
    assert validator.find_violations(problem, mapping) == []


def test_a_loop_is_decided_once_for_what_outlives_it():
    problem = toy_problems.problem(toy_problems.loop())
    board = board_lib.build(problem)
    n = int(board.num_accesses)
    follows = board.access.follows[:n]
    assert follows.any()
    for action in Action:
        moves = play_all(problem, action)
        mapping = replay.to_mapping(problem, moves)
        assert validator.find_violations(problem, mapping) == []
        for i in np.flatnonzero(follows):
            lead = i - 1
            while board.access.buffer[lead] != board.access.buffer[i]:
                lead -= 1
            assert moves.fast[i] == moves.fast[lead]


def test_a_program_too_long_for_the_board_says_what_to_do():
    with pytest.raises(ValueError, match="greedy"):
        board_lib.bucket(10**6)


def branches_in_a_loop(choose, a):
    def body(c, x):
        return jax.lax.cond(x[0, 0] > 0, lambda c: c @ a, lambda c: c @ x, c), c.sum()

    b = jnp.tanh(a) @ a
    c, d = jax.lax.cond(
        choose, lambda a, b: (a @ b, a), lambda a, b: (jnp.sin(a) @ b, b @ b), a, b
    )
    e, sums = jax.lax.scan(body, c, jnp.stack([a, b, a]))
    return e @ b, sums, d @ a


@pytest.mark.parametrize("size", [256, 2048])
def test_branches_of_a_conditional_are_decided_together(size):
    program = stablehlo.from_jax(
        branches_in_a_loop,
        jax.ShapeDtypeStruct((), jnp.bool_),
        jax.ShapeDtypeStruct((size, size), jnp.float32),
    )
    problem = toy_problems.problem(program, presets.get("tpu_v5e"))
    for mapping, reward_s in random_games(problem, size, games=8):
        assert validator.find_violations(problem, mapping) == []
        saved_s = problem.all_slow_latency_s - problem.evaluate(mapping).latency_s
        assert reward_s == pytest.approx(saved_s, abs=2e-5 * problem.all_slow_latency_s)
