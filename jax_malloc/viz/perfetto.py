"""The predicted timeline of a plan as a trace for Perfetto (ui.perfetto.dev).

    ops                [ fusion.1 ][ fusion.2 ]....[ fusion.3 ]    .... a stall
    named scopes       [ jvp(Net)             ]    [ jvp(Net) ]
    copy in                  [ w1         ]--------^ an arrow to the op that needs it
    copy out                              [ h1 ]
    fast memory in use  __/^^^^^^\\____

JSON, since that format is documented and stable; gzipped, Perfetto reads it too.

Source: "Trace Event Format", Duffy and others, Google, 2016, as Perfetto imports it
  (perfetto.dev/docs/getting-started/other-formats): complete events X, flows s and f,
  counters C, metadata M; times in microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jax_malloc import __version__
from jax_malloc.mapping import Direction
from jax_malloc.report import format_bytes
from jax_malloc.viz import palette, scopes, tables
from jax_malloc.viz.tables import Tables

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

_US, _NS = 1e6, 1e9
_PID = 1
_OPS, _SCOPES, _STALLS = 1, 2, 3
_QUEUE = {Direction.PREFETCH: 4, Direction.EVICT: 5}
_COUNTER = "fast memory in use (MiB)"


def to_json(plan: Plan) -> str:
    """The trace; see `Plan.to_perfetto`."""
    rows = tables.build(plan)
    events = [*_slices(rows), *_flows(rows), *_counters(rows)]
    # Outer slices before inner ones that begin with them.
    events.sort(key=lambda e: (e["ts"], -e.get("dur", 0.0)))
    trace = {
        "traceEvents": [*_names(plan), *events],
        "displayTimeUnit": "ns",
        "otherData": {
            "program": plan.program.name,
            "accelerator": plan.accelerator.name,
            "solver": plan.solver,
            "times": "predicted, not measured",
            "version": f"jax_malloc {__version__}",
        },
    }
    return json.dumps(trace, separators=(",", ":"), allow_nan=False)


def _names(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the process and its tracks are called, and in which order they stand."""
    process = (
        f"{plan.program.name} on {plan.accelerator.name} by {plan.solver} (predicted)"
    )
    yield _event("M", "process_name", args={"name": process})
    tracks = {
        _OPS: "ops",
        _SCOPES: "named scopes",
        _STALLS: "stalls",
        **{tid: palette.DIRECTION_WORD[d] for d, tid in _QUEUE.items()},
    }
    for tid, name in tracks.items():
        yield _event("M", "thread_name", tid=tid, args={"name": name})
        yield _event("M", "thread_sort_index", tid=tid, args={"sort_index": tid})


def _slices(rows: Tables) -> Iterator[dict[str, Any]]:
    for o in rows.ops:
        yield _slice(
            o.op.name,
            _OPS,
            o.start_s,
            o.end_s,
            cat="op",
            op_name=o.op.op_name,
            opcode=o.op.opcode,
            bound=o.bound.value,
            in_fast_memory_us=o.fast_s * _US,
            slow_memory_adds_us=o.slow_s * _US,
            stall_before_us=o.stall_s * _US,
            executions=o.op.count,
        )
    for run in scopes.runs(rows.ops):
        begin_s, end_s = run.first.start_s - run.first.stall_s, run.last.end_s
        yield _slice(run.name, _SCOPES, begin_s, end_s, cat="scope", path=run.path)
    for begin_s, end_s in rows.stalls_s():
        yield _slice("stall", _STALLS, begin_s, end_s, cat="stall")
    for c in rows.copies:
        buffer = rows.buffers[c.buffer_id]
        yield _slice(
            buffer.name,
            _QUEUE[c.direction],
            c.begin_s,
            c.done_s,
            cat="copy",
            user_name=buffer.user_name,
            kind=buffer.kind.value,
            size=format_bytes(c.size_bytes),
            issued_us=c.issue_s * _US,
            waited_in_queue_us=(c.begin_s - c.issue_s) * _US,
            ops_wait_us=c.exposed_s * _US,
            executions=c.count,
        )


def _flows(rows: Tables) -> Iterator[dict[str, Any]]:
    """An arrow from each prefetch to the op before which it has to be over."""
    for k, c in enumerate(rows.copies):
        if c.direction is not Direction.PREFETCH or c.due >= len(rows.ops):
            continue
        common = {"cat": "copy", "id": k + 1}
        tid, used = _QUEUE[c.direction], rows.ops[c.due]
        yield _event("s", "needs", tid=tid, ts=_us(round(c.begin_s * _NS)), **common)
        yield _event(
            "f", "needs", tid=_OPS, ts=_us(round(used.start_s * _NS)), bp="e", **common
        )


def _counters(rows: Tables) -> Iterator[dict[str, Any]]:
    """Fast memory taken: a value wherever it changes, and zero at the end."""
    last = None
    for o, used_bytes in zip(rows.ops, rows.used_bytes.tolist(), strict=True):
        if used_bytes != last:
            ts = _us(round((o.start_s - o.stall_s) * _NS))
            yield _event("C", _COUNTER, ts=ts, args={"MiB": used_bytes / 2**20})
        last = used_bytes
    yield _event("C", _COUNTER, ts=_us(round(rows.latency_s * _NS)), args={"MiB": 0.0})


def _slice(
    name: str, tid: int, begin_s: float, end_s: float, *, cat: str, **args: Any
) -> dict[str, Any]:
    begin_ns, end_ns = round(begin_s * _NS), round(end_s * _NS)
    dur = _us(max(end_ns - begin_ns, 0))
    return _event("X", name, tid=tid, ts=_us(begin_ns), dur=dur, cat=cat, args=args)


def _event(ph: str, name: str, *, tid: int = 0, **fields: Any) -> dict[str, Any]:
    return {"ph": ph, "name": name, "pid": _PID, "tid": tid, **fields}


def _us(ns: int) -> float:
    """Whole nanoseconds in microseconds, so that Perfetto gets them back.

    It multiplies by 1000 and cuts off what is behind the point; a slice that was one
    nanosecond longer than it should be would swallow the next.
    """
    us = ns / 1000
    return us if int(us * 1000.0) == ns else math.nextafter(us, math.inf)
