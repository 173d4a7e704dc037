"""Checkpoints: a JSON header and plain arrays. Loading one never runs code from it.

    b"jax_malloc.agent\\n" | header length, 8 bytes little endian | header | arrays

The header says which rules and which observation the agent was trained on, the shape of
the network, and how it was trained. The arrays are flax's msgpack of the parameters.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from jax_malloc import game, observation
from jax_malloc.agent.network import MuZeroNetwork, NetworkConfig

_MAGIC = b"jax_malloc.agent\n"


class Agent(NamedTuple):
    """A loaded checkpoint."""

    network: MuZeroNetwork
    params: dict
    header: dict


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file all or nothing."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as f:
        f.write(data)
    os.replace(temporary, path)


def save(path: str, config: NetworkConfig, params: dict, about: dict) -> None:
    """Writes a checkpoint; `about` (JSON) says how it was trained."""
    header = {
        "game_version": game.VERSION,
        "observation_version": observation.VERSION,
        "observation_size": observation.size(),
        "network": dataclasses.asdict(config),
        "about": about,
    }
    # float16 halves the package; the policy does not notice.
    arrays = serialization.to_bytes(
        jax.tree.map(lambda x: np.asarray(x, np.float16), params)
    )
    text = json.dumps(header).encode()
    write_atomically(path, _MAGIC + len(text).to_bytes(8, "little") + text + arrays)


def load(path: str) -> Agent:
    """Reads a checkpoint.

    Raises:
      ValueError: it is not one, is damaged, or plays another version of the game.
    """
    with open(path, "rb") as f:
        data = f.read()
    where = f"checkpoint {path!r}"
    if not data.startswith(_MAGIC):
        raise ValueError(
            f"{where} does not begin as a jax_malloc agent does. Make one with "
            "examples/train_agent.py."
        )
    at = len(_MAGIC) + 8
    length = int.from_bytes(data[len(_MAGIC) : at], "little")
    try:
        header = json.loads(data[at : at + length])
        config = NetworkConfig(**header["network"])
        found = (
            header["game_version"],
            header["observation_version"],
            header["observation_size"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} has a damaged header ({type(error).__name__}: {error}). Copy it "
            "again or retrain."
        ) from None
    expected = (game.VERSION, observation.VERSION, observation.size())
    if found != expected:
        names = ("game version", "observation version", "observation size")
        what = ", ".join(
            f"{name} {f}, this package has {e}"
            for name, f, e in zip(names, found, expected, strict=True)
            if f != e
        )
        raise ValueError(
            f"{where} was trained for {what}. Use a checkpoint made for this version, "
            "or retrain with examples/train_agent.py."
        )
    network = MuZeroNetwork(config)
    shapes = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, observation.size())),
        jnp.zeros(1, jnp.int32),
    )
    template = jax.tree.map(lambda x: np.zeros(x.shape, np.float16), shapes)
    try:
        params = serialization.from_bytes(template, data[at + length :])
        matches = jax.tree.map(lambda a, b: a.shape == b.shape, params, template)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} has damaged arrays ({type(error).__name__}). Copy it again or "
            "retrain."
        ) from None
    if not all(jax.tree.leaves(matches)):
        raise ValueError(f"{where}: its arrays do not fit the network in its header.")
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
        raise ValueError(f"{where} holds numbers that are not finite. Retrain.")
    return Agent(network, params, header)
