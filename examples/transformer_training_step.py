"""The training step of a GPT, planned from start to end without a weight or a device.

Traces a Flax transformer with Adam on shapes alone, lowers it to StableHLO, or compiles
it as the TPU compiler does, and compares what the solvers make of it. Latencies are
predicted by the accelerator's model; seconds are measured.

    python examples/transformer_training_step.py
    python examples/transformer_training_step.py --layers=12 --width=768 --heads=12
    python examples/transformer_training_step.py --lowering=tpu  # needs the extra tpu
    python examples/transformer_training_step.py --out_dir=runs/demo  # with pictures
"""

import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import app, flags, logging

import jax_malloc
import model_zoo
import solver_table
from accelerator_flag import AcceleratorParser, NameSerializer
from frontends import stablehlo, tpu
from jax_malloc import problem as problem_lib
from jax_malloc.solvers import SOLVERS

_LAYERS = flags.DEFINE_integer("layers", 4, "Transformer blocks.", 1)
_WIDTH = flags.DEFINE_integer("width", 512, "Features of each token.", 1)
_HEADS = flags.DEFINE_integer("heads", 8, "Attention heads; divides --width.", 1)
_SEQUENCE = flags.DEFINE_integer("sequence", 512, "Tokens in each sequence.", 1)
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences in each step.", 1)
_VOCABULARY = flags.DEFINE_integer("vocabulary", 16384, "Different tokens.", 1)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "bfloat16",
    ["bfloat16", "float16", "float32"],
    "Of activations; parameters are float32.",
)
_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "Machine to plan for.",
    serializer=NameSerializer(),
)
_LOWERING = flags.DEFINE_enum(
    "lowering",
    "stablehlo",
    ["stablehlo", "tpu"],
    "Reads StableHLO, or what libtpu compiles for the machine.",
)
_SOLVERS = flags.DEFINE_list(
    "solvers",
    ["all_slow", "greedy", "muzero", "hybrid"],
    "Compared, comma-separated; the plan of the last one is printed.",
)
flags.register_validator(
    "solvers",
    lambda names: bool(names) and set(names) <= set(SOLVERS),
    message=f"choose from {', '.join(SOLVERS)}",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the solvers' random choices.", 0)
_OUT_DIR = flags.DEFINE_string(
    "out_dir",
    None,
    "Folder for pictures of the plan that is printed: a report, the memory map and a "
    "trace for Perfetto. Needs the extra viz.",
)
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 20.0, "Seconds per solver.", 0)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    if _WIDTH.value % _HEADS.value:
        raise app.UsageError(
            f"--heads={_HEADS.value} does not divide --width={_WIDTH.value}"
        )
    start_s = time.perf_counter()
    step, arguments = model_zoo.transformer(
        batch=_BATCH.value,
        sequence=_SEQUENCE.value,
        layers=_LAYERS.value,
        width=_WIDTH.value,
        heads=_HEADS.value,
        vocabulary=_VOCABULARY.value,
        causal=True,
        training=True,
        dtype=jnp.dtype(_DTYPE.value),
    )
    # Parameters and optimizer state are updated in place, as any real loop does.
    step = jax.jit(step, donate_argnums=(0, 1, 2))
    if _LOWERING.value == "tpu":
        # A cache of its own, so that the seconds are those of a first time.
        with tempfile.TemporaryDirectory() as cache_dir:
            program = tpu.compile(
                step, *arguments, topology=_ACCELERATOR.value.name, cache_dir=cache_dir
            )
    else:
        tiling = problem_lib.tiling_of(_ACCELERATOR.value)
        program = stablehlo.from_jax(step, *arguments, tiling=tiling)
    parameters = sum(x.size for x in jax.tree.leaves(arguments[0]))
    print(
        f"{parameters / 1e6:.1f} M parameters, {len(program.ops)} ops, "
        f"{len(program.buffers)} buffers, {sum(1 for _ in program.accesses())} "
        f"accesses, read in {time.perf_counter() - start_s:.1f} s"
    )
    results = solver_table.run_solvers(
        program,
        _ACCELERATOR.value,
        _SOLVERS.value,
        seed=_SEED.value,
        time_limit_s=_TIME_LIMIT_S.value,
    )
    print(results[-1].plan)
    print(f"\n{solver_table.table(results)}")
    if _OUT_DIR.value:
        draw(results[-1].plan, pathlib.Path(_OUT_DIR.value))


def draw(plan: jax_malloc.Plan, folder: pathlib.Path) -> None:
    """Writes a plan's pictures into a folder, and says where each is."""
    folder.mkdir(parents=True, exist_ok=True)
    plan.to_html(folder / "report.html")
    plan.plot().figure.savefig(folder / "memory_map.png")
    plan.to_perfetto(folder / "trace.json.gz")
    print(f"\nreport, for a browser   {folder / 'report.html'}")
    print(f"memory map              {folder / 'memory_map.png'}")
    print(f"trace, ui.perfetto.dev  {folder / 'trace.json.gz'}")


if __name__ == "__main__":
    app.run(main)
