"""Flax modules of the usual kinds, as small as they can be and still be themselves.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
    """Dense layers of one width with `activation` between them."""

    width: int
    layers: int
    out: int
    dtype: Any = jnp.bfloat16
    activation: Callable[[jax.Array], jax.Array] = nn.gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers - 1):
            x = self.activation(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(self.out, dtype=self.dtype)(x)


class Attention(nn.Module):
    """Multi-head self-attention of `[batch, time, width]`, or of it to `context`."""

    heads: int
    causal: bool = False
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, use_bias=False)
        heads = (self.heads, width // self.heads)
        context = x if context is None else context
        q = dense(heads, name="query")(x)
        k = dense(heads, name="key")(context)
        v = dense(heads, name="value")(context)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / heads[1] ** 0.5
        if self.causal:
            seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return dense(width, axis=(-2, -1), name="out")(mixed)


class TransformerBlock(nn.Module):
    """Attention, attention to an encoder's output if there is one, and an MLP."""

    heads: int
    causal: bool = False
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        x = x + Attention(self.heads, self.causal, self.dtype)(norm()(x))
        if context is not None:
            x = x + Attention(self.heads, False, self.dtype)(norm()(x), context)
        width = x.shape[-1]
        return x + Mlp(4 * width, 2, width, self.dtype)(norm()(x))


class Transformer(nn.Module):
    """Token ids `[batch, time]` to logits `[batch, time, vocabulary]`.

    An encoder as BERT's, or with `causal` a decoder as GPT's.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    causal: bool = False
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        x = embed(tokens) + positions.astype(self.dtype)
        for _ in range(self.layers):
            x = TransformerBlock(self.heads, self.causal, self.dtype)(x)
        return embed.attend(nn.LayerNorm(dtype=self.dtype)(x))


class EncoderDecoder(nn.Module):
    """Source and target features `[batch, time, width]` to `[batch, time, width]`."""

    layers: int
    heads: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            source = TransformerBlock(self.heads, False, self.dtype)(source)
        for _ in range(self.layers):
            target = TransformerBlock(self.heads, True, self.dtype)(target, source)
        return target


class ResNet(nn.Module):
    """Images to logits through stages of residual bottlenecks, halving each stage."""

    blocks: tuple[int, ...]
    channels: int
    classes: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not training, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(self.channels, (7, 7), (2, 2))(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, count in enumerate(self.blocks):
            channels = self.channels * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(channels, (1, 1))(x)))
                y = nn.relu(norm()(conv(channels, (3, 3), (stride, stride))(y)))
                y = norm()(conv(4 * channels, (1, 1))(y))
                if x.shape != y.shape:
                    x = norm()(conv(4 * channels, (1, 1), (stride, stride))(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


class UNet(nn.Module):
    """Images to images of as many channels, with skips between equal resolutions."""

    channels: int
    depth: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def block(x, channels):
            for _ in range(2):
                x = nn.Conv(channels, (3, 3), dtype=self.dtype)(x)
                x = nn.silu(nn.GroupNorm(num_groups=8, dtype=self.dtype)(x))
            return x

        out, skips = x.shape[-1], []
        for level in range(self.depth):
            x = block(x, self.channels * 2**level)
            skips.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = block(x, self.channels * 2**self.depth)
        for level in reversed(range(self.depth)):
            x = nn.ConvTranspose(
                self.channels * 2**level, (2, 2), (2, 2), dtype=self.dtype
            )(x)
            x = block(jnp.concatenate([x, skips[level]], -1), self.channels * 2**level)
        return nn.Conv(out, (1, 1), dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    """Images through strided convolutions to a few channels, and back."""

    channels: int
    depth: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = x.shape[-1]
        for level in range(self.depth):
            channels = self.channels * 2**level
            x = nn.relu(nn.Conv(channels, (3, 3), (2, 2), dtype=self.dtype)(x))
        for level in reversed(range(self.depth)):
            channels = self.channels * 2**level if level else out
            x = nn.ConvTranspose(channels, (3, 3), (2, 2), dtype=self.dtype)(nn.relu(x))
        return x


class MlpMixer(nn.Module):
    """Patches `[batch, patches, width]` mixed over patches and channels in turn."""

    layers: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patches, width = x.shape[1:]
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        for _ in range(self.layers):
            y = norm()(x).swapaxes(1, 2)
            x = x + Mlp(2 * patches, 2, patches, self.dtype)(y).swapaxes(1, 2)
            x = x + Mlp(4 * width, 2, width, self.dtype)(norm()(x))
        return x


class Lstm(nn.Module):
    """Stacked LSTM layers over `[batch, time, width]`, one loop each."""

    layers: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(x.shape[-1], dtype=self.dtype))(x)
        return x


class Gru(nn.Module):
    """Stacked GRU layers over `[batch, time, width]`, one loop each."""

    layers: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.RNN(nn.GRUCell(x.shape[-1], dtype=self.dtype))(x)
        return x
