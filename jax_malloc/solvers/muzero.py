"""The pretrained agent alone: games, and searches that its policy guides.

    games        64 of the policy, from greedy to random; fewer of long programs
    simulations  32 more games with a search before every move, where there is time
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
from typing import NamedTuple

import jax
import numpy as np

from jax_malloc import board as board_lib
from jax_malloc import observation, replay
from jax_malloc.agent import checkpoint, rollout
from jax_malloc.compiled import annealing, kernels, player
from jax_malloc.compiled.sight import sight
from jax_malloc.compiled.tables import COLUMNS, Tables, as_moves, tables
from jax_malloc.game import NUM_ACTIONS, Action
from jax_malloc.mapping import Mapping
from jax_malloc.observation import Outlook
from jax_malloc.problem import Problem
from jax_malloc.solvers import greedy, guides
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.polish import polish, search
from jax_malloc.solvers.worth import Guide

WEIGHTS = pathlib.Path(__file__).parent.parent / "weights" / "agent.msgpack"

_MAX_TEMPERATURE = 1.0
# Games side by side, and how many times; of long programs there are fewer.
_BATCH, _BATCHES = 16, 4
_BATCH_WORK = 32_000  # games x decisions of one batch
_FIRST_SHARE = 0.5  # of the time until a deadline, for the first batch at most
_GAMES_SHARE = 0.3  # of the time until a deadline, for batches after the first
# Games with simulations: a first one compiles for as long as this.
_SIMULATIONS, _SEARCHED_GAMES = 16, 32
_SEARCH_S = 25.0
_SHORT = 384  # decisions, and ops, of a program that is worth it
# Changes without a deadline, a number and not a time, so that a seed repeats.
_TRIES = 8_000
_STEPS = 12_000_000  # tries x decisions at most
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


class Proposal(NamedTuple):
    """What the agent proposes: mappings to search from, and what to try first.

    mappings: at least one. guide: None where it has no opinion.
    """

    mappings: list[Mapping]
    guide: Guide | None


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The best that the shipped agent finds; all in slow memory if nothing helps."""
    return play(
        pretrained(), problem, seed=seed, deadline_s=deadline_s, simulations=True
    )


@functools.cache
def pretrained() -> checkpoint.Agent:
    """The checkpoint that ships with the package."""
    return checkpoint.load(str(WEIGHTS))


def play(
    agent: checkpoint.Agent,
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    simulations: bool = False,
    changes: bool = True,
) -> Mapping:
    """The best mapping that an agent finds by the deadline.

    Args:
      agent: the network and its parameters.
      simulations: also games with a search before every move, where there is time.
      changes: also search from the best game; else the games are all.
    """
    proposal = propose(
        agent,
        problem,
        seed=seed,
        deadline_s=deadline_s,
        simulations=simulations,
        changes_share=_CHANGES_SHARE if changes else 0.0,
    )
    mapping = proposal.mappings[0]
    if changes:
        mapping = search(
            problem,
            sorted(proposal.mappings, key=lambda m: problem.evaluate(m).latency_s),
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
    simulations: bool = False,
    changes_share: float = 1.0,
) -> Proposal:
    """The agent's mappings: its best game, changed, and what its order builds.

    Args:
      agent, problem, seed, deadline_s, simulations: as for `play`.
      changes_share: of the time after the games, for the changes; 0 leaves out
        whatever follows the games.
    """
    board = board_lib.build(problem, board_lib.least_length(problem))
    if is_over(deadline_s) or not board.num_accesses:
        return Proposal([Mapping()], None)
    t, outlook = tables(board, replay.slots_of(problem)), observation.outlook(board)
    prices = guides.price_factor(outlook, board)
    best = _games(agent, problem, t, outlook, seed, deadline_s, simulations)
    if best is None:  # too long a program for the time: the order of prices alone
        guide = guides.of_accesses(problem, prices)
        ordered = greedy.solve(problem, deadline_s=deadline_s, guide=guide)
        return Proposal([ordered], guide)
    desire = np.maximum(1.0 - best.policy[:, Action.DROP], _LEAST_DESIRE)
    guide = guides.of_accesses(problem, desire * prices)
    if not changes_share or is_over(deadline_s):
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
    t: Tables,
    outlook: Outlook,
    seed: int,
    deadline_s: float | None,
    simulations: bool,
) -> Best | None:
    """The best of the agent's games; None if none ended in time."""
    n = len(t.op)
    batch = min(max(_BATCH_WORK // n, 2), _BATCH)
    seeing = sight(outlook)
    limit_s = share_of(deadline_s, _GAMES_SHARE)
    best = None
    # The first game is greedy, the others ever more random; batches mix them.
    temperatures = _temperatures(batch * (_BATCHES if n <= _SHORT else 1))
    for i, mixed in enumerate(temperatures.reshape(batch, -1).T):
        played = player.play(
            agent,
            t,
            seeing,
            mixed,
            seed=seed + i,
            deadline_s=limit_s if i else share_of(deadline_s, _FIRST_SHARE),
        )
        if played is None:
            break
        winner = int(np.argmax(played.saved))
        if best is None or played.saved[winner] > best.saved:
            actions = played.moves[winner, :, COLUMNS.index("action")]
            best = _best(actions, played.policy[winner], played.saved[winner])
        if is_over(limit_s):
            break
    left_s = np.inf if deadline_s is None else deadline_s - time.monotonic()
    is_short = max(n, len(problem.program.ops)) <= _SHORT
    if simulations and is_short and left_s > _SEARCH_S:
        found = _searched(agent, problem, seed)
        if best is None or found.saved > best.saved:
            best = found
    return best


def _searched(agent: checkpoint.Agent, problem: Problem, seed: int) -> Best:
    """The best of games with a search before every move."""
    board = board_lib.build(problem)
    n = int(board.num_accesses)
    played = rollout.play(
        agent.network,
        agent.params,
        jax.random.key(seed),
        board,
        observation.outlook(board),
        _temperatures(_SEARCHED_GAMES),
        slots=replay.slots_of(problem),
        num_simulations=_SIMULATIONS,
    )
    saved = np.asarray(played.moves.reward).sum(axis=1)
    winner = int(np.argmax(saved))
    return _best(
        np.asarray(played.moves.action[winner])[:n],
        np.asarray(played.policy[winner])[:n],
        float(saved[winner]),
    )


def _best(actions: np.ndarray, policy: np.ndarray, saved: float) -> Best:
    policy = policy + 1e-3 / NUM_ACTIONS
    return Best(
        actions.astype(np.int32), policy / policy.sum(axis=1, keepdims=True), saved
    )


def _temperatures(number: int) -> np.ndarray:
    """The first game of a round is greedy, the others ever more random."""
    return np.linspace(0.0, _MAX_TEMPERATURE, number, dtype=np.float32)
