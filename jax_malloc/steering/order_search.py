"""Local search over requests, against a simulation of the compiler's own solver."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections import abc
from collections.abc import Callable, Collection, Iterable

import numpy as np

from frontends.program import Program
from hwmodel import simulator
from jax_malloc.problem import Problem
from jax_malloc.solvers.xla_msa import assignment
from jax_malloc.solvers.xla_msa.options import Options
from jax_malloc.steering.op_times import compiler_fast
from jax_malloc.steering.request import Request

# Temperature of the annealing, as a share of the latency, from first to last step.
_HOT, _COLD = 3e-3, 1e-4
# Settings tried beside orders; the simulation follows these well. The compiler's other
# limits were never seen to bind.
KNOBS = {
    "max_overlap_ratio": (2.0, 4.0, 16.0, 32.0),
    "preferred_overlap_ratio": (1.0, 4.0, 8.0),
    "min_overlap_ratio": (0.5, 1.5),
    "max_cross_program_prefetches": (0, 4, 16),
    "inefficient_use_to_copy_ratio": (0.0, 1.0),
}
_KNOB_SHARE = 0.04
# Share of all accessed bytes by which two simulations may differ, for the compiler to
# be expected to differ from both alike.
_MAX_DISTANCE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """A request and what should come of it.

    fast: `[M]` bool, accesses that the compiler should serve from fast memory.
    copies: by buffer id, what it should move.
    latency_s: of that; 0 until somebody has timed it.
    """

    request: Request
    fast: np.ndarray
    copies: abc.Mapping[int, tuple[simulator.Copy, ...]]
    latency_s: float = 0.0

    @property
    def key(self) -> bytes:
        """Equal for those that serve the same accesses from fast memory."""
        return self.fast.tobytes()

    @property
    def all_copies(self) -> list[simulator.Copy]:
        return list(itertools.chain.from_iterable(self.copies.values()))


class Surrogate:
    """The compiler's memory space assignment as we simulate it, and put right.

    Where the compiler decided otherwise about a buffer in a request much like the one
    in question, it is expected to do so again, unless the simulation has changed its
    mind about that buffer too.

    Args:
      problem: the program on the machine.
      options: the compiler's settings.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        self.problem, self._options = problem, options
        self._reduced = _without_small_buffers(problem)
        self._simulated: dict[Request, Expected] = {}
        self._learned: list[tuple[Expected, Expected]] = []

    def learn(self, obtained: Expected) -> None:
        """Takes in what the compiler made of a request."""
        self._learned.append((self.simulated(obtained.request), obtained))

    def expected(self, request: Request) -> Expected:
        """What the compiler should make of a request."""
        simulated = self.simulated(request)
        if not self._learned:
            return simulated
        weights, rows_of = self.problem.access_bytes, self.problem.access_buffer
        then, obtained = min(
            self._learned,
            key=lambda pair: weights[pair[0].fast != simulated.fast].sum(),
        )
        changed = np.zeros(len(self.problem.program.buffers), bool)
        changed[rows_of[then.fast != simulated.fast]] = True
        return Expected(
            request=request,
            fast=np.where(changed[rows_of], simulated.fast, obtained.fast),
            copies={
                b: copies
                for source, wanted in ((obtained, False), (simulated, True))
                for b, copies in source.copies.items()
                if changed[b] == wanted
            },
        )

    def simulated(self, request: Request) -> Expected:
        """What the simulation alone makes of a request."""
        if request not in self._simulated:
            options = dataclasses.replace(self._options, **dict(request.knobs))
            mapping = assignment.assign(
                self._reduced, options, priorities=request.priorities
            )
            self._simulated[request] = Expected(
                request=request,
                fast=self.problem.fast_mask(mapping),
                copies=_by_buffer(
                    zip(
                        (c.buffer_id for c in mapping.copies),
                        self.problem.simulator_copies(mapping),
                        strict=True,
                    )
                ),
            )
        return self._simulated[request]

    def obtained(self, request: Request, compiled: Program) -> Expected:
        """What the compiler made of a request, in the same terms."""
        copies = compiled.compiler_mapping.copies
        return Expected(
            request=request,
            fast=compiler_fast(self.problem, compiled),
            copies=_by_buffer(
                zip(
                    (c.buffer_id for c in copies),
                    self.problem.compiler_copies(copies),
                    strict=True,
                )
            ),
        )


