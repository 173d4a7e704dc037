"""Flax modules of today's language models: Llama, mixtures of experts, T5.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Keys and values of one layer, each `[batch, time, kv heads, features]`.
LayerCache = tuple[jax.Array, jax.Array]


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with rotary positions and fewer keys than queries.

    With a cache, `x` is one new token per sequence, at `position`: its key and value
    are written there, and it attends to all before it.
    Source: Ainslie et al., "GQA", arXiv 2305.13245; Su et al., "RoFormer", 2104.09864.
    """

    heads: int
    kv_heads: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache | None = None,
        position: jax.Array | int = 0,
    ) -> tuple[jax.Array, LayerCache]:
        batch, time, width = x.shape
        features = width // self.heads
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, use_bias=False)
        at = position + jnp.arange(time)
        q = rotate(dense((self.heads, features), name="query")(x), at)
        k = rotate(dense((self.kv_heads, features), name="key")(x), at)
        v = dense((self.kv_heads, features), name="value")(x)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, position, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, position, axis=1)
        q = q.reshape(batch, time, self.kv_heads, -1, features)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", q, k) / features**0.5
        seen = at[:, None] >= jnp.arange(k.shape[1])
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights, v)
        out = dense(width, axis=(-2, -1), name="out")
        return out(mixed.reshape(batch, time, self.heads, features)), (k, v)


class GatedMlp(nn.Module):
    """`activation(gate(x)) * up(x)`, projected back to the width of `x`."""

    hidden: int
    activation: Any = nn.silu
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, use_bias=False)
        gate = self.activation(dense(self.hidden, name="gate")(x))
        up = dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(gate * up)


class ExpertsMlp(nn.Module):
    """Gated MLPs of which every token takes part in `chosen`, by einsum dispatch.

    Tokens are dispatched in groups; an expert takes `capacity_factor` times its fair
    share of each group and drops the rest.
    Source: Lepikhin et al., "GShard", arXiv 2006.16668.
    """

    experts: int
    hidden: int
    chosen: int = 2
    capacity_factor: float = 1.25
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        group, width = x.shape[-2:]
        capacity = int(self.capacity_factor * self.chosen * group / self.experts)
        router = nn.Dense(self.experts, use_bias=False, name="router")
        odds = nn.softmax(router(x.astype(jnp.float32)))
        weights, expert = jax.lax.top_k(odds, self.chosen)
        weights /= weights.sum(-1, keepdims=True)
        # [batch, token, choice, expert]: every token's first choice is seated before
        # any token's second.
        choice = jax.nn.one_hot(expert, self.experts)
        queue = choice.swapaxes(1, 2).reshape(len(x), -1, self.experts)
        seat = (queue.cumsum(1) - queue).reshape(len(x), self.chosen, group, -1)
        seat = (seat.swapaxes(1, 2) * choice).sum(-1).astype(jnp.int32)
        seats = jax.nn.one_hot(seat, capacity)
        combine = jnp.einsum("gtk,gtke,gtkc->gtec", weights, choice, seats)
        combine = combine.astype(self.dtype)
        dispatch = (combine > 0).astype(self.dtype)

        taken = jnp.einsum("gtec,gtd->egcd", dispatch, x)
        gate, up = (self._kernel(name, width, self.hidden) for name in ("gate", "up"))
        hidden = nn.silu(jnp.einsum("egcd,edh->egch", taken, gate))
        hidden *= jnp.einsum("egcd,edh->egch", taken, up)
        down = self._kernel("down", self.hidden, width)
        done = jnp.einsum("egch,ehd->egcd", hidden, down)
        return jnp.einsum("gtec,egcd->gtd", combine, done)

    def _kernel(self, name: str, fan_in: int, fan_out: int) -> jax.Array:
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param(name, init, (self.experts, fan_in, fan_out))
        return kernel.astype(self.dtype)


