"""Solvers against each other: any of them, on any programs and accelerators.

    python examples/benchmark.py --split=test --topologies=tpu_v5e --pressured_only
    python examples/benchmark.py --programs=generated:0:60,generated:1:60 \
        --solvers=greedy,annealing --time_limits_s=1,4 --seeds=0,1,2
    python examples/benchmark.py --programs='resnet/*' --fast_memory_mib=32,64,128

Every run is a line of runs.jsonl in --output; what is there already is not made again,
so that a benchmark that was killed goes on. From all lines that were asked for come a
table, as Markdown and CSV, and plots. Every latency is predicted, by one model, and
every mapping is checked; seconds are measured, and mean little on a machine with other
work or with more --jobs than cores. Programs are of the corpus, unless their words say
otherwise:

    resnet/*, zoo:unet/*, generated:SEED:NUM_OPS, dump.hlo.gz, program.json.gz

Two names beside the solvers' can be in --solvers: lower_bound, which linear programming
proves, and finetuned, which is `jax_malloc.solve(..., finetune_s=...)`: what the hybrid
finds in its time limit, then improved by an agent that trains on that very program for
--finetune_s more seconds. Whatever the training compiles is part of its time.
"""

import itertools
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

import benchmark_programs
import benchmark_runs
import benchmark_table
import corpus
import jax_malloc
import json_lines
from benchmark_runs import FINETUNED, LOWER_BOUND, Failure, Job, Run
from hwmodel import presets
from jax_malloc import planner
from jax_malloc.solvers import SOLVERS
from jax_malloc.viz import extra

_PROGRAMS = flags.DEFINE_list("programs", ["*"], "Words for programs, see above.")
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["train", "validation", "test", "any"],
    "Of the corpus. The shipped agent was trained on train.",
)
_TOPOLOGIES = flags.DEFINE_list(
    "topologies", [], "That programs of the corpus were compiled for; all if empty."
)
_PRESSURED_ONLY = flags.DEFINE_bool(
    "pressured_only",
    False,
    "Only programs whose working set exceeds the fast memory of the accelerator.",
)
_SOLVERS = flags.DEFINE_list(
    "solvers",
    ["xla_msa", "greedy", "milp", "annealing", "muzero", "hybrid", LOWER_BOUND],
    f"To run; {LOWER_BOUND} adds the bound of linear programming, {FINETUNED} the "
    "hybrid and then an agent that trains on the program for --finetune_s.",
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= {*SOLVERS, LOWER_BOUND, FINETUNED},
    message=f"choose from {', '.join(SOLVERS)}, {LOWER_BOUND}, {FINETUNED}",
)
_ACCELERATORS = flags.DEFINE_list(
    "accelerators",
    [],
    "Presets, or .json or .toml files; if empty, what a program was compiled for.",
)
_FAST_MEMORY_MIB = flags.DEFINE_list(
    "fast_memory_mib", [], "Sizes to try instead of the accelerator's own, in MiB."
)
_TIME_LIMITS_S = flags.DEFINE_list(
    "time_limits_s", ["10"], "Seconds that a solver has; none lets it finish."
)
_FINETUNE_S = flags.DEFINE_float(
    "finetune_s",
    120.0,
    f"Seconds of training in a {FINETUNED} run, on top of the time limit; 0 is none.",
    0.0,
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the solvers' random choices.")
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Processes at a time, a program each, on their share of the cores; 0 runs all in "
    "this one.",
    0,
)
_LABEL = flags.DEFINE_string(
    "label", "", "Of the code, such as a commit: runs of another label are not reused."
)
_OUTPUT = flags.DEFINE_string(
    "output", "benchmark_results", "Directory of the runs, the tables and the plots."
)
_PLOTS = flags.DEFINE_bool("plots", True, "Draw them; needs jax_malloc[viz].")
_CORPUS = flags.DEFINE_string(
    "corpus", os.fspath(corpus.DIRECTORY), "Directory of the corpus."
)


