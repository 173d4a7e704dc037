"""Flax modules that carry data along a flow: in invertible steps, or in time.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from networks import Mlp


class FlowStep(nn.Module):
    """Glow's step: scale every channel, mix the channels, couple one half to the other.

    Returns the images and the log-determinant of the step's Jacobian, `[batch]`.
    """

    hidden: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.zeros, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = (x + bias.astype(self.dtype)) * jnp.exp(scale).astype(self.dtype)
        mixing, log_diagonal = self._mixing(channels)
        x = x @ mixing.astype(self.dtype)
        of_pixels = height * width * (scale + log_diagonal).sum()

        conv = functools.partial(nn.Conv, dtype=self.dtype)
        still, moved = jnp.split(x, 2, -1)
        y = nn.relu(conv(self.hidden, (3, 3))(still))
        y = nn.relu(conv(self.hidden, (1, 1))(y))
        y = conv(channels, (3, 3), kernel_init=nn.initializers.zeros)(y)
        shift, log_scale = jnp.split(y, 2, -1)
        log_scale = nn.log_sigmoid(log_scale.astype(jnp.float32) + 2)
        moved = (moved + shift) * jnp.exp(log_scale).astype(self.dtype)
        log_det = log_scale.reshape(batch, -1).sum(-1) + of_pixels
        return jnp.concatenate([still, moved], -1), log_det

    def _mixing(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """A matrix as a permuted product of triangular ones, and its log-diagonal."""
        order = np.random.default_rng(channels).permutation(channels)
        init, shape = nn.initializers.normal(0.02), (channels, channels)
        lower = jnp.tril(self.param("lower", init, shape), -1) + jnp.eye(channels)
        log_diagonal = self.param("log_diagonal", nn.initializers.zeros, (channels,))
        upper = jnp.triu(self.param("upper", init, shape), 1)
        upper += jnp.diag(jnp.exp(log_diagonal))
        return (lower @ upper)[order], log_diagonal


class Glow(nn.Module):
    """Images to their log-likelihood under a normalising flow, `[batch]`.

    Every level folds 2 x 2 pixels into channels, takes its steps, and hands half of
    the channels to the Gaussian.
    Source: Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1
    Convolutions", arXiv 1807.03039; its defaults for CIFAR-10 have 32 steps.
    """

    levels: int = 3
    steps: int = 32
    hidden: int = 512
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        total = jnp.zeros(x.shape[0], jnp.float32)
        for level in range(self.levels):
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
            x = x.transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(batch, height // 2, width // 2, 4 * channels)
            for _ in range(self.steps):
                x, log_det = FlowStep(self.hidden, self.dtype)(x)
                total += log_det
            if level < self.levels - 1:
                x, done = jnp.split(x, 2, -1)
                total += _log_normal(done)
        return total + _log_normal(x)


class RungeKuttaStep(nn.Module):
    """One step of the classical method of order four along a learned vector field."""

    hidden: int
    step: float
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, None]:
        field = Mlp(self.hidden, 3, x.shape[-1], self.dtype, nn.tanh)

        def slope(x: jax.Array, time: jax.Array) -> jax.Array:
            clock = jnp.broadcast_to(time.astype(x.dtype), (*x.shape[:-1], 1))
            return field(jnp.concatenate([x, clock], -1))

        h = self.step
        k1 = slope(x, time)
        k2 = slope(x + h / 2 * k1, time + h / 2)
        k3 = slope(x + h / 2 * k2, time + h / 2)
        k4 = slope(x + h * k3, time + h)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None


class NeuralOde(nn.Module):
    """States `[batch, width]` at time 0 to those at time 1, in steps of one loop.

    Source: Chen et al., "Neural Ordinary Differential Equations", arXiv 1806.07366.
    """

    steps: int
    hidden: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        loop = nn.scan(
            RungeKuttaStep, variable_broadcast="params", split_rngs={"params": False}
        )
        times = jnp.arange(self.steps) / self.steps
        return loop(self.hidden, 1 / self.steps, self.dtype)(x, times)[0]


def _log_normal(x: jax.Array) -> jax.Array:
    """Log-density of `[batch, ...]` under the standard normal distribution."""
    x = x.astype(jnp.float32).reshape(x.shape[0], -1)
    return -0.5 * (x**2 + np.log(2 * np.pi)).sum(-1)
