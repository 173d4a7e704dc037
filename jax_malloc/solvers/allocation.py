"""A mapping in the making: stays that can be added, replaced and taken back one by one.

    uses of x      0     1     2           3     4
    try_place      [-----------]                        uses 0 to 2 in fast memory
                               [eviction]   if slow memory must learn what was written
    try_place                       (prefetch)---]      uses 3 to 4, brought back

Every state is a valid mapping with exact offsets and an exact latency. What a stay
needs follows from its own uses alone, so that removing others never breaks it. The
loops are those of `compiled.placing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jax_malloc.compiled import placing, queues, stays
from jax_malloc.compiled.stays import State
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.solvers.copy_queue import QueuedCopy
from jax_malloc.solvers.packing import FitRule
from jax_malloc.solvers.stay import Stay, to_mapping
from jax_malloc.solvers.uses import CopyBoundaries, Life, lives

# A stay must save this share of the program's latency: less is no gain but noise.
_NOISE = 1e-8
_RULES = {
    FitRule.BEST: stays.BEST,
    FitRule.BEST_TOP: stays.BEST_TOP,
    FitRule.LOWEST: stays.LOWEST,
    FitRule.HIGHEST: stays.HIGHEST,
}


class Allocation:
    """Stays placed so far, at first none.

    lives: the buffers it can place, by id. tables, state: what the loops see; a buffer
    is there by its position in `lives`, and a use by its number among all uses.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.lives = lives(problem)
        self.tables = _tables(problem, list(self.lives.values()))
        self.state = _empty_state(problem, self.tables)
        self._buffer_ids = list(self.lives)
        self._position = {b: i for i, b in enumerate(self._buffer_ids)}
        self._first_use = self.tables.buffers[:, stays.FIRST_USE].tolist()

    @classmethod
    def from_mapping(cls, problem: Problem, mapping: Mapping) -> Allocation:
        """The stays of a valid mapping; of their copies, those that are needed."""
        allocation = cls(problem)
        copies: dict[int, list[Copy]] = {b: [] for b in allocation.lives}
        for copy in mapping.copies:
            if copy.buffer_id in copies:
                copies[copy.buffer_id].append(copy)
        rows = [
            allocation._row_of(segment, copies[segment.buffer_id])
            for segment in mapping.segments
            if segment.buffer_id in copies
        ]
        found = np.array([row for row in rows if row is not None], np.int64)
        placing.adopt(
            allocation.tables,
            allocation.state,
            found.reshape(-1, stays.STAY_COLUMNS),
        )
        return allocation

    @property
    def latency_s(self) -> float:
        """Exact latency of the program under the stays so far."""
        return float(self.state.numbers.sum())

    @property
    def stall_s(self) -> float:
        """The part of it in which ops wait for copies."""
        return float(self.state.numbers[1])

    @property
    def stays(self) -> dict[int, tuple[Stay, ...]]:
        """`{buffer_id: stays in time order}`."""
        return {b: self.stays_of(b) for b in self.lives}

    def stays_of(self, buffer_id: int) -> tuple[Stay, ...]:
        """The stays of one buffer in time order."""
        rows = self._rows_by_use(buffer_id)
        return tuple(self._stay(row) for row in dict.fromkeys(rows) if row >= 0)

    def all_stays(self) -> Iterator[Stay]:
        """Every stay, by buffer."""
        for b in self.lives:
            yield from self.stays_of(b)

    def blocking_stays(self) -> list[Stay]:
        """Stays with a copy that ops wait for, or one just ahead of it in the queue."""
        return [self._stay(row) for row in queues.blocking(self.state).tolist()]

    def save(self) -> State:
        """A snapshot for `restore`."""
        return stays.copy(self.state)

    def restore(self, snapshot: State) -> None:
        """Back to what `save` saw; the snapshot can be used again."""
        stays.assign(self.state, snapshot)

    def slow_runs(self, buffer_id: int) -> list[tuple[int, int]]:
        """Longest runs `(first use, last use)` of a buffer outside of fast memory."""
        runs: list[tuple[int, int]] = []
        for k, row in enumerate(self._rows_by_use(buffer_id)):
            if row >= 0:
                continue
            if runs and runs[-1][1] == k - 1:
                runs[-1] = runs[-1][0], k
            else:
                runs.append((k, k))
        return runs

    def try_place(
        self, buffer_id: int, first: int, last: int, rule: FitRule = FitRule.BEST_TOP
    ) -> bool:
        """Puts a run of uses into fast memory if that lowers the latency.

        Stays of the buffer within the run are replaced; those that reach beyond it make
        it longer.
        """
        run = self._run(buffer_id, first, last)
        return placing.try_place(self.tables, self.state, *run, _RULES[rule])

    def place(
        self,
        buffer_id: int,
        first: int,
        last: int,
        *,
        start: int,
        done: int,
        rule: FitRule = FitRule.BEST_TOP,
    ) -> bool:
        """Puts a run of slow uses into fast memory, paying or not, if there is room.

        Args:
          start, done: boundaries near which its prefetch should start and its eviction
            be done.
        """
        run = self._run(buffer_id, first, last)
        return placing.place(self.tables, self.state, *run, _RULES[rule], start, done)

    def remove(self, stays: Iterable[Stay]) -> None:
        """Puts the uses of stays back into slow memory."""
        rows = np.array([stay.key for stay in stays], np.int64)
        placing.remove(self.tables, self.state, rows)

    def latency_without(self, stay: Stay) -> float:
        """The latency that `remove` would lead to."""
        return placing.latency_without(self.tables, self.state, stay.key)

    def retime(self, stay: Stay) -> bool:
        """Moves the copies of a stay, at its offset, if that lowers the latency."""
        return placing.retime(self.tables, self.state, stay.key)

    def to_mapping(self) -> Mapping:
        """The stays and their copies, in bytes and boundaries."""
        return to_mapping(self.problem, self.lives, self.all_stays())

    def _rows_by_use(self, buffer_id: int) -> list[int]:
        """Row of the stay that serves each use, -1 in slow memory."""
        at = self._position[buffer_id]
        begin, end = self._first_use[at], self._first_use[at + 1]
        return self.state.stay_of[begin:end].tolist()

    def _run(self, buffer_id: int, first: int, last: int) -> tuple[int, int, int]:
        """Uses of a buffer as the loops number them."""
        at = self._position[buffer_id]
        begin = self._first_use[at]
        return at, begin + first, begin + last

    def _stay(self, row: int) -> Stay:
        at, first, last, offset, begin, end, fill, filled, save, saved, _ = (
            self.state.stays[row].tolist()
        )
        life = self.lives[self._buffer_ids[at]]
        size, copy_s = life.size_bytes, life.copy_s
        return Stay(
            row,
            life.buffer_id,
            first - self._first_use[at],
            last - self._first_use[at],
            offset,
            begin,
            end,
            None if fill < 0 else QueuedCopy(fill, filled, size, False, copy_s),
            None if save < 0 else QueuedCopy(save, saved, size, True, copy_s),
        )

    def _row_of(self, segment: Segment, copies: Sequence[Copy]) -> list[int] | None:
        """One stay of a mapping, at its offset, as a row; `copies` of its buffer.

        None if it serves no use.
        """
        life = self.lives[segment.buffer_id]
        served = [
            k
            for k, use in enumerate(life.uses)
            if segment.first <= use.begin and use.end <= segment.end
        ]
        if not served:
            return None
        first, last = served[0], served[-1]
        mine = [c for c in copies if segment.begin <= c.start and c.done <= segment.end]
        fill = filled = save = saved = -1
        if life.uses[first].reads:
            c = next(c for c in mine if c.direction is Direction.PREFETCH)
            fill, filled = c.start, c.done
        end = life.uses[last].end
        if life.needs_eviction(first, last):
            # Of several, the one that saves what was written last.
            c = max(
                (c for c in mine if c.direction is Direction.EVICT),
                key=lambda c: c.start,
            )
            save, saved = c.start, c.done
            end = max(end, c.done)
        offset = segment.offset_bytes // self.problem.granule_bytes
        run = self._run(segment.buffer_id, first, last)
        top = offset + life.granules
        return [*run, offset, segment.begin, end, fill, filled, save, saved, top]


