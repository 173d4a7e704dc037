"""Problems that the agent is trained and measured on: real programs and random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import generate
from jax_malloc import problem as problem_lib
from jax_malloc.problem import Problem

# Fast memory between this and the larger number, so that programs of all sizes feel the
# pressure; and slower or faster slow memory.
_FAST_BYTES = (8 * 2**20, 192 * 2**20)
_BANDWIDTH_FACTORS = (0.7, 1.0, 1.0, 1.6)
_MACHINES = ("tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e")


def machine(rng: np.random.Generator, base: str) -> Accelerator:
    """A preset with a fast memory and a slow bandwidth of its own."""
    preset = presets.get(base)
    low, high = np.log(_FAST_BYTES)
    fast = dataclasses.replace(
        preset.fast,
        capacity_bytes=int(np.exp(rng.uniform(low, high))) + preset.fast.reserved_bytes,
    )
    slow = dataclasses.replace(
        preset.slow,
        bandwidth_bytes_per_s=preset.slow.bandwidth_bytes_per_s
        * float(rng.choice(_BANDWIDTH_FACTORS)),
    )
    return dataclasses.replace(preset, fast=fast, slow=slow)


def generated(seeds: range) -> Iterator[Problem]:
    """Random programs, each on a machine of its own."""
    for seed in seeds:
        rng = np.random.default_rng((seed, 1))
        program = generate.random_program(seed, num_ops=int(rng.integers(15, 160)))
        yield from runnable(program, machine(rng, str(rng.choice(_MACHINES))))


def augmented(program: Program, topology: str, variants: int) -> Iterator[Problem]:
    """A program on the machine that it was compiled for, and on variants of it."""
    yield problem_lib.build(program, presets.get(topology))
    rng = np.random.default_rng(list(program.name.encode()))
    for _ in range(variants - 1):
        yield from runnable(program, machine(rng, topology))


def runnable(program: Program, accelerator: Accelerator) -> Iterator[Problem]:
    """The problem; nothing if an op alone needs more fast memory than there is."""
    scoped = max((op.scoped_bytes for op in program.ops), default=0)
    if scoped <= accelerator.fast.usable_bytes:
        yield problem_lib.build(program, accelerator)


def usable(problem: Problem, longest: int) -> bool:
    """Whether it has something to decide, and not too much."""
    n = int(problem.eligible[problem.access_buffer].sum())
    return 16 <= n <= longest and len(problem.program.ops) <= 2 * longest


def under_pressure(problem: Problem) -> bool:
    """Whether not everything fits, so that there is something to choose."""
    live = np.zeros(len(problem.program.ops) + 1)
    for buffer_id in np.flatnonzero(problem.eligible):
        buffer = problem.program.buffers[buffer_id]
        live[buffer.live.start] += problem.size_granules[buffer_id]
        live[buffer.live.end] -= problem.size_granules[buffer_id]
    return bool(np.cumsum(live).max() > problem.capacity_granules)
