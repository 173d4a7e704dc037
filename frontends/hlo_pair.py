"""One function compiled with memory space assignment off and on, as one program."""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Iterator, Sequence

from frontends.program import Access, CompilerCopy, CompilerMapping, Op, Program


def with_compiler_mapping(slow: Program, xla: Program) -> Program:
    """`slow` with the compiler's mapping and second estimates from `xla`.

    Ops belong together if they have the same name and opcode and touch buffers of the
    same sizes; so does a copy that the compiler made asynchronous, if it fills the same
    buffer. What only one of the programs has is left out and named in the notes.

    Args:
      slow: from the text without memory space assignment; gives ops and buffers.
      xla: from the text with it.
    """
    mapping = xla.compiler_mapping
    notes = list(slow.notes)
    if mapping is None:
        notes.append("In the compiler's own mapping everything is in slow memory.")
        mapping = CompilerMapping(fast_accesses=frozenset())
    in_order = _matching_ops(slow, xla)
    pairs = in_order + _matching_copies(slow, xla, in_order)
    ops = list(slow.ops)
    for t, u in pairs:
        estimates = {e.slow_bytes: e for e in xla.ops[u].estimates}
        estimates |= {e.slow_bytes: e for e in ops[t].estimates}
        ordered = sorted(estimates.values(), key=lambda e: -e.slow_bytes)
        ops[t] = dataclasses.replace(ops[t], estimates=tuple(ordered))
    fast = frozenset(
        (t, ours.buffer_id)
        for t, u in pairs
        for ours, theirs in _access_pairs(slow.ops[t], xla.ops[u])
        if (u, theirs.buffer_id) in mapping.fast_accesses
    )
    copies, lost = _copies(slow, xla, mapping, in_order, pairs)
    for program, matched, where in (
        (slow, {t for t, _ in pairs}, "the program"),
        (xla, {u for _, u in pairs}, "the compiler's mapping"),
    ):
        alone = [op.name for t, op in enumerate(program.ops) if t not in matched]
        if alone:
            notes.append(f"No counterpart for {_listed('op', alone)} of {where}.")
    if lost:
        labels = [xla.buffers[copy.buffer_id].label for copy in lost]
        notes.append(f"Left out {_listed('copy', labels)} of the compiler's mapping.")
    return dataclasses.replace(
        slow,
        ops=tuple(ops),
        notes=tuple(notes),
        compiler_mapping=CompilerMapping(
            fast_accesses=fast, copies=copies, source=mapping.source
        ),
    )


def _matching_ops(slow: Program, xla: Program) -> list[tuple[int, int]]:
    """Times in both programs of the ops that belong together."""
    pairs = []
    for t, op in enumerate(slow.ops):
        u = xla.op_index.get(op.name)
        if u is None or xla.ops[u].opcode != op.opcode:
            continue
        if _sizes(slow, op) == _sizes(xla, xla.ops[u]):
            pairs.append((t, u))
    return pairs


def _matching_copies(
    slow: Program, xla: Program, pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Times of copies that fill the same buffer under different names."""
    ours, theirs = {t for t, _ in pairs}, {u for _, u in pairs}
    same_buffer = _same_buffers(slow, xla, pairs)
    by_target = {
        op.writes[0].buffer_id: t
        for t, op in enumerate(slow.ops)
        if op.opcode == "copy" and t not in ours
    }
    matches = []
    for u, op in enumerate(xla.ops):
        if op.opcode == "copy" and u not in theirs:
            t = by_target.get(same_buffer.get(op.writes[0].buffer_id))
            if t is not None and _sizes(slow, slow.ops[t]) == _sizes(xla, op):
                matches.append((t, u))
    return matches


def _sizes(program: Program, op: Op) -> list[int]:
    accesses = (*op.reads, *op.writes)
    return [program.buffers[access.buffer_id].size_bytes for access in accesses]


def _access_pairs(ours: Op, theirs: Op) -> Iterator[tuple[Access, Access]]:
    yield from zip(ours.reads, theirs.reads, strict=True)
    yield from zip(ours.writes, theirs.writes, strict=True)


def _same_buffers(
    slow: Program, xla: Program, pairs: Sequence[tuple[int, int]]
) -> dict[int, int]:
    """The buffer of `slow` that most matching accesses to one of `xla` touch."""
    votes: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    for t, u in pairs:
        for ours, theirs in _access_pairs(slow.ops[t], xla.ops[u]):
            votes[theirs.buffer_id][ours.buffer_id] += 1
    return {theirs: count.most_common(1)[0][0] for theirs, count in votes.items()}


def _copies(
    slow: Program,
    xla: Program,
    mapping: CompilerMapping,
    in_order: Sequence[tuple[int, int]],
    pairs: Sequence[tuple[int, int]],
) -> tuple[tuple[CompilerCopy, ...], list[CompilerCopy]]:
    """The compiler's copies in terms of `slow`, and those that have no place there."""
    same_buffer = _same_buffers(slow, xla, pairs)
    by_xla_time = sorted((u, t) for t, u in in_order)

    def boundary(u: int) -> int:
        """Before the first op that both have at or after boundary `u` of xla."""
        i = bisect.bisect_left(by_xla_time, (u, -1))
        return by_xla_time[i][1] if i < len(by_xla_time) else len(slow.ops)

    region_of = {key: i for i, key in enumerate(_region_keys(slow))}
    xla_regions = _region_keys(xla)
    copies, lost = [], []
    for copy in mapping.copies:
        start, done = boundary(copy.start), boundary(copy.done)
        buffer_id = same_buffer.get(copy.buffer_id)
        region = region_of.get(xla_regions[copy.region])
        if buffer_id is None or region is None or start > done:
            lost.append(copy)
            continue
        copies.append(
            dataclasses.replace(
                copy,
                buffer_id=buffer_id,
                start=0 if copy.cross_program else start,
                done=done,
                region=region,
            )
        )
    return tuple(copies), lost


def _region_keys(program: Program) -> list[tuple[str, int]]:
    """Each region's name, and how many before it have the same: those of branches."""
    seen: collections.Counter = collections.Counter()
    keys = []
    for region in program.regions:
        keys.append((region.name, seen[region.name]))
        seen[region.name] += 1
    return keys


def _listed(noun: str, names: list[str]) -> str:
    """A count and the first few names: "3 ops (a, b, c)"."""
    plural = {"copy": "copies"}.get(noun, noun + "s") if len(names) > 1 else noun
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {plural} ({shown})"
