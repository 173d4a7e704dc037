"""Calls of a jitted function with the compiler options that steering found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax


def on_tpu() -> bool:
    """Whether arrays live on a TPU, the only backend that takes the options."""
    return jax.default_backend() == "tpu"


def _is_traced(args: tuple, kwargs: dict) -> bool:
    """Whether a transformation is at work, which takes functions without options."""
    leaves = jax.tree.leaves((args, kwargs))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return True
    # Under jit the arguments may all be constants; what is made of them is traced.
    return isinstance(jax.lax.full((), 0), jax.core.Tracer)


class SteeredCalls:
    """Jitted functions by the arguments that they were steered for.

    Args:
      f: the function, not jitted.
      jit_options: for `jax.jit`.
    """

    def __init__(self, f: Callable[..., Any], jit_options: Mapping[str, Any]) -> None:
        self._f, self._jit_options = f, jit_options
        self._by_signature: dict[Hashable, Callable[..., Any]] = {}
        self._proven: set[Hashable] = set()

    def add(self, options: Mapping[str, str], args: tuple, kwargs: dict) -> None:
        """From now on, calls with such arguments use the options, if there are any."""
        signature = _signature(args, kwargs)
        self._proven.discard(signature)
        self._by_signature.pop(signature, None)
        if not options:
            return
        self._by_signature[signature] = jax.jit(
            self._f, **self._jit_options, compiler_options=dict(options)
        )

    def call(self, plain: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The function's value: with the options, if there are any for the arguments.

        Args:
          plain: the function as jitted without them. It serves under transformations
            and off the TPU; and from then on, if the compiler refuses the options.
          args, kwargs: of the function.
        """
        if not self._by_signature or not on_tpu() or _is_traced(args, kwargs):
            return plain(*args, **kwargs)
        signature = _signature(args, kwargs)
        steered = self._by_signature.get(signature)
        if steered is None:
            return plain(*args, **kwargs)
        if signature in self._proven:
            return steered(*args, **kwargs)
        try:
            value = steered(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            del self._by_signature[signature]
            warnings.warn(
                "the compiler refused the options that steering found; going on "
                f"without them. It said: {str(error).splitlines()[0]}",
                RuntimeWarning,
                stacklevel=3,
            )
            return plain(*args, **kwargs)
        self._proven.add(signature)
        return value


def _signature(args: tuple, kwargs: dict) -> Hashable:
    """Equal for arguments under which the function is the same program.

    Numbers count by their type, what has neither shape nor hash by its type, all else
    that is no array by its value.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    return tree, tuple(map(_kind, leaves))


def _kind(leaf: Any) -> Hashable:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    is_number = isinstance(leaf, bool | int | float | complex)
    if is_number or not isinstance(leaf, Hashable):
        return type(leaf)
    return leaf
