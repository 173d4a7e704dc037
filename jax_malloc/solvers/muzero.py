"""The pretrained agent alone: games, and searches that its policy guides.

    games        64 of the policy, from greedy to random; of long programs in windows
    search       32 with 16 simulations per move, where a program is short
    changes      to the best game: where the policy is unsure, to what it would rather
                 do; played by the rules, kept by simulated annealing
    order        another mapping: uses enter by what they save, times the policy's
                 probability of fast memory, as far as prices want them at all
    repair       both are ruined here and there and recreated in that order

Every mapping is judged by its true latency.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.agent import checkpoint, rollout, windows
from jax_malloc.board import Board
from jax_malloc.compiled import annealing, kernels
from jax_malloc.compiled.tables import COLUMNS, Tables, as_moves, tables
from jax_malloc.game import NUM_ACTIONS, Action
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers import greedy, guides
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.polish import polish, search
from jax_malloc.solvers.worth import Guide

WEIGHTS = pathlib.Path(__file__).parent.parent / "weights" / "agent.msgpack"

# Rounds of games, (simulations per move, games): a search sharpens a single game,
# sampling from the policy alone gives more games in the same time.
POLICY = ((0, 64),)
POLICY_THEN_SEARCH = ((0, 64), (16, 32))
_MAX_TEMPERATURE = 1.0
_WORK_PER_ROUND = 250_000  # moves x cost of one: fewer games of long programs
_WHOLE = 384  # decisions; longer programs are played in windows
_WINDOW_GAMES = 16
# Changes without a deadline, a number and not a time, so that a seed repeats.
_TRIES = 8_000
_STEPS = 60_000_000  # tries x decisions at most
_GAMES_SHARE = 0.3  # of the time until a deadline, for rounds after the first
_UNSURE = 0.3  # least weight of a decision that the policy is sure of
_OPEN = 0.5  # share of proposed actions that are drawn regardless of the policy
_OPEN_ACTIONS = (0.5, 0.25, 0.25)
_HOT = 3.0  # units of temperature at the start of the changes
_CHANGES_SHARE = 0.4  # of the time that is left after the games
_ORDER_SHARE = 0.3  # of what is left, for the order at most
_LEAST_DESIRE = 0.2  # of a use that the policy would leave in slow memory


class Best(NamedTuple):
    """The best game so far.

    actions: `[n]`. policy: `[n, 3]` of the agent along it. saved: units.
    """

    actions: np.ndarray
    policy: np.ndarray
    saved: float


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best that the shipped agent finds; all in slow memory if nothing helps."""
    return play(pretrained(), problem, seed=seed, deadline_s=deadline_s)


@functools.cache
def pretrained() -> checkpoint.Agent:
    """The checkpoint that ships with the package."""
    return checkpoint.load(str(WEIGHTS))


class Proposal(NamedTuple):
    """What the agent proposes: mappings to search from, and what to try first.

    mappings: at least one. guide: None where it has no opinion.
    """

    mappings: list[Mapping]
    guide: Guide | None


def play(
    agent: checkpoint.Agent,
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    rounds: Sequence[tuple[int, int]] = POLICY_THEN_SEARCH,
    changes: bool = True,
) -> Mapping:
    """The best mapping that an agent finds by the deadline.

    Args:
      agent: the network and its parameters.
      rounds: of games, (simulations per move, games).
      changes: also search from the best game; else the games are all.
    """
    if not changes:
        proposal = propose(
            agent,
            problem,
            seed=seed,
            deadline_s=deadline_s,
            rounds=rounds,
            changes=False,
        )
        mapping = proposal.mappings[0]
    else:
        proposal = propose(
            agent,
            problem,
            seed=seed,
            deadline_s=deadline_s,
            rounds=rounds,
            changes_share=_CHANGES_SHARE,
        )
        mapping = search(
            problem,
            proposal.mappings,
            seed=seed,
            deadline_s=deadline_s,
            guide=proposal.guide,
        )
    worse = problem.evaluate(mapping).latency_s >= problem.all_slow_latency_s
    return Mapping() if worse else mapping


