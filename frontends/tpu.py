"""A JAX function compiled for a TPU that is not there, as a `Program`.

    program = compile(step, params, batch, topology="v5e")

libtpu, the TPU compiler, compiles ahead of time for any TPU generation; it comes with
`pip install "jax_malloc[tpu]"`. The function is lowered here (`tpu_lowering`) and
compiled twice in worker processes (`tpu_pool`, `tpu_worker`), with memory space
assignment off and on: the first gives ops and buffers, the second XLA's own mapping and
a second cycle estimate of every op. Texts are kept on disk (`tpu_cache`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontends import hlo, tpu_cache, tpu_pool
from frontends.program import Program
from frontends.tpu_lowering import Lowering, is_available, lower, quiet_backends

__all__ = [
    "MSA_OFF",
    "TOPOLOGIES",
    "CompileError",
    "Lowering",
    "compile",
    "compile_texts",
    "is_available",
    "lower",
    "msa_off",
    "program_from_texts",
    "quiet_backends",
    "topology_name",
]

TOPOLOGIES: Mapping[str, str] = {
    "tpu_v4": "v4:2x2x1",
    "tpu_v5e": "v5e:2x2",
    "tpu_v5p": "v5p:2x2x1",
    "tpu_v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""Accelerator presets that libtpu compiles for, and the smallest topology of each."""

MSA_OFF: Mapping[str, Mapping[str, str]] = {
    "v4": {"xla_tpu_cmem_memory_space_assignment": "false"},
    "v5e": {"xla_msa_enable": "false"},
    "v5p": {"xla_msa_enable": "false"},
    "v6e": {"xla_msa_enable": "false"},
    "tpu7x": {"xla_msa_enable": "false"},
}
"""By TPU generation, what switches memory space assignment off."""


# libtpu takes the two TensorCores of a v4 chip for two devices unless told otherwise;
# JAX on a v4, and the preset tpu_v4, have one.
_CHIP_CONFIGS: Mapping[str, str] = {"v4": "megacore"}


class CompileError(RuntimeError):
    """The TPU compiler refused a program or an option; the message is its own."""


def topology_name(topology: str, num_devices: int = 1) -> str:
    """The topology that libtpu knows by a preset's or generation's name, or its own.

    Args:
      topology: "tpu_v5e", "v5e" or "v5e:2x4".
      num_devices: where no size is given, the topology has at least as many.
    Raises:
      ValueError: libtpu compiles for no such generation.
    """
    if ":" in topology:
        generation = topology.partition(":")[0]
        if generation in MSA_OFF:
            return topology
    for name in (topology, f"tpu_{topology}"):
        if name in TOPOLOGIES:
            return _grown(TOPOLOGIES[name], num_devices)
    raise ValueError(
        f"no topology is called {topology!r}; choose one of {', '.join(TOPOLOGIES)}, "
        'or a size too, as in "v5e:2x4".'
    )


def msa_off(topology: str) -> Mapping[str, str]:
    """The compiler options that switch memory space assignment off."""
    return MSA_OFF[topology_name(topology).partition(":")[0]]


def compile(
    f: Callable | Lowering,
    *args: Any,
    topology: str = "v5e",
    cache_dir: str | os.PathLike[str] | bool | None = None,
    name: str | None = None,
    **kwargs: Any,
) -> Program:
    """The program that a TPU would run, as its compiler schedules it.

    Args:
      f: a function, or what `lower` made of one.
      *args, **kwargs: as for `lower`, its options too: static and donated arguments,
        mesh and shardings. Over a mesh the program is that of one device, with its
        collectives as ops.
      topology: a preset's name, a TPU generation, or a topology ("v5e:2x4").
      cache_dir: where texts are kept between processes; None for $JAX_MALLOC_CACHE_DIR
        or else the user's cache directory, False or "" for nowhere.
      name: the program's name; by default the function's.
    Raises:
      ValueError: the function cannot be traced, or the topology is unknown.
      CompileError: the compiler refused the program, for want of memory say.
      RuntimeError: libtpu is not installed, or the compiling process died.
    """
    if not isinstance(f, Lowering):
        f = lower(f, *args, name=name, **kwargs)
    elif args or kwargs:
        raise ValueError(
            "a Lowering has its arguments in it; give compile nothing beside it but "
            "topology, cache_dir and name."
        )
    texts = compile_texts(
        f,
        topology=topology,
        compiler_options=(msa_off(topology), {}),
        cache_dir=cache_dir,
    )
    slow, xla = map(str, texts)  # errors were raised
    program = program_from_texts(slow, xla, name=name or f.name)
    compiled_for = (
        f"Compiled for {topology_name(topology, f.num_devices)} by libtpu "
        f"{importlib.metadata.version('libtpu')}."
    )
    return dataclasses.replace(program, notes=(compiled_for, *program.notes))


