"""Training on several devices and hosts, by JAX's own means.

Every process plays its own games on its own devices and keeps its own replay; only the
updates are joint. A batch is sharded over the axis "batch" of a mesh of all devices,
parameters are replicated, and gradients are summed once per update, as one array.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "batch"
Tree = TypeVar("Tree")


def all_devices() -> Mesh:
    """A mesh of the devices of all processes."""
    return Mesh(np.array(jax.devices()), (_AXIS,))


def own_devices() -> Mesh:
    """A mesh of this process's devices."""
    return Mesh(np.array(jax.local_devices()), (_AXIS,))


def shard(mesh: Mesh, tree: Tree, axis: int = 0) -> Tree:
    """Splits every leaf along one axis over the mesh.

    Args:
      tree: of host arrays; over several processes, each passes its own part.
      axis: whose length, over all processes, the number of devices divides.
    """
    spec = PartitionSpec(*[None] * axis, _AXIS)
    return jax.tree.map(lambda x: _place(NamedSharding(mesh, spec), x), tree)


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Puts every leaf on every device; all processes must pass the same."""
    return jax.tree.map(lambda x: _place(NamedSharding(mesh, PartitionSpec()), x), tree)


def local(mesh: Mesh, tree: Tree, *, split: bool = False) -> Tree:
    """Puts host arrays on this process's devices, split along axis 0 or replicated."""
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS) if split else PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def own_copy(tree: Tree) -> Tree:
    """Replicated leaves as host arrays."""
    return jax.tree.map(_host, tree)


def agree(value: float) -> float:
    """The first process's value, for decisions that all must take alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def _place(sharding: NamedSharding, x: Any) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def _host(x: Any) -> np.ndarray:
    return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)