def search(
    surrogate: Surrogate,
    latency_s: Callable[[Expected], float],
    starts: Iterable[Request],
    *,
    steps: int,
    deadline_s: float,
    rng: random.Random,
    known: Collection[bytes],
) -> Expected | None:
    """The request with the least expected latency that would tell something new.

    Annealing from the best of `starts`: one buffer at a time is put before another that
    is in fast memory while it lives, or behind all others, or back to its own turn.

    Args:
      surrogate: what the compiler is expected to do.
      latency_s: of what is expected.
      starts: requests to begin with.
      steps: simulations in all.
      deadline_s: absolute, on the clock of `time.monotonic()`.
      rng: its state decides, and is advanced.
      known: keys of what was compiled already, not to be asked again.
    Returns:
      None if nothing new was found.
    """
    moves = _Moves(surrogate.problem, rng)
    best: Expected | None = None
    current: Expected | None = None

    def tried(request: Request) -> Expected:
        nonlocal best
        found = surrogate.expected(request)
        found = dataclasses.replace(found, latency_s=latency_s(found))
        is_best = best is None or found.latency_s < best.latency_s
        if is_best and found.key not in known:
            best = found
        return found

    step = 0
    for request in starts:
        found = tried(request)
        if current is None or found.latency_s < current.latency_s:
            current = found
        step += 1
    if current is None:
        return None
    while step < steps and time.monotonic() < deadline_s:
        share = step / steps
        temperature = current.latency_s * _HOT * (_COLD / _HOT) ** share
        found = tried(moves.neighbour(current))
        rise = found.latency_s - current.latency_s
        if rise <= 0 or rng.random() < math.exp(-rise / temperature):
            current = found
        step += 1
    return best


def _by_buffer(
    pairs: Iterable[tuple[int, simulator.Copy]],
) -> dict[int, tuple[simulator.Copy, ...]]:
    copies: dict[int, tuple[simulator.Copy, ...]] = {}
    for buffer_id, copy in pairs:
        copies[buffer_id] = (*copies.get(buffer_id, ()), copy)
    return copies


def _without_small_buffers(problem: Problem) -> Problem:
    """The problem with only those buffers to place that matter.

    The others, half of all and more, would take most of the simulation's time and next
    to none of the memory.
    """
    buffers = tuple(
        buffer
        if eligible or buffer.pinned_slow
        else dataclasses.replace(buffer, pinned_slow="too small to matter")
        for buffer, eligible in zip(
            problem.program.buffers, problem.eligible, strict=True
        )
    )
    program = dataclasses.replace(problem.program, buffers=buffers)
    return dataclasses.replace(problem, program=program)


class _Moves:
    """Small changes of a request."""

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self._problem, self._rng = problem, rng
        slope = problem.latency.slope_s_per_byte[problem.access_op]
        self._cost = slope * problem.access_bytes
        self._num_buffers = len(problem.program.buffers)
        self._live = [b.live for b in problem.program.buffers]
        self._eligible = np.flatnonzero(problem.eligible)

    def neighbour(self, current: Expected) -> Request:
        rng, request, fast = self._rng, current.request, current.fast
        if rng.random() < _KNOB_SHARE:
            return self._other_knob(request)
        if rng.random() < 0.65:
            buffer = self._pick(np.where(fast, 0.0, self._cost))
            if buffer is not None:
                return self._raised(request, buffer, fast)
        buffer = self._pick(np.where(fast, self._cost, 0.0))
        return request if buffer is None else self._lowered(request, buffer)

    def _raised(self, request: Request, buffer: int, fast: np.ndarray) -> Request:
        """The buffer before one that is in fast memory while it lives."""
        first = [b for b in request.first if b != buffer]
        rivals = {
            int(b)
            for b in np.unique(self._problem.access_buffer[fast])
            if b != buffer and self._live[b].overlaps(self._live[buffer])
        }
        places = [i for i, b in enumerate(first) if b in rivals]
        # Rivals that have no place in the order come after all that have.
        places.append(len(first))
        first.insert(self._rng.choice(places), buffer)
        last = tuple(b for b in request.last if b != buffer)
        return dataclasses.replace(request, first=tuple(first), last=last)

    def _lowered(self, request: Request, buffer: int) -> Request:
        """The buffer later: further back among the first, in its own turn, or last."""
        first = [b for b in request.first if b != buffer]
        last = [b for b in request.last if b != buffer]
        was = list(request.first).index(buffer) if buffer in request.first else None
        if was is not None and was < len(first) and self._rng.random() < 0.6:
            first.insert(self._rng.randint(was + 1, len(first)), buffer)
        elif was is None or self._rng.random() < 0.5:
            last.insert(self._rng.randint(0, len(last)), buffer)
        return dataclasses.replace(request, first=tuple(first), last=tuple(last))

    def _other_knob(self, request: Request) -> Request:
        name = self._rng.choice(sorted(KNOBS))
        knobs = dict(request.knobs)
        value = self._rng.choice((None, *KNOBS[name]))
        knobs.pop(name, None)
        if value is not None:
            knobs[name] = value
        return dataclasses.replace(request, knobs=tuple(sorted(knobs.items())))

    def _pick(self, weights: np.ndarray) -> int | None:
        """An eligible buffer, with a probability like the weight of its accesses."""
        problem = self._problem
        per_buffer = np.bincount(
            problem.access_buffer, weights=weights, minlength=self._num_buffers
        )[self._eligible]
        if not per_buffer.sum() > 0:
            return None
        # The root, so that small ones get their chance.
        chances = np.sqrt(per_buffer)
        return int(self._rng.choices(self._eligible, chances)[0])
