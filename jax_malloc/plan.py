"""Plan: a mapping with what it is for and what it is worth, as a person holds it."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import zlib
from collections.abc import Mapping as MappingType
from typing import TYPE_CHECKING, Any

from frontends.program import Program
from hwmodel.accelerator import Accelerator
from hwmodel.simulator import Timeline
from jax_malloc import diff as diff_lib
from jax_malloc import explain as explain_lib
from jax_malloc import files, placements, plan_file, report, validator
from jax_malloc import peak as peak_lib
from jax_malloc import problem as problem_lib
from jax_malloc import top as top_lib
from jax_malloc.diff import PlanDiff
from jax_malloc.explain import Explanation
from jax_malloc.mapping import Mapping
from jax_malloc.peak import Peak
from jax_malloc.problem import Problem
from jax_malloc.top import Top

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    def explain(self, name: str) -> Explanation:
        """Why a buffer is where it is, and what it would cost elsewhere.

        Args:
          name: of a buffer, as in the table ("fusion.12", "fusion.3{1}"), or of an op,
            also for what it touches in slow memory.
        Returns:
          The text, a `str`, with the records behind it: `rule`, what decided, and
          `forced`, the mapping with the best change, and what that gains.
        Raises:
          ValueError: the program has neither of that name.
        """
        return explain_lib.explain(self, name)

    def peak(self) -> Peak:
        """What is in fast memory when most of it is taken."""
        return peak_lib.peak(self)

    def top(self, n: int = 10, by: str = "loss") -> Top:
        """The n ops that lose most to slow memory.

        Args:
          n: at most so many.
          by: "loss" (with waits for copies), "stall", "latency" or "slow_bytes".
        Raises:
          ValueError: there is no such figure, or `n` is negative.
        """
        return top_lib.top(self, n, by)

    def diff(self, other: Plan) -> PlanDiff:
        """What another plan of the program has elsewhere, and what that gains.

        Raises: ValueError if it is of another program or machine.
        """
        return diff_lib.diff(self, other)

    def with_mapping(self, mapping: Mapping, solver: str = "by hand") -> Plan:
        """The plan with another mapping, such as `explain(name).forced.mapping`.

        Raises: ValueError if the mapping breaks a rule.
        """
        violations = validator.find_violations(self.problem, mapping)
        if violations:
            raise ValueError(
                f"the mapping breaks the rules (violations: {len(violations)}): "
                f"{violations[0]}"
            )
        timeline = self.problem.evaluate(mapping)
        return dataclasses.replace(
            self,
            mapping=mapping,
            solver=solver,
            latency_s=timeline.latency_s,
            timeline=timeline,
            wall_s=None,
        )

    def plot(self, ax: Axes | None = None, *, color_by: str = "kind") -> Axes:
        """Draws the memory map: time across, offset up, a rectangle per stay.

        Below it, what bounds each op, and the copies; stalls are hatched. A rectangle
        is paler while its bytes are on their way. All times are predicted.

        Args:
          ax: matplotlib axes to draw into; None makes a figure.
          color_by: "kind" of the buffer (parameter, activation, gradient...), or
            "saved", the latency that each stay saves by itself.
        Returns:
          The axes; save the picture with `ax.figure.savefig`.
        Raises:
          ValueError: `color_by` is neither.
          RuntimeError: matplotlib is not installed (`pip install jax_malloc[viz]`).
        """
        from jax_malloc.viz import plot  # matplotlib is an extra

        return plot.plot(self, ax, color_by=color_by)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a report to explore in a browser: one file that needs no network.

        Memory map, ops, copies and scopes over one time axis, a table of the buffers
        and the ops by scope, all linked and searchable.

        Raises:
          OSError: naming `path`, if it cannot be written.
          RuntimeError: Bokeh is not installed (`pip install jax_malloc[viz]`).
        """
        from jax_malloc.viz import page  # Bokeh is an extra

        files.write(path, page.to_html(self).encode())

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Writes the predicted timeline as a trace for ui.perfetto.dev.

        Ops, named scopes, stalls, the copies of each queue, and fast memory in use as a
        counter; gzipped if `path` ends in .gz.

        Raises: OSError, naming `path`, if it cannot be written.
        """
        from jax_malloc.viz import perfetto

        files.write(path, perfetto.to_json(self).encode())

    def _repr_html_(self) -> str:
        """What a notebook shows: summary, small map, link to the report of `to_html`.

        The report is written on first display, below `jax_malloc_reports/` in the
        working folder, from where the notebook server serves it.
        """
        from jax_malloc.viz import notebook

        return notebook.to_html(self)

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

    def compiler_options(self) -> dict[str, str]:
        """Hints for the TPU compiler, for `jax.jit(f, compiler_options=...)`.

        The order in which its memory space assignment should serve the buffers, and
        where prefetches should start. It is steered by them, not bound, and may do
        worse than without: `jax_malloc.tpu.steer` tries before it keeps any.

        Raises: ValueError if the program does not come from compiled TPU text, whose
          names the hints go by.
        """
        from jax_malloc.steering import prefetches, request

        if not self.program.text or self.program.source not in ("hlo", "tpu"):
            raise ValueError(
                f"program {self.program.name!r} (source {self.program.source!r}) is "
                "without the compiled HLO text whose names the hints go by. Make it "
                'with frontends.tpu.compile or lowering="tpu"; load its plan with '
                "program=."
            )
        asked = request.of_mapping(self.problem, self.mapping)[0]
        starts = tuple(prefetches.of_mapping(self.program, self.mapping))
        asked = dataclasses.replace(asked, prefetches=starts)
        return asked.compiler_options(self.program)

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
        files.write(path, self.to_json().encode())


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
