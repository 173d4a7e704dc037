"""The plan file, version 1: a mapping in JSON by names, so that anyone can check it.

    {"format": "jax_malloc.plan", "version": 1, "solver": ..., "seed": ...,
     "program": {"name": ..., "fingerprint": ..., "data": {...}},
     "accelerator": {...}, "latency_s": ..., "baselines": {"all_slow": ..., ...},
     "buffers": [{"name": "w.1", "index": [], "size_bytes": 8388608, "segments": [
        {"space": "fast", "offset_bytes": 0, "first": "dot.3", "last": "dot.7"}]}],
     "copies": [{"buffer": "w.1", "index": [], "direction": "prefetch",
        "bytes": 8388608, "start_after": "fusion.2", "done_before": "dot.3"}]}

A segment lasts from the start of op `first` to the end of op `last`; a prefetched one
takes its place from the op after its copy's `start_after`. A null `start_after` is the
program's start, a null `done_before` its end. What a buffer does at a loop that it
outlives is said by the loop's own op, and means all of the loop. A buffer without
segments, or left out, is in slow memory; we write all, so that no reader takes one for
sharing the place of another. "data" is the program, so that the file is enough to read
a plan.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from typing import TYPE_CHECKING, Any

from frontends.program import Program
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib
from jax_malloc import validator
from jax_malloc.json_reader import Reader, nearest
from jax_malloc.loops import Loops
from jax_malloc.mapping import Copy, Direction, Mapping, MemorySpace, Segment
from jax_malloc.problem import Problem

if TYPE_CHECKING:
    from jax_malloc.plan import Plan

FORMAT = "jax_malloc.plan"
VERSION = 1

# Names that other tools use for slow memory in a segment.
_SLOW_NAMES = (MemorySpace.SLOW.value, "hbm")
_MAX_VIOLATIONS_SHOWN = 3


def encode(plan: Plan) -> dict[str, Any]:
    """A plan as plain JSON values."""
    program = plan.program
    body = {
        "format": FORMAT,
        "version": VERSION,
        "solver": plan.solver,
        "seed": plan.seed,
        "latency_s": plan.latency_s,
        "baselines": dict(plan.baselines),
        "accelerator": plan.accelerator.to_dict(),
        "notes": list(plan.notes),
        **encode_mapping(plan.problem, plan.mapping),
        "program": {
            "name": program.name,
            "fingerprint": program.fingerprint,
            "data": program.to_dict(),
        },
    }
    if plan.wall_s is not None:
        body["wall_s"] = dict(plan.wall_s)
    return body


def dumps(body: MappingType[str, Any]) -> str:
    """What `encode` gives, as text: a line per field, buffer and copy."""
    lines = []
    for key, value in body.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n  {rows}]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{" + ",\n ".join(lines) + "}\n"


def decode(
    text: str, *, where: str = "plan", program: Program | None = None
) -> dict[str, Any]:
    """The fields of the plan that `text` describes, all but its timeline.

    Args:
      text: JSON.
      where: what to call it in messages, such as the file's name.
      program: the program it is for; None takes the one in the file.
    Raises:
      ValueError: the text is not JSON, not a plan, of another version or program,
        malformed, names something that the program does not have, or describes a
        mapping that breaks the rules.
    """
    reader = Reader(where)
    body = reader.load(text)
    if body.get("format") != FORMAT:
        raise reader.error(
            f"format is {body.get('format')!r}, expected {FORMAT!r}. Pass a file that "
            "Plan.save wrote."
        )
    if body.get("version") != VERSION:
        raise reader.error(
            f"plan version {body.get('version')!r}, this package reads version "
            f"{VERSION}. Plan the program again."
        )
    program = _decode_program(reader, body, program)
    accelerator = Accelerator.from_dict(
        reader.field(body, "accelerator", dict, "the plan"),
        where=f"{where}: accelerator",
    )
    problem = problem_lib.build(program, accelerator)
    mapping = _decode_mapping(reader, body, problem)
    violations = validator.find_violations(problem, mapping)
    if violations:
        shown = " ".join(str(v) for v in violations[:_MAX_VIOLATIONS_SHOWN])
        raise reader.error(
            f"the mapping breaks the rules (violations: {len(violations)}): {shown} "
            "Plan the program again."
        )
    wall_s = body.get("wall_s")
    return {
        "program": program,
        "accelerator": accelerator,
        "mapping": mapping,
        "solver": reader.field(body, "solver", str, "the plan"),
        "seed": reader.field(body, "seed", int, "the plan"),
        "latency_s": reader.seconds(body, "latency_s", "the plan"),
        "baselines": reader.seconds_by_name(body, "baselines", "the plan"),
        "notes": tuple(
            reader.value(note, str, "a note")
            for note in reader.field({"notes": [], **body}, "notes", list, "the plan")
        ),
        "wall_s": None
        if wall_s is None
        else reader.seconds_by_name(body, "wall_s", "the plan"),
    }


# --- writing ------------------------------------------------------------------------


def encode_mapping(problem: Problem, mapping: Mapping) -> dict[str, list]:
    """The fields "buffers" and "copies" of a plan file."""
    program, loops = problem.program, Loops(problem.program)

    def op_name(t: int, buffer_id: int) -> str:
        """The op at t, or the loop's around it, as seen from the buffer's home."""
        op, home = program.ops[t], int(problem.home_region[buffer_id])
        if op.region == home:
            return op.name
        loop = loops.child(op.region, home)
        return loops.regions[loop].name if loop > 0 else op.name

    stays: dict[int, list[dict]] = {b: [] for b in range(len(program.buffers))}
    for s in sorted(mapping.segments, key=lambda s: s.begin):
        stays[s.buffer_id].append(
            {
                "space": MemorySpace.FAST.value,
                "offset_bytes": s.offset_bytes,
                "first": op_name(s.first, s.buffer_id),
                "last": op_name(s.end - 1, s.buffer_id),
            }
        )
    buffers = [
        {
            "name": buffer.name,
            "index": list(buffer.index),
            "size_bytes": buffer.size_bytes,
            "segments": stays[b],
        }
        for b, buffer in enumerate(program.buffers)
    ]
    copies = []
    for c in sorted(mapping.copies, key=lambda c: (c.start, c.done, c.buffer_id)):
        buffer, b = program.buffers[c.buffer_id], c.buffer_id
        at_end = c.done == len(program.ops)
        copies.append(
            {
                "buffer": buffer.name,
                "index": list(buffer.index),
                "direction": c.direction.value,
                "bytes": c.size_bytes,
                "start_after": op_name(c.start - 1, b) if c.start else None,
                "done_before": None if at_end else op_name(c.done, b),
            }
        )
    return {"buffers": buffers, "copies": copies}


# --- reading ------------------------------------------------------------------------


def _decode_program(reader: Reader, body: dict, program: Program | None) -> Program:
    """The program given, if the plan is for it, or the one in the file."""
    described = reader.field(body, "program", dict, "the plan")
    name = reader.field(described, "name", str, "'program'")
    fingerprint = reader.field(described, "fingerprint", str, "'program'")
    if program is None:
        if "data" not in described:
            raise reader.error(
                f"it does not contain its program {name!r}; pass that as program=."
            )
        program = Program.from_json(
            json.dumps(described["data"]), where=f"{reader.where}: program {name!r}"
        )
        if program.fingerprint != fingerprint:
            raise reader.error(
                f"its program has fingerprint {program.fingerprint}, but the plan is "
                f"for {fingerprint}: the file was changed. Plan the program again."
            )
    elif program.fingerprint != fingerprint:
        raise reader.error(
            f"it is a plan for program {name!r} with fingerprint {fingerprint}; "
            f"{program.name!r} has {program.fingerprint}. Plan this program, or pass "
            "the one that the plan was made for."
        )
    return program


def _decode_mapping(reader: Reader, body: dict, problem: Problem) -> Mapping:
    names = _Names(reader, problem)
    segments: dict[int, list[Segment]] = {}
    for entry in reader.field(body, "buffers", list, "the plan"):
        entry = reader.value(entry, dict, "an entry of 'buffers'")
        b, label = names.buffer(entry, "name", "an entry of 'buffers'")
        size_bytes = reader.field(entry, "size_bytes", int, f"buffer {label!r}")
        needed_bytes = problem.program.buffers[b].size_bytes
        if size_bytes != needed_bytes:
            raise reader.error(
                f"buffer {label!r} has {size_bytes} bytes in the plan, {needed_bytes} "
                "in the program. Plan the program again."
            )
        for record in reader.field(entry, "segments", list, f"buffer {label!r}"):
            segment = _decode_segment(reader, names, record, b, label)
            if segment is not None:
                segments.setdefault(b, []).append(segment)
    copies: dict[int, list[Copy]] = {}
    for entry in reader.field(body, "copies", list, "the plan"):
        entry = reader.value(entry, dict, "an entry of 'copies'")
        b, label = names.buffer(entry, "buffer", "an entry of 'copies'")
        copies.setdefault(b, []).append(_decode_copy(reader, names, entry, b, label))
    stays = [
        stay
        for b in sorted(segments)
        for stay in _begin_at_prefetches(segments[b], copies.get(b, []))
    ]
    moves = [c for b in copies for c in copies[b]]
    moves.sort(key=lambda c: (c.start, c.done, c.buffer_id))
    return Mapping(tuple(stays), tuple(moves))


def _decode_segment(
    reader: Reader, names: _Names, record: Any, buffer_id: int, label: str
) -> Segment | None:
    """A segment as if it were not prefetched; None for one in slow memory."""
    what = f"a segment of {label!r}"
    record = reader.value(record, dict, what)
    space = reader.field(record, "space", str, what)
    if space in _SLOW_NAMES:
        return None
    if space != MemorySpace.FAST.value:
        raise reader.error(
            f"'space' of {what} is {space!r}, expected 'fast' or 'slow'."
        )
    first = names.span(record, "first", buffer_id, what)[0]
    return Segment(
        buffer_id=buffer_id,
        offset_bytes=reader.field(record, "offset_bytes", int, what),
        begin=first,
        first=first,
        end=names.span(record, "last", buffer_id, what)[1],
    )


def _decode_copy(
    reader: Reader, names: _Names, entry: dict, buffer_id: int, label: str
) -> Copy:
    what = f"a copy of {label!r}"
    direction = reader.field(entry, "direction", str, what)
    if direction not in [d.value for d in Direction]:
        raise reader.error(
            f"'direction' of {what} is {direction!r}, expected 'prefetch' or 'evict'."
        )
    start, done = 0, len(names.program.ops)
    if entry.get("start_after") is not None:
        start = names.span(entry, "start_after", buffer_id, what)[1]
    if entry.get("done_before") is not None:
        done = names.span(entry, "done_before", buffer_id, what)[0]
    return Copy(
        buffer_id=buffer_id,
        direction=Direction(direction),
        size_bytes=reader.field(entry, "bytes", int, what),
        start=start,
        done=done,
    )


def _begin_at_prefetches(segments: list[Segment], copies: list[Copy]) -> list[Segment]:
    """One buffer's stays: each from the start of its prefetch on, pieces joined.

    A segment that goes on at the same offset where another ends, with no prefetch in
    between, is the same stay: an update in place may have a name of its own.
    """
    waiting = sorted(
        (c for c in copies if c.direction is Direction.PREFETCH), key=lambda c: c.done
    )
    stays: list[Segment] = []
    for s in sorted(segments, key=lambda s: (s.first, s.end)):
        previous = stays[-1] if stays else None
        fills = [c for c in waiting if c.done <= s.first]
        if fills:
            waiting.remove(fills[0])
            s = dataclasses.replace(s, begin=fills[0].start)
        elif (
            previous is not None
            and s.offset_bytes == previous.offset_bytes
            and s.first <= previous.end
        ):
            stays.pop()
            end = max(previous.end, s.end)
            s = dataclasses.replace(previous, end=end)
        stays.append(s)
    return stays


class _Names:
    """What the names in a plan mean in one program."""

    def __init__(self, reader: Reader, problem: Problem) -> None:
        self.program, self._reader = problem.program, reader
        self._loops, self._home = Loops(problem.program), problem.home_region

    def buffer(self, entry: dict, key: str, what: str) -> tuple[int, str]:
        """The id and label of the buffer that `entry[key]` and its index name."""
        name = self._reader.field(entry, key, str, what)
        index = self._reader.field({"index": [], **entry}, "index", list, what)
        index = tuple(self._reader.value(i, int, f"'index' of {what}") for i in index)
        found = self.program.buffer_index.get((name, index))
        label = name + "".join(f"{{{i}}}" for i in index)
        if found is None:
            labels = [b.label for b in self.program.buffers]
            raise self._unknown("buffer", label, labels)
        return found, label

    def span(
        self, record: dict, key: str, buffer_id: int, what: str
    ) -> tuple[int, int]:
        """`[start, end)` of the op that `record[key]` names, or of its whole loop."""
        name = self._reader.field(record, key, str, what)
        t = self.program.op_index.get(name)
        if t is None:
            raise self._unknown(
                f"op (as {key!r} of {what})", name, self.program.op_index
            )
        loop = self._loops.span_named(name, int(self._home[buffer_id]))
        return loop or (t, t + 1)

    def _unknown(self, kind: str, name: str, known: Iterable[str]) -> ValueError:
        return self._reader.error(
            f"program {self.program.name!r} has no {kind} {name!r}"
            f"{nearest(name, known)}."
        )
