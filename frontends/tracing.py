"""What every frontend that takes a JAX function does with it first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def jitted(f: Callable, **options: Any) -> jax.stages.Wrapped:
    """`jax.jit(f, **options)`; a function that is jitted already keeps its own.

    Args:
      f: a function that `jax.jit` takes.
      **options: of `jax.jit`; those that are None or () are left out.
    """
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    if not given and isinstance(f, jax.stages.Wrapped):
        return f
    return jax.jit(f, **given)


def function_name(f: Callable) -> str:
    """The function's own name, looked for under `functools.partial`."""
    while isinstance(f, functools.partial):
        f = f.func
    return getattr(f, "__name__", type(f).__name__)


def cannot_trace(label: str, error: Exception) -> ValueError:
    """What to raise from JAX's error when a function cannot be lowered."""
    return ValueError(
        f"{label!r} cannot be traced for the arguments given: "
        f"{type(error).__name__}: {error}\nCheck that they are the arguments of a "
        "call that works under jax.jit, that those that are not arrays are named "
        "in static_argnums or static_argnames, and that the function does not "
        "branch in Python on the value of an array."
    )
