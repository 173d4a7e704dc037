"""Mixed-integer linear programming by HiGHS: a bound that is proven, and a mapping.

The linear model leaves out offsets and the order of the copy queue. So its optimum is
a lower bound on the latency of every mapping, and its solution a plan of what should be
where when, for which places and copies still have to be found.

    LinearModel --HiGHS--> stays without offsets --packing--> mapping --> polish
                   |
                   +--> lower bound
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from hwmodel import latency as latency_lib
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.games import is_over
from jax_malloc.solvers.linear_model import LinearModel, Transfer
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.polish import polish

# Without a deadline the search ends at the root node, not at a time, so that a problem
# has the same mapping everywhere: cuts and heuristics there mostly find the optimum.
_NODES = 1
# Larger models are relaxed.
_MOST_VARIABLES = 30_000
_LONGEST_SPANS = 5_000_000  # ops that buffers live for, together: no model at all
# HiGHS keeps rows to a millionth; a bound must not be above the optimum.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Uses `[first, last]` of a buffer that should be in fast memory.

    start, done: where its prefetch should start and its eviction be done.
    """

    buffer_id: int
    first: int
    last: int
    start: int
    done: int


def solve(
    problem: Problem, *, seed: int = 0, deadline_s: float | None = None
) -> Mapping:
    """The optimum of the linear model, as far as its stays find places; polished."""
    mapping, _ = solve_and_bound(problem, deadline_s=deadline_s)
    return polish(problem, mapping, seed=seed, deadline_s=deadline_s)


def lower_bound_s(problem: Problem, *, time_limit_s: float | None = None) -> float:
    """Seconds below which no mapping of the eligible buffers can be.

    It accounts for the capacity of fast memory, results written over operands, outputs
    and other contents that must be stored, and the bandwidth of copies;
    `solvers.linear_model` says what it leaves out. It is the better of a relaxation and
    of what branch and bound proves in the time given.

    Args:
      problem: of a few thousand accesses; of a far longer one, the bound is the latency
        with everything fast.
      time_limit_s: for branch and bound; 0 gives the relaxation alone, None the root
        node.
    """
    if _is_too_long(problem):
        return everything_fast_s(problem)
    model = LinearModel(problem)
    bound_s, _ = model.solve(integral=False)
    small = model.num_variables <= _MOST_VARIABLES
    if time_limit_s is None and small:
        bound_s = max(bound_s, model.solve(integral=True, node_limit=_NODES)[0])
    elif time_limit_s:
        found_s, _ = model.solve(integral=True, time_limit_s=time_limit_s)
        bound_s = max(bound_s, found_s)
    return max(bound_s * (1 - _TOLERANCE), everything_fast_s(problem))


def everything_fast_s(problem: Problem) -> float:
    """The latency with every eligible buffer in fast memory and copies for nothing."""
    slow_bytes = np.bincount(
        problem.access_op,
        weights=np.where(
            problem.eligible[problem.access_buffer], 0.0, problem.access_bytes
        ),
        minlength=len(problem.program.ops),
    )
    return float(latency_lib.op_latency_s(problem.latency, slow_bytes).sum())


def solve_and_bound(
    problem: Problem,
    *,
    deadline_s: float | None = None,
    good_enough: float = 0.0,
    known_s: float = math.inf,
) -> tuple[Mapping, float]:
    """A mapping, not polished, and a lower bound in seconds.

    Args:
      deadline_s: absolute, on the clock of `time.monotonic()`; kept but for the time
        that setting the model up takes.
      good_enough, known_s: with a bound that is by less than this share below a known
        latency, there is no need for a mapping.
    """
    bound_s = everything_fast_s(problem)
    if is_over(deadline_s) or _is_too_long(problem):
        return Mapping(), bound_s
    model, values = LinearModel(problem), None
    for integral in (False, True):
        if known_s <= bound_s * (1 + good_enough):
            return Mapping(), bound_s
        if is_over(deadline_s) or (integral and model.num_variables > _MOST_VARIABLES):
            break
        found_s, found = model.solve(
            integral=integral,
            time_limit_s=None if deadline_s is None else deadline_s - time.monotonic(),
            node_limit=_NODES,
        )
        bound_s = max(bound_s, found_s * (1 - _TOLERANCE))
        values = values if found is None else found
    return (Mapping() if values is None else _packed(problem, model, values)), bound_s


def _is_too_long(problem: Problem) -> bool:
    """Whether the model would be too large to set up."""
    spans = (
        buffer.live.end - buffer.live.start
        for buffer, eligible in zip(
            problem.program.buffers, problem.eligible, strict=True
        )
        if eligible
    )
    return sum(spans) > _LONGEST_SPANS


def _packed(problem: Problem, model: LinearModel, values: np.ndarray) -> Mapping:
    """The stays of a solution in places, the best of a few orders of packing."""
    runs = list(_runs(model, values))
    allocation = Allocation(problem)
    empty = allocation.save()
    best, best_s = Mapping(), problem.all_slow_latency_s
    for order in _orders(allocation):
        for rule in (FitRule.BEST_TOP, FitRule.LOWEST):
            allocation.restore(empty)
            for run in sorted(runs, key=order):
                allocation.place(
                    run.buffer_id,
                    run.first,
                    run.last,
                    start=run.start,
                    done=run.done,
                    rule=rule,
                )
            if allocation.latency_s < best_s:
                best, best_s = allocation.to_mapping(), allocation.latency_s
    return best


def _orders(allocation: Allocation) -> Iterator[Callable[[Run], tuple]]:
    """Keys to sort runs by, those first that are hardest to place."""
    lives = allocation.lives

    def size(run: Run) -> int:
        return lives[run.buffer_id].granules

    def begin(run: Run) -> int:
        return lives[run.buffer_id].uses[run.first].begin

    def length(run: Run) -> int:
        return lives[run.buffer_id].uses[run.last].end - begin(run)

    yield lambda run: (-size(run) * length(run), begin(run))
    yield lambda run: (-size(run), begin(run))
    yield lambda run: (begin(run), -size(run))
    yield lambda run: (-length(run), begin(run))


def _runs(model: LinearModel, values: np.ndarray) -> Iterator[Run]:
    """The stays of a solution; fractions count from a half on."""
    saves: dict[tuple[int, int], list[Transfer]] = {}
    for (b, _, j), save in model.evictions.items():
        saves.setdefault((b, j), []).append(save)
    for b, life in model.lives.items():
        fast = values[model.in_fast[b]] > 0.5
        kept = values[model.kept[b]] > 0.5
        first = None
        for k in range(len(life.uses)):
            if not fast[k]:
                continue
            if first is None:
                first = k
            if k + 1 < len(life.uses) and kept[k] and fast[k + 1]:
                continue
            start, done = life.uses[first].begin, life.uses[k].end
            fill = model.prefetches.get((b, first))
            if fill is not None:
                start = min([start, *_held(fill, values)])
            for save in saves.get((b, k + 1), ()):
                done = max([done, *(t + 1 for t in _held(save, values))])
            yield Run(b, first, k, start, done)
            first = None


def _held(transfer: Transfer, values: np.ndarray) -> list[int]:
    return [t for t, variable in transfer.held if values[variable] > 0.5]
