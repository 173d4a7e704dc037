"""`optimize`: a jitted function that can also say where its buffers should live."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import types
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, Unpack, overload

import jax

from frontends import stablehlo, tpu, tracing
from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import cache as cache_lib
from jax_malloc import planner, problem
from jax_malloc import tpu as steer_tpu
from jax_malloc.plan import Plan
from jax_malloc.steering import calls
from jax_malloc.steering.result import SteeringResult

_LOWERINGS = ("auto", "tpu", "stablehlo")


class OptimizedFunction:
    """What `optimize` returns: `jax.jit(f)` in every respect, and a planner beside it.

    A call is a call of the jitted function: it returns the same values, composes with
    every transformation, and never plans. `plan` does, and runs nothing. On a TPU, what
    was steered is compiled with the options that `steer` found.
    """

    __wrapped__: Callable[..., Any]  # the function, as functools.update_wrapper says it

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
        compiles: int,
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
        accelerator = presets.get(accelerator)
        if lowering == "tpu" and accelerator.name not in tpu.TOPOLOGIES:
            raise ValueError(
                f'lowering="tpu" compiles for {", ".join(tpu.TOPOLOGIES)}; the '
                f'accelerator is {accelerator.name!r}. Use lowering="stablehlo".'
            )
        # First, since it copies the attributes of `f`, which may be one of us.
        functools.update_wrapper(self, f)
        self._accelerator = accelerator
        self._lowering = lowering
        self._search: dict[str, Any] = {
            "solver": solver,
            "seed": planner.check_seed(seed),
            "time_limit_s": planner.check_time_limit_s(time_limit_s),
        }
        self._cache_dir = cache_dir
        self._compiles = steer_tpu.check_compiles(compiles)
        self._plans: dict[str, Plan] = {}
        self._compiled: dict[tpu.Lowering, Program] = {}
        # The instance, where this is a method that has been bound to one.
        self._leading: tuple[Any, ...] = ()
        # A function that is jitted already keeps its own static and donated arguments.
        jitted = isinstance(f, jax.stages.Wrapped) and not jit_options
        self._jitted: Any = f if jitted else jax.jit(f, **jit_options)
        self._steered = None if jitted else calls.SteeredCalls(f, jit_options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = (*self._leading, *args)
        if self._steered is None:
            return self._jitted(*args, **kwargs)
        return self._steered.call(self._jitted, args, kwargs)

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
        traced: jax.stages.Traced = self._jitted.trace(*self._leading, *args, **kwargs)
        return traced

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As `jax.jit(f).lower`."""
        lowered: jax.stages.Lowered = self._jitted.lower(
            *self._leading, *args, **kwargs
        )
        return lowered

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The schedule of ops and buffers that the planner sees.

        Args:
          args, kwargs: as in a call; `jax.ShapeDtypeStruct` may stand for an array.
        Raises:
          ValueError: the function cannot be traced; chained from JAX's own error.
        """
        if self._lowering == "stablehlo":
            return self._from_stablehlo(*args, **kwargs)
        if self._lowering == "tpu":
            return self._from_tpu(*args, **kwargs)
        known = self._accelerator.name in tpu.TOPOLOGIES
        if not known:
            why = f"no TPU compiler knows {self._accelerator.name!r}"
        elif not tpu.is_available():
            why = 'libtpu is not installed (pip install "jax_malloc[tpu]")'
        else:
            try:
                return self._from_tpu(*args, **kwargs)
            except (RuntimeError, ValueError) as error:
                why = str(error).splitlines()[0]
        program = self._from_stablehlo(*args, **kwargs)
        note = f"Read from StableHLO, not from a TPU's compiler: {why}."
        return dataclasses.replace(program, notes=(*program.notes, note))

    def _from_stablehlo(self, *args: Any, **kwargs: Any) -> Program:
        name = getattr(self, "__name__", None)
        try:
            with tpu.quiet_backends():
                lowered = self.lower(*args, **kwargs)
        except Exception as error:
            raise tracing.cannot_trace(name or "the function", error) from error
        tiling = problem.tiling_of(self._accelerator)
        return stablehlo.from_lowered(lowered, name=name, tiling=tiling)

    def _tpu_lowering(self, *args: Any, **kwargs: Any) -> tpu.Lowering:
        return tpu.lower(
            self._jitted,
            *self._leading,
            *args,
            name=getattr(self, "__name__", None),
            **kwargs,
        )

    def _from_tpu(self, *args: Any, **kwargs: Any) -> Program:
        lowering = self._tpu_lowering(*args, **kwargs)
        if lowering not in self._compiled:
            self._compiled[lowering] = tpu.compile(
                lowering, topology=self._accelerator.name, cache_dir=self._cache_dir
            )
        return self._compiled[lowering]

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

    def steer(self, *args: Any, **kwargs: Any) -> SteeringResult:
        """Looks for compiler options for calls with these arguments, and keeps them.

        It compiles ahead of time, `compiles` times, and runs nothing; see
        `jax_malloc.tpu.steer`. On a TPU backend, calls with arguments of these shapes
        are compiled with what was found from then on; elsewhere nothing changes. If the
        compiler refuses the options there, the call warns and goes on without them.

        Args:
          args, kwargs: as in a call; `jax.ShapeDtypeStruct` may stand for an array.
        Raises:
          ValueError: the function cannot be traced; it was jitted before it came here,
            so that its own options are not known; or there is no TPU compiler for the
            accelerator.
          RuntimeError: libtpu is not installed, or refused the function.
        """
        if self._steered is None:
            raise ValueError(
                f"{self!r} was jitted before it came here, and options cannot be added "
                "to it. Give optimize the function itself, with its static and donated "
                "arguments, or steer it with jax_malloc.tpu.steer and pass "
                "compiler_options to jax.jit."
            )
        result = steer_tpu.steer(
            self._tpu_lowering(*args, **kwargs),
            topology=self._accelerator.name,
            accelerator=self._accelerator,
            compiles=self._compiles,
            seed=self._search["seed"],
            cache_dir=self._cache_dir,
        )
        self._steered.add(result.compiler_options, (*self._leading, *args), kwargs)
        return result

    def _from_disk_or_solved(self, program: Program, key: str) -> Plan:
        cache = cache_lib.open_cache(self._cache_dir)
        plan = cache.get(key, lambda text: Plan.from_json(text, program=program))
        if plan is None:
            plan = planner.solve(program, self._accelerator, **self._search)
            cache.put(key, plan.to_json())
        return plan


class _Options(TypedDict, total=False):
    """The options of `optimize`, said once more for type checkers."""

    accelerator: str | os.PathLike[str] | Accelerator
    solver: str
    seed: int
    time_limit_s: float | None
    static_argnums: int | Iterable[int]
    static_argnames: str | Iterable[str]
    donate_argnums: int | Iterable[int]
    donate_argnames: str | Iterable[str]
    cache_dir: str | os.PathLike[str] | bool | None
    lowering: str
    compiles: int


@overload
def optimize(
    f: Callable[..., Any], **options: Unpack[_Options]
) -> OptimizedFunction: ...


@overload
def optimize(
    f: None = None, **options: Unpack[_Options]
) -> Callable[[Callable[..., Any]], OptimizedFunction]: ...


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
    lowering: str = "auto",
    compiles: int = 12,
) -> Any:
    """Jits a function and gives it a `plan` method.

        @jax_malloc.optimize(accelerator="tpu_v5e")
        def step(params, batch): ...

        step(params, batch)              # the values of jax.jit(step)
        print(step.plan(params, batch))  # arrays or jax.ShapeDtypeStruct
        step.steer(params, batch)        # on a TPU, faster from here on

    Under `grad`, `vmap`, another `jit`, or with tracers it is `jax.jit(f)`.

    Args:
      f: any function that `jax.jit` takes; without it, a decorator with these options.
      accelerator, solver, seed, time_limit_s: as for `jax_malloc.solve`.
      static_argnums, static_argnames: as for `jax.jit`.
      donate_argnums, donate_argnames: as for `jax.jit`.
      cache_dir: where plans are kept between processes; None for $JAX_MALLOC_CACHE_DIR
        or else the user's cache directory, False or "" for nowhere.
      lowering: how the planner sees the function. "tpu" is what the TPU's own compiler
        schedules, with its cycle estimates and its own mapping; it needs libtpu and no
        TPU. "stablehlo" is what JAX lowers it to, with operations grouped as a compiler
        would fuse them. "auto" is the first where it can be had, else the second; the
        plan's notes say which.
      compiles: how often `steer` may compile.
    Returns:
      An `OptimizedFunction`.
    Raises:
      ValueError: an option is unknown or out of range.
      TypeError: `f` is not callable.
    """
    options: dict[str, Any] = {
        "accelerator": accelerator,
        "solver": solver,
        "seed": seed,
        "time_limit_s": time_limit_s,
        "cache_dir": cache_dir,
        "lowering": lowering,
        "compiles": compiles,
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
