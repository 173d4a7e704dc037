"""Stretches of a long program as small problems of their own, searched side by side.

    ops        0 ........ a ................ b ...... c ....... T
    stays         [ frozen ]   [free]  [free]     [frozen]
                          [   frozen         ]
    copies            in progress at a        until the queue has been idle

A step of ruin and recreate changes little of a mapping, and takes time by the length of
the whole. So a stretch `[a, b)` becomes a problem in which only stays that lie in it
change. Those that reach out of it keep their places and copies, copies that are in
progress at `a` what is left of them, and ops until `c` feel what it does to the queue
of copies. Stretches that do not overlap are searched in threads (the loops need no
lock) and what they find is put into the whole, where it has its exact latency. Then the
next round has its borders elsewhere.

Such decomposition by time keeps buffers apart as in POPMUSIC, Taillard and Voss,
"Partial Optimization Metaheuristic under Special Intensification Conditions", 2002.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from jax_malloc.compiled import placing, queues, stays
from jax_malloc.compiled.ruin import Values
from jax_malloc.compiled.stays import Lives, State
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over, share_of
from jax_malloc.solvers.ruin_recreate import run

_ACCESSES = 600  # of a stretch, about
_LONG = 3_000  # accesses; below, the whole is as fast and sees more
_ROUNDS = 4
_TAIL = 0.5  # of a stretch's ops that come after it, at most
# Boundary 0 of a stretch is before its begin, for copies that start there; the op
# between takes no time.
_BEFORE = 1


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Ops `[begin, end)` as a problem of its own.

    tables, values, state: what a search needs. uses: `[U]` numbers in the whole.
    buffers: `[B]` positions in the whole. rows: of the stays in the whole that it may
    change.
    """

    begin: int
    tables: Lives
    values: Values
    state: State
    uses: np.ndarray
    buffers: np.ndarray
    rows: np.ndarray


