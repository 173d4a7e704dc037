"""Where a mapping wants its prefetches to start, as the compiler can be told."""

from __future__ import annotations

from collections.abc import Iterator

from frontends import hlo
from frontends.program import Program
from jax_malloc.mapping import Copy, Direction, Mapping
from jax_malloc.steering.overrides import PrefetchStart


def of_mapping(program: Program, mapping: Mapping) -> Iterator[PrefetchStart]:
    """One start per prefetch that has a choice of it.

    Args:
      program: from HLO text, which says what operand the prefetched one is.
      mapping: with the copies.
    """
    instructions = {
        inst.name: inst
        for computation in hlo.parse(program.text).computations.values()
        for inst in computation.instructions
    }
    for copy in mapping.copies:
        if copy.direction is not Direction.PREFETCH or copy.done == len(program.ops):
            continue
        earliest, latest = _available(program, mapping, copy), copy.done - 1
        inst = instructions.get(program.ops[copy.done].name)
        if inst is None or latest <= earliest:
            continue
        for number, operand in enumerate(inst.operands):
            if program.buffer_index.get((operand, ())) == copy.buffer_id:
                late = (copy.start - earliest) / (latest - earliest)
                yield PrefetchStart(
                    instruction=inst.name,
                    operand=number,
                    eagerness=min(max(late, 0.0), 1.0),
                )


def _available(program: Program, mapping: Mapping, prefetch: Copy) -> int:
    """The boundary from which slow memory has what is to be prefetched."""
    buffer = program.buffers[prefetch.buffer_id]
    since = 0 if buffer.is_input else buffer.live.start + 1
    for other in mapping.copies:
        is_earlier = other.done <= prefetch.start
        if other.buffer_id == prefetch.buffer_id and is_earlier:
            since = max(since, other.done)
    return since
