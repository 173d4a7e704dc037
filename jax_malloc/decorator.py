"""`optimize`: a jitted function that can also say where its buffers should live."""

from __future__ import annotations

import copy
import functools
import os
import types
from collections.abc import Callable, Iterable
from typing import Any

import jax

from frontends import stablehlo
from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import cache as cache_lib
from jax_malloc import planner
from jax_malloc.plan import Plan

_LOWERINGS = ("stablehlo",)


class OptimizedFunction:
    """What `optimize` returns: `jax.jit(f)` in every respect, and a planner beside it.

    A call is a call of the jitted function: it returns the same values, composes with
    every transformation, and never plans. `plan` does, and runs nothing.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        *,
        accelerator: str | os.PathLike[str] | Accelerator,
        solver: str,
        seed: int,
        time_limit_s: float | None,
        cache_dir: str | os.PathLike[str] | bool | None,
        lowering: str,
        jit_options: dict[str, Any],
    ) -> None:
        if not callable(f):
            raise TypeError(
                f"optimize takes a function, not a {type(f).__name__}; give options by "
                'name, as in @jax_malloc.optimize(accelerator="tpu_v5e").'
            )
        if lowering not in _LOWERINGS:
            raise ValueError(
                f"unknown lowering {lowering!r}; choose one of {', '.join(_LOWERINGS)}."
            )
        planner.check_solver(solver)
        # First, since it copies the attributes of `f`, which may be one of us.
        functools.update_wrapper(self, f)
        self._accelerator = presets.get(accelerator)
        self._search = {
            "solver": solver,
            "seed": planner.check_seed(seed),
            "time_limit_s": planner.check_time_limit_s(time_limit_s),
        }
        self._cache_dir = cache_dir
        self._plans: dict[str, Plan] = {}
        # The instance, where this is a method that has been bound to one.
        self._leading: tuple[Any, ...] = ()
        # A function that is jitted already keeps its own static and donated arguments.
        jitted = isinstance(f, jax.stages.Wrapped) and not jit_options
        self._jitted = f if jitted else jax.jit(f, **jit_options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._jitted(*self._leading, *args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> OptimizedFunction:
        """On a method, the function of the other arguments, as Python binds any."""
        if instance is None:
            return self
        bound = copy.copy(self)
        bound._leading = (*self._leading, instance)
        bound.__wrapped__ = types.MethodType(self.__wrapped__, instance)
        return bound

    def __repr__(self) -> str:
        name = getattr(self, "__qualname__", repr(self._jitted))
        return f"<jax_malloc.optimize({name}) for {self._accelerator.name}>"

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """As `jax.jit(f).trace`."""
        return self._jitted.trace(*self._leading, *args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As `jax.jit(f).lower`."""
        return self._jitted.lower(*self._leading, *args, **kwargs)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The schedule of ops and buffers that the planner sees.

        Args:
          args, kwargs: as in a call; `jax.ShapeDtypeStruct` may stand for an array.
        Raises:
          ValueError: the function cannot be traced; chained from JAX's own error.
        """
        name = getattr(self, "__name__", None)
        try:
            lowered = self.lower(*args, **kwargs)
        except Exception as error:
            raise stablehlo.cannot_trace(name or "the function", error) from error
        return stablehlo.from_lowered(lowered, name=name)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan for a call with these arguments; nothing is run or donated.

        The function is traced each time, but each program that this gives is solved
        only once: plans are kept in the process and in the on-disk cache.

        Args:
          args, kwargs: as in a call; `jax.ShapeDtypeStruct` may stand for an array.
        Raises:
          ValueError: the program cannot run on the accelerator.
        """
        program = self.program(*args, **kwargs)
        key = cache_lib.plan_key(program, self._accelerator, **self._search)
        if key not in self._plans:
            self._plans[key] = self._from_disk_or_solved(program, key)
        return self._plans[key]

    def _from_disk_or_solved(self, program: Program, key: str) -> Plan:
        cache = cache_lib.open_cache(self._cache_dir)
        plan = cache.get(key, lambda text: Plan.from_json(text, program=program))
        if plan is None:
            plan = planner.solve(program, self._accelerator, **self._search)
            cache.put(key, plan.to_json())
        return plan


def optimize(
    f: Callable[..., Any] | None = None,
    *,
    accelerator: str | os.PathLike[str] | Accelerator = "tpu_v5e",
    solver: str = "hybrid",
    seed: int = 0,
    time_limit_s: float | None = None,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
    donate_argnames: str | Iterable[str] = (),
    cache_dir: str | os.PathLike[str] | bool | None = None,
    lowering: str = "stablehlo",
) -> Any:
    """Jits a function and gives it a `plan` method.

        @jax_malloc.optimize(accelerator="tpu_v5e")
        def step(params, batch): ...

        step(params, batch)              # the values of jax.jit(step)
        print(step.plan(params, batch))  # arrays or jax.ShapeDtypeStruct

    Under `grad`, `vmap`, another `jit`, or with tracers it is `jax.jit(f)`.

    Args:
      f: any function that `jax.jit` takes; without it, a decorator with these options.
      accelerator, solver, seed, time_limit_s: as for `jax_malloc.solve`.
      static_argnums, static_argnames: as for `jax.jit`.
      donate_argnums, donate_argnames: as for `jax.jit`.
      cache_dir: where plans are kept between processes; None for $JAX_MALLOC_CACHE_DIR
        or else the user's cache directory, False or "" for nowhere.
      lowering: how the planner sees the function. "stablehlo" is what JAX lowers it to,
        with operations grouped as a compiler would fuse them.
    Returns:
      An `OptimizedFunction`.
    Raises:
      ValueError: an option is unknown or out of range.
      TypeError: `f` is not callable.
    """
    options = {
        "accelerator": accelerator,
        "solver": solver,
        "seed": seed,
        "time_limit_s": time_limit_s,
        "cache_dir": cache_dir,
        "lowering": lowering,
        "jit_options": {
            name: value
            for name, value in {
                "static_argnums": static_argnums,
                "static_argnames": static_argnames,
                "donate_argnums": donate_argnums,
                "donate_argnames": donate_argnames,
            }.items()
            if value != ()
        },
    }
    if f is None:
        return functools.partial(OptimizedFunction, **options)
    return OptimizedFunction(f, **options)
