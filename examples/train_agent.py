"""Trains the MuZero agent by self-play on the corpus and on generated programs.

Programs: the training families of the corpus (corpus.py), each on the machine that it
was compiled for and on variants of it, and random programs (jax_malloc.generate). The
validation families choose the best checkpoint; the test families are not touched. A run
directory holds the state (the run resumes from it), the best checkpoint, the
demonstrations, metrics.csv and event files for TensorBoard.

    python examples/train_agent.py --run_dir=runs/first --minutes=30

Several hosts train one agent: start the program on each with --coordinator, --processes
and --process.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys

import jax
from absl import app, flags
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

import corpus
from agent_problems import augmented, generated, under_pressure, usable
from jax_malloc.agent import evaluation, training
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.network import NetworkConfig
from jax_malloc.solvers import greedy

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/agent", "Directory of the run.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "Minutes of training.", 0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of programs, parameters and games.", 0)
_GENERATED = flags.DEFINE_integer("generated", 240, "Generated programs.", 0)
_CORPUS = flags.DEFINE_bool("corpus", True, "Also train on the corpus.")
_VARIANTS = flags.DEFINE_integer(
    "variants", 3, "Machines that a program of the corpus is planned for.", 1
)
_MAX_ACCESSES = flags.DEFINE_integer(
    "max_accesses", 512, "Longest program to train on, in accesses.", 16
)
_NUM_GAMES = flags.DEFINE_integer("num_games", 64, "Games side by side.", 1)
_SIMULATIONS = flags.DEFINE_integer("simulations", 16, "Simulations per move.", 0)
_UPDATES = flags.DEFINE_integer("updates", 40, "Updates per batch of games.", 1)
_REANALYSED = flags.DEFINE_integer(
    "reanalysed", 4096, "Positions whose targets are made anew per batch of games.", 0
)
_DEMONSTRATED = flags.DEFINE_list(
    "demonstrated", ["0.5", "0.2"], "Share of demonstrations, at the start and the end."
)
_CURRICULUM = flags.DEFINE_float(
    "curriculum",
    0.2,
    "Share of the run until programs of all lengths are played.",
    0,
    1,
)
_HIDDEN = flags.DEFINE_integer("hidden", 256, "Width of the representation.", 2)
_LATENT = flags.DEFINE_integer("latent", 128, "Width of the latent state.", 2)
_EVALUATE = flags.DEFINE_float(
    "evaluate_every_minutes", 3.0, "Minutes between evaluations.", 0.0
)
_HELD_OUT = flags.DEFINE_integer("held_out", 8, "Generated programs held out.", 1)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address of the first process, host:port."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes in all.", 1)
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this one is.", 0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    # A resumed run compiles nothing again.
    jax.config.update(
        "jax_compilation_cache_dir", os.path.join(_RUN_DIR.value, "compiled")
    )
    console = Console(quiet=jax.process_index() > 0)
    seed, count, held = _SEED.value, _GENERATED.value, _HELD_OUT.value
    first = 1_000_000 * (seed + 1)
    problems = list(track(generated(range(first, first + count)), "Generating", count))
    test = list(generated(range(first + count, first + count + held)))
    families: dict[str, set[str]] = {"train": set(), "validation": set()}
    entries = corpus.read() if _CORPUS.value else []
    for entry in track(entries, "Reading the corpus"):
        if entry.split not in families:
            continue
        families[entry.split].add(entry.family)
        program = dataclasses.replace(
            entry.load(), name=f"{entry.name}@{entry.topology}"
        )
        if entry.split == "train":
            problems += augmented(program, entry.topology, _VARIANTS.value)
        else:
            test += augmented(program, entry.topology, 1)
    problems, test = (
        [p for p in some if usable(p, _MAX_ACCESSES.value)] for some in (problems, test)
    )
    # Where everything fits there is nothing to learn, unless there is nothing else.
    problems, test = (
        [p for p in some if under_pressure(p)] or some for some in (problems, test)
    )
    if not problems or not test:
        raise app.UsageError(
            f"of --generated={count} and --held_out={held} programs none is left to "
            "train on or to evaluate with; generate more, or raise --max_accesses"
        )
    console.print(f"{len(problems)} programs to train on, {len(test)} held out")
    baseline = {
        i: p.evaluate(greedy.solve(p)).latency_s
        for i, p in enumerate(track(test, "Greedy"))
    }
    start, end = map(float, _DEMONSTRATED.value)
    config = TrainConfig(
        network=NetworkConfig(hidden=_HIDDEN.value, latent=_LATENT.value),
        seed=seed,
        minutes=_MINUTES.value,
        num_games=_NUM_GAMES.value,
        num_simulations=_SIMULATIONS.value,
        updates=_UPDATES.value,
        reanalysed=_REANALYSED.value,
        demonstrated=(start, end),
        curriculum=_CURRICULUM.value,
        evaluate_every_minutes=_EVALUATE.value,
    )
    header = {
        "command": " ".join(["python", *sys.argv]),
        "seed": seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "jax": jax.__version__,
        "trained_on": {
            "problems": len(problems),
            "generated_seeds": [first, first + count],
            "families": sorted(families["train"]),
        },
        "held_out": sorted(families["validation"]),
    }

    def report(row: dict) -> None:
        table = Table(title=f"{row['minutes']:.1f} of {config.minutes:.0f} minutes")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in row.items():
            table.add_row(name, f"{value:.4g}")
        console.print(table)

    with Progress(console=console) as progress:
        bar = progress.add_task("Demonstrations", total=len(problems))

        def prepared(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        training.train(
            config,
            problems,
            lambda network, params: evaluation.scores(network, params, test, baseline),
            _RUN_DIR.value,
            header=header,
            report=report,
            prepared=prepared,
        )
    console.print(f"best checkpoint: {os.path.join(_RUN_DIR.value, 'best.msgpack')}")


if __name__ == "__main__":
    app.run(main)
