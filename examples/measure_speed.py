"""How fast and how large jax_malloc itself is, measured on this machine.

    python examples/measure_speed.py
    python examples/measure_speed.py --rows=import,parse --hlo=dump.hlo.gz

Every start from nothing is a fresh process; peak memory is that of the process, as the
operating system counts it.
"""

import concurrent.futures
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import app, flags, logging

from accelerator_flag import AcceleratorParser, NameSerializer
from hwmodel.accelerator import Accelerator

# JAX and what needs it are imported by the functions that use them: a fresh process
# imports this module too, and should pay only for what its plan needs.

_ROWS = flags.DEFINE_list(
    "rows",
    ["import", "parse", "game", "solve"],
    "What to measure, comma-separated: import, parse, game, solve.",
)
_RUNS = flags.DEFINE_integer("runs", 3, "Runs that each median is taken of.", 1)
_HLO = flags.DEFINE_string(
    "hlo",
    None,
    "Scheduled HLO text to parse, may be gzipped; if not given, a training step is "
    "compiled for the CPU.",
)
_ACCESSES = flags.DEFINE_list(
    "accesses", ["300", "3000"], "Program sizes to solve, in accesses, comma-separated."
)
_GAME_ACCESSES = flags.DEFINE_integer(
    "game_accesses", 1000, "Accesses of the program that the game is played on.", 1
)
_GAMES = flags.DEFINE_integer("games", 64, "Games played side by side.", 1)
_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "Machine to plan for.",
    serializer=NameSerializer(),
)
_SOLVERS = flags.DEFINE_list(
    "solvers", ["greedy", "hybrid"], "To time, comma-separated."
)
_TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s", None, "Seconds per solver; no limit if not given.", 0
)
_PLOT = flags.DEFINE_string(
    "plot", None, "Picture of the solvers' seconds by program size; needs matplotlib."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of programs, games and solvers.", 0)

Row = tuple[str, str]  # what was measured, and the figure with its unit


def measure_imports(runs: int) -> Iterator[Row]:
    """Seconds to import jax_malloc, by itself and on top of what it builds on."""
    beneath, ours = "import jax, flax, mctx", "import jax_malloc"
    # Names are imported when they are first used; this uses every one.
    names = f"{ours}; [getattr(jax_malloc, name) for name in jax_malloc.__all__]"
    times_s: dict[str, list[float]] = {}
    # In turns, so that a load that comes and goes is on all of them alike.
    for _ in range(runs):
        for code in ("", beneath, ours, names, f"{beneath}; {names}"):
            start_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times_s.setdefault(code, []).append(time.perf_counter() - start_s)

    def more_s(code: str, than: str) -> float:
        pairs = zip(times_s[code], times_s[than], strict=True)
        return statistics.median(a - b for a, b in pairs)

    yield beneath, f"{more_s(beneath, ''):.2f} s"
    yield ours, f"{more_s(ours, ''):.2f} s"
    yield "every public name of it", f"{more_s(names, ''):.2f} s"
    after_s = more_s(f"{beneath}; {names}", beneath)
    yield "every public name, after jax, flax and mctx", f"{after_s:+.2f} s"


def measure_parser(path: str | None, runs: int) -> Iterator[Row]:
    """Seconds per MB to read HLO text.

    Args:
      path: of the text; None compiles one.
    """
    from frontends import hlo

    if path is None:
        name, text = "a training step compiled for the CPU", _compiled_text()
    else:
        name, text = path, hlo.read_text(path)
    megabytes = len(text.encode()) / 1e6
    parse_s = _median_s(lambda: hlo.from_text(text), runs)
    yield f"parse {name}", f"{parse_s:.2f} s for {megabytes:.2f} MB"
    yield "parse 1 MB of HLO text", f"{parse_s / megabytes:.2f} s"


def measure_game(
    accesses: int, games: int, accelerator: Accelerator, seed: int, runs: int
) -> Iterator[Row]:
    """Steps per second of games with random actions, played side by side.

    Args:
      accesses: about how many the program has.
      games: how many are played at once.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jax_malloc import board as board_lib
    from jax_malloc import game, replay
    from jax_malloc import problem as problem_lib

    program = program_with(accesses, seed)
    problem = problem_lib.build(program, accelerator)
    board = board_lib.build(problem)
    steps, length = int(board.num_accesses), len(board.access.op)
    rng = np.random.default_rng(seed)
    actions = jnp.asarray(
        rng.integers(game.NUM_ACTIONS, size=(games, length)), jnp.int32
    )
    slots = replay.slots_of(problem)

    def play():
        jax.block_until_ready(replay.play_many(board, actions, slots=slots))

    start_s = time.perf_counter()
    play()
    first_s = time.perf_counter() - start_s
    play_s = _median_s(play, runs)
    name = f"game, {steps} accesses, {games} side by side"
    yield name, f"{games * steps / play_s:,.0f} steps/s"
    yield f"{name}: compile", f"{max(first_s - play_s, 0):.1f} s"


def measure_solvers(
    sizes: Sequence[int],
    solvers: Sequence[str],
    accelerator: Accelerator,
    seed: int,
    time_limit_s: float | None,
    plot: str | None = None,
) -> Iterator[Row]:
    """Seconds of the first and of a later `solve`, and peak memory, in fresh processes.

    Args:
      sizes: programs to solve, in accesses.
      time_limit_s: given to each solver.
      plot: path of a picture of the later ones by size.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    spawn = multiprocessing.get_context("spawn")
    for program in (program_with(accesses, seed) for accesses in sizes):
        for solver in solvers:
            start_s = time.perf_counter()
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                job = pool.submit(
                    solve_twice, program, solver, accelerator, seed, time_limit_s
                )
                second_s, peak_bytes = job.result()
                first_s = time.perf_counter() - start_s - second_s
            accesses = sum(1 for _ in program.accesses())
            points.setdefault(solver, []).append((accesses, second_s))
            name = f"{solver}, {accesses} accesses"
            yield f"{name}: a fresh process to its first plan", f"{first_s:.2f} s"
            yield f"{name}: second plan", f"{second_s:.2f} s"
            yield f"{name}: peak memory", f"{peak_bytes / 2**20:.0f} MiB"
    if plot is not None:
        save_plot(points, plot)


def save_plot(points: dict[str, list[tuple[int, float]]], path: str) -> None:
    """Draws seconds by accesses, and for each solver n log n through its first point.

    Args:
      points: by solver, `(accesses, seconds)`.
      path: of the picture; its ending says of which kind.
    """
    import math

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for solver, mine in points.items():
        accesses, seconds = zip(*sorted(mine), strict=True)
        (line,) = axes.plot(accesses, seconds, "o-", label=solver)
        unit_s = seconds[0] / (accesses[0] * math.log(accesses[0]))
        growth = [unit_s * n * math.log(n) for n in accesses]
        label = f"n log n from {solver}'s first"
        axes.plot(accesses, growth, ":", color=line.get_color(), label=label)
    axes.set(xscale="log", yscale="log", xlabel="accesses", ylabel="seconds (measured)")
    axes.legend()
    figure.savefig(path)


def solve_twice(
    program,
    solver: str,
    accelerator: Accelerator,
    seed: int,
    time_limit_s: float | None,
) -> tuple[float, int]:
    """Seconds of the second of two solves, and the process's peak bytes."""
    import jax_malloc

    for _ in range(2):
        start_s = time.perf_counter()
        jax_malloc.solve(
            program, accelerator, solver=solver, seed=seed, time_limit_s=time_limit_s
        )
        solve_s = time.perf_counter() - start_s
    return solve_s, _peak_bytes()


def _peak_bytes() -> int:
    """Most memory that this process has had."""
    # On Linux, ru_maxrss of a process that was started by a larger one is the larger
    # one's; the kernel's own record of this program alone is elsewhere.
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="utf-8") as f:
            fields = dict(line.split(":", 1) for line in f)
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


