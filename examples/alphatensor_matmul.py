"""A matrix product by an AlphaTensor-like algorithm, mapped into fast memory.

Fast algorithms trade multiplications for sums of blocks. Multiplications are bound by
compute and sums by memory, so it is in memory that such an algorithm wins or loses.
Here both the plain product and the fast one are planned, and their predicted latencies
compared.

    python examples/alphatensor_matmul.py
    python examples/alphatensor_matmul.py --factorization=factorizations_r.npz:4,4,4
    python examples/alphatensor_matmul.py --lowering=tpu --size=4096 --size=16384

The second reads a file of github.com/google-deepmind/alphatensor. The third compiles
with the real TPU compiler, for TPU v4 and v5e, and shows its own mapping too; it needs
libtpu, pip install "jax_malloc[tpu]", and no TPU.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

import block_matmul
import factorization_files
import jax_malloc
from accelerator_flag import AcceleratorParser, NameSerializer
from frontends import stablehlo, tpu
from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import report
from jax_malloc.solvers import SOLVERS
from matmul_factorizations import BUILT_IN, Factorization
from solver_table import format_speedup

_FACTORIZATION = flags.DEFINE_string(
    "factorization",
    "strassen2",
    f"{', '.join(BUILT_IN)}, or an .npz file as path or path:key; checked exactly.",
)
_LEVELS = flags.DEFINE_integer(
    "levels", 1, "Times the algorithm is applied to its own products.", 1, 2
)
_SIZES = flags.DEFINE_multi_integer(
    "size", [8192], "Rows and columns of the matrices; one table for each.", 1
)
_M = flags.DEFINE_integer("m", None, "Rows of A, if not --size.", 1)
_K = flags.DEFINE_integer("k", None, "Columns of A and rows of B, if not --size.", 1)
_N = flags.DEFINE_integer("n", None, "Columns of B, if not --size.", 1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Of the matrices."
)
_LOWERING = flags.DEFINE_enum(
    "lowering",
    "stablehlo",
    ["stablehlo", "tpu"],
    "What the programs are read from: portable, or made by the real TPU compiler.",
)
_ACCELERATORS = flags.DEFINE_multi(
    AcceleratorParser(),
    NameSerializer(),
    "accelerator",
    None,
    "Machines to plan for; by default tpu_v4i, or what --lowering=tpu compiles for.",
)
_SOLVER = flags.DEFINE_enum("solver", "hybrid", list(SOLVERS), "Makes the plans.")
_TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s", 20.0, "Seconds for each of the two plans.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the solver and of the numeric check.", 0)


def check_numerics(
    multiply: Callable[[jax.Array, jax.Array], jax.Array],
    shape: tuple[int, int, int],
    seed: int,
) -> float:
    """The largest error against `jnp.matmul` in float32, over the largest entry.

    Args:
      multiply: what to check.
      shape: (m, k, n) of the random matrices.
    """
    m, k, n = shape
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.standard_normal((m, k)), jnp.float32)
    b = jnp.asarray(rng.standard_normal((k, n)), jnp.float32)
    with jax.default_matmul_precision("highest"):
        expected = jnp.matmul(a, b)
        error = jnp.abs(jax.jit(multiply)(a, b) - expected)
    return float(error.max() / jnp.abs(expected).max())


class Planned(NamedTuple):
    """The plan of one algorithm, and that of XLA's rules as we know them."""

    plan: jax_malloc.Plan
    xla_msa: jax_malloc.Plan

    @property
    def baselines(self) -> dict[str, float]:
        """Seconds by name."""
        return {**self.plan.baselines, "xla_msa": self.xla_msa.latency_s}


