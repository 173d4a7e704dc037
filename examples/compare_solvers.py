"""Compares solvers on programs that the shipped agent was never trained on.

The model zoo's held-out families, generated programs with new seeds, and HLO dumps.
With a dump name.slow.hlo.gz, XLA's mapping in name.xla.hlo.gz is compared too.

python examples/compare_solvers.py --hlo=resnet.slow.hlo.gz
"""

from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import jax_malloc
import model_zoo
import solver_table
from accelerator_flag import AcceleratorParser, NameSerializer
from frontends import stablehlo
from frontends.program import Program
from jax_malloc import generate
from jax_malloc import problem as problem_lib
from jax_malloc.solvers import SOLVERS

_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "Planned for.",
    serializer=NameSerializer(),
)
_HLO = flags.DEFINE_list("hlo", [], "HLO dumps to include.")
_SOLVERS = flags.DEFINE_list(
    "solvers", ["random", "greedy", "muzero", "hybrid"], "Each is a column."
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= set(SOLVERS),
    f"choose from {', '.join(SOLVERS)}",
)
_GENERATED = flags.DEFINE_integer("generated", 6, "Generated programs.", 0)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 77_000_000, "Of those programs.", 0)
_ZOO = flags.DEFINE_bool("zoo", True, "Include the zoo's held-out families.")


def programs(paths: Sequence[str]) -> Iterator[Program]:
    """The programs of the comparison."""
    for path in paths:
        other = path.replace(".slow.", ".xla.")
        yield jax_malloc.load_program(path, xla=other if other != path else None)
    if _ZOO.value:
        for name, make in model_zoo.ZOO.items():
            if model_zoo.family(name) in model_zoo.HELD_OUT:
                f, args = make()
                tiling = problem_lib.tiling_of(_ACCELERATOR.value)
                yield stablehlo.from_jax(f, *args, name=name, tiling=tiling)
    first = _FIRST_SEED.value
    for seed in range(first, first + _GENERATED.value):
        yield generate.random_program(seed, num_ops=40 + 20 * (seed % 7))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    solvers = list(dict.fromkeys(_SOLVERS.value))
    console = Console(highlight=False)
    table = Table(
        title=f"predicted latency on {_ACCELERATOR.value.name}, times that of greedy"
    )
    table.add_column("program")
    for heading in ("all_slow", "xla", *solvers):
        table.add_column(heading, justify="right")
    ratios: dict[str, list[float]] = {s: [] for s in solvers}
    for program in programs(_HLO.value):
        results = solver_table.run_solvers(program, _ACCELERATOR.value, solvers)
        baselines = results[0].plan.baselines
        greedy_s = baselines["greedy"]
        cells = [baselines["all_slow"], baselines.get("xla")]
        for result in results:
            cells.append(result.plan.latency_s)
            ratios[result.solver].append(result.plan.latency_s / greedy_s)
        shown = ["" if s is None else f"{s / greedy_s:.4f}" for s in cells]
        table.add_row(program.name, *shown)
    means = [f"{np.exp(np.mean(np.log(ratios[s]))):.4f}" for s in solvers]
    table.add_section()
    table.add_row("geometric mean", "", "", *means)
    console.print(table)


if __name__ == "__main__":
    app.run(main)
