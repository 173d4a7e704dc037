"""Plans which buffers of a JAX program live in fast memory, where, and when.

    @jax_malloc.optimize(accelerator="tpu_v5e")
    def step(params, batch): ...

    step(params, batch)                  # the values of jax.jit(step)
    plan = step.plan(params, batch)      # arrays or jax.ShapeDtypeStruct
    print(plan)

Importing the package loads neither JAX nor the agent; each name brings what it needs
on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontends.program import Program
    from hwmodel.accelerator import Accelerator
    from jax_malloc.decorator import OptimizedFunction, optimize
    from jax_malloc.mapping import Mapping
    from jax_malloc.plan import Plan, load_plan
    from jax_malloc.planner import load_program, solve
    from jax_malloc.sweep import what_if
    from jax_malloc.viz.comparison import plot_comparison

__version__ = "0.1.0"

__all__ = [
    "Accelerator",
    "Mapping",
    "OptimizedFunction",
    "Plan",
    "Program",
    "__version__",
    "load_plan",
    "load_program",
    "optimize",
    "plot_comparison",
    "solve",
    "what_if",
]

_MODULES = {
    "Accelerator": "hwmodel.accelerator",
    "Mapping": "jax_malloc.mapping",
    "OptimizedFunction": "jax_malloc.decorator",
    "Plan": "jax_malloc.plan",
    "Program": "frontends.program",
    "load_plan": "jax_malloc.plan",
    "load_program": "jax_malloc.planner",
    "optimize": "jax_malloc.decorator",
    "plot_comparison": "jax_malloc.viz.comparison",
    "solve": "jax_malloc.planner",
    "what_if": "jax_malloc.sweep",
}


_SUBMODULES = ("tpu",)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