def table(planned: dict[str, Planned]) -> str:
    """Predicted latencies of the plain product and the fast one, and their ratios.

    Args:
      planned: two, by name of the algorithm, the plain one first.
    """
    compared = {
        "all_slow": "all in HBM",
        "xla": "XLA's own",
        "xla_msa": "xla_msa",
        "greedy": "greedy",
    }
    plain = next(iter(planned.values()))
    baselines = [name for name in compared if name in plain.baselines]
    headings = (compared[name] for name in baselines)
    rows = report.text_table(
        "predicted latency", *headings, "planned", "planned over HBM"
    )
    latencies_s = []
    for name, one in planned.items():
        before_s = (one.baselines[b] for b in baselines)
        latencies_s.append([*before_s, one.plan.latency_s])
        shown = map(report.format_s, latencies_s[-1])
        rows.add_row(name, *shown, format_speedup(one.plan.speedup))
    rows.add_section()
    ratios = (format_speedup(a / b) for a, b in zip(*latencies_s, strict=True))
    rows.add_row("fast over plain", *ratios, "")
    return report.plain_text(rows)


def plan_products(
    factorization: Factorization,
    shape: tuple[int, int, int],
    dtype: str,
    accelerator: Accelerator,
    *,
    lowering: str,
    levels: int,
    solver: str,
    seed: int,
    time_limit_s: float | None,
) -> dict[str, Planned]:
    """Plans of `jnp.matmul` and of the fast algorithm, by name.

    Args:
      shape: (m, k, n); A is m x k and B is k x n.
      dtype: of both.
      lowering: "stablehlo" or "tpu".
      levels: recursion depth of the fast algorithm.
    """
    m, k, n = shape
    a, b = jax.ShapeDtypeStruct((m, k), dtype), jax.ShapeDtypeStruct((k, n), dtype)
    fast = functools.partial(block_matmul.multiply, factorization, levels=levels)
    name = str(factorization) if levels == 1 else f"{factorization}, {levels} levels"
    planned = {}
    for label, function in (("jnp.matmul", jnp.matmul), (name, fast)):
        program = _program(lowering, accelerator, function, a, b)
        plan = jax_malloc.solve(
            program, accelerator, solver=solver, seed=seed, time_limit_s=time_limit_s
        )
        xla_msa = jax_malloc.solve(program, accelerator, solver="xla_msa")
        planned[label] = Planned(plan, xla_msa)
    return planned


def _program(lowering: str, accelerator: Accelerator, *call: Any) -> Program:
    """The program of a function and its arguments."""
    if lowering == "tpu":
        return tpu.compile(*call, topology=accelerator.name)
    return stablehlo.from_jax(*call)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    try:
        factorization = factorization_files.get(_FACTORIZATION.value)
    except ValueError as error:
        sys.exit(str(error))
    fast = functools.partial(block_matmul.multiply, factorization, levels=_LEVELS.value)
    print(
        f"{factorization}: {factorization.rank} block products instead of "
        f"{math.prod(factorization.shape)}, checked exactly"
    )
    error = check_numerics(fast, (120, 136, 104), _SEED.value)
    print(f"float32 against jnp.matmul: max relative error {error:.1e}")

    names = ("tpu_v4", "tpu_v5e") if _LOWERING.value == "tpu" else ("tpu_v4i",)
    accelerators = _ACCELERATORS.value or [presets.get(name) for name in names]
    for accelerator, size in itertools.product(accelerators, _SIZES.value):
        m, k, n = (flag.value or size for flag in (_M, _K, _N))
        try:
            planned = plan_products(
                factorization,
                (m, k, n),
                _DTYPE.value,
                accelerator,
                lowering=_LOWERING.value,
                levels=_LEVELS.value,
                solver=_SOLVER.value,
                seed=_SEED.value,
                time_limit_s=_TIME_LIMIT_S.value,
            )
        except (ValueError, RuntimeError) as error:  # no such topology, no libtpu
            sys.exit(str(error))
        title = f"{_DTYPE.value} {m} x {k} by {k} x {n} on {accelerator.name}"
        print(f"\n{title}\n\n{table(planned)}", flush=True)


if __name__ == "__main__":
    app.run(main)
