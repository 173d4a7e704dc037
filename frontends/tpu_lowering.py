"""A JAX function as bytes, which another process compiles for a TPU.

Tracing has to happen where the function is; compiling for a TPU must not, since libtpu
warns, locks and takes over the backends of the process that loads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from frontends import tracing

# With these in the environment libtpu starts without looking for a TPU or for the
# other machines of a slice, silently, beside any other process that has it loaded.
QUIET_ENVIRONMENT: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """A function lowered for TPUs, before any compiler has seen it.

    name: the function's.
    module: `jax.export` bytes, without source locations: the same function gives the
      same bytes wherever it is called from.
    argument_names: of the flat arguments, as the user writes them: `params['w']`.
    kept: indices of the flat arguments that the function uses; jit drops the others.
    donated: whether each flat argument may be overwritten.
    mesh_axes: `(name, size)` of the mesh that the function is partitioned over; none
      for one device.
    """

    name: str
    module: bytes = dataclasses.field(repr=False)
    argument_names: tuple[str, ...]
    kept: tuple[int, ...]
    donated: tuple[bool, ...]
    mesh_axes: tuple[tuple[str, int], ...] = ()

    @property
    def num_devices(self) -> int:
        return math.prod(size for _, size in self.mesh_axes)


def lower(
    f: Callable,
    *args: Any,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate_argnums: int | Sequence[int] = (),
    donate_argnames: str | Sequence[str] = (),
    mesh: Mesh | AbstractMesh | Mapping[str, int] | None = None,
    in_shardings: Any = None,
    out_shardings: Any = None,
    name: str | None = None,
    **kwargs: Any,
) -> Lowering:
    """Traces and lowers a function for TPUs; no TPU backend is started.

    Args:
      f: a function that `jax.jit` takes, or one that is jitted already.
      *args, **kwargs: its arguments, arrays or `jax.ShapeDtypeStruct`s in pytrees, and
        static values. Where they are now does not matter, unless they are sharded over
        a mesh of several devices: that mesh is kept.
      static_argnums, static_argnames, donate_argnums, donate_argnames: as in `jax.jit`;
        leave them out for a function that is jitted already.
      mesh: to partition the function over: a mesh of any devices, or the sizes of its
        axes by name.
      in_shardings, out_shardings: as in `jax.jit`; a `PartitionSpec` is over `mesh`.
        Arguments without one are replicated.
      name: the program's name; by default the function's.
    Raises:
      ValueError: the function cannot be traced or lowered for these arguments; chained
        from JAX's own error.
    """
    label = name or tracing.function_name(f)
    mesh = None if mesh is None else _abstract(mesh)
    jitted = tracing.jitted(
        f,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        donate_argnums=donate_argnums,
        donate_argnames=donate_argnames,
        in_shardings=_over(mesh, in_shardings),
        out_shardings=_over(mesh, out_shardings),
    )
    default = None
    if mesh is not None and in_shardings is None:
        default = NamedSharding(mesh, PartitionSpec())
    args, kwargs = _shapes_only((args, kwargs), default)
    try:
        with _no_source_locations(), quiet_backends(), _entered(mesh):
            traced = jitted.trace(*args, **kwargs)
            exported = export.export(jitted, platforms=["tpu"])(*args, **kwargs)
    except Exception as error:
        raise tracing.cannot_trace(label, error) from error
    infos = jax.tree.leaves(traced.args_info, is_leaf=_is_argument)
    arg_names = traced.jaxpr.jaxpr.debug_info.arg_names or ()
    if len(arg_names) != len(infos):
        arg_names = [f"arg{i}" for i in range(len(infos))]
    if exported.nr_devices == 1:
        mesh = None
    elif mesh is None:
        mesh = _mesh_of((args, kwargs), exported.nr_devices)
    return Lowering(
        name=label,
        module=_serialized(exported),
        argument_names=tuple(name or f"arg{i}" for i, name in enumerate(arg_names)),
        kept=tuple(exported.module_kept_var_idx),
        donated=tuple(bool(info.donated) for info in infos),
        mesh_axes=() if mesh is None else tuple(mesh.shape.items()),
    )


def _serialized(exported: export.Exported) -> bytes:
    """The bytes of a function of flat arguments and results.

    So no tree of the user's own types has to be known to the process that reads it.
    """
    args, results = exported.in_avals, exported.out_avals
    flat = dataclasses.replace(
        exported,
        in_tree=jax.tree.structure(((0,) * len(args), {})),
        out_tree=jax.tree.structure((0,) * len(results)),
    )
    return bytes(flat.serialize())


@contextlib.contextmanager
def quiet_backends() -> Iterator[None]:
    """Lets JAX start its backends without libtpu's search for a TPU, if there is none.

    Lowering starts the backends of the process. Where libtpu is installed, and no TPU,
    that search ends in warnings; `QUIET_ENVIRONMENT` ends it sooner. The environment is
    as before afterwards.
    """
    if has_tpu() or not is_available():
        yield
        return
    with _lock:
        added = [key for key in QUIET_ENVIRONMENT if key not in os.environ]
        os.environ.update({key: QUIET_ENVIRONMENT[key] for key in added})
        try:
            jax.local_devices()
        finally:
            for key in added:
                os.environ.pop(key, None)
    yield


def is_available() -> bool:
    """Whether libtpu is installed. Nothing is loaded."""
    return importlib.util.find_spec("libtpu") is not None


def has_tpu() -> bool:
    """Whether this machine seems to have a TPU of its own."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Lowers without file names and lines, which change with every edit around them."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _entered(mesh: AbstractMesh | None) -> contextlib.AbstractContextManager:
    """Makes the mesh the one that bare `PartitionSpec`s in the function are over."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _abstract(mesh: Mesh | AbstractMesh | Mapping[str, int]) -> AbstractMesh:
    if isinstance(mesh, Mapping):
        return AbstractMesh(tuple(mesh.values()), tuple(mesh))
    if isinstance(mesh, Mesh):
        abstract: AbstractMesh = mesh.abstract_mesh
        return abstract
    if isinstance(mesh, AbstractMesh):
        return mesh
    raise ValueError(
        f"mesh is {mesh!r}; expected a jax.sharding.Mesh or AbstractMesh, or the sizes "
        'of its axes by name, as in {"data": 4}.'
    )


def _over(mesh: AbstractMesh | None, shardings: Any) -> Any:
    """Shardings with every bare `PartitionSpec` over the mesh, and no real devices."""

    def convert(sharding: Any) -> Any:
        if isinstance(sharding, NamedSharding):
            over = mesh or _abstract(sharding.mesh)
            return NamedSharding(over, sharding.spec)
        if isinstance(sharding, PartitionSpec):
            if mesh is None:
                raise ValueError(
                    f"{sharding} is a PartitionSpec over no mesh. Give the mesh too, "
                    'as in mesh={"data": 4}.'
                )
            return NamedSharding(mesh, sharding)
        return sharding

    leaf = (PartitionSpec, NamedSharding)
    return jax.tree.map(convert, shardings, is_leaf=lambda x: isinstance(x, leaf))


def _shapes_only(tree: Any, default: NamedSharding | None) -> Any:
    """Arrays as shapes, without the devices that they are on now.

    A tree without arrays, as a static argument is, stays the object that it was.
    """

    def convert(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        sharding = default
        theirs = getattr(leaf, "sharding", None)
        if isinstance(theirs, NamedSharding) and theirs.mesh.size > 1:
            sharding = NamedSharding(_abstract(theirs.mesh), theirs.spec)
        weak = getattr(leaf, "weak_type", False)
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak
        )

    args, kwargs = tree
    args = tuple(_if_arrays(convert, arg) for arg in args)
    return args, {key: _if_arrays(convert, arg) for key, arg in kwargs.items()}


def _if_arrays(convert: Callable[[Any], Any], arg: Any) -> Any:
    if any(map(_is_array, jax.tree.leaves(arg))):
        return jax.tree.map(convert, arg)
    return arg


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray)


def _mesh_of(tree: Any, num_devices: int) -> AbstractMesh:
    """The mesh that the arguments are sharded over, or a plain one of as many."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size == num_devices:
            return _abstract(sharding.mesh)
    return AbstractMesh((num_devices,), ("devices",))


def _is_argument(leaf: Any) -> bool:
    return hasattr(leaf, "donated")
