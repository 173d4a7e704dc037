"""Choosing an action: Gumbel MuZero over the learned model, or the policy alone.

Inside the tree the game does not exist: `recurrent_fn` is the learned dynamics. The
legal actions are known at the root only. `true_model` has the game in its place, to see
what learning it costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from jax_malloc import game
from jax_malloc.agent.network import MuZeroNetwork, to_scalar
from jax_malloc.board import Board
from jax_malloc.game import GameState
from jax_malloc.observation import Outlook, observe

# Rewards and values are shares of one program's range already; min-max rescaling within
# a tree would turn noise into differences.
_QTRANSFORM = functools.partial(
    mctx.qtransform_completed_by_mix_value, rescale_values=False, value_scale=0.5
)


class Choice(NamedTuple):
    """`[G]` actions, `[G, 3]` improved policy, `[G]` value of the root."""

    action: jax.Array
    policy: jax.Array
    value: jax.Array


def recurrent_fn(network: MuZeroNetwork, params, key, action, latent):
    """The learned dynamics as mctx wants them; discount 1, games are finite."""
    del key
    reward, after = network.apply(params, latent, action, method="advance")
    prediction = network.apply(params, after, method="predict")
    return (
        mctx.RecurrentFnOutput(
            reward=to_scalar(reward, network.config),
            discount=jnp.ones_like(action, jnp.float32),
            prior_logits=prediction.policy,
            value=to_scalar(prediction.value, network.config),
        ),
        after,
    )


def true_model(
    network: MuZeroNetwork,
    board: Board,
    outlook: Outlook,
    scale: jax.Array,
    params,
    key,
    action,
    state: GameState,
):
    """The rules of the game in place of the learned dynamics, for one board.

    Args:
      scale: `[]` units that one unit of reward and value is.
      state: `[G, ...]`, in place of latents.
    """
    del key
    propose = jax.vmap(functools.partial(game.propose, board))
    after, move = jax.vmap(functools.partial(game.step, board))(state, action)
    seen = jax.vmap(functools.partial(observe, board, outlook))(after, propose(after))
    prediction = network.apply(
        params, network.apply(params, seen, method="represent"), method="predict"
    )
    going_on = after.cursor < board.num_accesses
    return (
        mctx.RecurrentFnOutput(
            reward=move.reward / scale,
            discount=going_on.astype(jnp.float32),
            prior_logits=prediction.policy,
            value=to_scalar(prediction.value, network.config),
        ),
        after,
    )


def choose(
    network: MuZeroNetwork,
    params,
    key: jax.Array,
    observation: jax.Array,
    legal: jax.Array,
    *,
    num_simulations: int,
    temperature: jax.Array,
    model: Callable | None = None,
    state: GameState | None = None,
) -> Choice:
    """One decision for each of `G` games.

    Args:
      network, params: the agent.
      observation: `[G, F]`. legal: `[G, 3]` bool.
      num_simulations: static; 0 samples from the policy head without a search.
      temperature: `[G]`; scales the randomness of the choice, 0 is greedy.
      model, state: what the tree steps with and from where, in place of the learned
        dynamics and the latents; see `true_model`.
    """
    latent = network.apply(params, observation, method="represent")
    prediction = network.apply(params, latent, method="predict")
    value = to_scalar(prediction.value, network.config)
    logits = jnp.where(legal, prediction.policy, -1e9)
    if num_simulations == 0:
        noise = jax.random.gumbel(key, logits.shape) * temperature[:, None]
        return Choice(
            jnp.argmax(jnp.where(legal, logits + noise, -jnp.inf), axis=-1),
            jax.nn.softmax(logits),
            value,
        )
    # A game that is over has no legal action; mctx needs one.
    invalid = jnp.where(legal.any(axis=-1, keepdims=True), ~legal, False)
    output = mctx.gumbel_muzero_policy(
        params,
        key,
        mctx.RootFnOutput(
            prior_logits=prediction.policy,
            value=value,
            embedding=latent if model is None else state,
        ),
        model or functools.partial(recurrent_fn, network),
        num_simulations=num_simulations,
        invalid_actions=invalid,
        max_num_considered_actions=3,
        qtransform=_QTRANSFORM,
        gumbel_scale=temperature[:, None],
    )
    improved = output.action_weights
    searched = output.search_tree.summary()
    return Choice(output.action, improved, (improved * searched.qvalues).sum(axis=-1))
