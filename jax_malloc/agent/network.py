"""The three functions of MuZero, in flax: representation, dynamics, prediction.

    observation --representation--> latent --prediction--> policy, value
    latent, action --dynamics--> reward, next latent

Value and reward are categorical over a fixed support in signed-square-root space, with
probability on the two nearest atoms (Schrittwieser et al., Nature 588, 2020, appendix
F).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_malloc.game import NUM_ACTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network; part of a checkpoint's header.

    hidden: width of the representation's layers. latent: width of the latent state.
    dynamics: width inside the dynamics. atoms: length of the value and reward supports,
    which reach from -`bound` to `bound` in signed-square-root space.
    """

    hidden: int = 256
    latent: int = 128
    dynamics: int = 160
    atoms: int = 41
    bound: float = 2.0

    def __post_init__(self) -> None:
        for name in ("hidden", "latent", "dynamics", "atoms"):
            width = getattr(self, name)
            if type(width) is not int or not 2 <= width <= 65536:
                raise ValueError(
                    f"network {name} is {width!r}, expected an int in [2, 65536]."
                )
        if not 0 < self.bound < 1e6:
            raise ValueError(f"network bound is {self.bound!r}, expected above 0.")


class Prediction(NamedTuple):
    """Logits: policy `[..., 3]`, value `[..., atoms]`."""

    policy: jax.Array
    value: jax.Array


class MuZeroNetwork(nn.Module):
    """Representation, dynamics and prediction with shared parameters."""

    config: NetworkConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = nn.Sequential(
            [
                nn.Dense(c.hidden),
                nn.LayerNorm(),
                nn.relu,
                nn.Dense(c.hidden),
                nn.LayerNorm(),
                nn.relu,
                nn.Dense(c.latent),
            ]
        )
        self.transition = nn.Sequential(
            [nn.Dense(c.dynamics), nn.LayerNorm(), nn.relu, nn.Dense(c.latent)]
        )
        self.latent_norm = nn.LayerNorm()
        self.reward_head = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(c.atoms)])
        self.value_head = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(c.atoms)])
        self.policy_head = nn.Sequential(
            [nn.Dense(64), nn.relu, nn.Dense(NUM_ACTIONS, bias_init=_keep_all_bias)]
        )

    def represent(self, observation: jax.Array) -> jax.Array:
        """`[..., observation]` -> latent `[..., latent]`."""
        return self.latent_norm(self.encoder(observation))

    def predict(self, latent: jax.Array) -> Prediction:
        """Latent -> policy and value logits."""
        return Prediction(self.policy_head(latent), self.value_head(latent))

    def advance(self, latent: jax.Array, action: jax.Array):
        """Latent, `[...]` int action -> reward logits `[..., atoms]`, next latent."""
        one_hot = jax.nn.one_hot(action, NUM_ACTIONS, dtype=latent.dtype)
        change = self.transition(jnp.concatenate([latent, one_hot], axis=-1))
        after = self.latent_norm(latent + change)
        return self.reward_head(jnp.concatenate([after, one_hot], axis=-1)), after

    def __call__(self, observation: jax.Array, action: jax.Array):
        """Touches every parameter once, for `init`."""
        latent = self.represent(observation)
        return self.predict(latent), self.advance(latent, action)


def _keep_all_bias(key, shape, dtype=jnp.float32):
    """An untrained policy that mostly keeps what it has."""
    del key, shape
    return jnp.array([1.5, 0.7, 0.0], dtype)


def support(config: NetworkConfig) -> jax.Array:
    """`[atoms]` points in signed-square-root space."""
    return jnp.linspace(-config.bound, config.bound, config.atoms)


def to_scalar(logits: jax.Array, config: NetworkConfig) -> jax.Array:
    """`[..., atoms]` logits -> `[...]` expected value."""
    root = jax.nn.softmax(logits) @ support(config)
    return jnp.sign(root) * root**2


def to_two_hot(value: jax.Array, config: NetworkConfig) -> jax.Array:
    """`[...]` values -> `[..., atoms]` probabilities on the two nearest atoms."""
    root = jnp.sign(value) * jnp.sqrt(jnp.abs(value))
    step = 2 * config.bound / (config.atoms - 1)
    at = jnp.clip((root + config.bound) / step, 0.0, config.atoms - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(at[..., None] - jnp.arange(config.atoms)))