def compile_texts(
    lowering: Lowering,
    *,
    topology: str,
    compiler_options: Sequence[Mapping[str, str]],
    cache_dir: str | os.PathLike[str] | bool | None = None,
    return_errors: bool = False,
) -> list[str | Exception]:
    """The scheduled HLO text of a function under each set of compiler options.

    Worker processes compile, two at a time where there are the cores, and stay for the
    next call; texts that were made before come from the disk.

    Args:
      lowering: from `lower`.
      topology: as for `compile`.
      compiler_options: one mapping of option to value per text.
      cache_dir: as for `compile`.
      return_errors: put the exception in the place of a text that could not be made,
        instead of raising the first.
    Returns:
      One text per set of options, in their order, or the exception in its place.
    Raises:
      ValueError: the topology is unknown.
      CompileError: the compiler refused the program or an option.
      RuntimeError: libtpu is not installed, or a compiling process died.
    """
    topology = topology_name(topology, lowering.num_devices)
    cache = tpu_cache.TextCache(cache_dir)

    def text(options: Mapping[str, str]) -> str | Exception:
        try:
            return _text(lowering, topology, options, cache)
        except Exception as error:
            if not return_errors:
                raise
            return error

    with concurrent.futures.ThreadPoolExecutor(tpu_pool.MAX_WORKERS) as threads:
        try:
            return list(threads.map(text, compiler_options))
        except KeyboardInterrupt:
            tpu_pool.shared().close()
            raise


def program_from_texts(slow_text: str, xla_text: str, *, name: str = "") -> Program:
    """The program of a function's two texts.

    Args:
      slow_text: compiled with memory space assignment off.
      xla_text: compiled with it on.
      name: of the program; "" takes the module's.
    Raises:
      ValueError: a text is not scheduled HLO.
    """
    program = hlo.from_text(slow_text, xla_text=xla_text, name=name)
    notes = (*program.notes, *_without_estimate(program))
    return dataclasses.replace(program, source="tpu", notes=notes)


def _without_estimate(program: Program) -> list[str]:
    """Says what the compiler gave no estimate of, if there is such an op."""
    count = moved = total = 0.0
    for op in program.ops:
        touched = op.count * sum(op.touched_bytes().values())
        total += touched
        if touched and not op.estimates:
            count, moved = count + 1, moved + touched
    if not count:
        return []
    return [
        f"The compiler gives no estimate for {count:.0f} of {len(program.ops)} ops, "
        f"which touch {moved / total:.1%} of the bytes."
    ]


def _text(
    lowering: Lowering,
    topology: str,
    options: Mapping[str, str],
    cache: tpu_cache.TextCache,
) -> str:
    _check_available()
    header = {
        "topology": topology,
        "chip_config": _CHIP_CONFIGS.get(topology.partition(":")[0], "default"),
        "options": dict(sorted(options.items())),
        "names": lowering.argument_names,
        "kept": lowering.kept,
        "donated": lowering.donated,
        "mesh": lowering.mesh_axes,
    }
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    follows_from = {**header, **versions, "flags": tpu_pool.flags()}
    key = tpu_cache.key(follows_from, lowering.module)
    text = cache.get(key)
    if text is None:
        try:
            text = tpu_pool.shared().compile(header, lowering.module)
        except tpu_pool.Refused as refusal:
            said = ", ".join(f"{k}={v!r}" for k, v in options.items())
            raise CompileError(
                f"the TPU compiler refused {lowering.name!r} for {topology} with "
                f"{said or 'its default options'}: {refusal}"
            ) from None
        cache.put(key, text)
    return text


def _check_available() -> None:
    if not is_available():
        raise RuntimeError(
            "compiling for a TPU needs libtpu, which is not installed. Install the "
            'extra: pip install "jax_malloc[tpu]". Without it, frontends.stablehlo '
            'reads any function (lowering="stablehlo").'
        )


def _grown(topology: str, num_devices: int) -> str:
    """The topology with sides doubled until it has the devices."""
    generation, _, size = topology.partition(":")
    sides = [int(side) for side in size.split("x")]
    while math.prod(sides) < num_devices:
        sides[max(i for i, side in enumerate(sides) if side == min(sides))] *= 2
    return f"{generation}:{'x'.join(map(str, sides))}"