def jobs_asked_for() -> list[Job]:
    """What the flags ask for, the quick ones of a program first.

    Raises:
      ValueError: one of them has no such value.
    """
    sources = benchmark_programs.find(
        _PROGRAMS.value,
        split=None if _SPLIT.value == "any" else _SPLIT.value,
        topologies=_TOPOLOGIES.value,
        directory=_CORPUS.value,
    )
    sizes = [float(mib) for mib in _FAST_MEMORY_MIB.value]
    limits = [_limit_s(value) for value in _TIME_LIMITS_S.value]
    limits.sort(key=lambda s: (s is None, s))
    seeds = [int(seed) for seed in _SEEDS.value]
    planner.check_finetune_s(_FINETUNE_S.value, "hybrid")
    if not limits or not seeds:
        raise ValueError("--time_limits_s and --seeds need a value each.")
    jobs = []
    for source in sources:
        for named in _ACCELERATORS.value or [source.topology]:
            accelerator = presets.get(named)
            if _PRESSURED_ONLY.value and (
                benchmark_runs.working_set_share(source, accelerator) <= 1
            ):
                continue
            machines = [
                accelerator.replace(fast_capacity_bytes=round(mib * 2**20))
                for mib in sizes
            ]
            for machine, limit_s, solver, seed in itertools.product(
                machines or [accelerator], limits, dict.fromkeys(_SOLVERS.value), seeds
            ):
                job = Job(
                    source=source,
                    accelerator=machine,
                    solver=solver,
                    time_limit_s=limit_s,
                    seed=seed,
                    label=_LABEL.value,
                    finetune_s=_FINETUNE_S.value,
                )
                if seed == seeds[0] or not _is_seedless(solver):
                    jobs.append(job)
    return jobs


def _limit_s(value: str) -> float | None:
    return None if value == "none" else float(value)


def _is_seedless(solver: str) -> bool:
    """Whether every seed gives the same: nothing in it is random."""
    return solver in ("all_slow", "greedy", "xla_msa", "milp", LOWER_BOUND)


def make(jobs: Sequence[Job], path: Path) -> tuple[list[Run], list[Failure]]:
    """The runs of all jobs, those that are not in the file yet being made.

    Raises:
      ValueError: the file is of something else.
    """
    made = {run.key: run for run in json_lines.read(path, Run)}
    missing = [job for job in jobs if job.key not in made]
    print(
        f"{len(jobs)} runs, {len(jobs) - len(missing)} of them in {path}.",
        file=sys.stderr,
    )
    failures = []
    start_s = time.monotonic()
    outcomes = benchmark_runs.execute_all(missing, _JOBS.value)
    for number, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            line = f"FAILED {outcome.job}: {outcome.message}"
        else:
            json_lines.append(path, outcome)
            made[outcome.key] = outcome
            line = _progress_line(outcome)
        left_s = (time.monotonic() - start_s) / number * (len(missing) - number)
        print(
            f"[{number}/{len(missing)}, {left_s / 60:.0f} min left] {line}",
            file=sys.stderr,
            flush=True,
        )
    return [made[job.key] for job in jobs if job.key in made], failures


def _progress_line(run: Run) -> str:
    cold = "" if run.cold_s is None else f", cold {run.cold_s:.2f} s"
    return (
        f"{run.program} on {run.accelerator}, {run.fast_bytes / 2**20:g} MiB, "
        f"{run.solver}, seed {run.seed}: {run.latency_s / run.greedy_s:.4f} of "
        f"greedy's latency in {run.wall_s:.2f} s{cold}"
    )


def header() -> str:
    """What a reader needs to make the tables again."""
    machine = f"{os.cpu_count()} {platform.machine()} cores, --jobs={_JOBS.value}"
    label = f" ({_LABEL.value})" if _LABEL.value else ""
    return (
        f"`python {shlex.join(sys.argv)}`, jax_malloc {jax_malloc.__version__}{label}, "
        f"Python {platform.python_version()}, {machine}."
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    output = Path(_OUTPUT.value)
    try:
        if _PLOTS.value:
            extra.load("matplotlib", "--plots")
        jobs = jobs_asked_for()
        if not jobs:
            sys.exit("no program is left: none of those found is pressured.")
        output.mkdir(parents=True, exist_ok=True)
        runs, failures = make(jobs, output / "runs.jsonl")
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    text = f"{header()}\n\n{benchmark_table.markdown(runs)}"
    (output / "table.md").write_text(text, encoding="utf-8")
    (output / "table.csv").write_text(
        benchmark_table.comma_separated(runs), encoding="utf-8"
    )
    print(text)
    if _PLOTS.value:
        import benchmark_plots

        for path in benchmark_plots.save(runs, output):
            print(path)
    if failures:
        sys.exit("\n".join(f"{failure.job}: {failure.message}" for failure in failures))


if __name__ == "__main__":
    app.run(main)
