"""What the compiler is asked for, and what it is expected to make of it."""

from __future__ import annotations

import dataclasses
from collections import abc
from collections.abc import Callable, Iterable

import numpy as np

from frontends import hlo
from frontends.program import Program
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.steering import overrides

# Fields of `xla_msa.options.Options`, and the compiler's own names for them.
KNOB_OPTIONS: abc.Mapping[str, str] = {
    "preferred_overlap_ratio": "xla_msa_preferred_overlap_to_async_copy_ratio",
    "min_overlap_ratio": "xla_msa_min_overlap_to_async_copy_ratio",
    "max_overlap_ratio": "xla_msa_max_overlap_to_mem_size_async_copy_ratio",
    "max_outstanding_prefetches": "xla_msa_max_outstanding_prefetches",
    "max_outstanding_evictions": "xla_msa_max_outstanding_evictions",
    "max_retries": "xla_msa_max_retries",
    "max_repacks": "xla_msa_max_repacks",
    "max_cross_program_prefetches": "xla_msa_max_cross_program_prefetches",
    "inefficient_use_to_copy_ratio": "xla_tpu_msa_inefficient_use_to_copy_ratio",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Which buffers get their turn first and last, and the settings of the compiler.

    first: buffer ids, in order, before all others.
    last: buffer ids, in order, after all others.
    knobs: `(field of Options, value)`, sorted; what is not named stays as it is.
    prefetches: where prefetches should start.
    """

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    knobs: tuple[tuple[str, float], ...] = ()
    prefetches: tuple[overrides.PrefetchStart, ...] = ()

    @property
    def priorities(self) -> dict[int, int]:
        """Order values by buffer id: negative for the first, positive for the last."""
        first = {b: i - len(self.first) for i, b in enumerate(self.first)}
        return first | {b: i + 1 for i, b in enumerate(self.last)}

    def compiler_options(self, program: Program) -> dict[str, str]:
        """The options that ask for it, for `jax.jit(f, compiler_options=...)`."""
        options = overrides.compiler_options(
            buffer_orders(program, self.priorities), self.prefetches
        )
        return options | {
            KNOB_OPTIONS[name]: f"{value:g}" for name, value in self.knobs
        }


def buffer_orders(
    program: Program, priorities: abc.Mapping[int, int]
) -> Iterable[overrides.BufferOrder]:
    """Order values by buffer id, as the compiler can match them.

    Args:
      program: from HLO text, which says what number each parameter has.
      priorities: order values by buffer id.
    """
    parameters = hlo.parse(program.text).entry.parameters if program.text else ()
    numbers = {inst.name: number for number, inst in enumerate(parameters)}
    for buffer_id, value in priorities.items():
        buffer = program.buffers[buffer_id]
        yield overrides.BufferOrder(
            name=buffer.name,
            index=buffer.index,
            value=value,
            parameter=numbers.get(buffer.name),
        )


def of_mapping(problem: Problem, mapping: Mapping) -> list[Request]:
    """Ways to ask for a mapping, the most literal first.

    Buffers that it serves from fast memory throughout go before those that it serves
    in part, since the compiler keeps a buffer for as long as it finds room. Among them
    either those that gain most go first, or the lowest in memory: packed from the
    bottom in that order, none lands higher than it was.
    """
    slope = problem.latency.slope_s_per_byte[problem.access_op]
    fast = problem.fast_mask(mapping)
    num_buffers = len(problem.program.buffers)

    def per_buffer(weights: np.ndarray) -> np.ndarray:
        return np.bincount(problem.access_buffer, weights, minlength=num_buffers)

    gain_s = per_buffer(slope * problem.access_bytes * fast)
    accesses, served = per_buffer(np.ones(len(fast))), per_buffer(fast)
    offsets = {s.buffer_id: s.offset_bytes for s in reversed(mapping.segments)}
    kept = [int(b) for b in np.flatnonzero(problem.eligible) if gain_s[b] > 0]
    others = [int(b) for b in np.flatnonzero(problem.eligible) if not gain_s[b] > 0]

    def in_order(key: Callable[[int], float]) -> tuple[int, ...]:
        return tuple(sorted(kept, key=lambda b: (served[b] < accesses[b], key(b), b)))

    by_gain, by_offset = in_order(lambda b: -gain_s[b]), in_order(offsets.get)
    whole = tuple(b for b in by_gain if served[b] == accesses[b])
    return [
        Request(first=by_gain, last=tuple(others)),
        Request(first=by_offset, last=tuple(others)),
        Request(first=by_gain),
        Request(first=by_offset),
        Request(first=whole),
    ]
