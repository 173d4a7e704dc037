"""JAX or HLO in, `Program` out. Every frontend gives the same record.

    frontends.stablehlo.from_jax(f, *args)   any JAX function, on any machine
    frontends.tpu.compile(f, *args)          what a TPU would run; needs libtpu, no TPU
    frontends.hlo.load("dump.hlo.gz")        a scheduled HLO dump; needs no JAX

A frontend is imported when its name is first used, so reading a dump loads no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontends import hlo, program, stablehlo, tpu
    from frontends.program import Program

__all__ = ["Program", "hlo", "program", "stablehlo", "tpu"]


def __getattr__(name: str) -> Any:
    if name == "Program":
        return importlib.import_module("frontends.program").Program
    if name in __all__:
        return importlib.import_module(f"frontends.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
