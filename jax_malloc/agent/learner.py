"""The update: MuZero's loss through unrolled dynamics, on batches over all devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.memory import Batch
from jax_malloc.agent.network import MuZeroNetwork, to_scalar, to_two_hot


def optimizer() -> optax.GradientTransformation:
    """Adam with clipped gradients and a little weight decay; without its step size."""
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(1e-5),
    )


@functools.partial(jax.jit, static_argnames=("config", "network", "mesh"))
def update(
    config: TrainConfig,
    network: MuZeroNetwork,
    mesh: Mesh,
    params: dict,
    opt_state: optax.OptState,
    batches: Batch,
    learning_rate: jax.Array,
) -> tuple[dict, optax.OptState, dict[str, jax.Array]]:
    """One gradient step per batch of `[U, R, ...]`, and the means of their losses.

    Args:
      mesh: of one axis, over which the rows R are sharded; all else is replicated. Its
        devices sum their gradients once per step, as one array: between hosts it is the
        number of messages that counts.
    """
    (axis,) = mesh.axis_names

    def one(carry, batch):
        params, opt_state = carry
        # Of this device's rows alone; for replicated parameters, the transformation
        # would sum the gradients itself, array by array.
        own = jax.lax.pcast(params, axis, to="varying")
        found = jax.grad(lambda p: _loss(config, network, p, batch), has_aux=True)(own)
        flat, unravel = ravel_pytree(found)
        grads, parts = unravel(jax.lax.pmean(flat, axis))
        change, opt_state = optimizer().update(grads, opt_state, params)
        change = jax.tree.map(lambda x: -learning_rate * x, change)
        return (optax.apply_updates(params, change), opt_state), parts

    def steps(params, opt_state, batches):
        return jax.lax.scan(one, (params, opt_state), batches)

    (params, opt_state), parts = jax.shard_map(
        steps,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(None, axis)),
        out_specs=((PartitionSpec(), PartitionSpec()), PartitionSpec()),
    )(params, opt_state, batches)
    return params, opt_state, jax.tree.map(jnp.mean, parts)


def _loss(config, network, params, rows: Batch):
    """Mean loss over `[R]` rows, and its parts."""
    latent = network.apply(
        params, rows.observation.astype(jnp.float32), method="represent"
    )
    real = rows.real.astype(jnp.float32)
    parts = {"policy_loss": 0.0, "value_loss": 0.0, "reward_loss": 0.0}
    for k in range(config.unroll + 1):
        weight = real[:, k] * (1.0 if k == 0 else 1.0 / config.unroll)
        prediction = network.apply(params, latent, method="predict")
        if k == 0:
            value = to_scalar(prediction.value, config.network)
        parts["policy_loss"] += _cross_entropy(
            prediction.policy, rows.policy[:, k], weight
        )
        parts["value_loss"] += _cross_entropy(
            prediction.value, to_two_hot(rows.value[:, k], config.network), weight
        )
        if k < config.unroll:
            # Half the gradient flows back through each step of the dynamics
            # (Schrittwieser et al., 2020, appendix G).
            latent = 0.5 * latent + 0.5 * jax.lax.stop_gradient(latent)
            reward, latent = network.apply(
                params, latent, rows.action[:, k].astype(jnp.int32), method="advance"
            )
            parts["reward_loss"] += _cross_entropy(
                reward,
                to_two_hot(rows.reward[:, k], config.network),
                real[:, k] / config.unroll,
            )
    total = (
        parts["policy_loss"]
        + config.value_weight * parts["value_loss"]
        + parts["reward_loss"]
    )
    parts["value_error"] = jnp.abs(value - rows.value[:, 0]).mean()
    return total, parts


def _cross_entropy(logits, target, weight):
    return (optax.softmax_cross_entropy(logits, target) * weight).mean()
