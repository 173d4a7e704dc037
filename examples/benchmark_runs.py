"""Runs of the benchmark: one solver on one program and machine, once; and many of them.

    jobs of one program ---> thread ---> worker process ---> a Run, or why there is none
    jobs of the next one        |            (its compiled games are kept for later)
                                +---> a new process, where one died

A worker makes a run twice where the first was cold: the solver's first in this process,
or one that compiled. Both times are kept; the latency is that of the second. Training
on a program compiles by its nature and is done once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax_malloc
from benchmark_programs import Source
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import generate, validator
from jax_malloc import problem as problem_lib
from jax_malloc.problem import Problem
from jax_malloc.solvers import SOLVERS, finetuned, milp

# In the place of a solver: the bound that linear programming proves.
LOWER_BOUND = "lower_bound"
# And the hybrid, improved by an agent that is trained on the program: what
# `jax_malloc.solve` does if asked for `finetune_s`.
FINETUNED = "finetuned"
_WITH_WEIGHTS = ("muzero", FINETUNED, "hybrid")  # solvers that the agent is part of
_COMPILE_EVENTS = "/jax/core/compile/"
_COLD_SHARE = 0.02  # of its time spent compiling makes a run a cold one
_MOST_REPEATS = 2  # of a cold run
_warm: set[str] = set()  # solvers that have run in this process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one job; seconds of latency are predicted, of wall measured.

    fast_bytes, usable_bytes: fast memory of the accelerator, and what plans may use of
      it. working_set_bytes: most bytes of the program alive at one time.
    time_limit_s: that the solver had; None, no limit.
    settings: all else that the run depends on.
    latency_s: of the mapping, or of the bound. all_slow_s, greedy_s, xla_s: of the
      baselines; greedy has no time limit, and XLA's own mapping may be unknown.
    wall_s: of the solver. cold_s: of the same run before, where that was a cold one.
    """

    program: str
    topology: str
    accelerator: str
    fast_bytes: int
    usable_bytes: int
    working_set_bytes: int
    solver: str
    time_limit_s: float | None
    seed: int
    settings: Mapping[str, str]
    ops: int
    accesses: int
    latency_s: float
    all_slow_s: float
    greedy_s: float
    xla_s: float | None
    wall_s: float
    cold_s: float | None

    @property
    def pressured(self) -> bool:
        """Whether the program cannot keep everything in fast memory at all times."""
        return self.working_set_bytes > self.usable_bytes

    @property
    def finetune_s(self) -> float | None:
        """Seconds of training in a finetuned run; None in others."""
        seconds = self.settings.get("finetune_s")
        return None if seconds is None else float(seconds)

    @property
    def key(self) -> tuple:
        """What must be the same for the run not to be made again."""
        return _key(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run to be made; fields as of `Run`.

    finetune_s: seconds of training, of a finetuned run; the time limit is the hybrid's.
    """

    source: Source
    accelerator: Accelerator
    solver: str
    time_limit_s: float | None
    seed: int
    label: str = ""
    finetune_s: float = 0.0

    @property
    def settings(self) -> dict[str, str]:
        """With digests of the accelerator's figures, the program, the weights."""
        settings = {
            "jax_malloc": jax_malloc.__version__,
            "label": self.label,
            "accelerator": _digest(repr(self.accelerator).encode()),
            "program": self.source.digest[:16],
        }
        if self.solver in _WITH_WEIGHTS:
            settings["weights"] = _weights_digest()
        if self.solver == FINETUNED:
            settings["finetune_s"] = f"{self.finetune_s:g}"
        return settings

    @property
    def key(self) -> tuple:
        """That of the run which it leads to."""
        return _key(
            self,
            program=self.source.name,
            topology=self.source.topology,
            accelerator=self.accelerator.name,
            fast_bytes=self.accelerator.fast.capacity_bytes,
        )

    def __str__(self) -> str:
        limit = "" if self.time_limit_s is None else f" in {self.time_limit_s:g} s"
        fast_mib = self.accelerator.fast.capacity_bytes / 2**20
        return (
            f"{self.source.name} on {self.accelerator.name}, {fast_mib:g} MiB, by "
            f"{self.solver}{limit}, seed {self.seed}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job led to no run."""

    job: Job
    message: str


def execute(job: Job) -> Run:
    """Makes one run, in this process.

    Raises:
      ValueError: the program cannot run on the accelerator.
      RuntimeError: the mapping is invalid.
    """
    prepared = _prepare(job.source, job.accelerator)
    cold_s = None
    for _ in range(1 + _MOST_REPEATS):
        with _compiling() as compile_s:
            start_s = time.monotonic()
            latency_s = _latency_s(job, prepared.problem)
            wall_s = time.monotonic() - start_s
        is_cold = job.solver not in _warm or sum(compile_s) > _COLD_SHARE * wall_s
        _warm.add(job.solver)
        if not is_cold or job.solver == FINETUNED:  # training always compiles
            break
        cold_s = wall_s if cold_s is None else cold_s
    program = prepared.problem.program
    return Run(
        program=job.source.name,
        topology=job.source.topology,
        accelerator=job.accelerator.name,
        fast_bytes=job.accelerator.fast.capacity_bytes,
        usable_bytes=job.accelerator.fast.usable_bytes,
        working_set_bytes=prepared.working_set_bytes,
        solver=job.solver,
        time_limit_s=job.time_limit_s,
        seed=job.seed,
        settings=job.settings,
        ops=len(program.ops),
        accesses=len(prepared.problem.access_op),
        latency_s=latency_s,
        all_slow_s=prepared.problem.all_slow_latency_s,
        greedy_s=prepared.greedy_s,
        xla_s=prepared.xla_s,
        wall_s=wall_s,
        cold_s=cold_s,
    )


def execute_all(jobs: Sequence[Job], processes: int) -> Iterator[Run | Failure]:
    """Makes runs as they come, those of one program one after another.

    Args:
      processes: at a time, each of them spawned, on cores of its own if there are
        enough; 0 makes the runs in this one.
    """
    groups: dict[Source, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.source, []).append(job)
    if processes == 0:
        for job in (job for group in groups.values() for job in group):
            yield _outcome(job, execute)
        return
    todo: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
    for group in groups.values():
        todo.put(group)
    done: queue.SimpleQueue[Run | Failure] = queue.SimpleQueue()
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(todo, done, stopping, own), daemon=True)
        for own in shares_of_cores(min(processes, len(groups)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            yield done.get()
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A problem, and what all its runs are compared with."""

    problem: Problem
    working_set_bytes: int
    greedy_s: float
    xla_s: float | None


@functools.lru_cache(maxsize=1)  # the jobs of one program and machine come together
def _prepare(source: Source, accelerator: Accelerator) -> _Prepared:
    program = source.load(accelerator)
    problem = problem_lib.build(
        program, accelerator, estimated_for=presets.get(source.topology)
    )
    greedy = SOLVERS["greedy"](problem, seed=0, deadline_s=None)
    compiler = problem.evaluate_compiler()
    return _Prepared(
        problem,
        generate.working_set_bytes(program),
        problem.evaluate(greedy).latency_s,
        None if compiler is None else compiler.latency_s,
    )


def working_set_share(source: Source, accelerator: Accelerator) -> float:
    """The most bytes alive at one time, over what plans may use of fast memory."""
    program = source.load(accelerator)
    return generate.working_set_bytes(program) / accelerator.fast.usable_bytes


def _latency_s(job: Job, problem: Problem) -> float:
    """Of what the job's solver finds, which is checked."""
    if job.solver == LOWER_BOUND:
        return milp.lower_bound_s(problem, time_limit_s=job.time_limit_s)
    limit_s = job.time_limit_s
    deadline_s = None if limit_s is None else time.monotonic() + limit_s
    solver = "hybrid" if job.solver == FINETUNED else job.solver
    mapping = SOLVERS[solver](problem, seed=job.seed, deadline_s=deadline_s)
    if job.solver == FINETUNED and job.finetune_s:
        mapping = finetuned.improve(
            problem, mapping, seed=job.seed, finetune_s=job.finetune_s
        )
    violations = validator.find_violations(problem, mapping)
    if violations:
        raise RuntimeError(
            f"{len(violations)} violations, the first: {violations[0]}. This is a bug "
            "of the solver."
        )
    return problem.evaluate(mapping).latency_s


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """A list that gets the seconds of whatever JAX and Numba compile meanwhile."""
    import jax.monitoring
    from numba.core import event as numba_event

    seconds: list[float] = []

    def listen(event: str, duration_s: float, **_: Any) -> None:
        if event.startswith(_COMPILE_EVENTS):
            seconds.append(duration_s)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with numba_event.install_timer("numba:compile", seconds.append):
            yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _work(
    todo: queue.SimpleQueue[list[Job]],
    done: queue.SimpleQueue[Run | Failure],
    stopping: threading.Event,
    cores: set[int],
) -> None:
    """Makes the runs of one program after another in a process of its own.

    Args:
      cores: that it keeps to, so that solvers with threads do not take those of others.
    """
    pool: concurrent.futures.Executor | None = None

    def in_process(job: Job) -> Run:
        nonlocal pool
        if pool is None:
            pool = concurrent.futures.ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(cores,),
            )
        return pool.submit(execute, job).result()

    while not stopping.is_set():
        try:
            group = todo.get_nowait()
        except queue.Empty:
            break
        for job in group:
            if stopping.is_set():
                break
            outcome = _outcome(job, in_process)
            done.put(outcome)
            if isinstance(outcome, Failure) and pool is not None:
                pool.shutdown()  # it may have died; the next job gets another
                pool = None
    if pool is not None:
        pool.shutdown()


def shares_of_cores(processes: int) -> list[set[int]]:
    """Cores for each process; no cores, if there are fewer or nobody can say."""
    if not (hasattr(os, "sched_getaffinity") and os.path.isdir("/proc/self/task")):
        return [set()] * processes
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < processes:
        return [set()] * processes
    return [set(cores[i::processes]) for i in range(processes)]


def _begin(cores: set[int]) -> None:
    """Keeps this process to some cores, if any.

    Ends it as soon as the one that started it is gone, even by a kill.
    """
    if cores:
        # All threads: importing NumPy has started those of its linear algebra.
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _outcome(job: Job, call: Callable[[Job], Run]) -> Run | Failure:
    """The run, or why there is none: the others go on whatever it is."""
    try:
        return call(job)
    except concurrent.futures.BrokenExecutor:
        return Failure(job=job, message="its process died; out of memory?")
    except Exception as error:
        return Failure(job=job, message=f"{type(error).__name__}: {error}")


def _key(made: Run | Job, **own: Any) -> tuple:
    """The values that tell runs apart; `own` those of fields of other names."""
    names = ("program", "topology", "accelerator", "fast_bytes", "solver")
    names += ("time_limit_s", "seed")
    values = [own[name] if name in own else getattr(made, name) for name in names]
    return (*values, tuple(sorted(made.settings.items())))


@functools.cache
def _weights_digest() -> str:
    """Of all weights that ship with the package."""
    weights = Path(jax_malloc.__file__).with_name("weights")
    files = sorted(path for path in weights.rglob("*") if path.is_file())
    return _digest(b"".join(path.read_bytes() for path in files))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
