"""Flax modules of published image models; the defaults are the published ones.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from networks import Attention, TransformerBlock


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7 convolution and an MLP on each pixel, scaled and added."""

    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), feature_group_count=width, dtype=self.dtype)(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(y)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(y))
        y = nn.Dense(width, dtype=self.dtype)(y)
        scale = self.param("scale", nn.initializers.constant(1e-6), (width,))
        return x + y * scale.astype(self.dtype)


class ConvNeXt(nn.Module):
    """Images to logits; the defaults are ConvNeXt-T's.

    Source: Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545.
    """

    blocks: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = norm()(nn.Conv(self.widths[0], (4, 4), (4, 4), dtype=self.dtype)(x))
        for stage, count in enumerate(self.blocks):
            if stage > 0:
                width = self.widths[stage]
                x = nn.Conv(width, (2, 2), (2, 2), dtype=self.dtype)(norm()(x))
            for _ in range(count):
                x = ConvNeXtBlock(self.dtype)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(norm()(x.mean((1, 2))))


class InvertedBottleneck(nn.Module):
    """Widen, convolve in depth, squeeze and excite, narrow: EfficientNet's MBConv.

    MobileNetV2's block without `squeeze`.
    """

    channels: int
    expansion: int
    kernel: int
    stride: int
    training: bool = False
    dtype: Any = jnp.bfloat16
    squeeze: bool = True
    activation: Callable[[jax.Array], jax.Array] = nn.silu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(self.training, self.dtype)
        wide = self.expansion * x.shape[-1]
        kernel, stride = (self.kernel, self.kernel), (self.stride, self.stride)
        act = self.activation
        y = act(norm()(conv(wide, (1, 1))(x))) if self.expansion > 1 else x
        y = act(norm()(conv(wide, kernel, stride, feature_group_count=wide)(y)))
        if self.squeeze:
            gate = act(nn.Dense(x.shape[-1] // 4, dtype=self.dtype)(y.mean((1, 2))))
            gate = nn.sigmoid(nn.Dense(wide, dtype=self.dtype)(gate))
            y *= gate[:, None, None]
        y = norm()(conv(self.channels, (1, 1))(y))
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """Images to logits; the defaults are EfficientNet-B0's.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
    Networks", arXiv 1905.11946, table 1.
    """

    blocks: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(training, self.dtype)
        x = nn.silu(norm()(conv(32, (3, 3), (2, 2))(x)))
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = InvertedBottleneck(
                    channels=self.channels[stage],
                    expansion=6 if stage > 0 else 1,
                    kernel=self.kernels[stage],
                    stride=self.strides[stage] if block == 0 else 1,
                    training=training,
                    dtype=self.dtype,
                )(x)
        x = nn.silu(norm()(conv(1280, (1, 1))(x)))
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Images to logits; the defaults are MobileNetV2's.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    arXiv 1801.04381, table 2.
    """

    blocks: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    channels: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(training, self.dtype)
        x = nn.relu6(norm()(conv(32, (3, 3), (2, 2))(x)))
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = InvertedBottleneck(
                    channels=self.channels[stage],
                    expansion=6 if stage > 0 else 1,
                    kernel=3,
                    stride=self.strides[stage] if block == 0 else 1,
                    training=training,
                    dtype=self.dtype,
                    squeeze=False,
                    activation=nn.relu6,
                )(x)
        x = nn.relu6(norm()(conv(1280, (1, 1))(x)))
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class ViT(nn.Module):
    """Images to logits by a transformer on patches; the defaults are ViT-B/16's.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    patch: int = 16
    classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        of_class = self.param("class", nn.initializers.zeros, (1, 1, self.width))
        of_class = jnp.broadcast_to(of_class, (x.shape[0], 1, self.width))
        x = jnp.concatenate([of_class.astype(self.dtype), x], 1)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (x.shape[1], self.width)
        )
        x += positions.astype(self.dtype)
        for _ in range(self.layers):
            x = TransformerBlock(self.heads, dtype=self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x[:, 0])
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class DenseNet(nn.Module):
    """Images to logits, every layer of a block reading all those before it.

    The defaults are DenseNet-121's.
    Source: Huang et al., "Densely Connected Convolutional Networks", arXiv 1608.06993.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    classes: int = 1000
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(training, self.dtype)
        x = nn.relu(norm()(conv(2 * self.growth, (7, 7), (2, 2))(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block, layers in enumerate(self.blocks):
            if block > 0:
                x = conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(layers):
                y = conv(4 * self.growth, (1, 1))(nn.relu(norm()(x)))
                y = conv(self.growth, (3, 3))(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], -1)
        x = nn.relu(norm()(x)).mean((1, 2))
        return nn.Dense(self.classes, dtype=self.dtype)(x)


class TimedBlock(nn.Module):
    """Two convolutions with the embedded noise level added between them."""

    channels: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        norm = functools.partial(nn.GroupNorm, num_groups=32, dtype=self.dtype)
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        y = conv(self.channels, (3, 3))(nn.silu(norm()(x)))
        y += nn.Dense(self.channels, dtype=self.dtype)(nn.silu(time))[:, None, None]
        y = conv(self.channels, (3, 3))(nn.silu(norm()(y)))
        return y + (x if x.shape == y.shape else conv(self.channels, (1, 1))(x))


class DiffusionUNet(nn.Module):
    """Noisy images and their noise levels `[batch]` to the noise; as in DDPM.

    The defaults are those for CIFAR-10, of 35.7 M parameters.
    Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239,
    appendix B.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_at: tuple[int, ...] = (16,)
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        time = _sinusoids(level, self.channels).astype(self.dtype)
        for _ in range(2):
            time = nn.silu(nn.Dense(4 * self.channels, dtype=self.dtype)(time))
        out, last = x.shape[-1], len(self.multipliers) - 1
        x = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x)
        skips = [x]
        for stage, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                x = self._block(x, time, multiplier)
                skips.append(x)
            if stage < last:
                x = nn.Conv(x.shape[-1], (3, 3), (2, 2), dtype=self.dtype)(x)
                skips.append(x)
        x = TimedBlock(x.shape[-1], self.dtype)(x, time)
        x = TimedBlock(x.shape[-1], self.dtype)(self._attend(x), time)
        for stage, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = self._block(x, time, multiplier)
            if stage > 0:
                x = x.repeat(2, 1).repeat(2, 2)
                x = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(x)
        x = nn.silu(nn.GroupNorm(num_groups=32, dtype=self.dtype)(x))
        return nn.Conv(out, (3, 3), dtype=self.dtype)(x)

    def _block(self, x: jax.Array, time: jax.Array, multiplier: int) -> jax.Array:
        x = TimedBlock(multiplier * self.channels, self.dtype)(x, time)
        return self._attend(x) if x.shape[1] in self.attention_at else x

    def _attend(self, x: jax.Array) -> jax.Array:
        y = nn.GroupNorm(num_groups=32, dtype=self.dtype)(x)
        y = y.reshape(x.shape[0], -1, x.shape[-1])
        return x + Attention(1, dtype=self.dtype)(y).reshape(x.shape)


def _batch_norm(training: bool, dtype: Any) -> Any:
    return functools.partial(
        nn.BatchNorm, use_running_average=not training, dtype=dtype
    )


def _sinusoids(position: jax.Array, features: int) -> jax.Array:
    """`[batch]` to `[batch, features]` sines and cosines, as of token positions."""
    rates = jnp.exp(jnp.linspace(0, -jnp.log(1e4), features // 2))
    angles = position.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
