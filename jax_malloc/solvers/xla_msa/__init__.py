"""Memory space assignment (MSA), XLA's own solver, for programs that never met libtpu.

    assignment      the order of work: every buffer in turn, retries, repacking
      sort_order      which buffer is placed first
      cross_program   parameters fetched before the program starts
      attempt         one buffer, segment after segment: no-copy, evict, prefetch
        interval_picker   when a prefetch may start, how long a buffer may wait
        memory            offsets (best fit), repacking
          copy_resource   whether copies get enough time
    costs, options  what ops and copies take; XLA's knobs

It follows xla/service/memory_space_assignment as of August 2026; each module names the
parts that it follows. An XLA value is one use-to-use piece of a `Life` here: a write
begins a new value of the same buffer, whose copy in slow memory, if any, is stale.

Weak points of the original that are kept:
  - Prefetches and evictions have separate time budgets, each of all the time that ops
    take, as if ops left slow memory to them.
  - These budgets are of ops with everything in slow memory, and never updated.
  - One pass in one order: nothing but repacking gives a worse buffer's place away.
  - Loops weigh five turns each, however often they turn.
  - On the last retry an eviction takes no time. So a result that is written in the
    place of a donated argument may be copied out at the program's end, uncovered.

What differs:
  - A buffer has one place for all of a loop that it outlives, as in every `Mapping`;
    XLA can also prefetch what comes from outside within the body, in each turn.
  - Copies are not sliced. XLA cuts one of some MiB into four, which begin one by one.
  - The memory-bound loop optimizer, window prefetches, overrides, colourings and
    scoped allocations other than the accelerator's reserve are left out.
  - Copies in the program stay; XLA makes some of them asynchronous.
  - Cross-program prefetches are copies that begin with the program, and the copy for
    the next call at its end is not charged.
  - Equally good buffers go by the order that XLA documents. There, the rounding of
    32-bit sums often decides before that.

`examples/xla_msa_fidelity.py` compares it with the real one.

Source: openxla/xla, xla/service/memory_space_assignment/.
"""

from __future__ import annotations

from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.xla_msa import assignment
from jax_malloc.solvers.xla_msa.options import LIBTPU, PRESETS, TEST_BASE, Options

__all__ = ["LIBTPU", "PRESETS", "TEST_BASE", "Options", "solve"]


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    options: Options = LIBTPU,
) -> Mapping:
    """The mapping that XLA would make, as far as this goes.

    Args:
      problem: a program on a machine.
      seed: nothing is random.
      deadline_s: absolute, on the clock of `time.monotonic()`; buffers that were not
        reached by then stay in slow memory.
      options: XLA's knobs; `PRESETS` has two settings of them.
    """
    del seed
    return assignment.assign(problem, options, deadline_s)
