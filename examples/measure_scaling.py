"""How training scales out: measured on one core and on two, predicted for many hosts.

    python examples/measure_scaling.py --output=docs/results/scaling.md

Processes with a core each play generated programs with the network and the settings of
train_agent.py: one by itself, then two joined by jax.distributed over loopback. Then
come updates alone and all-reduces alone, and from them the arithmetic for many hosts.
Measured and predicted figures stand in tables of their own. Needs Linux.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
from absl import app, flags
from rich.console import Console

import jax_malloc
import scaling_jobs
import scaling_tables
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.network import NetworkConfig
from scaling_jobs import Job
from scaling_model import Link

_DEFAULTS = TrainConfig()
_NUM_GAMES = flags.DEFINE_integer(
    "num_games", _DEFAULTS.num_games, "Games side by side in each process.", 1
)
_SIMULATIONS = flags.DEFINE_integer(
    "simulations", _DEFAULTS.num_simulations, "Simulations per move.", 0
)
_UPDATES = flags.DEFINE_integer(
    "updates", _DEFAULTS.updates, "Updates per batch of games.", 1
)
_BATCH = flags.DEFINE_integer(
    "batch", _DEFAULTS.batch, "Positions per update, over all processes.", 2
)
_UNROLL = flags.DEFINE_integer(
    "unroll", _DEFAULTS.unroll, "Steps of dynamics that an update trains through.", 1
)
_REANALYSED = flags.DEFINE_integer(
    "reanalysed", _DEFAULTS.reanalysed, "Positions reanalysed per batch of games.", 0
)
_HIDDEN = flags.DEFINE_integer(
    "hidden", _DEFAULTS.network.hidden, "Width of the representation.", 2
)
_LATENT = flags.DEFINE_integer(
    "latent", _DEFAULTS.network.latent, "Width of the latent state.", 2
)
_GENERATED = flags.DEFINE_integer(
    "generated", 32, "Generated programs, whose lengths set how often each is drawn.", 1
)
_MAX_ACCESSES = flags.DEFINE_integer(
    "max_accesses", 512, "Longest program, in accesses.", 16
)
_ITERATIONS = flags.DEFINE_integer(
    "iterations", 3, "Timed iterations for each length of programs.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of programs, parameters and games.", 0)
_HOSTS = flags.DEFINE_list("hosts", ["2", "8", "64"], "Numbers of hosts to predict.")
flags.register_validator(
    "hosts",
    lambda hosts: bool(hosts) and all(n.isdecimal() and int(n) > 1 for n in hosts),
    message="each is a whole number above 1",
)
_BANDWIDTH = flags.DEFINE_float(
    "bandwidth_gbit_per_s",
    100.0,
    "Assumed of each host's network, in Gbit/s; 100 is a common Ethernet.",
    1e-3,
)
_LATENCY = flags.DEFINE_float(
    "latency_us", 20.0, "Assumed of one message between hosts, in microseconds.", 0.0
)
_SHARED = flags.DEFINE_bool(
    "allow_shared_core",
    False,
    "Run both processes on one core if there is no other, which tries the program out "
    "and measures no scaling.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Markdown file; else only printed.")

_DIVISION = """\
How the code divides the work. Every process plays `num_games` games of its own, keeps
its own replay and reanalyses `reanalysed` positions of it: this part grows with the
hosts (weak scaling). Each draws for itself which length of programs it plays next, so
the update begins when the slowest draw is through. The `batch` positions of an update
are those of all processes together, `batch` / N from the replay of each, and the number
of updates per iteration stays (strong scaling): with N hosts N times as many moves feed
the same number of updates. Weak scaling of the updates is a larger `TrainConfig.batch`;
train_agent.py has no flag for it."""


def cores(allow_shared: bool) -> tuple[int, int]:
    """One core for each of two processes.

    Raises:
      RuntimeError: this process may use one core only, and that is not allowed.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise RuntimeError(
            f"a process cannot be kept on one core on {platform.system()}; "
            "measure on Linux."
        )
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2 and not allow_shared:
        raise RuntimeError(
            f"two processes need a core each; this process may use {len(found)}, core "
            f"{found[0]}. Give it another, or try the program out with "
            "--allow_shared_core."
        )
    return found[0], found[min(1, len(found) - 1)]


def execute(jobs: Sequence[Job], on: Sequence[int], folder: Path) -> list[Any]:
    """Runs jobs side by side, each in a process of one core, and reads their results.

    Raises:
      RuntimeError: one of them failed; the others are stopped.
    """
    with contextlib.ExitStack() as stack:
        running = []
        for job, core in zip(jobs, on, strict=True):
            log = stack.enter_context(open(f"{job.result}.log", "w+"))
            process = _start(job, core, folder, log)
            stack.callback(_stop, process)
            running.append((process, log))
        while any(process.poll() is None for process, _ in running):
            time.sleep(0.05)
            if any(process.poll() for process, _ in running):
                break
        for process, log in running:
            if process.poll():
                log.seek(0)
                raise RuntimeError(
                    f"a measuring process ended with status {process.returncode}:\n"
                    f"{log.read()[-2000:]}"
                )
    return [json.loads(Path(job.result).read_text("utf-8")) for job in jobs]


