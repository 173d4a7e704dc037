"""The four commands: their flags, and what they do."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from jax_malloc import planner, report
from jax_malloc import sweep as sweep_lib
from jax_malloc.cli import inputs, output
from jax_malloc.plan import Plan
from jax_malloc.report import format_s
from jax_malloc.solvers import SOLVERS

_QUANTITY = re.compile(
    r"([\d.]+(?:e[+-]?\d+)?)\s*([KMGT]?)(i?)B?(?:/s)?", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One of them.

    usage: what follows its name. about: a sentence.
    flags: makes its flags, none of them parsed yet.
    run: takes the parsed flags and the positional arguments.
    num_arguments: least and most of these.
    """

    usage: str
    about: str
    flags: Callable[[], flags.FlagValues]
    run: Callable[[flags.FlagValues, Sequence[str]], None]
    num_arguments: tuple[int, float]


class _Quantities(flags.ArgumentParser):
    """A list of numbers, with units if wanted: "64MiB,128MiB", "400e9,819GB/s"."""

    syntactic_help = "a list of numbers, with units such as MiB or GB/s if wanted"

    def parse(self, argument: str | Sequence[float]) -> list[float]:
        if not isinstance(argument, str):
            return list(argument)
        values = []
        for word in argument.split(","):
            match = _QUANTITY.fullmatch(word.strip())
            if match is None:
                raise ValueError(f"{word!r} is no number of bytes, such as 64MiB")
            base = 1024 if match[3] else 1000
            scale = base ** " KMGT".index(match[2].upper() or " ")
            values.append(float(match[1]) * scale)
        return values

    def flag_type(self) -> str:
        return "comma separated list of numbers"


