"""Steering the TPU compiler: hints for its memory space assignment, tried and kept.

    result = jax_malloc.tpu.steer(step, params, batch, topology="v5e")
    print(result)
    fast_step = jax.jit(step, compiler_options=result.compiler_options)

No TPU is needed to find them: libtpu compiles ahead of time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontends import tpu as frontend
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc.steering import loop
from jax_malloc.steering import result as result_lib
from jax_malloc.steering.result import Attempt, Hint, SteeringResult

__all__ = ["Attempt", "Hint", "SteeringResult", "steer"]

# The text without memory space assignment, and the one without hints.
_MIN_COMPILES = 2


def steer(
    f: Callable | frontend.Lowering,
    *args: Any,
    compiles: int = 12,
    topology: str = "v5e",
    accelerator: str | os.PathLike[str] | Accelerator | None = None,
    seed: int = 0,
    search_s: float = 30.0,
    cache_dir: str | os.PathLike[str] | bool | None = None,
    name: str | None = None,
    **kwargs: Any,
) -> SteeringResult:
    """Looks for compiler options under which the TPU compiler maps memory better.

    It compiles with memory space assignment off and on, then asks for other orders of
    buffers, reads the mappings that come out, and learns from their estimates what to
    ask next. The result is never slower than the compiler's default, by the estimates
    in either text with stalls added; where nothing helps, it is the default.

    Args:
      f: a function, or what `frontends.tpu.lower` made of one.
      *args, **kwargs: as for `frontends.tpu.lower`: arrays or `jax.ShapeDtypeStruct`s,
        static and donated arguments.
      compiles: compilations in all, of which two are without hints.
      topology: a preset's name, a TPU generation, or a topology ("v5e:2x4").
      accelerator: the machine as `jax_malloc.solve` takes it; by default the preset of
        the topology's generation.
      seed: of the search.
      search_s: seconds to search for what to ask next, between compilations.
      cache_dir: where compiled texts are kept between processes; None for
        $JAX_MALLOC_CACHE_DIR or else the user's cache directory, False for nowhere.
      name: of the program; by default the function's.
    Raises:
      ValueError: `compiles` is below 2, the topology is unknown, or the function cannot
        be traced.
      frontends.tpu.CompileError: the compiler refused the function without hints.
      RuntimeError: libtpu is not installed.
    """
    check_compiles(compiles)
    topology = frontend.topology_name(topology)
    generation = topology.partition(":")[0]
    if accelerator is None:
        names = [n for n, t in frontend.TOPOLOGIES.items() if t.startswith(generation)]
        accelerator = names[0]
    machine = presets.get(accelerator)
    if not isinstance(f, frontend.Lowering):
        f = frontend.lower(f, *args, name=name, **kwargs)

    def compile(options: Sequence[Mapping[str, str]]) -> list[str | Exception]:
        return frontend.compile_texts(
            f,
            topology=topology,
            compiler_options=options,
            cache_dir=cache_dir,
            return_errors=True,
        )

    history = loop.run(
        compile,
        frontend.msa_off(topology),
        machine,
        compiles=compiles,
        seed=seed,
        search_s=search_s,
        name=name or f.name,
    )
    return result_lib.of_history(history, name=name or f.name, topology=topology)


def check_compiles(compiles: int) -> int:
    """The number, if it is enough. Raises ValueError if it is below 2."""
    if compiles < _MIN_COMPILES:
        raise ValueError(
            f"compiles is {compiles}; it must be at least {_MIN_COMPILES}: without "
            "memory space assignment, and without hints."
        )
    return compiles
