"""Flax modules that guess from large embedding tables whether somebody will click.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Perceptron(nn.Module):
    """Dense layers of the given widths, a ReLU after each."""

    widths: tuple[int, ...]
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return x


class WideAndDeep(nn.Module):
    """A linear model of crossed features beside a deep one of embedded features.

    dense: `[batch, features]`; ids: `[batch, fields]` int32, rows of a table each;
    crossed: `[batch, crosses]` int32, hashed pairs of ids. Returns logits `[batch, 2]`.
    Source: Cheng et al., "Wide & Deep Learning for Recommender Systems", arXiv
    1606.07792; the layers of its figure 4.
    """

    rows: int = 100_000
    features: int = 128
    buckets: int = 1_000_000
    widths: tuple[int, ...] = (1024, 512, 256)
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, dense: jax.Array, ids: jax.Array, crossed: jax.Array
    ) -> jax.Array:
        embedded = [
            nn.Embed(self.rows, self.features, dtype=self.dtype)(ids[:, field])
            for field in range(ids.shape[1])
        ]
        deep = jnp.concatenate([dense, *embedded], -1)
        deep = Perceptron(self.widths, self.dtype)(deep)
        wide = nn.Embed(self.buckets, 2, dtype=self.dtype)(crossed).sum(1)
        return nn.Dense(2, dtype=self.dtype)(deep) + wide


class Dlrm(nn.Module):
    """Embedded and dense features, the products of all pairs of them, an MLP on top.

    dense: `[batch, features]`; ids: `[batch, fields]` int32, rows of a table each.
    Returns logits `[batch, 2]`. The defaults are those of MLPerf, but for the tables.
    Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and
    Recommendation Systems", arXiv 1906.00091.
    """

    rows: int = 100_000
    features: int = 128
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (1024, 1024, 512, 256)
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, dense: jax.Array, ids: jax.Array) -> jax.Array:
        bottom = Perceptron((*self.bottom, self.features), self.dtype)(dense)
        embedded = [
            nn.Embed(self.rows, self.features, dtype=self.dtype)(ids[:, field])
            for field in range(ids.shape[1])
        ]
        vectors = jnp.stack([bottom, *embedded], 1)
        products = jnp.einsum("bif,bjf->bij", vectors, vectors)
        i, j = jnp.triu_indices(vectors.shape[1], 1)
        top = jnp.concatenate([bottom, products[:, i, j]], -1)
        return nn.Dense(2, dtype=self.dtype)(Perceptron(self.top, self.dtype)(top))
