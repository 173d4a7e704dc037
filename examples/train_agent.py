"""Trains the MuZero agent by self-play on generated and lowered programs.

Programs come from the random generator (jax_malloc.generate) and from the flax model
zoo (model_zoo.py), lowered through StableHLO, each planned for several machines. A run
directory holds the state (the run resumes from it), the best checkpoint and
metrics.csv.

    python examples/train_agent.py --run_dir=runs/first --minutes=30
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

import model_zoo
from frontends import stablehlo
from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import board as board_lib
from jax_malloc import generate, replay
from jax_malloc import problem as problem_lib
from jax_malloc.agent import evaluation, training
from jax_malloc.problem import Problem

_RUN_DIR = flags.DEFINE_string("run_dir", "runs/agent", "Directory of the run.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "Minutes of training.", 0.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of programs, parameters and games.", 0)
_GENERATED = flags.DEFINE_integer("generated", 240, "Generated programs.", 1)
_ZOO = flags.DEFINE_bool("zoo", True, "Also train on the flax model zoo.")
_MAX_ACCESSES = flags.DEFINE_integer(
    "max_accesses", 512, "Longest program to train on, in accesses.", 16
)
_NUM_GAMES = flags.DEFINE_integer("num_games", 64, "Games side by side.", 1)
_SIMULATIONS = flags.DEFINE_integer("simulations", 16, "Simulations per move.", 1)
_EVALUATE = flags.DEFINE_float(
    "evaluate_every_minutes", 3.0, "Minutes between evaluations.", 0.0
)
_HELD_OUT = flags.DEFINE_integer("held_out", 12, "Generated programs held out.", 1)

# Machines that the programs are planned for: fast memory of 1/4 to 1 of a TPU v5e's, so
# that programs of all sizes feel the pressure, and slower or faster slow memory.
_CAPACITY_SHARES = (0.25, 0.5, 1.0, 1.0)
_BANDWIDTH_FACTORS = (0.7, 1.0, 1.0, 1.6)


def machine(rng: np.random.Generator) -> Accelerator:
    """A preset with a fast memory and a slow bandwidth of its own."""
    base = presets.get(str(rng.choice(["tpu_v5e", "tpu_v6e", "tpu_v4", "tpu_v5p"])))
    capacity = base.fast.usable_bytes * rng.choice(_CAPACITY_SHARES)
    fast = dataclasses.replace(
        base.fast,
        capacity_bytes=int(capacity) + base.fast.reserved_bytes,
    )
    slow = dataclasses.replace(
        base.slow,
        bandwidth_bytes_per_s=base.slow.bandwidth_bytes_per_s
        * float(rng.choice(_BANDWIDTH_FACTORS)),
    )
    return dataclasses.replace(base, fast=fast, slow=slow)


def generated(seeds: range) -> Iterator[Problem]:
    """Random programs, each on a machine of its own."""
    for seed in seeds:
        rng = np.random.default_rng((seed, 1))
        program = generate.random_program(seed, num_ops=int(rng.integers(15, 130)))
        yield problem_lib.build(program, machine(rng))


def lowered(held_out: bool) -> Iterator[Program]:
    """The zoo's programs: those held out for evaluation, or the others."""
    for name, make in model_zoo.ZOO.items():
        if (model_zoo.family(name) in model_zoo.HELD_OUT) == held_out:
            f, args = make()
            yield stablehlo.from_jax(f, *args, name=name)


def usable(problem: Problem, longest: int) -> bool:
    """Whether it has something to decide, and not too much."""
    n = int(problem.eligible[problem.access_buffer].sum())
    return 16 <= n <= longest and len(problem.program.ops) <= longest


def keep_all_s(problem: Problem) -> float:
    """Seconds of the game that always plays NO_COPY: what no learning gives."""
    board = board_lib.build(problem)
    actions = np.zeros(len(board.access.op), np.int32)
    moves = replay.play(board, actions, slots=replay.slots_of(problem))
    return problem.evaluate(replay.to_mapping(problem, moves)).latency_s


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console = Console()
    seed, count, held = _SEED.value, _GENERATED.value, _HELD_OUT.value
    first = 1_000_000 * (seed + 1)
    corpus = list(track(generated(range(first, first + count)), "Generating", count))
    test = list(generated(range(first + count, first + count + held)))
    if _ZOO.value:
        rng = np.random.default_rng(seed)
        for program in lowered(held_out=False):
            for _ in range(4):
                corpus.append(problem_lib.build(program, machine(rng)))
        for program in lowered(held_out=True):
            test.append(problem_lib.build(program, presets.get("tpu_v5e")))
    corpus = [p for p in corpus if usable(p, _MAX_ACCESSES.value)]
    test = [p for p in test if usable(p, _MAX_ACCESSES.value)]
    console.print(f"{len(corpus)} programs to train on, {len(test)} held out")
    baseline = {i: keep_all_s(p) for i, p in enumerate(track(test, "Baseline"))}
    config = training.TrainConfig(
        seed=seed,
        minutes=_MINUTES.value,
        num_games=_NUM_GAMES.value,
        num_simulations=_SIMULATIONS.value,
        evaluate_every_minutes=_EVALUATE.value,
    )
    header = {
        "command": " ".join(["python", *sys.argv]),
        "seed": seed,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "jax": jax.__version__,
        "trained_on": {
            "problems": len(corpus),
            "generated_seeds": [first, first + count],
            "zoo_families": sorted(
                set(map(model_zoo.family, model_zoo.ZOO)) - set(model_zoo.HELD_OUT)
            )
            if _ZOO.value
            else [],
        },
        "held_out": [p.program.name for p in test],
    }

    def report(row: dict) -> None:
        table = Table(title=f"{row['minutes']:.1f} of {config.minutes:.0f} minutes")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in row.items():
            table.add_row(name, f"{value:.4g}")
        console.print(table)

    training.train(
        config,
        corpus,
        lambda network, params: evaluation.scores(network, params, test, baseline),
        _RUN_DIR.value,
        header=header,
        report=report,
    )
    console.print(f"best checkpoint: {os.path.join(_RUN_DIR.value, 'best.msgpack')}")


if __name__ == "__main__":
    app.run(main)
