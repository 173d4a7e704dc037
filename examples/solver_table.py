"""Solvers side by side on one program, as the example binaries print them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax_malloc
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib
from jax_malloc import report, validator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One solver's plan.

    violations: what the validator, which shares no code with the solvers, finds wrong.
    wall_s: seconds until the plan was there.
    """

    solver: str
    plan: jax_malloc.Plan
    violations: int
    wall_s: float


def run_solvers(
    program: jax_malloc.Program,
    accelerator: Accelerator,
    solvers: Sequence[str],
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
) -> list[Result]:
    """Every solver's plan of one program.

    Args:
      solvers: names in `jax_malloc.solvers.SOLVERS`.
      seed: of the solvers' random choices.
      time_limit_s: seconds for each solver; None, no limit.
    Raises:
      ValueError: a solver is unknown, or the program cannot run on the accelerator.
    """
    problem = problem_lib.build(program, accelerator)
    results = []
    for solver in solvers:
        start_s = time.perf_counter()
        plan = jax_malloc.solve(
            program, accelerator, solver=solver, seed=seed, time_limit_s=time_limit_s
        )
        wall_s = time.perf_counter() - start_s
        violations = len(validator.find_violations(problem, plan.mapping))
        results.append(
            Result(solver=solver, plan=plan, violations=violations, wall_s=wall_s)
        )
    return results


def table(results: Sequence[Result]) -> str:
    """A row per solver, and one for XLA's own mapping where the program carries it."""
    rows = report.text_table(
        "solver", "predicted latency", "speedup", "violations", "time to plan"
    )
    all_slow_s = results[0].plan.baselines["all_slow"]
    for result in results:
        latency_s = result.plan.latency_s
        rows.add_row(
            result.solver,
            report.format_s(latency_s),
            format_speedup(all_slow_s / latency_s),
            str(result.violations),
            f"{result.wall_s:.1f} s",
        )
    xla_s = results[0].plan.baselines.get("xla")
    if xla_s is not None:
        speedup = format_speedup(all_slow_s / xla_s)
        rows.add_row("XLA's own", report.format_s(xla_s), speedup, "", "")
    return (
        f"{report.plain_text(rows)}\n"
        "speedup: predicted, over every buffer in slow memory. violations: found by\n"
        "the validator, which shares no code with the solvers."
    )


def format_speedup(speedup: float) -> str:
    """A ratio, such as 1.41x."""
    return f"{speedup:.3g}x" if speedup >= 10 else f"{speedup:.2f}x"