def propose(
    agent: checkpoint.Agent,
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    rounds: Sequence[tuple[int, int]] = POLICY,
    changes: bool = True,
    changes_share: float = 1.0,
) -> Proposal:
    """The agent's mappings: its best game, changed, and what its order builds.

    Args:
      agent, problem, seed, deadline_s, rounds, changes: as for `play`.
      changes_share: of the time after the games, for the changes.
    """
    least = board_lib.least_length(problem)
    slots = replay.slots_of(problem)
    board = board_lib.build(problem, least)
    if is_over(deadline_s) or not board.num_accesses:
        return Proposal([Mapping()], None)
    best = _games(agent, problem, board, slots, seed, deadline_s, rounds)
    if best is None:
        return Proposal([Mapping()], None)
    t = tables(board, slots)
    desire = np.maximum(1.0 - best.policy[:, Action.DROP], _LEAST_DESIRE)
    prices = guides.price_factor(observation.outlook(board), board)
    guide = guides.of_accesses(problem, desire * prices)
    if not changes or is_over(deadline_s):
        return Proposal([mapping_of(problem, t, best.actions)], guide)
    limit_s = share_of(deadline_s, _ORDER_SHARE)
    ordered = greedy.solve(problem, deadline_s=limit_s, guide=guide)
    actions = improve(
        t, best, seed=seed, deadline_s=share_of(deadline_s, changes_share)
    )
    mapping = mapping_of(problem, t, actions)
    mapping = polish(problem, mapping, seed=seed, deadline_s=deadline_s)
    return Proposal([mapping, ordered], guide)


def improve(
    t: Tables, best: Best, *, seed: int, deadline_s: float | None
) -> np.ndarray:
    """The `[n]` actions of a better game, by changes that the policy proposes."""
    n = len(t.op)
    taken = np.take_along_axis(best.policy, best.actions[:, None], axis=1)[:, 0]
    prior = (1 - _OPEN) * best.policy + _OPEN * np.array(_OPEN_ACTIONS)
    walk = annealing.anneal(
        t,
        best.actions,
        seed=seed,
        tries=min(_TRIES, _STEPS // n) if deadline_s is None else None,
        deadline_s=deadline_s,
        weights=np.maximum(1 - taken, _UNSURE) * annealing.at_stake(t),
        prior=prior,
        hot=_HOT,
    )
    return walk.best_actions


def mapping_of(problem: Problem, t: Tables, actions: np.ndarray) -> Mapping:
    """The mapping that `[n]` actions mean."""
    moves = np.zeros((len(t.op), len(COLUMNS)), np.int32)
    kernels.play(t, kernels.init(t), actions, moves, 0, len(t.op))
    return replay.to_mapping(problem, as_moves(moves))


def _games(
    agent: checkpoint.Agent,
    problem: Problem,
    board: Board,
    slots: int,
    seed: int,
    deadline_s: float | None,
    rounds: Sequence[tuple[int, int]],
) -> Best | None:
    """The best of the agent's games; None if all are worse than none."""
    n = int(board.num_accesses)
    if n > _WHOLE:
        temperature = _temperatures(_WINDOW_GAMES)
        games = windows.play(
            agent, board, observation.outlook(board), slots, temperature, seed=seed
        )
        winner = int(np.argmax(games.saved))
        return _best(
            games.moves[winner][:, 0], games.policy[winner], games.saved[winner]
        )
    board = board_lib.build(problem)
    outlook = observation.outlook(board)
    best = None
    began_s = time.monotonic()
    for i, (simulations, number) in enumerate(_affordable(rounds, n, slots)):
        if is_over(deadline_s) or (
            i > 0
            and deadline_s is not None
            and time.monotonic() - began_s > _GAMES_SHARE * (deadline_s - began_s)
        ):
            break
        played = rollout.play(
            agent.network,
            agent.params,
            jax.random.fold_in(jax.random.key(seed), i),
            board,
            outlook,
            _temperatures(number),
            slots=slots,
            num_simulations=simulations,
        )
        saved = np.asarray(played.moves.reward).sum(axis=1)
        winner = int(np.argmax(saved))
        if best is None or saved[winner] > best.saved:
            best = _best(
                np.asarray(played.moves.action[winner])[:n],
                np.asarray(played.policy[winner])[:n],
                float(saved[winner]),
            )
    return best


def _best(actions: np.ndarray, policy: np.ndarray, saved: float) -> Best:
    policy = policy + 1e-3 / NUM_ACTIONS
    return Best(
        actions.astype(np.int32), policy / policy.sum(axis=1, keepdims=True), saved
    )


def _temperatures(number: int) -> np.ndarray:
    """The first game of a round is greedy, the others ever more random."""
    return np.linspace(0.0, _MAX_TEMPERATURE, number, dtype=np.float32)


def _affordable(
    rounds: Sequence[tuple[int, int]], num_accesses: int, slots: int
) -> Iterator[tuple[int, int]]:
    """The rounds with fewer games where a program is long."""
    cost = num_accesses * (1 + slots // 64)
    for simulations, games in rounds:
        most = _WORK_PER_ROUND // (cost * (1 + simulations // 4))
        # Powers of two, so that programs of one bucket share a compilation.
        yield simulations, min(games, 1 << max(most, 1).bit_length() - 1)
