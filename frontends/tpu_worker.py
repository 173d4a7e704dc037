"""The process that compiles: `python -m frontends.tpu_worker`, driven over pipes.

A message is the length of its JSON header, the header, and the bytes that its "size"
counts. Requests come on stdin, answers go to what was stdout; what libraries print goes
to stderr. The process ends when stdin does, also while it compiles.
"""

from __future__ import annotations

import json
import os
import queue
import re
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<I")
# What the arguments are called before they get the user's names.
_ARGUMENT = "jax_malloc_argument"
# JAX's name for the call of an exported function.
_CALL = "call_exported"


def write_message(pipe: BinaryIO, header: Mapping[str, Any], body: bytes = b"") -> None:
    """Sends a JSON header and bytes."""
    head = json.dumps({**header, "size": len(body)}).encode()
    pipe.write(_LENGTH.pack(len(head)) + head)
    pipe.write(body)
    pipe.flush()


def read_message(pipe: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Receives what `write_message` sent. Raises: EOFError if the other end is gone."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    header = json.loads(_read(pipe, length))
    return header, _read(pipe, header["size"])


def _read(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError("the other process closed its pipe")
    return data


def main() -> None:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    while True:
        header, module = requests.get()
        try:
            text = _compile(header, module)
        except Exception as error:
            import jax

            refused = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
            what = str(error) if refused else traceback.format_exc()
            write_message(answers, {"error": what, "refused": refused})
        else:
            write_message(answers, {}, text.encode())


def _receive(requests: queue.SimpleQueue) -> None:
    """Reads ahead, so that the end of stdin is seen while the main thread compiles."""
    try:
        while True:
            requests.put(read_message(sys.stdin.buffer))
    except EOFError:
        os._exit(0)


def _compile(header: Mapping[str, Any], module: bytes) -> str:
    """The scheduled HLO text of an exported module.

    header: "topology", "chip_config" and "options" of the compiler; "names", "kept",
      "donated" and "mesh" of the `Lowering`.
    """
    import jax
    from jax import export
    from jax.experimental import topologies

    jax.config.update("jax_traceback_in_locations_limit", 0)
    jax.config.update("jax_enable_x64", True)  # the module says which types it has
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=header["topology"],
        chip_config_name=header["chip_config"],
    )
    exported = export.deserialize(bytearray(module))
    mesh = dict(header["mesh"])
    shardings = _shardings(exported, topology.devices, mesh, header["topology"])
    # Arguments that the function ignores are no parameters of the program, as in jit.
    kept = set(header["kept"])
    passed = [
        i
        for i, aval in enumerate(exported.in_avals)
        if i in kept or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
    ]

    def call(*jax_malloc_argument: Any) -> Any:
        given = dict(zip(passed, jax_malloc_argument, strict=True))
        flat = [
            given[i] if i in given else jax.numpy.zeros(aval.shape, aval.dtype)
            for i, aval in enumerate(exported.in_avals)
        ]
        return exported.call(*flat)

    call.__name__ = call.__qualname__ = exported.fun_name
    jitted = jax.jit(
        call,
        donate_argnums=[at for at, i in enumerate(passed) if header["donated"][i]],
    )
    arguments = [
        jax.ShapeDtypeStruct(
            exported.in_avals[i].shape,
            exported.in_avals[i].dtype,
            sharding=shardings[i],
        )
        for i in passed
    ]
    compiled = jitted.lower(*arguments).compile(compiler_options=header["options"])
    names = [header["names"][i] for i in passed]
    return with_user_names(compiled.as_text(), exported.fun_name, names)


def _shardings(
    exported: Any, devices: Sequence[Any], mesh: Mapping[str, int], topology: str
) -> list[Any]:
    """Where each flat argument is, on real devices of the topology."""
    import jax
    import numpy as np

    count = exported.nr_devices
    if count == 1:
        one = jax.sharding.SingleDeviceSharding(devices[0])
        return [one] * len(exported.in_avals)
    if count > len(devices):
        raise ValueError(
            f"the mesh has {count} devices; topology {topology!r} has {len(devices)}. "
            "Choose a larger topology."
        )
    grid = np.array(devices[:count]).reshape(tuple(mesh.values()))
    real = jax.sharding.Mesh(grid, tuple(mesh))
    everywhere = jax.sharding.NamedSharding(real, jax.sharding.PartitionSpec())
    return [s or everywhere for s in exported.in_shardings_jax(real)]


def with_user_names(text: str, function: str, arguments: Sequence[str]) -> str:
    """HLO text of a wrapped function as that of the function itself.

    Paths lose the wrapper's part, parameters get the names of the user's arguments:
    `params['w']` as their op_name, `params__w__` as part of instruction names.
    """
    text = re.sub(rf"jit\([^()\"]*\)/{_CALL}(/|(?=\"))", "", text)
    for i, name in enumerate(arguments):
        shown = name.replace("\\", r"\\").replace('"', r"\"")
        text = text.replace(f'op_name="{_ARGUMENT}[{i}]"', f'op_name="{shown}"')
    taken = {name.partition(".")[0] for name in re.findall(r"%([\w.\-]+)", text)}
    unique: list[str] = []
    for name in (function, *arguments):
        base = re.sub(r"\W", "_", name) or "argument"
        while base in taken:
            base += "_"
        taken.add(base)
        unique.append(base)
    text = re.sub(rf"(?<=%){_CALL}\b", unique[0], text)
    return re.sub(rf"\b{_ARGUMENT}_(\d+)_", lambda m: unique[int(m[1]) + 1], text)


if __name__ == "__main__":
    main()
