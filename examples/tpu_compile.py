"""A model compiled for a TPU that is not there, planned, and compiled again as planned.

The TPU compiler's own memory mapping beside those of greedy, the agent and the hybrid
solver; then the compiler is given hints towards the plan, and the mapping that comes
out is read back. Every latency is predicted by the same model of the accelerator.

    python examples/tpu_compile.py
    python examples/tpu_compile.py --model=convnext --topology=tpu_v6e --compiles=24

Needs libtpu, and no TPU: pip install "jax_malloc[tpu]".
"""

import sys
import time
from collections.abc import Sequence

from absl import app, flags, logging

import model_zoo
import pressured_programs
import solver_table
from frontends import tpu
from hwmodel import presets
from jax_malloc import report
from jax_malloc import tpu as steering
from jax_malloc.solvers import SOLVERS

MODELS = {**pressured_programs.PRESSURED, **model_zoo.ZOO}

_MODEL = flags.DEFINE_enum("model", "mlp/wide", list(MODELS), "What is compiled.")
_TOPOLOGY = flags.DEFINE_enum(
    "topology", "tpu_v5e", list(tpu.TOPOLOGIES), "Compiled and planned for."
)
_SOLVERS = flags.DEFINE_list(
    "solvers", ["greedy", "muzero", "hybrid"], "A row each, comma-separated."
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= set(SOLVERS),
    message=f"choose from {', '.join(SOLVERS)}",
)
_COMPILES = flags.DEFINE_integer(
    "compiles",
    4,
    "Compiles in all while steering; 0 leaves that out, else at least 2.",
    0,
)
flags.register_validator(
    "compiles", lambda value: value != 1, message="is 0, or at least 2"
)
_TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s", 20.0, "Seconds per solver, and for the search while steering.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the solvers' random choices.", 0)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    if not tpu.is_available():
        sys.exit('libtpu is not installed: pip install "jax_malloc[tpu]"')
    f, arguments = MODELS[_MODEL.value]()
    start_s = time.perf_counter()
    lowering = tpu.lower(f, *arguments, name=_MODEL.value)
    program = tpu.compile(lowering, topology=_TOPOLOGY.value)
    compile_s = time.perf_counter() - start_s
    touched_bytes = sum(
        touched * program.ops[t].count for t, _, touched, *_ in program.accesses()
    )
    print(
        f"{_MODEL.value} for {_TOPOLOGY.value}: {len(program.ops)} ops that touch "
        f"{report.format_bytes(touched_bytes)}, compiled twice in {compile_s:.1f} s\n"
    )
    results = solver_table.run_solvers(
        program,
        presets.get(_TOPOLOGY.value),
        _SOLVERS.value,
        seed=_SEED.value,
        time_limit_s=_TIME_LIMIT_S.value,
    )
    print(solver_table.table(results))
    if _COMPILES.value:
        result = steering.steer(
            lowering,
            topology=_TOPOLOGY.value,
            compiles=_COMPILES.value,
            seed=_SEED.value,
            search_s=_TIME_LIMIT_S.value,
        )
        print(f"\n{result}")


if __name__ == "__main__":
    app.run(main)