def cut(
    tables: Lives, values: Values, state: State, begin: int, end: int
) -> Stretch | None:
    """The stretch `[begin, end)` of an allocation; None if nothing in it can change."""
    p, s = tables, state
    stop = _idle_from(s, end, end + int(_TAIL * (end - begin)))
    shift = _BEFORE - begin
    used = s.order[: s.counts[stays.USED]]
    found = s.stays[used]
    inside = (found[:, stays.BEGIN] >= begin) & (found[:, stays.END] <= end)
    frozen = (found[:, stays.BEGIN] < end) & (found[:, stays.END] > begin) & ~inside
    is_inside = np.zeros(len(s.stays) + 1, bool)  # the last one for uses without a stay
    is_inside[used[inside]] = is_inside[-1] = True
    uses = np.flatnonzero(
        (p.uses[:, stays.USE_BEGIN] >= begin)
        & (p.uses[:, stays.USE_END] <= end)
        & is_inside[s.stay_of]
    )
    if not len(uses):
        return None
    # Runs of a buffer's uses, between those that cannot change.
    owner = p.uses[uses, stays.USE_BUFFER]
    starts = np.r_[True, (np.diff(uses) > 1) | (np.diff(owner) > 0)]
    group = np.cumsum(starts) - 1
    firsts = np.flatnonzero(starts)
    lasts = np.r_[firsts[1:], len(uses)] - 1
    new_use = np.full(len(p.uses) + 1, -1)
    new_use[uses] = np.arange(len(uses))
    new_uses = p.uses[uses]
    new_uses[:, [stays.USE_BEGIN, stays.USE_END]] += shift
    new_uses[:, stays.USE_BUFFER] = group
    written = new_use[new_uses[:, stays.LAST_WRITE]]
    new_uses[:, stays.LAST_WRITE] = np.where(written >= firsts[group], written, -1)
    buffers = owner[firsts]
    new_buffers = np.zeros((len(buffers) + 1, p.buffers.shape[1]), np.int64)
    for g, (b, i, j) in enumerate(zip(buffers, firsts, lasts, strict=True)):
        new_buffers[g] = p.buffers[b]
        _limit(p, s, new_buffers[g], b, uses[i], uses[j], begin, end)
    new_buffers[:-1, [stays.FREE_FROM, stays.FREE_UNTIL]] += shift
    new_buffers[:, stays.FIRST_USE] = np.r_[firsts, len(uses)]
    group_of = {}  # of first and of last uses of whole buffers
    for g, (b, i, j) in enumerate(zip(buffers, firsts, lasts, strict=True)):
        if uses[i] == p.buffers[b, stays.FIRST_USE]:
            group_of[b, "first"] = g
        if uses[j] == p.buffers[b + 1, stays.FIRST_USE] - 1:
            group_of[b, "last"] = g
    over_begin, over = _partners(
        p.over_begin, p.over, buffers, group_of, ("first", "last")
    )
    under_begin, under = _partners(
        p.under_begin, p.under, buffers, group_of, ("last", "first")
    )
    access_begin, access = _slices(p.access_begin, uses)
    use_begin, use_at = [0, 0], []
    for t in range(begin, stop):
        at = new_use[p.use_at[p.use_begin[t] : p.use_begin[t + 1]]]
        use_at.extend(at[at >= 0])
        use_begin.append(len(use_at))
    num_ops = stop - begin + _BEFORE
    boundaries = np.zeros((2, p.boundaries.shape[1], num_ops + 1), np.int64)
    sliced = p.boundaries[:, :, begin : stop + 1]
    boundaries[0, :, _BEFORE:] = np.where(sliced[0] < begin, 0, sliced[0] + shift)
    boundaries[1, :, _BEFORE:] = np.where(
        sliced[1] > stop, num_ops + 1, sliced[1] + shift
    )
    boundaries[1, :, 0] = boundaries[1, :, _BEFORE]
    new_tables = p._replace(
        capacity=np.r_[p.capacity[begin], p.capacity[begin:stop]],
        model=_after_nothing(p.model, begin, stop),
        buffers=new_buffers,
        copy_s=p.copy_s[buffers],
        uses=new_uses,
        access_begin=access_begin,
        access_op=p.access_op[access] + shift,
        access_bytes=p.access_bytes[access],
        over_begin=over_begin,
        over=over,
        under_begin=under_begin,
        under=under,
        boundaries=boundaries,
        use_begin=np.array(use_begin),
        use_at=np.array(use_at, np.int64),
    )
    # Rows: stays that may change, stays that may not, and as many more as uses.
    rows = np.r_[used[inside], used[frozen]]
    num_inside, num_used = int(inside.sum()), len(rows)
    new_row = np.full(len(s.stays), -1)
    new_row[rows[:num_inside]] = np.arange(num_inside)
    new_stays = np.zeros((num_used + len(uses), stays.STAY_COLUMNS), np.int64)
    new_stays[:num_used] = _moved(s.stays[rows], shift)
    new_stays[:num_inside, stays.BUFFER] = group[
        new_use[s.stays[rows[:num_inside], stays.FIRST]]
    ]
    new_stays[:num_inside, [stays.FIRST, stays.LAST]] = new_use[
        s.stays[rows[:num_inside]][:, [stays.FIRST, stays.LAST]]
    ]
    new_stays[num_inside:num_used, stays.BUFFER] = stays.FROZEN
    numbers = np.full(len(s.stays), -1)
    numbers[rows] = np.arange(num_used)
    order = np.zeros(len(new_stays), np.int64)
    order[:num_used] = numbers[used[inside | frozen]]
    free = np.zeros(len(new_stays), np.int64)
    free[: len(uses)] = np.arange(num_used, len(new_stays))[::-1]
    copies, times, number = _copies(s, new_row, begin, stop, len(uses))
    new_state = State(
        ops=_after_nothing(s.ops, begin, stop),
        clock=np.zeros(num_ops + 1),
        stays=new_stays,
        stay_of=np.r_[new_row, -1][s.stay_of[uses]],
        order=order,
        free=free,
        copies=copies,
        times=times,
        numbers=np.zeros(2),
        counts=np.array([num_used, len(uses), *number, 0][:4], np.int64),
    )
    queues.refresh(new_tables, new_state)
    weights = np.diff(values.sums)[uses]
    new_values = Values(
        cumulative=np.cumsum(np.maximum(weights, 0.0)),
        sums=np.r_[0.0, np.cumsum(weights)],
        clock=np.r_[values.clock[begin], values.clock[begin : stop + 1]],
    )
    return Stretch(
        begin, new_tables, new_values, new_state, uses, buffers, rows[:num_inside]
    )


def paste(tables: Lives, state: State, stretch: Stretch) -> None:
    """Puts the stays of a stretch into the whole that it was cut from.

    Of what it may change, the whole must be as it was then.
    """
    s = stretch.state
    found = s.stays[s.order[: s.counts[stays.USED]]]
    found = found[found[:, stays.BUFFER] != stays.FROZEN]
    found = _moved(found, stretch.begin - _BEFORE)
    found[:, stays.BUFFER] = stretch.buffers[found[:, stays.BUFFER]]
    for column in (stays.FIRST, stays.LAST):
        found[:, column] = stretch.uses[found[:, column]]
    placing.remove(tables, state, stretch.rows)
    placing.adopt(tables, state, found)


