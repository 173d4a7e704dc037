"""Fast matrix multiplication algorithms as factorizations of the matmul tensor.

An algorithm `<n, m, p; R>` multiplies an n x m by an m x p block matrix with R block
products instead of n * m * p:

    C[i, k] = sum_r w[i, k, r] * P[r]
    P[r] = (sum_ij u[i, j, r] * A[i, j]) @ (sum_jk v[j, k, r] * B[j, k])

which holds for all matrices, of any size, exactly if

    sum_r u[i, j, r] v[j', k, r] w[i', k', r] = [i = i'] [j = j'] [k = k'].

`Factorization` checks that when it is made, so one in hand is one that works.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# One line per block product: the sum of blocks of A, the sum of blocks of B, and the
# blocks of C it is added to or taken from.
# Source: Strassen, "Gaussian elimination is not optimal", Numer. Math. 13, 1969.
_STRASSEN = """
    a11 + a22 | b11 + b22 | c11 + c22
    a21 + a22 | b11 | c21 - c22
    a11 | b12 - b22 | c12 + c22
    a22 | b21 - b11 | c11 + c21
    a11 + a12 | b22 | c12 - c11
    a21 - a11 | b11 + b12 | c22
    a12 - a22 | b21 + b22 | c11
"""

# Source: Laderman, "A noncommutative algorithm for multiplying 3 x 3 matrices using 23
# multiplications", Bull. AMS 82, 1976.
_LADERMAN = """
    a11 + a12 + a13 - a21 - a22 - a32 - a33 | b22 | c12
    a11 - a21 | b22 - b12 | c21 + c22
    a22 | b12 + b21 + b33 - b11 - b22 - b23 - b31 | c21
    a21 + a22 - a11 | b11 - b12 + b22 | c12 + c21 + c22
    a21 + a22 | b12 - b11 | c12 + c22
    a11 | b11 | c11 + c12 + c13 + c21 + c22 + c31 + c33
    a31 + a32 - a11 | b11 - b13 + b23 | c13 + c31 + c33
    a31 - a11 | b13 - b23 | c31 + c33
    a31 + a32 | b13 - b11 | c13 + c33
    a11 + a12 + a13 - a22 - a23 - a31 - a32 | b23 | c13
    a32 | b13 + b21 + b32 - b11 - b22 - b23 - b31 | c31
    a32 + a33 - a13 | b22 + b31 - b32 | c12 + c31 + c32
    a13 - a33 | b22 - b32 | c31 + c32
    a13 | b31 | c11 + c12 + c13 + c21 + c23 + c31 + c32
    a32 + a33 | b32 - b31 | c12 + c32
    a22 + a23 - a13 | b23 + b31 - b33 | c13 + c21 + c23
    a13 - a23 | b23 - b33 | c21 + c23
    a22 + a23 | b33 - b31 | c13 + c23
    a12 | b21 | c11
    a23 | b32 | c22
    a21 | b13 | c23
    a31 | b12 | c32
    a33 | b33 | c33
"""

# Coefficients are multiples of the step and no larger than the bound, so that float64
# holds every product of three and every sum of those exactly: the check is an equality.
_COEFFICIENT_STEP = 1 / 8
_COEFFICIENT_BOUND = 2**8


class NotAFactorization(ValueError):
    """The factors have the right shapes and do not multiply matrices.

    wrong_entries: of the matmul tensor.
    """

    def __init__(self, message: str, wrong_entries: int):
        super().__init__(message)
        self.wrong_entries = wrong_entries


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Factorization:
    """A bilinear algorithm that multiplies block matrices.

    name: for tables and messages.
    u: `[n, m, R]` float64, coefficients of the blocks of A in each product.
    v: `[m, p, R]` of the blocks of B.
    w: `[n, p, R]` of each product in the blocks of C.
    Raises: ValueError if the shapes do not fit together, NotAFactorization if an entry
      of the matmul tensor comes out wrong; the message names the first.
    """

    name: str
    u: np.ndarray
    v: np.ndarray
    w: np.ndarray

    def __post_init__(self) -> None:
        for factor in ("u", "v", "w"):
            value = _coefficients(getattr(self, factor), f"{self.name}: {factor}")
            object.__setattr__(self, factor, value)
        (n, m, rank), v, w = self.u.shape, self.v.shape, self.w.shape
        if v[0] != m or w[:2] != (n, v[1]) or not rank == v[2] == w[2]:
            raise ValueError(
                f"{self.name}: u {self.u.shape}, v {v} and w {w} do not fit together; "
                "they must be [n, m, R], [m, p, R] and [n, p, R]."
            )
        residual = _residual(self.u, self.v, self.w)
        if residual.any():
            message = f"{self.name} does not multiply matrices: "
            message += _describe(residual, m, v[1])
            raise NotAFactorization(message, np.count_nonzero(residual))

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(n, m, p)`: blocks of A are n x m, of B m x p, of C n x p."""
        return self.u.shape[0], self.u.shape[1], self.v.shape[1]

    @property
    def rank(self) -> int:
        """Block products it takes; n * m * p for the schoolbook algorithm."""
        return self.u.shape[2]

    def __str__(self) -> str:
        n, m, p = self.shape
        return f"{self.name} <{n},{m},{p};{self.rank}>"

    def kron(self, inner: Factorization) -> Factorization:
        """The algorithm whose block products are done by `inner`, as one algorithm."""
        return Factorization(
            name=f"{self.name} x {inner.name}",
            u=np.kron(self.u, inner.u),
            v=np.kron(self.v, inner.v),
            w=np.kron(self.w, inner.w),
        )