def _tables(problem: Problem, found: Sequence[Life]) -> stays.Lives:
    """The lives of buffers, in order, as the loops see them."""
    position = {life.buffer_id: i for i, life in enumerate(found)}
    boundaries = CopyBoundaries(problem)
    homes = list(dict.fromkeys(life.home for life in found))
    uses: list[tuple[int, ...]] = []
    accesses: list[tuple[tuple[int, float], ...]] = []
    buffers: list[tuple[int, ...]] = []
    uses_at: list[list[int]] = [[] for _ in problem.program.ops]
    for i, life in enumerate(found):
        buffers.append(
            (
                life.granules,
                life.size_bytes,
                homes.index(life.home),
                life.starts_in_slow,
                life.ends_in_slow,
                len(uses),
                0,
                len(problem.program.ops),
            )
        )
        written = -1
        for use in life.uses:
            if use.writes:
                written = len(uses)
            for t in dict.fromkeys(t for t, _ in use.accesses):
                uses_at[t].append(len(uses))
            uses.append((use.begin, use.end, use.reads, i, written))
            accesses.append(use.accesses)
    buffers.append((0, 0, 0, 0, 0, len(uses), 0, 0))
    access_begin, access = _flat(accesses)
    over_begin, over = _flat(
        [[position[b] for b in life.written_over if b in position] for life in found]
    )
    under_begin, under = _flat(
        [[position[b] for b in life.overwritten_by if b in position] for life in found]
    )
    use_begin, use_at = _flat(uses_at)
    model = problem.latency
    capacity = np.array(problem.op_capacity_granules, np.int64)
    in_flight = problem.accelerator.dma.max_in_flight
    return stays.Lives(
        capacity=capacity,
        model=np.array([model.floor_s, model.base_s, model.slope_s_per_byte], float),
        buffers=np.array(buffers, np.int64),
        copy_s=np.array([life.copy_s for life in found], float),
        uses=np.array(uses, np.int64).reshape(-1, 5),
        access_begin=access_begin,
        access_op=np.array([t for t, _ in access], np.int64),
        access_bytes=np.array([n for _, n in access], float),
        over_begin=over_begin,
        over=np.array(over, np.int64),
        under_begin=under_begin,
        under=np.array(under, np.int64),
        boundaries=boundaries.tables(homes),
        use_begin=use_begin,
        use_at=np.array(use_at, np.int64),
        flat=int(capacity[0]) if len(set(capacity.tolist())) == 1 else -1,
        dma_s_per_byte=1 / problem.accelerator.dma_bytes_per_s,
        max_in_flight=-1 if in_flight is None else in_flight,
        noise_s=_NOISE * problem.all_slow_latency_s,
    )


def _flat(rows: Sequence[Sequence]) -> tuple[np.ndarray, list]:
    """Where each row begins, `[N + 1]`, and all of them end to end."""
    begin = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return begin, [x for row in rows for x in row]


def _empty_state(problem: Problem, tables: stays.Lives) -> State:
    """Everything in slow memory."""
    num_ops, num_uses = len(problem.program.ops), len(tables.uses)
    num_queues = 2 if problem.accelerator.dma.full_duplex else 1
    state = State(
        ops=np.zeros((3, num_ops)),
        clock=np.zeros(num_ops + 1),
        stays=np.zeros((num_uses, stays.STAY_COLUMNS), np.int64),
        stay_of=np.zeros(num_uses, np.int64),
        order=np.zeros(num_uses, np.int64),
        free=np.zeros(num_uses, np.int64),
        copies=np.zeros((num_queues, 2 * num_uses, 6), np.int64),
        times=np.zeros((num_queues, 2 * num_uses, 3)),
        numbers=np.zeros(2),
        counts=np.zeros(4, np.int64),
    )
    state.ops[stays.SLOW_BYTES] = problem.slow_bytes
    queues.clear(tables, state)
    return state