def _limit(
    p: Lives,
    s: State,
    buffer: np.ndarray,
    b: int,
    first: int,
    last: int,
    begin: int,
    end: int,
) -> None:
    """What is around a run of uses, as if they were a buffer's only ones."""
    free_from, free_until = begin, end
    if first > p.buffers[b, stays.FIRST_USE]:
        written = p.uses[first - 1, stays.LAST_WRITE]
        if written >= 0:
            free_from = max(free_from, p.uses[written, stays.USE_END])
            buffer[stays.STARTS_SLOW] = 1
        for u in range(first - 1, p.buffers[b, stays.FIRST_USE] - 1, -1):
            if s.stay_of[u] >= 0:
                free_from = max(free_from, s.stays[s.stay_of[u], stays.END])
                break
    if last + 1 < p.buffers[b + 1, stays.FIRST_USE]:
        free_until = min(free_until, p.uses[last + 1, stays.USE_BEGIN])
        buffer[stays.ENDS_SLOW] = p.uses[last + 1, stays.READS]
        for u in range(last + 1, p.buffers[b + 1, stays.FIRST_USE]):
            if s.stay_of[u] >= 0:
                free_until = min(free_until, s.stays[s.stay_of[u], stays.BEGIN])
                break
    buffer[stays.FREE_FROM], buffer[stays.FREE_UNTIL] = free_from, free_until


def _idle_from(s: State, end: int, latest: int) -> int:
    """The first boundary from `end` on at which no copy is in progress."""
    num_ops = s.ops.shape[1]
    latest = min(latest, num_ops)
    for t in range(end, latest):
        if all(
            _is_idle(s.clock, s.copies[q, : s.counts[stays.COPIES + q]], s.times[q], t)
            for q in range(len(s.copies))
        ):
            return t
    return latest


def _is_idle(clock: np.ndarray, copies: np.ndarray, times: np.ndarray, t: int) -> bool:
    before = int(np.searchsorted(copies[:, stays.START], t))
    return before == 0 or times[before - 1, stays.SERVED] <= clock[t]


