"""What each part of the agent is worth, on programs of the validation families.

    python examples/ablate_agent.py --what=simulations,model
    python examples/ablate_agent.py --what=runs --runs=runs/agent,runs/no_reanalysis

simulations: games of the shipped agent with ever more simulations per move; model: the
search with the learned dynamics, and with the game itself in the tree; runs: curves of
training runs, by their directories. All are games alone: no search follows them.
"""

from __future__ import annotations

import csv
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from rich.progress import track

import agent_problems
import corpus
import jax_malloc
from jax_malloc.agent import checkpoint, evaluation, lessons
from jax_malloc.problem import Problem
from jax_malloc.solvers import greedy, muzero

_WHAT = flags.DEFINE_list(
    "what", ["simulations", "model"], "Of simulations, model and runs."
)
flags.register_validator(
    "what",
    lambda names: set(names) <= {"simulations", "model", "runs"},
    message="choose from simulations, model, runs",
)
_RUNS = flags.DEFINE_list("runs", [], "Directories of training runs.")
_SIMULATIONS = flags.DEFINE_list(
    "simulations", ["0", "2", "4", "8", "16", "32", "64"], "Per move, to compare."
)
_GAMES = flags.DEFINE_integer("games", 16, "Games of each program.", 1)
_MODEL_GAMES = flags.DEFINE_integer("model_games", 4, "With either model.", 1)
_MODEL_SIMULATIONS = flags.DEFINE_list("model_simulations", ["4", "16"], "Per move.")
_MAX_ACCESSES = flags.DEFINE_integer("max_accesses", 384, "Longest program.", 16)
_MODEL_ACCESSES = flags.DEFINE_integer(
    "model_accesses", 192, "Longest program for the comparison of models.", 16
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the games.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Markdown file; else only printed.")


def problems(longest: int) -> list[Problem]:
    """Of the validation families, on the machines that they were compiled for."""
    found = (
        problem
        for entry in corpus.read()
        if entry.split == "validation"
        for problem in agent_problems.augmented(entry.load(), entry.topology, 1)
    )
    return [
        problem
        for problem in found
        if agent_problems.usable(problem, longest)
        and agent_problems.under_pressure(problem)
    ]


def row(
    agent: checkpoint.Agent,
    chosen: Sequence[Problem],
    games: int,
    simulations: int,
    true_model: bool = False,
) -> tuple[float, float, float]:
    """Geometric means over greedy of one game and of the best; seconds per program.

    A program's games are compiled before they are timed.
    """
    one, best, took_s = [], [], 0.0
    for problem in track(chosen, f"{simulations} simulations", transient=True):
        baseline_s = problem.evaluate(greedy.solve(problem)).latency_s
        scale = None
        if true_model:
            (lesson,) = lessons.prepare([problem])
            scale = float(lesson.scale)
        for _ in range(2):
            began_s = time.monotonic()
            latency_s = evaluation.latencies_s(
                agent.network,
                agent.params,
                problem,
                num_games=games,
                num_simulations=simulations,
                seed=_SEED.value,
                true_scale=scale,
            )
            last_s = time.monotonic() - began_s
        took_s += last_s
        one.append(np.log(latency_s[0] / baseline_s))
        best.append(np.log(latency_s.min() / baseline_s))
    return (
        float(np.exp(np.mean(one))),
        float(np.exp(np.mean(best))),
        took_s / len(chosen),
    )


def simulations() -> Iterator[str]:
    """Lines of the table over simulations."""
    agent, chosen = muzero.pretrained(), problems(_MAX_ACCESSES.value)
    yield f"{len(chosen)} programs of at most {_MAX_ACCESSES.value} accesses."
    yield ""
    yield f"| simulations | one game | best of {_GAMES.value} | seconds |"
    yield "| ---: | ---: | ---: | ---: |"
    for number in map(int, _SIMULATIONS.value):
        one, best, seconds = row(agent, chosen, _GAMES.value, number)
        yield f"| {number} | {one:.4f} | {best:.4f} | {seconds:.2f} |"


def models() -> Iterator[str]:
    """Lines of the table over what the tree steps with."""
    agent, chosen = muzero.pretrained(), problems(_MODEL_ACCESSES.value)
    yield f"{len(chosen)} programs of at most {_MODEL_ACCESSES.value} accesses."
    yield ""
    games = _MODEL_GAMES.value
    yield f"| simulations | tree | one game | best of {games} | seconds |"
    yield "| ---: | --- | ---: | ---: | ---: |"
    for number in map(int, _MODEL_SIMULATIONS.value):
        for true_model in (False, True):
            one, best, seconds = row(agent, chosen, games, number, true_model)
            name = "the game itself" if true_model else "learned dynamics"
            yield f"| {number} | {name} | {one:.4f} | {best:.4f} | {seconds:.2f} |"


def runs(directories: Sequence[str]) -> Iterator[str]:
    """Lines of the tables over training runs: the best of each, and their curves.

    Raises:
      FileNotFoundError: one has no metrics, or no checkpoint yet.
    """
    curves = {}
    yield "| run | parameters | moves | updates | best one game | best score |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for directory in directories:
        with open(Path(directory, "metrics.csv"), newline="") as file:
            rows = [
                {k: float(v or "nan") for k, v in r.items()}
                for r in csv.DictReader(file)
            ]
        agent = checkpoint.load(str(Path(directory, "best.msgpack")))
        parameters = sum(x.size for x in jax.tree.leaves(agent.params))
        name = Path(directory).name
        curves[name] = rows
        yield (
            f"| {name} | {parameters:,} | {rows[-1]['moves']:,.0f} | "
            f"{rows[-1]['updates']:,.0f} | {min(r['one_game'] for r in rows):.4f} | "
            f"{min(r['score'] for r in rows):.4f} |"
        )
    yield ""
    yield "Score (the best of 16 games of the policy) after minutes of training:"
    yield ""
    minutes = sorted({round(r["minutes"]) for rows in curves.values() for r in rows})
    yield "| run | " + " | ".join(map(str, minutes)) + " |"
    yield "| --- |" + " ---: |" * len(minutes)
    for name, rows in curves.items():
        scores = {round(r["minutes"]): f"{r['score']:.4f}" for r in rows}
        yield f"| {name} | " + " | ".join(scores.get(m, "") for m in minutes) + " |"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if "runs" in _WHAT.value and not _RUNS.value:
        raise app.UsageError("--what=runs needs --runs, directories of training runs")
    tables = {
        "simulations": simulations,
        "model": models,
        "runs": lambda: runs(_RUNS.value),
    }
    lines = [
        f"`python {shlex.join(sys.argv)}`, jax_malloc {jax_malloc.__version__}, jax "
        f"{jax.__version__}, {os.cpu_count()} {platform.machine()} cores.",
        "",
        "Predicted latency over that of greedy, geometric means; lower is better. "
        "Seconds are measured, per program, compilation left out.",
    ]
    for what in _WHAT.value:
        lines += ["", f"### {what}", ""]
        for line in tables[what]():
            print(line, flush=True)
            lines.append(line)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