def _input_flags() -> flags.FlagValues:
    """What every command takes."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow the input
    flags.DEFINE_string(
        "xla",
        None,
        "The same program compiled with memory space assignment on, where the input is "
        "HLO text with it off: adds XLA's mapping and its second estimates.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "shapes",
        None,
        "Arguments of module:function, such as 'f32[128,512],s32[]'.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "lowering",
        None,
        "How module:function becomes a program, as for jax_malloc.optimize.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "accelerator",
        "tpu_v5e",
        "Machine to plan for: a preset, or a .json or .toml file.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", 0, "Of the solvers' random choices.", 0, flag_values=values
    )
    flags.DEFINE_float(
        "time_limit_s", None, "Seconds for each plan.", 0, flag_values=values
    )
    flags.DEFINE_string(
        "output",
        None,
        "File to write to, in place of the terminal.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format",
        None,
        output.FORMATS,
        "Of the answer; by default what --output ends in, or a table.",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    return values


def _solver_flags(default: str) -> flags.FlagValues:
    values = _input_flags()
    flags.DEFINE_string(
        "solver",
        default,
        f"One of {', '.join(SOLVERS)}; or {planner.COMPILER}, the compiler's mapping.",
        flag_values=values,
    )
    return values


def _explain_flags() -> flags.FlagValues:
    values = _solver_flags("hybrid")
    flags.DEFINE_integer(
        "top", 10, "Without a name: how many of the worst ops.", 1, flag_values=values
    )
    return values


def _compare_flags() -> flags.FlagValues:
    values = _input_flags()
    flags.DEFINE_list(
        "solvers", ["greedy", "hybrid"], "To compare.", flag_values=values
    )
    return values


def _whatif_flags() -> flags.FlagValues:
    values = _solver_flags("greedy")
    flags.DEFINE(
        _Quantities(),
        "fast_capacity_bytes",
        None,
        "Capacities of fast memory to try, such as 64MiB,128MiB.",
        flag_values=values,
    )
    flags.DEFINE(
        _Quantities(),
        "slow_bandwidth",
        None,
        "Bandwidths of slow memory to try, such as 400GB/s,819GB/s.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "plot", None, "Image to draw the curves to (.png, .svg).", flag_values=values
    )
    return values


def _load(values: flags.FlagValues, spec: str) -> Any:
    return inputs.load(
        spec,
        xla=values.xla,
        shapes=values.shapes,
        accelerator=values.accelerator,
        lowering=values.lowering,
    )


def _solve(values: flags.FlagValues, program: Any, solver: str) -> Plan:
    with output.progress(f"planning {program.name} with {solver}"):
        return planner.solve(
            program,
            values.accelerator,
            solver=solver,
            seed=values.seed,
            time_limit_s=values.time_limit_s,
        )


def _planned(values: flags.FlagValues, spec: str) -> Plan:
    """A saved plan as it is, unless a solver is asked for; a plan of anything else."""
    planner.check_solver(values.solver)
    given = _load(values, spec)
    if isinstance(given, Plan) and not values["solver"].present:
        return given
    return _solve(values, inputs.as_program(given), values.solver)


def _plan(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    form, path = output.choose_format(values.format, values.output), values.output
    if form == "html" and path is None:
        raise flags.Error("--format=html needs --output, the page to write.")
    plan = _planned(values, arguments[0])
    if form == "json" and path is not None:
        plan.save(path)
        output.wrote(path)
    elif form == "html":
        plan.to_html(path)
        output.wrote(path)
    else:
        output.write(plan.to_json() if form == "json" else str(plan), path)


def _explain(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    form = output.choose_format(values.format, values.output)
    plan, names = _planned(values, arguments[0]), arguments[1:]
    if names:
        answers = [plan.explain(name) for name in names]
        text = "\n\n".join(answers)
        body = {name: a.to_dict() for name, a in zip(names, answers, strict=True)}
    else:
        peak, top = plan.peak(), plan.top(values.top)
        text = f"{plan.summary()}\n\n{peak}\n\n{top}"
        body = {"peak": peak.to_dict(), "top": top.to_dict()}
    output.write(output.render(form, text, body, f"{plan!r}"), values.output)


def _compare(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    form = output.choose_format(values.format, values.output)
    for solver in values.solvers:
        planner.check_solver(solver)
    given = [_load(values, spec) for spec in arguments]
    if len(given) == 2:
        if not all(isinstance(plan, Plan) for plan in given):
            raise ValueError(
                "two inputs are compared if both are saved plans; save them with "
                "'plan --output=a.json', or compare --solvers on one program."
            )
        difference = given[0].diff(given[1])
        text, body = str(difference), difference.to_dict()
    else:
        program = inputs.as_program(given[0])
        solvers = list(dict.fromkeys(values.solvers))
        plans = [_solve(values, program, solver) for solver in solvers]
        body = _compared(plans)
        text = _comparison(body)
    output.write(output.render(form, text, body, "comparison"), values.output)


def _compared(plans: Sequence[Plan]) -> dict[str, Any]:
    """A row per baseline and plan, as plain JSON values."""
    first = plans[0]
    solved = {p.solver for p in plans} - {planner.COMPILER}
    rows = [
        {"name": name, "latency_s": latency_s, "planning_s": None}
        for name, latency_s in first.baselines.items()
        if name not in solved
    ]
    for p in plans:
        planning_s = None if p.wall_s is None else p.wall_s[p.solver]
        name = p.solver if p.solver != planner.COMPILER else "xla, packed anew"
        rows.append({"name": name, "latency_s": p.latency_s, "planning_s": planning_s})
    all_slow_s = first.baselines["all_slow"]
    for row in rows:
        latency_s = row["latency_s"]
        row["speedup"] = all_slow_s / latency_s if latency_s else 1.0
    return {
        "program": first.program.name,
        "accelerator": first.accelerator.name,
        "rows": rows,
    }


def _comparison(body: dict[str, Any]) -> str:
    best_s = min(row["latency_s"] for row in body["rows"])
    table = report.text_table("solver", "latency", "speedup", "over best", "planned in")
    for row in body["rows"]:
        behind = row["latency_s"] / best_s - 1 if best_s else 0.0
        planning_s = row["planning_s"]
        table.add_row(
            row["name"],
            format_s(row["latency_s"]),
            f"{row['speedup']:.3f}x",
            f"{behind:+.2%}",
            "" if planning_s is None else format_s(planning_s),
        )
    return (
        f"{body['program']!r} for {body['accelerator']}\n\n{report.plain_text(table)}\n"
        "latency: predicted; speedup: over all in slow memory. planned in: measured."
    )


def _whatif(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    form = output.choose_format(values.format, values.output)
    output.check_writable(values.plot)
    planner.check_solver(values.solver)
    axes = sweep_lib.new_axes() if values.plot else None
    capacities = values.fast_capacity_bytes
    program = inputs.as_program(_load(values, arguments[0]))
    with output.progress(f"planning variations of {values.accelerator}") as step:
        answer = sweep_lib.what_if(
            program,
            values.accelerator,
            fast_capacity_bytes=capacities and [int(c) for c in capacities],
            slow_bandwidth=values.slow_bandwidth,
            solver=values.solver,
            seed=values.seed,
            time_limit_s=values.time_limit_s,
            progress=step,
        )
    if axes is not None:
        answer.plot(axes).figure.savefig(values.plot)
        output.wrote(values.plot)
    text = output.render(form, str(answer), answer.to_dict(), "what if")
    output.write(text, values.output)


_INPUT = "INPUT"
COMMANDS = {
    "plan": Command(
        usage=f"{_INPUT} [flags]",
        about="Plan a program and print the plan, or show a saved one.",
        flags=lambda: _solver_flags("hybrid"),
        run=_plan,
        num_arguments=(1, 1),
    ),
    "explain": Command(
        usage=f"{_INPUT} [NAME...] [flags]",
        about="Why buffers and ops are where they are; without a name, the peak of "
        "fast memory and the ops that lose most.",
        flags=_explain_flags,
        run=_explain,
        num_arguments=(1, float("inf")),
    ),
    "compare": Command(
        usage=f"{_INPUT} [flags], or PLAN PLAN",
        about="Solvers on one program, side by side; or what moved between two plans.",
        flags=_compare_flags,
        run=_compare,
        num_arguments=(1, 2),
    ),
    "whatif": Command(
        usage=f"{_INPUT} [flags]",
        about="Predicted latency with more, less or faster memory, the knee marked.",
        flags=_whatif_flags,
        run=_whatif,
        num_arguments=(1, 1),
    ),
}


def check_output(values: flags.FlagValues) -> None:
    """Raises ValueError if --output cannot be written."""
    if values.output is not None:
        output.check_writable(os.fspath(values.output))
