"""Stretches of a long program as small problems of their own.

    ops      0 ........ begin ............. end ...... stop ....... T
    stays       [ frozen ]   [free]  [free]   [ frozen ]
                         [   frozen     ]
    copies   in progress at begin                      until none is, or for a while

In a stretch, only stays that lie in it change. Those that reach out of it keep their
places and copies; of copies that are in progress at its begin there is what is left;
and some ops after its end show what it does to the queue of copies. What is found there
can be put into the whole, where it is valid, and where its exact latency shows.

Such decomposition is that of POPMUSIC: Taillard and Voss, "POPMUSIC - Partial
Optimization Metaheuristic under Special Intensification Conditions", 2002.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_malloc.compiled import placing, queues, stays
from jax_malloc.compiled.ruin import Values
from jax_malloc.compiled.stays import Bools, Floats, Ints, Lives, State

_TAIL = 0.5  # of a stretch's ops that come after it, at most
# A stretch has an op more, of no time, ahead of its own: at boundary 0 start those
# copies that started before it.
_AHEAD = 1


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Ops `[begin, end)` of a whole as a problem of its own.

    tables, values, state: what a search needs; a run of uses that can change counts as
      a buffer of its own.
    uses: `[U]` their numbers in the whole. buffers: `[B]` positions in the whole.
    rows: of the stays in the whole that may change.
    """

    begin: int
    end: int
    tables: Lives
    values: Values
    state: State
    uses: Ints
    buffers: Ints
    rows: Ints


def cut(
    tables: Lives, values: Values, state: State, begin: int, end: int
) -> Stretch | None:
    """The stretch of ops `[begin, end)`; None if nothing in it can change."""
    span = _Span(begin, end, _idle_from(state, end, end + int(_TAIL * (end - begin))))
    used = state.order[: state.counts[stays.USED]]
    found = state.stays[used]
    overlaps = (found[:, stays.BEGIN] < end) & (found[:, stays.END] > begin)
    inside = (found[:, stays.BEGIN] >= begin) & (found[:, stays.END] <= end)
    rows = used[inside]
    can_change = np.zeros(len(state.stays) + 1, bool)
    can_change[rows] = can_change[-1] = True  # the last for uses without a stay
    uses = np.flatnonzero(
        (tables.uses[:, stays.USE_BEGIN] >= begin)
        & (tables.uses[:, stays.USE_END] <= end)
        & can_change[state.stay_of]
    )
    if not len(uses):
        return None
    runs = _Runs.of(tables, uses)
    own_tables = _tables(tables, state, span, runs)
    return Stretch(
        begin=begin,
        end=end,
        tables=own_tables,
        values=_values(values, span, uses),
        state=_state(own_tables, state, span, runs, inside, overlaps & ~inside),
        uses=uses,
        buffers=runs.buffers,
        rows=rows,
    )


def paste(tables: Lives, state: State, stretch: Stretch) -> None:
    """Puts the stays of a stretch into the whole that it was cut from.

    What may change in the stretch must be in the whole as it was then.
    """
    own = stretch.state
    found = own.stays[own.order[: own.counts[stays.USED]]]
    found = _moved(
        found[found[:, stays.BUFFER] != stays.FROZEN], -_shift(stretch.begin)
    )
    found[:, stays.BUFFER] = stretch.buffers[found[:, stays.BUFFER]]
    for column in (stays.FIRST, stays.LAST):
        found[:, column] = stretch.uses[found[:, column]]
    placing.remove(tables, state, stretch.rows)
    placing.adopt(tables, state, found)


@dataclasses.dataclass(frozen=True)
class _Span:
    """Ops `[begin, end)` that can change, and those until `stop` that are there."""

    begin: int
    end: int
    stop: int

    @property
    def shift(self) -> int:
        return _shift(self.begin)

    @property
    def num_ops(self) -> int:
        return self.stop + self.shift


