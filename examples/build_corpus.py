"""Compiles the corpus: every program for every topology, as files and a manifest.

    python examples/build_corpus.py --topologies=tpu_v5e,tpu_v6e,tpu_v4

Needs libtpu, and no TPU: pip install "jax_malloc[tpu]". Takes about half an hour per
topology on two cores. The manifest is written after every program and what it has is
not made again, so that a build that was killed goes on. A program that does not compile
is reported at the end and stops no other.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import rich.console
import rich.progress
import rich.table
from absl import app, flags, logging

import corpus
from corpus_programs import PROGRAMS, CorpusProgram
from frontends import tpu, tpu_pool
from hwmodel import presets
from jax_malloc import report

_PROGRAMS = flags.DEFINE_list(
    "programs", list(PROGRAMS), "Names or families, comma-separated."
)
flags.register_validator(
    "programs",
    lambda names: all(_chosen([name]) for name in names),
    message=f"choose from {', '.join(PROGRAMS)}, or families of them",
)
_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["tpu_v5e", "tpu_v6e", "tpu_v4"], "Names, comma-separated."
)
flags.register_validator(
    "topologies",
    lambda names: bool(names) and set(names) <= set(tpu.TOPOLOGIES),
    message=f"choose from {', '.join(tpu.TOPOLOGIES)}",
)
_OUTPUT = flags.DEFINE_string(
    "output", str(corpus.DIRECTORY), "Directory of the manifest and the programs."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Of compiled texts; else the user's."
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    2,
    "Programs in work at a time; they share the compiler's processes, at most two.",
    1,
)


@functools.cache
def lower(name: str) -> tpu.Lowering:
    """A program of the corpus, lowered once for all topologies."""
    f, arguments = PROGRAMS[name].make()
    return tpu.lower(f, *arguments, name=name)


def build(
    program: CorpusProgram, lowering: tpu.Lowering, topology: str, directory: Path
) -> corpus.Entry:
    """Compiles a program and writes its file.

    Raises:
      RuntimeError: the compiler refused it, or died.
    """
    compiled = tpu.compile(
        lowering, topology=topology, cache_dir=_CACHE_DIR.value, name=program.name
    )
    file = f"programs/{topology}/{program.name.replace('/', '-')}.json.gz"
    path = directory / file
    path.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(path)
    data = path.read_bytes()
    return corpus.Entry(
        name=program.name,
        family=program.family,
        split=program.split,
        topology=topology,
        file=file,
        file_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        setting=program.setting,
        versions=versions(),
        ops=len(compiled.ops),
        accesses=sum(1 for _ in compiled.accesses()),
        touched_bytes=round(
            sum(op.count * sum(op.touched_bytes().values()) for op in compiled.ops)
        ),
        peak_bytes=corpus.peak_bytes(compiled),
        fast_bytes=presets.get(topology).fast.capacity_bytes,
        directory=directory,
    )


def versions() -> dict[str, str]:
    """Of the packages that decide what a compiled program is."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def is_up_to_date(entry: corpus.Entry | None, program: CorpusProgram) -> bool:
    """Whether an entry is of this program as it is now, and its file is there."""
    return (
        entry is not None
        and entry.path.exists()
        and entry.setting == program.setting
        and entry.versions == versions()
        and (entry.family, entry.split) == (program.family, program.split)
    )


def build_all(
    tasks: Sequence[tuple[CorpusProgram, str]], directory: Path, jobs: int
) -> Iterator[tuple[CorpusProgram, str, corpus.Entry | Exception]]:
    """Builds programs, `jobs` at a time, each for a topology.

    Yields:
      The program, its topology, and its entry or what went wrong, in order of ends.
    """
    with (
        concurrent.futures.ThreadPoolExecutor(jobs) as threads,
        _ended_with_the_compiler(),
    ):
        running: dict[concurrent.futures.Future, tuple[CorpusProgram, str]] = {}

        def ended(return_when: str) -> Iterator:
            for future in concurrent.futures.wait(running, None, return_when).done:
                yield *running.pop(future), future.exception() or future.result()

        for program, topology in tasks:
            if len(running) >= jobs:
                yield from ended(concurrent.futures.FIRST_COMPLETED)
            try:
                lowering = lower(
                    program.name
                )  # changes JAX's settings: not in a thread
            except ValueError as error:
                yield program, topology, error
                continue
            future = threads.submit(build, program, lowering, topology, directory)
            running[future] = program, topology
        yield from ended(concurrent.futures.ALL_COMPLETED)


def summary(entries: Sequence[corpus.Entry]) -> rich.table.Table:
    """A row per topology and split."""
    table = report.text_table(
        "topology", "split", "programs", "beyond fast memory", "accesses", "MiB on disk"
    )
    groups: dict[tuple[str, str], list[corpus.Entry]] = {}
    for entry in in_order(entries):
        groups.setdefault((entry.topology, entry.split), []).append(entry)
    for (topology, split), group in groups.items():
        beyond = sum(entry.peak_bytes > entry.fast_bytes for entry in group)
        accesses = sorted(entry.accesses for entry in group)
        table.add_row(
            topology,
            split,
            str(len(group)),
            str(beyond),
            f"{accesses[0]} to {accesses[-1]}",
            f"{sum(entry.file_bytes for entry in group) / 2**20:.2f}",
        )
    return table


def in_order(entries: Iterable[corpus.Entry]) -> list[corpus.Entry]:
    """Entries by topology, then as the corpus lists them."""
    places = {name: place for place, name in enumerate(PROGRAMS)}
    return sorted(
        entries,
        key=lambda e: (
            list(tpu.TOPOLOGIES).index(e.topology),
            places.get(e.name, len(places)),
            e.name,
        ),
    )


def _chosen(names: Sequence[str]) -> list[CorpusProgram]:
    """The programs of these names or families."""
    return [p for p in PROGRAMS.values() if {p.name, p.family} & set(names)]


@contextlib.contextmanager
def _ended_with_the_compiler() -> Iterator[None]:
    """Ends compiles when interrupted, so that nobody waits for them."""
    try:
        yield
    except KeyboardInterrupt:
        tpu_pool.shared().close()
        raise


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    if not tpu.is_available():
        sys.exit('libtpu is not installed: pip install "jax_malloc[tpu]"')
    directory = Path(_OUTPUT.value)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        built = {(e.name, e.topology): e for e in corpus.read(directory)}
    except ValueError as error:
        sys.exit(str(error))
    tasks = [
        (program, topology)
        for topology in _TOPOLOGIES.value
        for program in _chosen(_PROGRAMS.value)
        if not is_up_to_date(built.get((program.name, topology)), program)
    ]
    failed = []
    columns = (
        *rich.progress.Progress.get_default_columns()[:2],
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as progress:
        bar = progress.add_task("programs", total=len(tasks))
        start_s = time.perf_counter()
        for program, topology, result in build_all(tasks, directory, _JOBS.value):
            progress.advance(bar)
            what = f"{program.name} on {topology}"
            if isinstance(result, Exception):
                failed.append(f"{what}: {result}")
                progress.console.print(f"[red]{what} failed[/]", highlight=False)
                continue
            built[program.name, topology] = result
            corpus.write(in_order(built.values()), directory)
            progress.console.print(
                f"{time.perf_counter() - start_s:6.0f} s  {what}: {result.ops} ops, "
                f"{result.accesses} accesses, working set of "
                f"{result.peak_bytes / 2**20:.0f} MiB",
                highlight=False,
                soft_wrap=True,
            )
    print(report.plain_text(summary(list(built.values()))))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    app.run(main)
