"""Plan: a mapping with what it is for and what it is worth, as a person holds it."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import tempfile
import zlib
from collections.abc import Mapping as MappingType
from typing import Any

from frontends.program import Program
from hwmodel.accelerator import Accelerator
from hwmodel.simulator import Timeline
from jax_malloc import explain as explain_lib
from jax_malloc import placements, plan_file, report
from jax_malloc import problem as problem_lib
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """Where the buffers of a program are on a machine; every latency is predicted.

    program, accelerator: what it was made for.
    mapping: stays in fast memory and copies.
    solver, seed: what found it.
    latency_s: of one call.
    baselines: latencies in seconds by name, under the same model: "all_slow", and
      others such as "greedy" and "xla", the compiler's own mapping.
    timeline: start, length and stall of every op, times of every copy.
    notes: what a reader should know, one sentence each.
    wall_s: seconds that each solver took, by name, where that was measured.
    """

    program: Program
    accelerator: Accelerator
    mapping: Mapping
    solver: str
    seed: int
    latency_s: float
    baselines: MappingType[str, float]
    timeline: Timeline
    notes: tuple[str, ...] = ()
    wall_s: MappingType[str, float] | None = None

    @functools.cached_property
    def problem(self) -> Problem:
        """The program on the machine, which can price any other mapping of it."""
        return problem_lib.build(self.program, self.accelerator)

    @property
    def speedup(self) -> float:
        """How many times faster than with everything in slow memory."""
        return self.speedup_over("all_slow")

    def speedup_over(self, baseline: str) -> float:
        """How many times faster than one of `baselines`.

        Raises: ValueError if there is none of that name.
        """
        if baseline not in self.baselines:
            raise ValueError(
                f"plan of {self.program.name!r} has no baseline {baseline!r}; it has "
                f"{', '.join(self.baselines) or 'none'}."
            )
        if self.latency_s == 0:
            return 1.0
        return self.baselines[baseline] / self.latency_s

    def __repr__(self) -> str:
        return (
            f"<Plan of {self.program.name!r} for {self.accelerator.name} by "
            f"{self.solver}: {report.format_s(self.latency_s)} predicted>"
        )

    def __str__(self) -> str:
        return report.table(self)

    def summary(self) -> str:
        """Latency, speedups and use of fast memory, in a few lines."""
        return report.summary(self)

    def explain(self, name: str) -> str:
        """Why a buffer is where it is, and what it would cost elsewhere.

        Args:
          name: of a buffer, as in the table ("fusion.12", "fusion.3{1}"), or of an op,
            for every buffer that it touches.
        Raises:
          ValueError: the program has neither of that name.
        """
        return explain_lib.explain(self, name)

    def annotated(self) -> str:
        """The program's own text with placements as attributes.

        HLO says it once, where a buffer is defined; StableHLO at every op, of all that
        the op touches. The attribute is `jax_malloc.placement` in both.

        Raises: ValueError if the program did not come from a text, or came without it.
        """
        text, source = self.program.text, self.program.source
        if text and source in ("hlo", "tpu"):
            from frontends import hlo

            return hlo.annotate(
                text, placements.by_definition(self.problem, self.mapping)
            )
        if text and source == "stablehlo":
            from frontends import stablehlo

            return stablehlo.annotate(
                text, placements.by_op(self.problem, self.mapping)
            )
        raise ValueError(
            f"program {self.program.name!r} (source {source!r}) is without the "
            "StableHLO or HLO text that it came from. Load the plan with program=, the "
            "program as its frontend gives it."
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan file's contents as plain JSON values; see `plan_file`."""
        return plan_file.encode(self)

    def to_json(self) -> str:
        """The plan file's text."""
        return plan_file.dumps(self.to_dict())

    @classmethod
    def from_json(
        cls, text: str, *, where: str = "plan", program: Program | None = None
    ) -> Plan:
        """The plan that `to_json` wrote.

        Args:
          text: JSON.
          where: what to call it in messages.
          program: the program that it is for; None takes the one in the file, which has
            all but the text that it came from.
        Raises:
          ValueError: naming `where`, if it is no plan of this version for this program,
            or one that breaks the rules.
        """
        fields = plan_file.decode(text, where=where, program=program)
        problem = problem_lib.build(fields["program"], fields["accelerator"])
        timeline = problem.evaluate(fields["mapping"])
        return cls(**fields, timeline=timeline)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan file, gzipped if `path` ends in .gz; all or nothing.

        Raises: OSError if it cannot be written.
        """
        path = os.path.abspath(path)
        data = self.to_json().encode()
        if path.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        descriptor, temporary = tempfile.mkstemp(
            dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}."
        )
        try:
            with os.fdopen(descriptor, "wb") as f:
                f.write(data)
            # mkstemp's mode is for the owner only; a plan is an ordinary file.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def load_plan(path: str | os.PathLike[str], program: Program | None = None) -> Plan:
    """Reads a plan file.

    Args:
      path: as `Plan.save` wrote it, gzipped or not.
      program: the program that it is for, if the plan is to have the text as well;
        None takes the one in the file.
    Raises:
      ValueError: naming the file, if it is damaged, no plan of this version for this
        program, or one that breaks the rules.
      OSError: it cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb") as f:
        data = f.read()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read as (gzipped) text: {error}. Save the plan again "
            "with Plan.save."
        ) from None
    return Plan.from_json(text, where=path, program=program)


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
