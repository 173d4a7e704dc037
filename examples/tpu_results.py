"""The tables of real TPU compiles in docs/RESULTS.md, program by program.

Compiles every program for every topology as the TPU compiler does by default and with
everything in HBM, plans it with the solvers, steers the compiler towards the plan, and
writes one JSON line per program. A second run skips what is there, so an interrupted
study goes on. Every latency is predicted, by one model; seconds are measured.

    python examples/tpu_results.py --programs=mixer,convnext --topologies=tpu_v5e

Needs libtpu, and no TPU: pip install "jax_malloc[tpu]". The tables are printed and
written beside the lines, as Markdown.
"""

import importlib.metadata
import itertools
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import app, flags, logging

import jax_malloc
import json_lines
import model_zoo
import pressured_programs
import results_table
from frontends import tpu
from hwmodel import presets
from jax_malloc import problem as problem_lib
from jax_malloc import tpu as steering
from jax_malloc.solvers import SOLVERS, milp

PROGRAMS: Mapping[str, Callable[[], model_zoo.Case]] = {
    **pressured_programs.PRESSURED,
    **model_zoo.ZOO,
}
# Packages whose version changes what comes out.
_VERSIONED = ("jax", "jaxlib", "libtpu", "jax_malloc")

_PROGRAMS = flags.DEFINE_list(
    "programs", list(pressured_programs.PRESSURED), "Names, comma-separated."
)
flags.register_validator(
    "programs",
    lambda names: bool(names) and set(names) <= set(PROGRAMS),
    message=f"choose from {', '.join(PROGRAMS)}",
)
_TOPOLOGIES = flags.DEFINE_list("topologies", ["tpu_v5e"], "Names, comma-separated.")
flags.register_validator(
    "topologies",
    lambda names: bool(names) and set(names) <= set(tpu.TOPOLOGIES),
    message=f"choose from {', '.join(tpu.TOPOLOGIES)}",
)
_SOLVERS = flags.DEFINE_list(
    "solvers", ["xla_msa", "hybrid"], "A column each, comma-separated; greedy always."
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= set(SOLVERS),
    message=f"choose from {', '.join(SOLVERS)}",
)
_COMPILES = flags.DEFINE_integer(
    "compiles",
    12,
    "Compiles in all while steering; 0 leaves that out, else at least 2.",
    0,
)
flags.register_validator(
    "compiles", lambda value: value != 1, message="is 0, or at least 2"
)
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 60.0, "Seconds per solver.", 0)
_SEARCH_S = flags.DEFINE_float(
    "search_s", 20.0, "Seconds to search between the compiles of steering.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the solvers' random choices.", 0)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Of compiled texts, for a study that is made again; else none."
)
_OUTPUT = flags.DEFINE_string(
    "output", "tpu_results.jsonl", "File of the lines; the tables go beside it, in .md."
)


def study(
    program_name: str, topology: str, settings: Mapping[str, str | int | float]
) -> results_table.Row:
    """Everything about one program on one topology.

    Args:
      program_name: in `PROGRAMS`.
      topology: a preset that libtpu compiles for.
      settings: of the row; "solvers", "compiles", "time_limit_s", "search_s" and "seed"
        are obeyed.
    """
    f, arguments = PROGRAMS[program_name]()
    lowering = tpu.lower(f, *arguments, name=program_name)
    latency_s, wall_s = {}, {}
    # A cache of its own: no compile is free, and steering finds the first two again.
    with tempfile.TemporaryDirectory() as own_cache_dir:
        cache_dir = _CACHE_DIR.value or own_cache_dir
        start_s = time.perf_counter()
        program = tpu.compile(lowering, topology=topology, cache_dir=cache_dir)
        wall_s["compile"] = time.perf_counter() - start_s
        for solver in settings["solvers"].split():
            plan = jax_malloc.solve(
                program,
                topology,
                solver=solver,
                seed=settings["seed"],
                time_limit_s=settings["time_limit_s"],
            )
            latency_s |= {**plan.baselines, solver: plan.latency_s}
            wall_s |= plan.wall_s
        start_s = time.perf_counter()
        latency_s["lower_bound"] = milp.lower_bound_s(
            problem_lib.build(program, presets.get(topology)),
            time_limit_s=settings["time_limit_s"],
        )
        wall_s["lower_bound"] = time.perf_counter() - start_s
        if settings["compiles"]:
            start_s = time.perf_counter()
            steered = steering.steer(
                lowering,
                topology=topology,
                compiles=settings["compiles"],
                seed=settings["seed"],
                search_s=settings["search_s"],
                cache_dir=cache_dir,
            )
            latency_s["steered"] = steered.obtained_latency_s
            wall_s["steer"] = time.perf_counter() - start_s
    return results_table.Row(
        program=program_name,
        topology=topology,
        settings=settings,
        ops=len(program.ops),
        accesses=sum(1 for _ in program.accesses()),
        touched_bytes=sum(
            touched * program.ops[t].count for t, _, touched, *_ in program.accesses()
        ),
        latency_s=latency_s,
        wall_s=wall_s,
    )


def header(settings: Mapping[str, str | int | float], argv: Sequence[str]) -> str:
    """What a reader needs to make the tables again."""
    versions = ", ".join(f"{name} {settings[name]}" for name in _VERSIONED)
    machine = f"{os.cpu_count()} {platform.machine()} cores"
    python = f"Python {platform.python_version()}"
    return f"`python {shlex.join(argv)}`, {versions}, {python}, {machine}.\n"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    if not tpu.is_available():
        sys.exit('libtpu is not installed: pip install "jax_malloc[tpu]"')
    settings = {
        **{name: importlib.metadata.version(name) for name in _VERSIONED},
        "solvers": " ".join(dict.fromkeys(_SOLVERS.value)),
        "compiles": _COMPILES.value,
        "time_limit_s": _TIME_LIMIT_S.value,
        "search_s": _SEARCH_S.value,
        "seed": _SEED.value,
    }
    try:
        rows = {
            row.key: row for row in json_lines.read(_OUTPUT.value, results_table.Row)
        }
    except ValueError as error:
        sys.exit(str(error))
    shown, failed = [], []
    for topology, name in itertools.product(_TOPOLOGIES.value, _PROGRAMS.value):
        key = results_table.key(name, topology, settings)
        if key not in rows:
            print(f"{name} on {topology} ...", file=sys.stderr, flush=True)
            try:
                rows[key] = study(name, topology, settings)
            except RuntimeError as error:  # a study goes on without it
                failed.append(f"{name} on {topology}: {error}")
                continue
            json_lines.append(_OUTPUT.value, rows[key])
        shown.append(rows[key])
    text = f"{header(settings, sys.argv)}\n{results_table.markdown(shown)}"
    Path(_OUTPUT.value).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    app.run(main)
