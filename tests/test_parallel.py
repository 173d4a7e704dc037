"""Training on several devices and processes gives what one device gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Runs in processes of its own: the number of devices is fixed when JAX starts.
SCRIPT = """
import sys
import jax
import jax.numpy as jnp
import numpy as np

what, out, process, port = sys.argv[1:]
if port != "0":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))

import toy_problems
from jax_malloc import game, observation
from jax_malloc.agent import learner, parallel, trainer
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.memory import Batch
from jax_malloc.agent.network import MuZeroNetwork, NetworkConfig

config = TrainConfig(
    network=NetworkConfig(hidden=16, latent=8, dynamics=16, atoms=21),
    num_games=8,
    num_simulations=2,
    updates=2,
    batch=16,
    replay_positions=4000,
    reanalysed=64,
    demonstrated=(0.0, 0.0),  # compiles less
    learning_rate=1e-2,
)
network = MuZeroNetwork(config.network)


def update():
    '''One update of random rows, each process with its half of them.'''
    rng = np.random.default_rng(0)
    shape, k = (config.updates, config.batch), config.unroll
    policy = rng.random((*shape, k + 1, game.NUM_ACTIONS), np.float32)
    rows = Batch(
        observation=rng.random((*shape, observation.size())).astype(np.float16),
        action=rng.integers(0, 3, (*shape, k)).astype(np.int8),
        reward=rng.random((*shape, k), np.float32),
        policy=policy / policy.sum(axis=-1, keepdims=True),
        value=rng.random((*shape, k + 1), np.float32),
        real=rng.random((*shape, k + 1)) < 0.9,
    )
    part = config.batch // jax.process_count()
    mine = slice(part * jax.process_index(), part * (jax.process_index() + 1))
    mesh, state = parallel.all_devices(), trainer.fresh(config, network)
    params, _, _ = learner.update(
        config,
        network,
        mesh,
        parallel.replicate(mesh, state.params),
        parallel.replicate(mesh, state.opt_state),
        parallel.shard(mesh, jax.tree.map(lambda x: x[:, mine], rows), axis=1),
        jnp.float32(config.learning_rate),
    )
    return parallel.own_copy(params)


def iterate():
    '''Games, demonstrations, reanalysis and updates.'''
    problems = [toy_problems.random_problem(s, num_ops=12) for s in range(2)]
    training = trainer.Trainer(config, network, problems)
    for _ in range(2):
        training.iterate(0.5)
    return training.state.params


params = {"update": update, "iterate": iterate}[what]()
leaves = jax.tree.leaves(params)
np.savez(out, devices=jax.device_count(), **{str(i): x for i, x in enumerate(leaves)})
"""


def start(what, out, *, devices=1, process=0, port=0):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what, str(out), str(process), str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, out):
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    with np.load(out) as arrays:
        return dict(arrays)


def assert_same(a, b, atol):
    assert a.keys() == b.keys()
    for name in a.keys() - {"devices"}:
        np.testing.assert_allclose(a[name], b[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Parameters after `what` on one device."""
    folder = tmp_path_factory.mktemp("one")
    names = ("update", "iterate")
    running = {x: start(x, folder / f"{x}.npz") for x in names}
    return {x: finish(running[x], folder / f"{x}.npz") for x in names}


@pytest.mark.parametrize("what", ["update", "iterate"])
def test_eight_devices_train_as_one_does(one_device, what, tmp_path):
    out = tmp_path / "eight.npz"
    eight = finish(start(what, out, devices=8), out)
    assert int(eight["devices"]) == 8
    # Games may part where rounding decides between two moves: not after two batches.
    assert_same(one_device[what], eight, atol=2e-3)


@pytest.mark.parametrize("what", ["update", "iterate"])
def test_two_processes_share_their_parameters(one_device, what, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    running = [start(what, out, process=i, port=port) for i, out in enumerate(outs)]
    first, second = (finish(p, out) for p, out in zip(running, outs, strict=True))
    assert int(first["devices"]) == 2
    assert_same(first, second, atol=0)
    if what == "update":  # of the same rows; games are each process's own
        assert_same(one_device[what], first, atol=1e-4)