class Llama(nn.Module):
    """Token ids `[batch, time]` to logits; with a cache, one new token per sequence.

    With `experts`, every MLP is a mixture of them, as in Mixtral.
    Source: Touvron et al., "Llama 2", arXiv 2307.09288; Jiang et al., "Mixtral of
    Experts", arXiv 2401.04088.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = 32000
    experts: int = 0
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: tuple[LayerCache, ...] | None = None,
        position: jax.Array | int = 0,
    ) -> Any:
        norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
        x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens)
        new_cache = []
        for layer in range(self.layers):
            y, layer_cache = GroupedQueryAttention(
                self.heads, self.kv_heads, self.dtype
            )(norm()(x), cache[layer] if cache else None, position)
            x += y
            new_cache.append(layer_cache)
            if self.experts:
                mlp = ExpertsMlp(self.experts, self.hidden, dtype=self.dtype)
            else:
                mlp = GatedMlp(self.hidden, dtype=self.dtype)
            x += mlp(norm()(x))
        logits = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype)(norm()(x))
        return (logits, tuple(new_cache)) if cache else logits


class DistanceBias(nn.Module):
    """T5's bias of attention scores, learned per head and bucket of distances.

    Half of the buckets are for one distance each, the others grow with it; keys after
    the query have buckets of their own, or none if `causal`.
    """

    heads: int
    causal: bool = False
    buckets: int = 32
    furthest: int = 128
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, time: int) -> jax.Array:
        """`[heads, time, time]`, by query and key."""
        ahead = jnp.arange(time) - jnp.arange(time)[:, None]
        buckets = self.buckets if self.causal else self.buckets // 2
        distance = jnp.maximum(-ahead, 0) if self.causal else jnp.abs(ahead)
        exact = buckets // 2
        growth = jnp.log(jnp.maximum(distance, 1) / exact)
        growth /= jnp.log(self.furthest / exact)
        far = exact + (growth * (buckets - exact)).astype(jnp.int32)
        bucket = jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))
        if not self.causal:
            bucket += jnp.where(ahead > 0, buckets, 0)
        embed = nn.Embed(self.buckets, self.heads, dtype=self.dtype)
        return embed(bucket).transpose(2, 0, 1)


class BiasedAttention(nn.Module):
    """T5's attention, unscaled: of `x` to itself, or to `context`, plus a bias."""

    heads: int
    features: int
    causal: bool = False
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, bias: Any = 0.0
    ) -> jax.Array:
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, use_bias=False)
        heads = (self.heads, self.features)
        context = x if context is None else context
        q = dense(heads, name="query")(x)
        k = dense(heads, name="key")(context)
        v = dense(heads, name="value")(context)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias
        if self.causal:
            seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return dense(x.shape[-1], axis=(-2, -1), name="out")(mixed)


class T5Block(nn.Module):
    """Attention, attention to an encoder's output if there is one, a gated MLP."""

    heads: int
    features: int
    hidden: int
    causal: bool = False
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array, context: jax.Array | None = None
    ) -> jax.Array:
        norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
        attention = functools.partial(
            BiasedAttention, self.heads, self.features, dtype=self.dtype
        )
        x += attention(causal=self.causal)(norm()(x), bias=bias)
        if context is not None:
            x += attention()(norm()(x), context)
        return x + GatedMlp(self.hidden, nn.gelu, self.dtype)(norm()(x))


class T5(nn.Module):
    """Source and target token ids `[batch, time]` to logits of the target.

    The defaults are T5 1.1 Base's.
    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer", arXiv 1910.10683.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    features: int = 64
    hidden: int = 2048
    vocabulary: int = 32128
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array) -> jax.Array:
        norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)
        block = functools.partial(
            T5Block, self.heads, self.features, self.hidden, dtype=self.dtype
        )
        bias = functools.partial(DistanceBias, self.heads, dtype=self.dtype)
        x, y = embed(source), embed(target)
        source_bias = bias()(source.shape[1])
        for _ in range(self.layers):
            x = block()(x, source_bias)
        x = norm()(x)
        target_bias = bias(causal=True)(target.shape[1])
        for _ in range(self.layers):
            y = block(causal=True)(y, target_bias, x)
        head = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype)
        return head(norm()(y))


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """Rotary position embedding of `[batch, time, heads, features]`."""
    rates = 1e4 ** -jnp.linspace(0, 1, x.shape[-1] // 2, endpoint=False)
    angles = (position[:, None] * rates)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (
        a * jnp.cos(angles) - b * jnp.sin(angles),
        a * jnp.sin(angles) + b * jnp.cos(angles),
    )
    return jnp.concatenate(turned, -1).astype(x.dtype)
