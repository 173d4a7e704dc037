"""What a command is given: a dump, a saved program, a plan, or a JAX function."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from frontends.program import Program
from jax_malloc import plan_file, planner
from jax_malloc.json_reader import nearest
from jax_malloc.plan import Plan, load_plan

if TYPE_CHECKING:
    import jax

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")
_SHAPE = re.compile(r"\s*([a-z]\w*)\[([\d\s,]*)\]\s*(?:,|$)")
# HLO's names of element types that are not a letter and a number of bits.
_DTYPES = {"pred": "bool", "bf16": "bfloat16"}
_KINDS = {"f": "float", "s": "int", "u": "uint", "c": "complex"}


def load(
    spec: str,
    *,
    xla: str | None = None,
    shapes: str | None = None,
    accelerator: str = "tpu_v5e",
    lowering: str | None = None,
) -> Program | Plan:
    """The program, or the plan, that a command line names.

    Args:
      spec: a path to HLO text, a saved program or a plan, gzipped or not; or
        "module:function", imported from the working directory or the Python path.
      xla: for HLO text, the same program with memory space assignment on.
      shapes: for a function, its arguments, such as "f32[128,512],s32[]".
      accelerator, lowering: for a function, as for `optimize`; None for its default.
    Raises:
      ValueError: it is none of these, or an option does not go with it.
      OSError: a file cannot be read.
    """
    if os.path.exists(spec):
        if shapes is not None:
            raise ValueError(
                f"--shapes goes with module:function, and {spec} is a file."
            )
        if _is_plan(spec):
            if xla is not None:
                raise ValueError(f"--xla goes with HLO text, and {spec} is a plan.")
            return load_plan(spec)
        return planner.load_program(spec, xla=xla)
    if os.sep in spec or not (match := _FUNCTION.fullmatch(spec)):
        folder, name = os.path.split(spec)
        there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        raise ValueError(
            f"there is no file {spec}{nearest(name, there) or '.'} Give HLO text, a "
            "saved program or plan, or module:function."
        )
    if xla is not None:
        raise ValueError(f"--xla goes with HLO text, and {spec} is a function.")
    return _traced(*match.groups(), shapes, accelerator, lowering)


def as_program(given: Program | Plan) -> Program:
    """The program, or that of the plan."""
    return given.program if isinstance(given, Plan) else given


def parse_shapes(text: str) -> list[jax.ShapeDtypeStruct]:
    """Arguments from text such as "f32[128,512],bf16[],int8[4]".

    Raises: ValueError if it is not a list of element types and shapes.
    """
    import jax

    structs, at = [], 0
    while at < len(text.rstrip()):
        match = _SHAPE.match(text, at)
        if match is None:
            raise ValueError(
                f"--shapes: cannot read {text[at:]!r}; write element types as in HLO "
                "and sizes in brackets, such as 'f32[128,512],s32[]'."
            )
        sizes = [int(size) for size in match[2].replace(",", " ").split()]
        structs.append(jax.ShapeDtypeStruct(tuple(sizes), _dtype(match[1])))
        at = match.end()
    return structs


def _dtype(name: str) -> Any:
    import jax.numpy as jnp

    full = _DTYPES.get(name, name)
    if match := re.fullmatch(r"([fsuc])(\d+)", name):
        full = _KINDS[match[1]] + match[2]
    elif match := re.fullmatch(r"f(\d)(e\w+)", name):
        full = f"float{match[1]}_{match[2]}"
    try:
        return jnp.dtype(full)
    except TypeError:
        known = (*_DTYPES, "f16", "f32", "f64", "s8", "s16", "s32", "s64", "u8", "u32")
        raise ValueError(
            f"--shapes: no element type is called {name!r}"
            f"{nearest(name, known) or ';'} write it as HLO does: {', '.join(known)}."
        ) from None


def _is_plan(path: str) -> bool:
    """Whether a file says, near its beginning, that it is a plan."""
    says = rb'\s*\{.*"format"\s*:\s*"%s"' % re.escape(plan_file.FORMAT.encode())
    return re.match(says, planner.read_head(path), re.DOTALL) is not None


def _traced(
    module_name: str,
    path: str,
    shapes: str | None,
    accelerator: str,
    lowering: str | None,
) -> Program:
    """The program of a function of a module, for arguments of these shapes."""
    # As `python -m` has it: what lies in the working directory comes first.
    if sys.path[0] not in ("", os.getcwd()):
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(value, name):
            raise ValueError(
                f"{module_name!r} has no {path!r}{nearest(name, dir(value)) or '.'}"
            )
        value = getattr(value, name)
    from jax_malloc.decorator import OptimizedFunction, optimize

    if not callable(value):
        raise ValueError(
            f"{module_name}:{path} is a {type(value).__name__}, not a function."
        )
    if not isinstance(value, OptimizedFunction):
        options = {} if lowering is None else {"lowering": lowering}
        value = optimize(value, accelerator=accelerator, **options)
    try:
        return value.program(*parse_shapes(shapes or ""))
    except ValueError as error:
        if shapes is None:
            raise ValueError(
                f"{error} Give its arguments, such as --shapes='f32[128,512],s32[]'."
            ) from error
        raise