def program_with(accesses: int, seed: int):
    """A random training step with about so many accesses."""
    from jax_malloc import generate

    num_ops = accesses // 4 + 1
    for _ in range(4):
        program = generate.random_program(
            seed, num_ops=num_ops, family="transformer", training=True, pressure=2.0
        )
        found = sum(1 for _ in program.accesses())
        num_ops = max(1, round(num_ops * accesses / found))
    return program


def _compiled_text() -> str:
    import jax

    import model_zoo

    step, arguments = model_zoo.transformer(causal=True, training=True)
    return jax.jit(step).lower(*arguments).compile().as_text()


def _median_s(call, runs: int) -> float:
    times_s = []
    for _ in range(runs):
        start_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    seed, accelerator, runs = _SEED.value, _ACCELERATOR.value, _RUNS.value
    measures = {
        "import": lambda: measure_imports(runs),
        "parse": lambda: measure_parser(_HLO.value, runs),
        "game": lambda: measure_game(
            _GAME_ACCESSES.value, _GAMES.value, accelerator, seed, runs
        ),
        "solve": lambda: measure_solvers(
            [int(n) for n in _ACCESSES.value],
            _SOLVERS.value,
            accelerator,
            seed,
            _TIME_LIMIT_S.value,
            _PLOT.value,
        ),
    }
    unknown = set(_ROWS.value) - measures.keys()
    if unknown:
        raise app.UsageError(
            f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(measures)}"
        )
    from jax_malloc import report

    table = report.text_table("measured on this machine", "")
    for name in _ROWS.value:
        for row in measures[name]():
            table.add_row(*row)
        table.add_section()
    print(report.plain_text(table))


if __name__ == "__main__":
    app.run(main)
