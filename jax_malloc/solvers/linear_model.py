"""The memory mapping problem as a mixed-integer linear program.

    uses of x        0: write          1: read                  2: read
    in_fast          x0                x1                       x2
    kept                  k0 <= x0, x1        k1 <= x1, x2
    eviction              [held.. served..]
    prefetch                               [..served ..held]    p2 = x2 - k1

What it says exactly: which uses fast memory serves, what a result written over its
operand saves, the latency of every op, which copies that takes, when each may run and
how long it holds its place, and that copies are served by the time that ops leave over
or waited for. Left out, so that its optimum is a lower bound:

- offsets: in each op, the bytes in fast memory must fit, not their places;
- the order of the queue: any copy may be served at any time in its window; far from its
  deadline it is only counted up to that time, whatever the op;
- the limit of copies in flight, and that slow memory is shared in alias groups;
- spare time is a convex function of the bytes in slow memory; here it is the chord
  above that, exact where all of the buffers of an op are in one memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from jax_malloc.problem import Problem
from jax_malloc.solvers.linear_program import LinearProgram, Terms
from jax_malloc.solvers.uses import Life, lives

# A copy may be served op by op for as long as ops could leave it this many times its
# own length; what is served further from its deadline is only counted.
_ROOM = 2.0
_LONGEST_WINDOW = 32  # ops
_GAP = 1e-5  # between bound and solution, at which branch and bound ends
_CHECKPOINTS = 32  # boundaries at which that is counted


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """One copy that may be made.

    made: `[(variable, coefficient)]`, their sum 1 if it is. held: `(op, variable)` in
    time order, whether the copy takes its place during that op.
    """

    made: Terms
    held: list[tuple[int, int]]


class LinearModel:
    """The program of one problem, ready for HiGHS.

    lives: of the eligible buffers, the only ones that are placed.
    in_fast[b][k]: variable of use k of a buffer, 1 in fast memory. kept[b][k]: 1 if it
      stays there from use k to the next.
    prefetches[b, k]: before use k. evictions[b, k, j]: of what use k wrote, after a
      stay that ends before use j.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.lives = problem, lives(problem)
        self._num_ops = len(problem.program.ops)
        self._scale_s = max(problem.all_slow_latency_s, 1e-30)
        self._linear = LinearProgram()
        self._space: list[Terms] = [[] for _ in range(self._num_ops)]
        self._served: list[list[Terms]] = [[[], []] for _ in range(self._num_ops)]
        self._rests: list[tuple[int, int, float]] = []
        self._waits: list[Terms] = [[], []]
        self.in_fast: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}
        self.prefetches: dict[tuple[int, int], Transfer] = {}
        self.evictions: dict[tuple[int, int, int], Transfer] = {}
        self._accesses: list[Terms] = [[] for _ in range(self._num_ops)]
        for b, life in self.lives.items():
            self._add_uses(b, life)
        self._most_spare_s, self._spare = self._spares()
        self._sum_spare_s = np.concatenate([[0.0], np.cumsum(self._most_spare_s)])
        for b, life in self.lives.items():
            self._add_copies(b, life)
        self._add_reuses()
        self._add_ops()
        self._add_limits()

    @property
    def num_variables(self) -> int:
        return self._linear.num_variables

    def solve(
        self,
        *,
        integral: bool,
        time_limit_s: float | None = None,
        node_limit: int | None = None,
    ) -> tuple[float, np.ndarray | None]:
        """A lower bound in seconds, and the values of the variables if there are any.

        Args:
          integral: False relaxes every variable to [0, 1].
          time_limit_s, node_limit: of the search.
        """
        bound, values = self._linear.minimize(
            integral=integral,
            time_limit_s=time_limit_s,
            node_limit=node_limit,
            gap=_GAP,
        )
        return bound * self._scale_s, values

    # --- variables and rows ---------------------------------------------------------

    def _add_uses(self, b: int, life: Life) -> None:
        last = len(life.uses) - 1
        x = [self._linear.variable(integer=True) for _ in life.uses]
        kept = [self._linear.variable(integer=True) for _ in range(last)]
        self.in_fast[b], self.kept[b] = x, kept
        for k, use in enumerate(life.uses):
            self._hold(life, use.begin, use.end, x[k])
            for t, moved in use.accesses:
                self._accesses[t].append((x[k], moved))
            if k < last:
                self._hold(life, use.end, life.uses[k + 1].begin, kept[k])
                self._linear.at_most([(kept[k], 1.0), (x[k], -1.0)], 0.0)
                self._linear.at_most([(kept[k], 1.0), (x[k + 1], -1.0)], 0.0)

    def _hold(self, life: Life, begin: int, end: int, variable: int) -> None:
        for t in range(begin, end):
            self._space[t].append((variable, float(life.granules)))

    def _add_copies(self, b: int, life: Life) -> None:
        x, kept, uses = self.in_fast[b], self.kept[b], life.uses
        first_op = self.problem.program.regions[life.home].start
        for k, use in enumerate(uses):
            if use.reads:
                made = [(x[k], 1.0)] + ([(kept[k - 1], -1.0)] if k else [])
                written = [u.end for u in uses[:k] if u.writes]
                release = max([first_op, *written])
                self.prefetches[b, k] = self._prefetch(life, made, release, use.begin)
        writes = [k for k, use in enumerate(uses) if use.writes]
        for k, following in itertools.pairwise((*writes, len(uses))):
            self._add_evictions(b, life, k, following)

    def _add_evictions(self, b: int, life: Life, k: int, following: int) -> None:
        """Evictions of what use k writes, until the next write."""
        x, kept, uses = self.in_fast[b], self.kept[b], life.uses
        stored: list[int] = []
        for j in range(k + 1, following + 1):
            at_end = j == len(uses)
            if not (life.ends_in_slow if at_end else uses[j].needs):
                continue
            until = self._num_ops if at_end else uses[j].begin
            variable = self._linear.variable()
            stored.append(variable)
            # It is made if the stay goes on to use j - 1 and not to use j.
            stays = kept[k : j - 1] or [x[k]]
            stays_on = [] if at_end else [(kept[j - 1], 1.0)]
            terms = [(variable, 1.0), *((v, -1.0) for v in stays), *stays_on]
            self._linear.at_least(terms, 1.0 - len(stays))
            made = [(variable, 1.0)]
            self.evictions[b, k, j] = self._eviction(
                life, made, uses[k].end, uses[j - 1].end, until
            )
            total = [(v, 1.0) for v in stored]
            self._linear.at_least([*total, (x[k], -1.0), *stays_on], 0.0)

    def _prefetch(
        self, life: Life, made: Terms, release: int, deadline: int
    ) -> Transfer:
        begin = self._reach(life, deadline, release, -1)
        held = self._held(life, range(begin, deadline))
        for (_, before), (_, after) in itertools.pairwise(held):
            self._linear.at_most([(before, 1.0), (after, -1.0)], 0.0)
        if held:
            self._linear.at_most([(held[-1][1], 1.0), *((v, -c) for v, c in made)], 0.0)
        parts = [self._part(life, t, 0, hold) for t, hold in held]
        if begin > release:
            parts.append(self._rest(life, begin, held))
        self._balance(life, made, parts, 0)
        return Transfer(made, held)

    def _eviction(
        self, life: Life, made: Terms, release: int, stay_end: int, deadline: int
    ) -> Transfer:
        stay_end = min(stay_end, deadline)
        release = min(release, stay_end)
        begin = self._reach(life, stay_end, release, -1)
        end = self._reach(life, stay_end, deadline, 1)
        held = self._held(life, range(stay_end, end))
        for (_, before), (_, after) in itertools.pairwise(held):
            self._linear.at_most([(after, 1.0), (before, -1.0)], 0.0)
        parts = [self._part(life, t, 1) for t in range(begin, stay_end)]
        parts += [self._part(life, t, 1, hold) for t, hold in held]
        if begin > release:
            parts.append(self._rest(life, begin))
        if end < deadline:
            parts.append(self._rest(life, deadline, held[-1:]))
        self._balance(life, made, parts, 1)
        return Transfer(made, held)

    def _held(self, life: Life, ops: Iterable[int]) -> list[tuple[int, int]]:
        """Variables for ops during which a copy takes its place."""
        held = [(t, self._linear.variable(integer=True)) for t in ops]
        for t, variable in held:
            self._hold(life, t, t + 1, variable)
        return held

    def _part(self, life: Life, t: int, queue: int, hold: int | None = None) -> int:
        """The share of a copy that op t serves; while the copy takes its place."""
        part = self._linear.variable()
        self._served[t][queue].append((part, life.copy_s / self._scale_s))
        if hold is not None:
            self._linear.at_most([(part, 1.0), (hold, -1.0)], 0.0)
        return part

    def _rest(
        self, life: Life, until: int, held: Sequence[tuple[int, int]] = ()
    ) -> int:
        """The share that is served some time up to a boundary.

        Args:
          held: the copy then takes its place from there, or up to there.
        """
        rest = self._linear.variable()
        self._rests.append((until, rest, life.copy_s / self._scale_s))
        if held:
            self._linear.at_most([(rest, 1.0), (held[0][1], -1.0)], 0.0)
        return rest

    def _balance(
        self, life: Life, made: Terms, parts: Iterable[int], queue: int
    ) -> None:
        """A copy that is made is served in parts, and the rest is waited for."""
        waited = self._linear.variable()
        self._waits[queue].append((waited, life.copy_s / self._scale_s))
        shares = [(v, 1.0) for v in (*parts, waited)]
        self._linear.equal([*shares, *((v, -c) for v, c in made)], 0.0)

    def _reach(self, life: Life, start: int, limit: int, step: int) -> int:
        """How far from boundary `start` a copy is followed op by op, up to `limit`."""
        needed_s = _ROOM * life.copy_s
        sums, at = self._sum_spare_s, start
        while at != limit and abs(at - start) < _LONGEST_WINDOW:
            if abs(sums[at] - sums[start]) >= needed_s:
                break
            at += step
        return at

    def _add_reuses(self) -> None:
        """Results written over operands: their bytes count once at that op."""
        users: dict[int, Terms] = {}
        for t, op in enumerate(self.problem.program.ops):
            for pair in op.reuses:
                if not all(b in self.lives for b in pair):
                    continue
                operand, result = pair
                shared = self._linear.variable()
                self._space[t].append((shared, -float(self.lives[result].granules)))
                sides = self.in_fast[operand][-1], self.in_fast[result][0]
                for x in sides:
                    users.setdefault(x, []).append((shared, 1.0))
        for x, terms in users.items():
            self._linear.at_most([*terms, (x, -1.0)], 0.0)

    # --- limits ---------------------------------------------------------------------

    def _op_s(self, t: int, slow_bytes: float) -> float:
        model = self.problem.latency
        roof = model.base_s[t] + model.slope_s_per_byte[t] * slow_bytes
        return float(max(model.floor_s[t], roof))

    def _fewest_bytes(self, t: int) -> float:
        moved = sum(n for _, n in self._accesses[t])
        return max(float(self.problem.slow_bytes[t]) - moved, 0.0)

    def _spares(self) -> tuple[np.ndarray, list[tuple[float, float]]]:
        """`[T]` most seconds left for copies; `(all slow, all fast)` of each op."""
        per_byte = 1 / self.problem.accelerator.dma_bytes_per_s
        ends = []
        for t in range(self._num_ops):
            both = float(self.problem.slow_bytes[t]), self._fewest_bytes(t)
            slow, fast = (max(self._op_s(t, n) - n * per_byte, 0.0) for n in both)
            ends.append((slow, fast))
        return np.array([max(pair) for pair in ends]).reshape(-1), ends

    def _add_ops(self) -> None:
        """Latencies, and what ops leave for copies."""
        problem, scale_s = self.problem, self._scale_s
        model, duplex = problem.latency, problem.accelerator.dma.full_duplex
        for t in range(self._num_ops):
            slow_bytes, moved = float(problem.slow_bytes[t]), self._accesses[t]
            longest_s = self._op_s(t, slow_bytes)
            shortest_s = self._op_s(t, self._fewest_bytes(t))
            op = self._linear.variable(1.0, shortest_s / scale_s, longest_s / scale_s)
            slope = model.slope_s_per_byte[t] / scale_s
            roof_s = model.base_s[t] + model.slope_s_per_byte[t] * slow_bytes
            saved = [(x, slope * n) for x, n in moved]
            self._linear.at_least([(op, 1.0), *saved], roof_s / scale_s)
            slow_s, fast_s = self._spare[t]
            # An op may touch nothing of what it is given: its spare never changes.
            total = sum(n for _, n in moved) or 1.0
            chord = [(x, (slow_s - fast_s) / scale_s * n / total) for x, n in moved]
            queues = self._served[t]
            for served in queues if duplex else [queues[0] + queues[1]]:
                if served:
                    self._linear.at_most([*served, *chord], slow_s / scale_s)
        self._add_waits(duplex)
        self._add_checkpoints(duplex)

    def _add_waits(self, duplex: bool) -> None:
        """Ops wait for one queue, or for the slower of two."""
        if not duplex:
            for variable, seconds in (*self._waits[0], *self._waits[1]):
                self._linear.set_cost(variable, seconds)
            return
        stall = self._linear.variable(1.0, 0.0, np.inf)
        for waits in self._waits:
            self._linear.at_most([*waits, (stall, -1.0)], 0.0)

    def _add_checkpoints(self, duplex: bool) -> None:
        """What is only counted shares the spare time up to a few boundaries."""
        if not self._rests:
            return
        ways = 2.0 if duplex else 1.0  # two queues, each with all of it
        every = max(self._num_ops // _CHECKPOINTS, 1)
        so_far: Terms = []
        previous = 0
        for boundary in (*range(every, self._num_ops, every), self._num_ops):
            between = [
                term
                for t in range(previous, boundary)
                for served in self._served[t]
                for term in served
            ]
            between += [(v, s) for u, v, s in self._rests if previous < u <= boundary]
            total = self._linear.variable(0.0, 0.0, np.inf)
            self._linear.at_most([*between, (total, -1.0)], 0.0)
            so_far.append((total, 1.0))
            spare_s = ways * float(self._sum_spare_s[boundary])
            self._linear.at_most(list(so_far), spare_s / self._scale_s)
            previous = boundary

    def _add_limits(self) -> None:
        """Capacity, in units of itself, wherever it could be exceeded."""
        capacity = self.problem.op_capacity_granules.astype(float)
        seen: set[tuple] = set()
        for terms, limit in zip(self._space, capacity, strict=True):
            if sum(size for _, size in terms if size > 0) <= limit:
                continue
            key = (limit, *terms)
            if key not in seen:
                seen.add(key)
                self._linear.at_most([(v, size / limit) for v, size in terms], 1.0)