def _start(job: Job, core: int, folder: Path, log: IO[str]) -> subprocess.Popen:
    path = folder / f"{Path(job.result).stem}.job.json"
    path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    given = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{given} --xla_cpu_multi_thread_eigen=false",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    command = [sys.executable, scaling_jobs.__file__, os.fspath(path)]
    with _kept_on(core):
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@contextlib.contextmanager
def _kept_on(core: int) -> Iterator[None]:
    """Processes that start meanwhile stay on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def measure(
    job: Job, hosts: Sequence[int], on: Sequence[int], console: Console
) -> tuple[Any, list[Any]]:
    """What one process finds, and what two joined ones find.

    The two play programs of one length, the middle one of those that the one played.

    Raises:
      RuntimeError: no program has anything to decide, or a process failed.
    """
    folder, batch = Path(job.run_dir), job.config.batch
    rows = sorted({batch, *(batch // n for n in hosts)})
    with console.status("One process"):
        (one,) = execute([dataclasses.replace(job, rows=rows)], on[:1], folder)
    lengths = list(one["lengths"].values())
    if not lengths:
        raise RuntimeError(
            f"none of {len(job.seeds)} generated programs puts fast memory under "
            "pressure; raise --generated or --max_accesses."
        )
    # Nothing is searched for twice.
    shutil.copy(folder / "demonstrations.0.npz", folder / "demonstrations.1.npz")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    two = [
        dataclasses.replace(
            job,
            seeds=lengths[len(lengths) // 2]["seeds"],
            rows=[batch // 2, batch],
            coordinator=coordinator,
            processes=2,
            process=i,
            result=os.fspath(folder / f"two{i}.json"),
        )
        for i in range(2)
    ]
    with console.status("Two processes"):
        return one, execute(two, on, folder)


def job_of_flags(folder: str) -> Job:
    """What the flags ask one process to do, its rows of updates aside."""
    first = 1_000_000 * (_SEED.value + 1)  # as train_agent.py has them
    return Job(
        settings={
            "seed": _SEED.value,
            "num_games": _NUM_GAMES.value,
            "num_simulations": _SIMULATIONS.value,
            "updates": _UPDATES.value,
            "batch": _BATCH.value,
            "unroll": _UNROLL.value,
            "reanalysed": _REANALYSED.value,
            "curriculum": 0.0,
        },
        network=dataclasses.asdict(
            NetworkConfig(hidden=_HIDDEN.value, latent=_LATENT.value)
        ),
        seeds=list(range(first, first + _GENERATED.value)),
        max_accesses=_MAX_ACCESSES.value,
        iterations=_ITERATIONS.value,
        rows=[],
        run_dir=folder,
        result=os.path.join(folder, "one.json"),
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    hosts = [int(n) for n in _HOSTS.value]
    indivisible = [n for n in (2, *hosts) if _BATCH.value % n]
    if indivisible:
        raise app.UsageError(
            f"--batch={_BATCH.value} positions cannot be divided over {indivisible[0]} "
            "hosts"
        )
    console, started_s = Console(), time.monotonic()
    try:
        on = cores(_SHARED.value)
        with tempfile.TemporaryDirectory() as folder:
            one, two = measure(job_of_flags(folder), hosts, on, console)
    except RuntimeError as error:
        sys.exit(str(error))
    link = Link(
        bandwidth_bytes_per_s=_BANDWIDTH.value * 1e9 / 8,
        latency_s=_LATENCY.value * 1e-6,
    )
    tables = [
        scaling_tables.one_process(one),
        scaling_tables.two_processes(one, two, shared=on[0] == on[1]),
        scaling_tables.updates(one, two, _BATCH.value),
        scaling_tables.all_reduces(two),
        scaling_tables.check(one, two, _BATCH.value, _UPDATES.value),
        scaling_tables.predictions(
            one, two, hosts=hosts, batch=_BATCH.value, updates=_UPDATES.value, link=link
        ),
    ]
    for table in tables:
        console.print(table.rich())
    console.print(f"{time.monotonic() - started_s:.0f} s in all")
    if _OUTPUT.value:
        header = (
            f"`python {shlex.join(sys.argv)}`, jax_malloc {jax_malloc.__version__}, "
            f"jax {jax.__version__}, {os.cpu_count()} {platform.machine()} cores."
        )
        text = "\n\n".join([header, _DIVISION, *(x.markdown() for x in tables)])
        Path(_OUTPUT.value).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
