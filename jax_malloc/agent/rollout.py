"""Whole games played by the agent, many side by side, in one jitted loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_malloc import game, observation, replay
from jax_malloc.agent import search
from jax_malloc.agent.network import MuZeroNetwork
from jax_malloc.board import Board
from jax_malloc.game import Move
from jax_malloc.observation import Outlook


class Games(NamedTuple):
    """What `G` games did; leaves are `[G, N, ...]`.

    moves: of the game. observation: `[G, N, F]` float16, zeros unless recorded.
    policy: `[G, N, 3]` the improved policy. value: `[G, N]` the root's value.
    """

    moves: Move
    observation: jax.Array
    policy: jax.Array
    value: jax.Array


@functools.partial(
    jax.jit,
    static_argnames=("network", "slots", "num_simulations", "batched", "record"),
)
def play(
    network: MuZeroNetwork,
    params,
    key: jax.Array,
    board: Board,
    outlook: Outlook,
    temperature: jax.Array,
    *,
    slots: int,
    num_simulations: int,
    actions: jax.Array | None = None,
    true_scale: jax.Array | None = None,
    batched: bool = False,
    record: bool = False,
) -> Games:
    """Plays one game per entry of `temperature`.

    Args:
      network, params: the agent.
      board, outlook: one for all games, or with a leading axis `G` if `batched`.
      temperature: `[G]` randomness of each game's choices; 0 is greedy.
      slots, num_simulations: static.
      actions: `[G, N]` int32, to be taken in place of the agent's choice where not -1.
      true_scale: `[]` units per unit of reward, to search with the game itself in place
        of the learned dynamics, on one board for all games; None, as usual.
      record: keep the observations, for training.
    """
    axis = 0 if batched else None
    num_games = temperature.shape[0]
    length = board.access.op.shape[-1]
    state = jax.vmap(
        lambda b: game.init(b, slots), axis_size=num_games, in_axes=(axis,)
    )(board)
    over_games = functools.partial(jax.vmap, in_axes=(axis, 0))
    propose = over_games(game.propose)
    observe = jax.vmap(observation.observe, in_axes=(axis, axis, 0, 0))
    apply = jax.vmap(game.apply, in_axes=(axis, 0, 0, 0))

    model = None
    if true_scale is not None:
        model = functools.partial(
            search.true_model, network, board, outlook, true_scale
        )

    def turn(state, i):
        proposal = propose(board, state)
        seen = observe(board, outlook, state, proposal)
        choice = search.choose(
            network,
            params,
            jax.random.fold_in(key, i),
            seen,
            proposal.legal,
            num_simulations=num_simulations,
            temperature=temperature,
            model=model,
            state=state,
        )
        action = choice.action
        if actions is not None:
            action = jnp.where(actions[:, i] >= 0, actions[:, i], action)
        state, move = apply(board, state, proposal, action)
        kept = seen.astype(jnp.float16) if record else jnp.zeros((num_games, 0))
        return state, Games(move, kept, choice.policy, choice.value)

    steps = jnp.max(jnp.asarray(board.num_accesses))
    first = jax.eval_shape(turn, state, jnp.int32(0))[1]
    blank = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), first)
    blank = blank._replace(moves=jax.tree.map(_nothing, blank.moves))

    def body(i, carry):
        state, games = carry
        state, now = turn(state, i)
        return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), games, now)

    _, games = jax.lax.fori_loop(0, steps, body, (state, blank))
    games = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), games)
    moves = jax.vmap(replay.settle, in_axes=(axis, 0))(board, games.moves)
    return games._replace(moves=moves)


def _nothing(x):
    """A move that did nothing: boundaries are -1 where nothing ran."""
    return x - 1 if x.dtype == jnp.int32 else x