def strassen() -> Factorization:
    """Strassen's `<2, 2, 2; 7>`."""
    return _from_text("strassen", _STRASSEN, 2)


def strassen_squared() -> Factorization:
    """Strassen's algorithm applied to itself: `<4, 4, 4; 49>`."""
    squared = strassen().kron(strassen())
    return dataclasses.replace(squared, name="strassen2")


def laderman() -> Factorization:
    """Laderman's `<3, 3, 3; 23>`."""
    return _from_text("laderman", _LADERMAN, 3)


BUILT_IN: Mapping[str, Callable[[], Factorization]] = {
    "strassen": strassen,
    "strassen2": strassen_squared,
    "laderman": laderman,
}


def _from_text(name: str, text: str, size: int) -> Factorization:
    """The algorithm for `size` x `size` blocks that the lines of `text` describe."""
    lines = text.strip().splitlines()
    factors = np.zeros((3, size, size, len(lines)))
    for r, line in enumerate(lines):
        for sign, matrix, i, j in re.findall(r"(-?) ?([abc])(\d)(\d)", line):
            factors["abc".index(matrix), int(i) - 1, int(j) - 1, r] = -1 if sign else 1
    u, v, w = factors
    return Factorization(name=name, u=u, v=v, w=w)


def _coefficients(x: Any, where: str) -> np.ndarray:
    """`x` as exact float64 `[rows, columns, R]`."""
    x = np.asarray(x)
    if x.ndim != 3 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(
            f"{where} is a {x.dtype} array of shape {x.shape}; it must hold real "
            "numbers, [rows, columns, R]."
        )
    x = x.astype(np.float64)
    steps = x / _COEFFICIENT_STEP
    exact = (steps == np.rint(steps)) & (np.abs(x) <= _COEFFICIENT_BOUND)
    if not exact.all():
        raise ValueError(
            f"{where} holds the coefficient {x[~exact][0]}; coefficients must be "
            f"multiples of 1/{round(1 / _COEFFICIENT_STEP)} up to {_COEFFICIENT_BOUND}."
        )
    return x


def _residual(u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`[n * m, m * p, n * p]`: what the algorithm computes minus the matmul tensor."""
    (n, m, rank), p = u.shape, v.shape[1]
    tensor = np.einsum("ia,jb,kc->ijbkac", np.eye(n), np.eye(m), np.eye(p))
    pairs = u.reshape(-1, 1, rank) * v.reshape(1, -1, rank)
    return pairs @ w.reshape(-1, rank).T - tensor.reshape(n * m, m * p, n * p)


def _describe(residual: np.ndarray, m: int, p: int) -> str:
    """The first wrong entry of the matmul tensor, what it must be, and what to do."""
    wrong = np.argwhere(residual)
    first = tuple(wrong[0])
    (i, j), (j2, k), (i2, k2) = (
        divmod(int(x), columns) for x, columns in zip(first, (m, p, p), strict=True)
    )
    needed = int(i == i2 and j == j2 and k == k2)
    advice = "Check the coefficients."
    if not (residual % 2).any():
        advice = "It holds modulo 2: check signs, or take one over the integers."
    found = residual[first] + needed
    return (
        f"A[{i},{j}] B[{j2},{k}] is in C[{i2},{k2}] {found:g} times, not {needed}; "
        f"{len(wrong)} of {residual.size} such entries are wrong. {advice}"
    )