def _copies(
    s: State, new_row: np.ndarray, begin: int, stop: int, num_uses: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The queues of a stretch: of what is in progress at its begin, what is left."""
    shift, queued = _BEFORE - begin, []
    for q in range(len(s.copies)):
        number = s.counts[stays.COPIES + q]
        copies, times = s.copies[q, :number].copy(), s.times[q, :number].copy()
        served = np.r_[0.0, times[:-1, stays.SERVED]] if number else np.zeros(0)
        left_s = times[:, stays.SERVED] + times[:, stays.WAIT]
        left_s = left_s - np.maximum(served, s.clock[begin])
        is_begun = copies[:, stays.START] < begin
        times[:, stays.SECONDS] = np.where(
            is_begun,
            np.clip(left_s, 0.0, times[:, stays.SECONDS]),
            times[:, stays.SECONDS],
        )
        # At either end, one that takes no time as it starts where it must be done.
        kept = (copies[:, stays.DONE] > begin) | (copies[:, stays.START] >= begin)
        kept &= (copies[:, stays.START] < stop) | (copies[:, stays.DONE] <= stop)
        copies, times = copies[kept], times[kept]
        copies[:, stays.START] = np.maximum(copies[:, stays.START] + shift, 0)
        copies[:, stays.DONE] = np.minimum(copies[:, stays.DONE], stop) + shift
        copies[:, stays.ROW] = new_row[copies[:, stays.ROW]]
        queued.append((copies, times))
    most = max(len(copies) for copies, _ in queued) + 2 * num_uses
    all_copies = np.zeros((len(queued), most, s.copies.shape[2]), np.int64)
    all_times = np.zeros((len(queued), most, s.times.shape[2]))
    for q, (copies, times) in enumerate(queued):
        all_copies[q, : len(copies)], all_times[q, : len(copies)] = copies, times
    return all_copies, all_times, [len(copies) for copies, _ in queued]


def _moved(rows: np.ndarray, shift: int) -> np.ndarray:
    """Stays at boundaries that are counted from elsewhere."""
    rows = rows.copy()
    rows[:, [stays.BEGIN, stays.END, stays.FILLED]] += shift
    for column in (stays.FILL, stays.SAVE, stays.SAVED):
        rows[:, column] += np.where(rows[:, column] >= 0, shift, 0)
    return rows


def _after_nothing(columns: np.ndarray, begin: int, stop: int) -> np.ndarray:
    """Columns of ops, after one that takes no time."""
    return np.ascontiguousarray(np.pad(columns[:, begin:stop], ((0, 0), (_BEFORE, 0))))


def _slices(begin: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a ragged table: where each begins, and which elements they have."""
    lengths = begin[chosen + 1] - begin[chosen]
    new_begin = np.r_[0, np.cumsum(lengths)]
    offsets = np.repeat(begin[chosen] - new_begin[:-1], lengths)
    return new_begin, np.arange(new_begin[-1]) + offsets


def _partners(begin, partners, buffers, group_of, sides):
    """Which groups of uses may share a place, of those that are whole on that side."""
    mine, theirs = sides
    new_begin, new = [0], []
    for g, b in enumerate(buffers):
        if group_of.get((b, mine)) == g:
            for other in partners[begin[b] : begin[b + 1]]:
                if (other, theirs) in group_of:
                    new.append(group_of[other, theirs])
        new_begin.append(len(new))
    return np.array(new_begin), np.array(new, np.int64)


def borders(tables: Lives, number: int, *, between: bool) -> list[int]:
    """Ops at which so many stretches with about as many uses each begin and end.

    Args:
      between: halfway between those of other rounds, where a stretch more is needed.
    """
    begins, num_ops = np.sort(tables.uses[:, stays.USE_BEGIN]), len(tables.capacity)
    shares = (np.arange(number) + 0.5) if between else np.arange(1, number)
    inner = begins[(shares / number * len(begins)).astype(int)]
    return sorted({0, *inner.tolist(), num_ops})


def number_of(problem: Problem) -> int:
    """Of the stretches that a program is searched in, at least one."""
    return max(1, round(len(problem.access_op) / _ACCESSES))


def is_long(problem: Problem) -> bool:
    """Whether a program is better searched in stretches than as a whole."""
    return len(problem.access_op) >= _LONG


def search(
    tables: Lives,
    values: Values,
    state: State,
    seed: int,
    *,
    number: int,
    steps: int | None,
    deadline_s: float | None,
    target_s: float,
    temperature_s: Callable[[float], float],
) -> None:
    """Ruin and recreate in all stretches of a state, which is no slower afterwards.

    Args:
      seed: of all draws. number: of stretches; every other round has one more.
      steps, deadline_s, target_s, temperature_s: as for `ruin_recreate.run`.
    """
    threads = num_threads()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for i in range(_ROUNDS):
            if is_over(deadline_s) or stays.latency_s(state) <= target_s:
                return
            spans = list(
                itertools.pairwise(borders(tables, number, between=i % 2 == 1))
            )
            limit_s = share_of(deadline_s, 1 / (_ROUNDS - i))
            before = stays.copy(state)

            def searched(
                j: int,
                i: int = i,
                spans: Sequence[tuple[int, int]] = spans,
                limit_s: float | None = limit_s,
                before: State = before,
            ) -> Stretch | None:
                stretch = cut(tables, values, before, *spans[j])
                if stretch is not None:
                    turns = math.ceil((len(spans) - j) / threads)
                    run(
                        stretch.tables,
                        stretch.values,
                        stretch.state,
                        np.random.default_rng((seed, i, j)),
                        None if steps is None else steps // _ROUNDS // len(spans),
                        share_of(limit_s, 1 / turns),
                        temperature_s=lambda x: temperature_s((i + x) / _ROUNDS),
                    )
                return stretch

            paste_all(tables, state, list(pool.map(searched, range(len(spans)))))


def paste_all(tables: Lives, state: State, stretches: Sequence[Stretch | None]) -> None:
    """Pastes what makes the whole faster: all together, or else one by one."""
    found, before = [x for x in stretches if x is not None], stays.copy(state)
    for stretch in found:
        paste(tables, state, stretch)
    if stays.latency_s(state) <= stays.latency_s(before):
        return
    stays.assign(state, before)
    for stretch in found:
        paste(tables, state, stretch)
        if stays.latency_s(state) <= stays.latency_s(before):
            stays.assign(before, state)
        else:
            stays.assign(state, before)


def num_threads() -> int:
    """Of searches side by side: as many as this process has cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
