"""Block matrix multiplication by a fast algorithm, as a JAX function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matmul_factorizations import Factorization


def multiply(
    factorization: Factorization, a: jax.Array, b: jax.Array, *, levels: int = 1
) -> jax.Array:
    """`a @ b` by a fast algorithm.

    Sizes that the blocks do not divide are padded with zeros. Sums of blocks are taken
    in float32 or wider and rounded once, products by `jnp.matmul` in the inputs' dtype.
    A block of C is summed as soon as its last product is there.

    Args:
      a: `[M, K]`, floating point.
      b: `[K, N]`, of the same dtype.
      levels: how often the algorithm is applied to its own block products.
    Returns:
      `[M, N]` of the same dtype.
    Raises:
      ValueError: shapes or dtypes do not fit, or `levels` is below 1.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"shapes {a.shape} and {b.shape} are not those of a matrix product."
        )
    if a.dtype != b.dtype or not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(
            f"dtypes {a.dtype} and {b.dtype} must be one and the same float type."
        )
    if levels < 1:
        raise ValueError(f"levels is {levels}; at least one is needed.")
    n, m, p = (size**levels for size in factorization.shape)
    product = _multiply(factorization, _pad(a, n, m), _pad(b, m, p), levels)
    return product[: a.shape[0], : b.shape[1]]


def _multiply(
    factorization: Factorization, a: jax.Array, b: jax.Array, levels: int
) -> jax.Array:
    """`multiply` for sizes that the blocks divide."""
    if levels == 0:
        return jnp.matmul(a, b)
    n, m, p = factorization.shape
    a_blocks, b_blocks = _split(a, n, m), _split(b, m, p)
    u = factorization.u.reshape(n * m, -1)
    v = factorization.v.reshape(m * p, -1)
    w = factorization.w.reshape(n * p, -1)
    last_product = [np.flatnonzero(row)[-1] for row in w]
    products: list[jax.Array] = []
    c_blocks: list[Any] = [None] * (n * p)
    for r in range(factorization.rank):
        with jax.named_scope(f"product{r}"):
            left = _combine(u[:, r], a_blocks)
            right = _combine(v[:, r], b_blocks)
            products.append(_multiply(factorization, left, right, levels - 1))
        for block, last in enumerate(last_product):
            if last == r:
                with jax.named_scope(f"result{block // p}{block % p}"):
                    c_blocks[block] = _combine(w[block, : r + 1], products)
    return jnp.block([c_blocks[i * p : (i + 1) * p] for i in range(n)])


def _combine(coefficients: np.ndarray, blocks: Sequence[jax.Array]) -> jax.Array:
    """The sum of `coefficients[i] * blocks[i]`, one pass over those that count."""
    terms = [(c, x) for c, x in zip(coefficients, blocks, strict=True) if c]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    wide = jnp.promote_types(terms[0][1].dtype, jnp.float32)
    total = None
    for c, x in terms:
        x = x.astype(wide)
        if abs(c) != 1:
            x = x * abs(c).astype(wide)
        if total is None:
            total = x if c > 0 else -x
        else:
            total = total + x if c > 0 else total - x
    return total.astype(terms[0][1].dtype)


def _split(x: jax.Array, rows: int, columns: int) -> list[jax.Array]:
    """The `rows * columns` equal blocks of `x`, row by row."""
    return [
        block
        for row in jnp.split(x, rows, axis=0)
        for block in jnp.split(row, columns, axis=1)
    ]


def _pad(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """`x` with zeros below and on the right, to multiples of `rows` and `columns`."""
    below, right = -x.shape[0] % rows, -x.shape[1] % columns
    return jnp.pad(x, ((0, below), (0, right))) if below or right else x
