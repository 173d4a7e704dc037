"""From a program to a plan that has been checked, timed and compared."""

from __future__ import annotations

import math
import operator
import os
import time
import zlib

import numpy as np

from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from hwmodel.latency import LatencyKind
from hwmodel.simulator import Timeline
from jax_malloc import problem as problem_lib
from jax_malloc import report, validator
from jax_malloc.json_reader import nearest
from jax_malloc.mapping import Mapping
from jax_malloc.plan import Plan
from jax_malloc.problem import Problem
from jax_malloc.solvers import SOLVERS, compiler_mapping, finetuned

# In the place of a solver: the mapping that the program brought from its compiler.
COMPILER = "xla"
_WITH_AGENT = ("muzero", "hybrid")
# Less than this prints as 0.0 %.
_SHARE_SHOWN = 5e-4
# What a bug report needs of an invalid mapping; the rest is usually the same again.
_MAX_VIOLATIONS_SHOWN = 3


def solve(
    program: Program,
    accelerator: str | os.PathLike[str] | Accelerator = "tpu_v5e",
    *,
    solver: str = "hybrid",
    seed: int = 0,
    time_limit_s: float | None = None,
    finetune_s: float = 0.0,
) -> Plan:
    """The plan that a solver finds for a program on a machine.

    Args:
      program: from a frontend or `load_program`.
      accelerator: a preset's name, a .json or .toml file, or the machine itself.
      solver: a name in `jax_malloc.solvers.SOLVERS`; or "xla", the compiler's own
        mapping as far as its stays find a place, for programs that carry one.
      seed: same seed, same plan, unless the time limit cut the search short.
      time_limit_s: seconds until the search must end. 0 gives the best plan that costs
        next to nothing; None lets the solver finish.
      finetune_s: seconds to train the agent on this very program, on top of the limit,
        after which it looks for a better plan than the solver's. For solvers "muzero"
        and "hybrid".
    Returns:
      A plan without violations. Its baselines are latencies by name under the same
      model: "all_slow", "greedy" and, where the program carries the compiler's own
      mapping, "xla". Greedy has the same time limit.
    Raises:
      ValueError: an argument is unknown or out of range, or the program cannot run on
        the machine.
      RuntimeError: the solver returned an invalid mapping, which is a bug of ours.
    """
    check_solver(solver)
    limit_s = check_time_limit_s(time_limit_s)
    seed = check_seed(seed)
    check_finetune_s(finetune_s, solver)
    deadline_s = None if limit_s is None else time.monotonic() + limit_s
    problem = problem_lib.build(program, presets.get(accelerator))
    compiler = problem.evaluate_compiler()
    if solver == COMPILER and compiler is None:
        raise ValueError(
            f"program {program.name!r} carries no mapping of its compiler. Load it "
            "with xla=, the HLO text compiled with memory space assignment on."
        )

    mappings, wall_s = {}, {}
    for name in dict.fromkeys(("greedy", solver)):
        start_s = time.monotonic()
        mappings[name] = valid_mapping(problem, name, seed, deadline_s)
        wall_s[name] = time.monotonic() - start_s
    mapping = mappings[solver]
    if finetune_s:
        start_s = time.monotonic()
        untuned_s = problem.evaluate(mapping).latency_s
        mapping = finetuned.improve(problem, mapping, seed=seed, finetune_s=finetune_s)
        _check_valid(problem, mapping, f"{solver}, fine-tuned", seed)
        wall_s["finetune"] = time.monotonic() - start_s
    timeline = problem.evaluate(mapping)
    baselines = {
        "all_slow": problem.all_slow_latency_s,
        "greedy": problem.evaluate(mappings["greedy"]).latency_s,
    }
    notes = program.notes
    if finetune_s:
        notes = (*notes, _fine_tuned(untuned_s, timeline.latency_s))
    if compiler is not None:
        baselines["xla"] = compiler.latency_s
    notes = (*notes, *_on_roofline(problem, timeline))
    if solver == COMPILER and compiler is not None:
        notes = (*notes, _packed_anew(problem, mapping, compiler.latency_s))
    return Plan(
        program=program,
        accelerator=problem.accelerator,
        mapping=mapping,
        solver=solver,
        seed=seed,
        latency_s=timeline.latency_s,
        baselines=baselines,
        timeline=timeline,
        notes=notes,
        wall_s=wall_s,
    )


def load_program(
    path: str | os.PathLike[str], *, xla: str | os.PathLike[str] | None = None
) -> Program:
    """Reads a program from scheduled HLO text or from a file of `Program.save`.

    Which of the two it is shows in the contents, not the name; both may be gzipped.

    Args:
      path: the file.
      xla: HLO text of the same program compiled with memory space assignment on, where
        `path` was compiled with it off. Adds XLA's own mapping and its second estimate
        of every op.
    Raises:
      ValueError: the file is neither, or `xla` is given beside a saved program.
      OSError: a file cannot be read.
    """
    path = os.fspath(path)
    if not _starts_json_object(path):
        from frontends import hlo

        return hlo.load(path, xla=xla)
    if xla is not None:
        raise ValueError(
            f"{path} is a saved program; xla= goes with HLO text only. Load the HLO "
            "pair and save the result, it keeps XLA's mapping."
        )
    return Program.load(path)


