"""How close `xla_msa` comes to the real memory space assignment of the TPU compiler.

For each program: predicted latency under XLA's own mapping and under that of `xla_msa`,
the same model for both, stalls included; their ratio; and the share that both place
alike: of buffers (every access of them), of accesses, and of bytes moved.

python examples/xla_msa_fidelity.py --hlo=resnet.slow.hlo.gz,gpt2.slow.hlo.gz
python examples/xla_msa_fidelity.py --programs=mixer,mlp/train
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags, logging
from rich import box
from rich.console import Console
from rich.table import Table

import model_zoo
import pressured_programs
from accelerator_flag import AcceleratorParser, NameSerializer
from frontends import hlo
from frontends.program import Program
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib
from jax_malloc import report
from jax_malloc.solvers import xla_msa

PROGRAMS = {**pressured_programs.PRESSURED, **model_zoo.ZOO}
# Of a program's ops that must be in both of its texts for them to be taken as a pair.
_MIN_SHARED_OPS = 0.75

_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "What the programs were compiled for, or are to be.",
    serializer=NameSerializer(),
)
_HLO = flags.DEFINE_list(
    "hlo",
    [],
    "Programs: name.slow.hlo.gz, compiled without memory space assignment, with "
    "name.xla.hlo.gz, compiled with it, beside each.",
)
_PROGRAMS = flags.DEFINE_list(
    "programs", [], "Programs to compile, which needs libtpu; comma-separated."
)
flags.register_validator(
    "programs",
    lambda names: set(names) <= set(PROGRAMS),
    message=f"choose from {', '.join(PROGRAMS)}",
)
_PRESET = flags.DEFINE_enum(
    "preset", "libtpu", list(xla_msa.PRESETS), "Settings of xla_msa."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One program.

    xla_s, msa_s: predicted latency under XLA's mapping and under ours.
    buffers, accesses, touched: shares placed alike, in [0, 1].
    wall_s: measured seconds that ours took to make.
    """

    name: str
    xla_s: float
    msa_s: float
    buffers: float
    accesses: float
    touched: float
    wall_s: float

    @property
    def ratio(self) -> float:
        return self.msa_s / self.xla_s


def compare(
    program: Program, accelerator: Accelerator, options: xla_msa.Options
) -> Fidelity:
    """Both mappings of a program that carries its compiler's."""
    problem = problem_lib.build(program, accelerator)
    start_s = time.perf_counter()
    mapping = xla_msa.solve(problem, options=options)
    wall_s = time.perf_counter() - start_s
    compiler = program.compiler_mapping.fast_accesses
    pairs = zip(problem.access_op.tolist(), problem.access_buffer.tolist(), strict=True)
    theirs = np.array([pair in compiler for pair in pairs], bool)
    alike = problem.fast_mask(mapping) == theirs
    different = np.unique(problem.access_buffer[~alike])
    used = np.unique(problem.access_buffer)
    return Fidelity(
        name=program.name,
        xla_s=problem.evaluate_compiler().latency_s,
        msa_s=problem.evaluate(mapping).latency_s,
        buffers=1 - len(different) / len(used),
        accesses=float(alike.mean()),
        touched=float(problem.access_bytes[alike].sum() / problem.access_bytes.sum()),
        wall_s=wall_s,
    )


def paired(slow_text: str, xla_text: str, name: str) -> Program:
    """The program of two texts, or of the second alone where the schedules differ.

    Memory space assignment changes the rest of a compile now and then. The program is
    then read from the text with it, and carries one cycle estimate per op, not two.
    """
    program = hlo.from_text(slow_text, xla_text=xla_text, name=name)
    alone = hlo.from_text(xla_text, name=name)
    shared = program.op_index.keys() & alone.op_index.keys()
    if len(shared) >= _MIN_SHARED_OPS * len(program.ops):
        return program
    logging.warning("%s: the two texts differ; the one of XLA's mapping is read.", name)
    return alone


def programs(
    paths: Sequence[str], names: Sequence[str], topology: str
) -> Iterator[Program]:
    """Programs with the compiler's own mapping, from files and from libtpu."""
    for path in paths:
        texts = hlo.read_text(path), hlo.read_text(path.replace(".slow.", ".xla."))
        yield paired(*texts, path.rpartition("/")[2].partition(".slow.")[0])
    if names:
        from frontends import tpu  # optional: it needs libtpu

        for name in names:
            function, arguments = PROGRAMS[name]()
            lowering = tpu.lower(function, *arguments, name=name)
            options = (tpu.msa_off(topology), {})
            texts = tpu.compile_texts(
                lowering, topology=topology, compiler_options=options
            )
            yield paired(*texts, name)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _HLO.value and not _PROGRAMS.value:
        raise app.UsageError("give --hlo or --programs.")
    accelerator = _ACCELERATOR.value
    console = Console(highlight=False)
    table = Table(
        title=f"xla_msa against XLA on {accelerator.name}, predicted",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("program", overflow="fold", min_width=14)
    for heading in ("XLA", "xla_msa", "ratio", "buffers", "accesses", "bytes", "took"):
        table.add_column(heading, justify="right", no_wrap=True)
    ratios = []
    for program in programs(_HLO.value, _PROGRAMS.value, accelerator.name):
        if program.compiler_mapping is None:
            logging.warning("%s carries no mapping of XLA's: skipped.", program.name)
            continue
        row = compare(program, accelerator, xla_msa.PRESETS[_PRESET.value])
        ratios.append(row.ratio)
        table.add_row(
            row.name,
            report.format_s(row.xla_s),
            report.format_s(row.msa_s),
            f"{row.ratio:.4f}",
            *(f"{share:.1%}" for share in (row.buffers, row.accesses, row.touched)),
            f"{row.wall_s:.2f} s",
        )
    if not ratios:
        raise app.UsageError("no program carries a mapping of XLA's.")
    logs = np.log(ratios)
    table.add_section()
    table.add_row("geometric mean", "", "", f"{np.exp(logs.mean()):.4f}")
    table.add_row("mean distance", "", "", f"{np.exp(abs(logs).mean()) - 1:.2%}")
    console.print(table)


if __name__ == "__main__":
    app.run(main)