def _shift(begin: int) -> int:
    """From boundaries of the whole to those of a stretch."""
    return _AHEAD - begin


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Uses of a stretch, by runs of one buffer without others in between.

    uses: `[U]` numbers in the whole. number: `[all uses + 1]` the other way round, -1
    for those that are not there. run: `[U]` of each use. firsts, lasts: `[R]` positions
    in `uses`. buffers: `[R]` positions in the whole.
    """

    uses: Ints
    number: Ints
    run: Ints
    firsts: Ints
    lasts: Ints
    buffers: Ints

    @classmethod
    def of(cls, tables: Lives, uses: Ints) -> _Runs:
        owner = tables.uses[uses, stays.USE_BUFFER]
        is_first = np.r_[True, (np.diff(uses) > 1) | (np.diff(owner) > 0)]
        firsts = np.flatnonzero(is_first)
        number = np.full(len(tables.uses) + 1, -1)
        number[uses] = np.arange(len(uses))
        return cls(
            uses=uses,
            number=number,
            run=np.cumsum(is_first) - 1,
            firsts=firsts,
            lasts=np.r_[firsts[1:], len(uses)] - 1,
            buffers=owner[firsts],
        )


def _idle_from(s: State, end: int, latest: int) -> int:
    """The first boundary from `end` on at which no copy is in progress."""
    latest = min(latest, s.ops.shape[1])
    for t in range(end, latest):
        if not any(_is_busy(s, q, t) for q in range(len(s.copies))):
            return t
    return latest


def _is_busy(s: State, q: int, t: int) -> bool:
    copies = s.copies[q, : s.counts[stays.COPIES + q]]
    begun = int(np.searchsorted(copies[:, stays.START], t))
    return bool(begun and s.times[q, begun - 1, stays.SERVED] > s.clock[t])


def _tables(p: Lives, s: State, span: _Span, runs: _Runs) -> Lives:
    uses = p.uses[runs.uses]
    uses[:, [stays.USE_BEGIN, stays.USE_END]] += span.shift
    uses[:, stays.USE_BUFFER] = runs.run
    written = runs.number[uses[:, stays.LAST_WRITE]]
    is_own = written >= runs.firsts[runs.run]
    uses[:, stays.LAST_WRITE] = np.where(is_own, written, -1)
    buffers = np.zeros((len(runs.buffers) + 1, p.buffers.shape[1]), np.int64)
    for i in range(len(runs.buffers)):
        buffers[i] = _buffer(p, s, span, runs, i)
    buffers[:, stays.FIRST_USE] = np.r_[runs.firsts, len(uses)]
    starts, ends = _whole_on_one_side(p, runs)
    over_begin, over = _partners(p.over_begin, p.over, runs.buffers, starts, ends)
    under_begin, under = _partners(p.under_begin, p.under, runs.buffers, ends, starts)
    access_begin, accesses = _rows(p.access_begin, runs.uses)
    use_begin, at_ops = _rows(p.use_begin, np.arange(span.begin, span.stop))
    use_at = runs.number[p.use_at[at_ops]]
    use_begin = np.r_[[0] * _AHEAD, np.r_[0, np.cumsum(use_at >= 0)][use_begin]]
    ops = slice(span.begin, span.stop)
    return p._replace(
        capacity=np.r_[[p.capacity[span.begin]] * _AHEAD, p.capacity[ops]],
        model=_after_nothing(p.model[:, ops]),
        buffers=buffers,
        copy_s=p.copy_s[runs.buffers],
        uses=uses,
        access_begin=access_begin,
        access_op=p.access_op[accesses] + span.shift,
        access_bytes=p.access_bytes[accesses],
        over_begin=over_begin,
        over=over,
        under_begin=under_begin,
        under=under,
        boundaries=_boundaries(p.boundaries, span),
        use_begin=use_begin,
        use_at=use_at[use_at >= 0],
    )


def _buffer(p: Lives, s: State, span: _Span, runs: _Runs, i: int) -> Ints:
    """A run of uses as if they were all of a buffer, by what is around them."""
    b = runs.buffers[i]
    first, last = runs.uses[runs.firsts[i]], runs.uses[runs.lasts[i]]
    buffer, free_from, free_until = p.buffers[b].copy(), span.begin, span.end
    if first > p.buffers[b, stays.FIRST_USE]:
        written = p.uses[first - 1, stays.LAST_WRITE]
        if written >= 0:
            free_from = max(free_from, p.uses[written, stays.USE_END])
            buffer[stays.STARTS_SLOW] = 1
        before = s.stay_of[p.buffers[b, stays.FIRST_USE] : first]
        for row in before[before >= 0][-1:]:
            free_from = max(free_from, s.stays[row, stays.END])
    if last + 1 < p.buffers[b + 1, stays.FIRST_USE]:
        free_until = min(free_until, p.uses[last + 1, stays.USE_BEGIN])
        buffer[stays.ENDS_SLOW] = p.uses[last + 1, stays.READS]
        after = s.stay_of[last + 1 : p.buffers[b + 1, stays.FIRST_USE]]
        for row in after[after >= 0][:1]:
            free_until = min(free_until, s.stays[row, stays.BEGIN])
    buffer[stays.FREE_FROM] = free_from + span.shift
    buffer[stays.FREE_UNTIL] = free_until + span.shift
    return buffer


def _whole_on_one_side(p: Lives, runs: _Runs) -> tuple[dict[int, int], dict[int, int]]:
    """The runs that have the first use of their buffer, and the last, by buffer."""
    first = p.buffers[runs.buffers, stays.FIRST_USE] == runs.uses[runs.firsts]
    last = p.buffers[runs.buffers + 1, stays.FIRST_USE] - 1 == runs.uses[runs.lasts]
    starts, ends = (
        {int(runs.buffers[i]): int(i) for i in np.flatnonzero(side)}
        for side in (first, last)
    )
    return starts, ends


def _partners(
    begin: Ints,
    partners: Ints,
    buffers: Ints,
    mine: dict[int, int],
    theirs: dict[int, int],
) -> tuple[Ints, Ints]:
    """Which runs may share a place with each, of those that are there."""
    found = [
        [
            theirs[other]
            for other in partners[begin[b] : begin[b + 1]]
            if other in theirs
        ]
        if mine.get(b) == i
        else []
        for i, b in enumerate(buffers.tolist())
    ]
    flat = np.array([run for runs in found for run in runs], np.int64)
    return np.cumsum([0, *map(len, found)]), flat


def _boundaries(boundaries: Ints, span: _Span) -> Ints:
    """Boundaries for copies; 0, or one past all, where there is none in a stretch."""
    before, after = boundaries[:, :, span.begin : span.stop + 1]
    before = np.where(before < span.begin, 0, before + span.shift)
    after = np.where(after > span.stop, span.num_ops + 1, after + span.shift)
    return np.stack(
        [np.pad(before, ((0, 0), (_AHEAD, 0))), np.c_[after[:, :_AHEAD], after]]
    )


def _values(values: Values, span: _Span, uses: Ints) -> Values:
    weights = np.diff(values.sums)[uses]
    clock = values.clock[span.begin : span.stop + 1]
    return Values(
        cumulative=np.cumsum(np.maximum(weights, 0.0)),
        sums=np.r_[0.0, np.cumsum(weights)],
        clock=np.r_[[clock[0]] * _AHEAD, clock],
    )


def _state(
    tables: Lives, s: State, span: _Span, runs: _Runs, inside: Bools, frozen: Bools
) -> State:
    """Rows are those that may change, those that may not, and one more per use."""
    used = s.order[: s.counts[stays.USED]]
    rows = np.r_[used[inside], used[frozen]]
    num_inside, num_used, num_uses = int(inside.sum()), len(rows), len(runs.uses)
    number = np.full(len(s.stays) + 1, -1)
    number[rows] = np.arange(num_used)
    found = np.zeros((num_used + num_uses, stays.STAY_COLUMNS), np.int64)
    found[:num_used] = _moved(s.stays[rows], span.shift)
    found[num_inside:num_used, stays.BUFFER] = stays.FROZEN
    mine = found[:num_inside]
    mine[:, [stays.FIRST, stays.LAST]] = runs.number[mine[:, [stays.FIRST, stays.LAST]]]
    mine[:, stays.BUFFER] = runs.run[mine[:, stays.FIRST]]
    order, free = np.zeros((2, len(found)), np.int64)
    order[:num_used] = number[used[inside | frozen]]
    free[:num_uses] = np.arange(num_used, len(found))[::-1]
    own_row = np.where(number < num_inside, number, -1)
    queued = [_queue(s, q, own_row, span) for q in range(len(s.copies))]
    most = max(len(copies) for copies, _ in queued) + 2 * num_uses
    copies = np.zeros((len(queued), most, s.copies.shape[2]), np.int64)
    times = np.zeros((len(queued), most, s.times.shape[2]))
    counts = np.zeros_like(s.counts)
    counts[[stays.USED, stays.FREE]] = num_used, num_uses
    for q, (some, their_times) in enumerate(queued):
        copies[q, : len(some)], times[q, : len(some)] = some, their_times
        counts[stays.COPIES + q] = len(some)
    state = State(
        ops=_after_nothing(s.ops[:, span.begin : span.stop]),
        clock=np.zeros(span.num_ops + 1),
        stays=found,
        stay_of=own_row[s.stay_of[runs.uses]],
        order=order,
        free=free,
        copies=copies,
        times=times,
        numbers=np.zeros(2),
        counts=counts,
    )
    queues.refresh(tables, state)
    return state


def _queue(s: State, q: int, own_row: Ints, span: _Span) -> tuple[Ints, Floats]:
    """Copies and times of one queue; of what is in progress, what is left."""
    number = s.counts[stays.COPIES + q]
    copies, times = s.copies[q, :number].copy(), s.times[q, :number].copy()
    before_s = np.r_[0.0, times[:, stays.SERVED]][:number]
    left_s = times[:, stays.SERVED] + times[:, stays.WAIT]
    left_s = left_s - np.maximum(before_s, s.clock[span.begin])
    left_s = np.clip(left_s, 0.0, times[:, stays.SECONDS])
    left_s[copies[:, stays.DUE] <= span.begin] = 0.0  # it was waited for until then
    is_begun = copies[:, stays.START] < span.begin
    times[is_begun, stays.SECONDS] = left_s[is_begun]
    # At either end, also one that must be done at the very boundary where it starts.
    kept = (copies[:, stays.DONE] > span.begin) | ~is_begun
    kept &= (copies[:, stays.START] < span.stop) | (copies[:, stays.DONE] <= span.stop)
    copies, times = copies[kept], times[kept]
    copies[:, stays.START] = np.maximum(copies[:, stays.START] + span.shift, 0)
    copies[:, stays.DONE] = np.minimum(copies[:, stays.DONE], span.stop) + span.shift
    copies[:, stays.ROW] = own_row[copies[:, stays.ROW]]
    return copies, times


def _moved(rows: Ints, shift: int) -> Ints:
    """Stays at boundaries that are counted from elsewhere."""
    rows = rows.copy()
    rows[:, [stays.BEGIN, stays.END, stays.FILLED]] += shift
    for column in (stays.FILL, stays.SAVE, stays.SAVED):
        rows[:, column] += np.where(rows[:, column] >= 0, shift, 0)
    return rows


def _after_nothing(columns: Floats) -> Floats:
    """Columns of ops, after one of no time."""
    return np.pad(columns, ((0, 0), (_AHEAD, 0)))


def _rows(begin: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Some rows of a ragged table: where each begins, and which elements they have."""
    lengths = begin[chosen + 1] - begin[chosen]
    new_begin = np.r_[0, np.cumsum(lengths)]
    elements = np.arange(new_begin[-1])
    return new_begin, elements + np.repeat(begin[chosen] - new_begin[:-1], lengths)