def check_solver(solver: str) -> None:
    """Raises ValueError unless `solver` is the name of one."""
    if solver not in (*SOLVERS, COMPILER):
        raise ValueError(
            f"unknown solver {solver!r}{nearest(solver, SOLVERS) or ';'} choose one of "
            f"{', '.join(SOLVERS)}, or {COMPILER} for the compiler's own mapping."
        )


def check_time_limit_s(time_limit_s: float | None) -> float | None:
    """The limit as a float, None where it is infinite.

    Raises:
      ValueError: it is negative or not a number.
    """
    if time_limit_s is None:
        return None
    limit_s = float(time_limit_s)
    if not limit_s >= 0:
        raise ValueError(
            f"time_limit_s is {time_limit_s!r}; expected seconds >= 0, or None for no "
            "limit."
        )
    return None if math.isinf(limit_s) else limit_s


def check_finetune_s(finetune_s: float, solver: str) -> None:
    """Raises ValueError unless the solver has an agent to fine-tune for that long."""
    if not 0 <= finetune_s < math.inf:
        raise ValueError(f"finetune_s is {finetune_s!r}; expected seconds >= 0.")
    if finetune_s and solver not in _WITH_AGENT:
        raise ValueError(
            f"finetune_s trains the agent, which solver {solver!r} does not ask; use "
            f"{' or '.join(map(repr, _WITH_AGENT))}, or leave it out."
        )


def check_seed(seed: int) -> int:
    """The seed as a Python int. Raises ValueError if it is negative."""
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected an integer >= 0.")
    return seed


def valid_mapping(
    problem: Problem, solver: str, seed: int, deadline_s: float | None
) -> Mapping:
    """A solver's mapping, checked by the validator.

    Raises:
      RuntimeError: it breaks a rule, which is a bug of ours.
    """
    if solver == COMPILER:
        mapping = compiler_mapping.from_compiler(problem) or Mapping()
    else:
        mapping = SOLVERS[solver](problem, seed=seed, deadline_s=deadline_s)
    _check_valid(problem, mapping, solver, seed)
    return mapping


def _check_valid(problem: Problem, mapping: Mapping, solver: str, seed: int) -> None:
    violations = validator.find_violations(problem, mapping)
    if violations:
        shown = "; ".join(str(v) for v in violations[:_MAX_VIOLATIONS_SHOWN])
        raise RuntimeError(
            f"solver {solver!r}, seed {seed}, made an invalid mapping of program "
            f"{problem.program.name!r} on {problem.accelerator.name!r}: "
            f"{len(violations)} violations, the first {shown}. This is a bug in "
            "jax_malloc: please report it with the file of program.save(...)."
        )


def _on_roofline(problem: Problem, timeline: Timeline) -> list[str]:
    """How much of the latency rests on no estimate of the compiler's, as a note."""
    if not any(op.estimates for op in problem.program.ops):
        return []
    guessed = problem.latency.kind == LatencyKind.ROOFLINE
    share = timeline.op_duration_s[guessed].sum() / timeline.latency_s
    if not share >= _SHARE_SHOWN:
        return []
    return [f"{share:.1%} of the latency is of ops that only the roofline times."]


def _fine_tuned(before_s: float, after_s: float) -> str:
    """What fine-tuning brought, as a note."""
    return (
        f"Fine-tuning took {1 - after_s / before_s:.2%} off the solver's "
        f"{report.format_s(before_s)}."
        if after_s < before_s
        else "Fine-tuning found nothing better than the solver."
    )


def _packed_anew(problem: Problem, mapping: Mapping, compiler_s: float) -> str:
    """How much of the compiler's mapping came through, as a note."""
    compiler = problem.program.compiler_mapping
    asked = compiler.fast_accesses if compiler is not None else frozenset()
    pairs = zip(problem.access_op.tolist(), problem.access_buffer.tolist(), strict=True)
    asked_rows = np.array([pair in asked for pair in pairs], bool)
    kept_rows = asked_rows & problem.fast_mask(mapping)
    asked_bytes, kept_bytes = (
        report.format_bytes(problem.access_bytes[rows].sum())
        for rows in (asked_rows, kept_rows)
    )
    return (
        "HLO text holds no offsets: the compiler's stays are packed anew, where they "
        f"pay, and serve {kept_bytes} of the {asked_bytes} that ops of its mapping "
        f"find in fast memory; as it stands, that takes {report.format_s(compiler_s)}."
    )


def _starts_json_object(path: str) -> bool:
    """Whether a file's (gzipped) text begins with a brace, as no HLO module does."""
    return read_head(path).lstrip().startswith(b"{")


def read_head(path: str) -> bytes:
    """The first few hundred bytes of a file's (gzipped) text.

    Raises:
      ValueError: it begins as a gzip file does, and is none.
      OSError: it cannot be read.
    """
    with open(path, "rb") as f:
        head = f.read(1024)
    if head[:2] == b"\x1f\x8b":
        # A decompressor, since the head is a whole gzip file only by chance.
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head)
        except zlib.error as error:
            raise ValueError(f"{path}: not a valid gzip file ({error}).") from None
    return head
