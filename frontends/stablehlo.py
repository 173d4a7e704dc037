"""A `Program` from a JAX function, by way of StableHLO: needs no accelerator.

    program = from_jax(step, params, batch)

The function is traced and lowered, its StableHLO module read through its MLIR bindings
(`stablehlo_walk`) into a flat graph (`stablehlo_graph`), operations grouped as a
compiler would fuse them (`stablehlo_fusion`, whose docstring is the rule, and
`stablehlo_sweeps`), put in order (`stablehlo_schedule`) and given buffers
(`stablehlo_buffers`). What comes out is what *a* compiler would run, not what yours
will: there are no cycle estimates, loops whose trip count the module does not say are
taken to run five times, and sizes are logical bytes unless a `tiling` says how the
accelerator pads arrays (in the layouts of `stablehlo_layouts`). Text of the compiled
program, read by `frontends.hlo`, is the more faithful way.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Mapping, Sequence
from typing import Any

import jax
from jax.extend.mlir import ir
from jax.interpreters import mlir

from frontends import tracing
from frontends.program import Program
from frontends.stablehlo_buffers import ProgramBuilder
from frontends.stablehlo_graph import Graph
from frontends.stablehlo_schedule import schedule
from frontends.stablehlo_sweeps import fuse
from frontends.stablehlo_walk import build_graph
from frontends.tiling import Tiling

# Dense constants with more elements than this are left out of `Program.text`.
_TEXT_ELEMENTS_LIMIT = 1024


def from_jax(
    f: Callable,
    *args: Any,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate_argnums: int | Sequence[int] = (),
    donate_argnames: str | Sequence[str] = (),
    name: str | None = None,
    tiling: Tiling | None = None,
    **kwargs: Any,
) -> Program:
    """The program that `jax.jit(f)(*args, **kwargs)` would run.

    Args:
      f: a function that `jax.jit` takes, or one that is jitted already.
      *args, **kwargs: its arguments, arrays or `jax.ShapeDtypeStruct`s in pytrees, and
        static values.
      static_argnums, static_argnames, donate_argnums, donate_argnames: as in `jax.jit`;
        leave them out for a function that is jitted already.
      name: the program's name; by default the function's.
      tiling: how the accelerator pads arrays and matrix products; None, not at all.
    Returns:
      The program, with the StableHLO text that `annotate` needs.
    Raises:
      ValueError: the function cannot be traced or lowered for these arguments; chained
        from JAX's own error.
    """
    label = name or tracing.function_name(f)
    jitted = tracing.jitted(
        f,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        donate_argnums=donate_argnums,
        donate_argnames=donate_argnames,
    )
    try:
        lowered = jitted.lower(*args, **kwargs)
    except Exception as error:
        raise tracing.cannot_trace(label, error) from error
    return from_lowered(lowered, name=label, tiling=tiling)


def from_lowered(
    lowered: jax.stages.Lowered,
    *,
    name: str | None = None,
    tiling: Tiling | None = None,
) -> Program:
    """The program of a function that `jax.jit(f).lower(...)` has lowered.

    JAX lowers for the machine that it runs on. To read what it would give a TPU, pass
    `jax.jit(f).trace(...).lower(lowering_platforms=("tpu",))`; that needs no TPU.

    Raises:
      ValueError: a tensor has no static shape.
    """
    module: Any = lowered.compiler_ir("stablehlo")
    return from_module(module, name=name, tiling=tiling)


def from_module(
    module: ir.Module | str, *, name: str | None = None, tiling: Tiling | None = None
) -> Program:
    """The program of a StableHLO module, or of its text.

    Args:
      module: with a public function `main`, as JAX makes it.
      name: the program's name; by default the module's.
      tiling: as in `from_jax`.
    Raises:
      ValueError: the text cannot be parsed, there is no `main`, or a tensor has no
        static shape.
    """
    if isinstance(module, str):
        module = _parse(module)
    operation = module.operation
    if name is None:
        name = "main"
        if "sym_name" in operation.attributes:
            name = ir.StringAttr(operation.attributes["sym_name"]).value
    text = str(operation.get_asm(large_elements_limit=_TEXT_ELEMENTS_LIMIT))
    return _build(module, name, text, tiling)[1].program


def annotate(module: ir.Module | Program | str, placements: Mapping[str, str]) -> str:
    """The StableHLO text with the placement of every op as attributes.

    Each operation that is part of the program's op "X" carries the string attributes
    `jax_malloc.op = "X"` and `jax_malloc.placement = placements["X"]`. An operation
    that is part of several (of a function called twice, or computed by several ops)
    carries all of them, joined by "; ". Large constants are left out of the text of a
    program; pass the module to keep them.

    Args:
      module: the module, its text, or the program that was made of it.
      placements: what to say, by name of the program's op.
    Returns:
      Text that can be parsed again.
    Raises:
      ValueError: a program without text, or a name that is no op of the program.
    """
    if isinstance(module, Program):
        if not module.text:
            raise ValueError(
                f"program {module.name!r} has no StableHLO text to annotate (its "
                f"source is {module.source or 'unknown'!r}; loading from JSON drops "
                "the text). Make it again with from_jax or from_module."
            )
        module = module.text
    copy = _parse(module if isinstance(module, str) else str(module))
    graph, builder = _build(copy, "main", "")
    unknown = [key for key in placements if key not in builder.program.op_index]
    if unknown:
        raise ValueError(
            f"placements name {unknown[0]!r}, and {len(unknown) - 1} more, which are "
            f"no ops of the program. Its ops are {list(builder.program.op_index)[:8]}"
            " and so on; take the names from the program of this very module."
        )
    with copy.context:
        for operation, names in _names_by_operation(graph, builder):
            placed = [key for key in names if key in placements]
            if placed:
                said = "; ".join(placements[key] for key in placed)
                attributes = operation.attributes
                attributes["jax_malloc.op"] = ir.StringAttr.get("; ".join(placed))
                attributes["jax_malloc.placement"] = ir.StringAttr.get(said)
    return str(copy)


def _parse(text: str) -> ir.Module:
    try:
        return ir.Module.parse(text, mlir.make_ir_context())
    except ir.MLIRError as error:
        raise ValueError(
            f"the StableHLO text cannot be parsed: {error}. Pass the text of a lowered "
            "function, lowered.as_text()."
        ) from error


def _build(
    module: ir.Module, name: str, text: str, tiling: Tiling | None = None
) -> tuple[Graph, ProgramBuilder]:
    with module.context:
        graph = build_graph(module, tiling)
        groups = fuse(graph)
        order = schedule(graph, groups)
        return graph, ProgramBuilder(graph, groups, order, name=name, text=text)


def _names_by_operation(
    graph: Graph, builder: ProgramBuilder
) -> ItemsView[ir.Operation, dict[str, None]]:
    """`(operation of the module, names of its ops)`, each operation once."""
    operations: dict[ir.Operation, dict[str, None]] = {}
    for n, names in builder.ops_of.items():
        for operation in graph.nodes[n].mlir:
            operations.setdefault(operation, {}).update(dict.fromkeys(names))
    return operations.items()
