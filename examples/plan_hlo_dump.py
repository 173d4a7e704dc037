"""A plan for a program that a compiler wrote out, with no JAX function in sight.

Reads scheduled HLO text, such as XLA_FLAGS=--xla_dump_to writes, gzipped or not. Where
the text carries XLA's own memory mapping, that is timed under the same model.

    python examples/plan_hlo_dump.py --hlo=module.after_optimizations.txt
    python examples/plan_hlo_dump.py --hlo=a.slow.hlo.gz --xla=a.xla.hlo.gz
"""

import collections
import sys
import time
from collections.abc import Sequence

from absl import app, flags, logging

import jax_malloc
import solver_table
from accelerator_flag import AcceleratorParser, NameSerializer
from jax_malloc.solvers import SOLVERS

_HLO = flags.DEFINE_string(
    "hlo",
    None,
    "Scheduled HLO text, or a saved Program; may be gzipped.",
    required=True,
)
_XLA = flags.DEFINE_string(
    "xla",
    None,
    "The same program compiled with memory space assignment on, where --hlo is with it "
    "off: adds XLA's mapping and its second estimate of every op.",
)
_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "Machine to plan for.",
    serializer=NameSerializer(),
)
_SOLVERS = flags.DEFINE_list(
    "solvers",
    ["all_slow", "greedy", "hybrid"],
    "Compared, comma-separated; --out and --annotated are of the last one.",
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= set(SOLVERS),
    message=f"choose from {', '.join(SOLVERS)}",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the solvers' random choices.", 0)
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 20.0, "Seconds per solver.", 0)
_OUT = flags.DEFINE_string("out", None, "File to save the plan to, as JSON.")
_ANNOTATED = flags.DEFINE_string(
    "annotated", None, "File to write the HLO to, with placements as attributes."
)


def describe(program: jax_malloc.Program) -> str:
    """What is in a program, a line for each figure."""
    opcodes = collections.Counter(op.opcode for op in program.ops)
    kinds = collections.Counter(b.kind.value for b in program.buffers)
    flops = sum(op.matmul_flops * op.count for op in program.ops)
    touched = sum(sum(op.touched_bytes().values()) * op.count for op in program.ops)
    rows = {
        "program": program.name,
        "ops": f"{len(program.ops)}: {_listed(opcodes)}",
        "loops and branches": str(len(program.regions) - 1),
        "buffers": f"{len(program.buffers)}: {_listed(kinds)}",
        "accesses": str(sum(1 for _ in program.accesses())),
        "bytes touched": f"{touched / 2**20:.1f} MiB per call",
        "matmul and convolution": f"{flops / 1e9:.1f} GFLOP per call",
        "ops with an estimate": str(sum(bool(op.estimates) for op in program.ops)),
    }
    width = max(map(len, rows)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows.items())


def _listed(counts: collections.Counter[str], most: int = 5) -> str:
    shown = [f"{count} {name}" for name, count in counts.most_common(most)]
    rest = counts.total() - sum(count for _, count in counts.most_common(most))
    return ", ".join([*shown, f"{rest} other"] if rest else shown)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    start_s = time.perf_counter()
    try:
        program = jax_malloc.load_program(_HLO.value, xla=_XLA.value)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"read in {time.perf_counter() - start_s:.1f} s")
    print(describe(program))
    for note in program.notes:
        print(f"note: {note}")
    results = solver_table.run_solvers(
        program,
        _ACCELERATOR.value,
        _SOLVERS.value,
        seed=_SEED.value,
        time_limit_s=_TIME_LIMIT_S.value,
    )
    print(f"\n{solver_table.table(results)}")
    plan = results[-1].plan
    if _OUT.value:
        plan.save(_OUT.value)
        print(f"plan saved to {_OUT.value}")
    if _ANNOTATED.value:
        with open(_ANNOTATED.value, "w", encoding="utf-8") as f:
            f.write(plan.annotated())
        print(f"annotated program written to {_ANNOTATED.value}")


if __name__ == "__main__":
    app.run(main)
