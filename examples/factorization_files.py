"""Matmul factorizations from files, in the layouts that people publish them in."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from matmul_factorizations import BUILT_IN, Factorization, NotAFactorization


def get(name: str) -> Factorization:
    """A built-in factorization, or one from a file.

    Args:
      name: a key of `BUILT_IN`, or `file.npz` or `file.npz:key`, see `load`.
    Raises:
      ValueError: no such name, file or key, or what it holds is no factorization.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    match = re.fullmatch(r"(.+\.npz)(?::(.*))?", name)
    if not match:
        raise ValueError(
            f"unknown factorization {name!r}. Built in: {', '.join(BUILT_IN)}; "
            "or give a file as path.npz or path.npz:key."
        )
    return load(match[1], match[2])


def load(path: str, key: str | None = None) -> Factorization:
    """The factorization in an .npz file, in either of two layouts.

    - Three arrays u, v, w. `key` is not needed.
    - AlphaTensor's (`factorizations_r.npz`): each array, named "n,m,p", holds the three
      factors. `key` chooses one; it may be left out where the file has only one.

    Factors are `[n, m, R]`, `[m, p, R]` and `[n, p, R]`, or the same with the first two
    axes flattened. w may be that of the transposed product, `[p, n, R]`, as that of
    AlphaTensor is: the two are told apart by which of them multiplies matrices.

    Raises:
      ValueError: no such file or key, another layout, or not a factorization.
    Source: Fawzi et al., "Discovering faster matrix multiplication algorithms with
      reinforcement learning", Nature 610, 2022, and the repository that goes with it.
    """
    arrays = _read_npz(path)
    if {"u", "v", "w"} <= arrays.keys():
        return from_factors([arrays[x] for x in "uvw"], name=path)
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key not in arrays:
        found = ", ".join(repr(k) for k in arrays) or "nothing"
        asked = "no key was given" if key is None else f"there is no key {key!r}"
        raise ValueError(
            f"{path} holds {found}, and {asked}. Give u, v and w, or name one of the "
            f"keys as {path}:n,m,p."
        )
    blocks = re.fullmatch(r"(\d+),(\d+),(\d+)", key)
    shape = tuple(map(int, blocks.groups())) if blocks else None
    return from_factors(arrays[key], shape=shape, name=f"{path}:{key}")


def from_factors(
    factors: Sequence[np.ndarray],
    *,
    shape: tuple[int, int, int] | None = None,
    name: str = "factorization",
) -> Factorization:
    """The factorization with factors (u, v, w) in any of the forms that `load` takes.

    Args:
      shape: (n, m, p); None, worked out from the sizes of the factors.
    Raises:
      ValueError: other shapes.
      NotAFactorization: neither reading of w multiplies matrices; the message is about
        the one with fewer wrong entries.
    """
    if len(factors) != 3:
        raise ValueError(f"{name} holds {len(factors)} factors; u, v and w are needed.")
    flat = []
    for factor, x in zip("uvw", factors, strict=True):
        x = np.asarray(x)
        if x.ndim not in (2, 3):
            raise ValueError(
                f"{name}: {factor} has shape {x.shape}; it must be [rows * columns, R] "
                "or [rows, columns, R]."
            )
        flat.append(x.reshape(-1, x.shape[-1]))
    sizes = [len(x) for x in flat]
    if shape is None:
        shape = _block_shape(*sizes, name=name)
    n, m, p = shape
    if sizes != [n * m, m * p, n * p]:
        raise ValueError(
            f"{name}: its factors have {sizes} rows; those of <{n},{m},{p}> have "
            f"{[n * m, m * p, n * p]}."
        )
    u, v = flat[0].reshape(n, m, -1), flat[1].reshape(m, p, -1)
    straight = flat[2].reshape(n, p, -1)
    transposed = flat[2].reshape(p, n, -1).transpose(1, 0, 2)
    errors = []
    for w in (straight, transposed):
        try:
            return Factorization(name=name, u=u, v=v, w=w)
        except NotAFactorization as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.wrong_entries)


def _block_shape(nm: int, mp: int, np_: int, *, name: str) -> tuple[int, int, int]:
    """(n, m, p) from the three products of two of them."""
    n = math.isqrt(nm * np_ // max(mp, 1))
    if n and nm % n == 0 and np_ % n == 0 and nm // n * (np_ // n) == mp:
        return n, nm // n, np_ // n
    raise ValueError(
        f"{name}: factors of {nm}, {mp} and {np_} rows belong to no n x m by m x p "
        "product; they must be n * m, m * p and n * p."
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of arrays, which NumPy stores pickled, and nothing else.

    AlphaTensor's files hold such arrays; a plain unpickler would run whatever code a
    file from elsewhere asks it to.
    """

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.zeros(0).__reduce__()[0]
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return allowed[module, name]


def _read_npz(path: str) -> dict[str, Any]:
    """The arrays of an .npz file by name."""
    arrays: dict[str, Any] = {}
    member = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as f:
                    arrays[member.removesuffix(".npy")] = _read_npy(f)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not an .npz file ({error}).") from None
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: {member} holds no numeric array: {error}.") from None
    return arrays


def _read_npy(f: Any) -> np.ndarray:
    version = np.lib.format.read_magic(f)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran_order, dtype = read_header(f)
    if dtype.hasobject:
        return _ArrayUnpickler(f).load().reshape(shape)
    data = np.frombuffer(f.read(), dtype, count=math.prod(shape))
    return data.reshape(shape, order="F" if fortran_order else "C")
