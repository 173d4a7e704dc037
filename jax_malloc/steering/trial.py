"""One compilation and what its text says: the mapping that came out, and its time."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from frontends import hlo, hlo_pair
from frontends.program import Program
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib
from jax_malloc.problem import Problem
from jax_malloc.steering.op_times import compiler_fast
from jax_malloc.steering.order_search import Expected


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A text that the compiler gave, on the ops and buffers of the slow one.

    text: scheduled HLO.
    alone: the program of this text alone.
    problem: the program without memory space assignment, with this text's mapping and
      estimates, on the machine.
    expected: what it was compiled for; None for the compiler's default.
    """

    text: str
    alone: Program
    problem: Problem
    expected: Expected | None = None

    @functools.cached_property
    def latency_s(self) -> float:
        """Of one call, stalls included, by this text's own estimates."""
        return self.problem.evaluate_compiler().latency_s

    @functools.cached_property
    def cycles(self) -> float:
        """The compiler's own estimates, added up; stalls are not in them."""
        return sum(op.count * e.cycles for op in self.alone.ops for e in op.estimates)

    @functools.cached_property
    def fast(self) -> np.ndarray:
        """`[M]` bool: the accesses that it serves from fast memory."""
        return compiler_fast(self.problem, self.problem.program)

    def latency_under(self, problem: Problem) -> float:
        """Of its mapping by another text's estimates."""
        mapping = self.problem.program.compiler_mapping
        program = dataclasses.replace(problem.program, compiler_mapping=mapping)
        there = dataclasses.replace(problem, program=program)
        return there.evaluate_compiler().latency_s

    def same_work(self, other: Trial) -> bool:
        """Whether both run the same ops; copies may have become asynchronous."""
        return _work(self.alone) == _work(other.alone)


def read(
    slow: Program,
    text: str,
    accelerator: Accelerator,
    *,
    expected: Expected | None = None,
) -> Trial:
    """The trial of a compiled text.

    Args:
      slow: the program compiled with memory space assignment off.
      text: scheduled HLO of the same function with it on.
    Raises:
      ValueError: the text cannot be read.
    """
    alone = hlo.from_text(text, where="the compiler's text")
    paired = hlo_pair.with_compiler_mapping(slow, alone)
    return Trial(
        text=text,
        alone=alone,
        problem=problem_lib.build(paired, accelerator),
        expected=expected,
    )


def _work(program: Program) -> list[tuple[str, str]]:
    return sorted((op.name, op.opcode) for op in program.ops if op.opcode != "copy")
