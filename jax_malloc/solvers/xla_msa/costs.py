"""What ops and copies cost while placements are decided: one execution of each.

    compute = the slowest of matrix, vector and transcendental units, at their peaks
    memory  = bytes in slow memory / its bandwidth + bytes in fast memory / its own
    elapsed = max(compute, memory)

The real compiler's choices agree with these bounds better than with the cycle
estimates that it writes into its programs.

Source: xla/service/memory_space_assignment/cost_analysis.cc.
"""

from __future__ import annotations

import numpy as np

from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import Life, Use
from jax_malloc.solvers.xla_msa.options import Options


class CostAnalysis:
    """Durations of ops by what they find in fast memory, and of copies.

    elapsed_s: per op, one execution with everything in slow memory; 0 for the op of a
      loop or branch itself. nest, region_nest: per op and per region, in how many loops
      it is.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        accelerator, ops = problem.accelerator, problem.program.ops
        count = np.array([op.count for op in ops], np.float64)
        once = 1 / np.where(count > 0, count, 1.0)
        touched_bytes, compute_s = problem.slow_bytes * once, _compute_s(problem)
        slow_bytes_per_s = accelerator.slow.bandwidth_bytes_per_s
        self._slow_s_per_byte = 1 / slow_bytes_per_s
        # A machine whose fast memory is the slower one gains nothing by it.
        fast_s_per_byte = 1 / max(
            accelerator.fast.bandwidth_bytes_per_s, slow_bytes_per_s
        )
        self._saved_s_per_byte = self._slow_s_per_byte - fast_s_per_byte
        elapsed_s = np.maximum(compute_s, touched_bytes * self._slow_s_per_byte)
        compute_s[_region_ops(problem)] = elapsed_s[_region_ops(problem)] = 0.0
        self.elapsed_s: list[float] = elapsed_s.tolist()
        regions = range(len(problem.program.regions))
        self.region_nest = [_nest(problem, r) for r in regions]
        self.nest = [self.region_nest[op.region] for op in ops]
        self._loop_weight = options.while_execution_count
        self._compute_s, self._once = compute_s.tolist(), once.tolist()
        self._memory_s = (touched_bytes * self._slow_s_per_byte).tolist()
        scale = options.async_copy_bandwidth_scale
        self._copy_s_per_byte = self._slow_s_per_byte / scale

    def loop_weight(self, nest: int) -> float:
        """How often a loop body at that depth is taken to run."""
        return self._loop_weight**nest

    def copy_s(self, size_bytes: float) -> float:
        """Seconds that one asynchronous copy takes."""
        return size_bytes * self._copy_s_per_byte

    def saved_s(self, use: Use) -> float:
        """How much shorter the op of a use gets with that buffer in fast memory.

        0 for a loop: what its body gains is decided inside.
        """
        if use.end - use.begin > 1:
            return 0.0
        return sum(
            self.elapsed_s[t]
            - max(
                self._compute_s[t], self._memory_s[t] - self._memory_saved_s(t, moved)
            )
            for t, moved in use.accesses
        )

    def memory_boundedness(self, life: Life) -> float:
        """What all of a buffer in fast memory is worth, over the root of its size.

        Benefits of sites add up while they are positive; where no op is bound by
        memory, the best of them counts.
        """
        total, is_first = 0.0, True
        for use in life.uses:
            for t, moved in use.accesses:
                benefit = self._benefit_s(t, moved)
                if is_first:
                    total, is_first = benefit, False
                elif total > 0 and benefit > 0:
                    total += benefit
                else:
                    total = max(total, benefit)
        return total / max(life.size_bytes, 1) ** 0.5

    def _benefit_s(self, t: int, moved: float) -> float:
        """What one site gains op t; where compute is the bound, how far off that is."""
        if self._memory_s[t] <= self._compute_s[t]:
            return self._memory_s[t] - self._compute_s[t]
        return self._memory_saved_s(t, moved) * self.loop_weight(self.nest[t])

    def _memory_saved_s(self, t: int, moved: float) -> float:
        """Time in memory saved by `moved` bytes (of all executions) in fast memory."""
        return moved * self._once[t] * self._saved_s_per_byte


def _region_ops(problem: Problem) -> list[int]:
    """The ops that stand for loops, branches and calls."""
    num_ops = len(problem.program.ops)
    return [r.end for r in problem.program.regions[1:] if r.end < num_ops]


def _nest(problem: Problem, region: int) -> int:
    """The number of loops around a region's ops; branches do not count."""
    regions, ops = problem.program.regions, problem.program.ops
    depth = 0
    while region > 0:
        end = regions[region].end
        depth += end < len(ops) and "while" in ops[end].opcode
        region = regions[region].parent
    return depth


def _compute_s(problem: Problem) -> np.ndarray:
    """`[T]` seconds that one execution of each op takes if it waits for no memory."""
    accelerator, ops = problem.accelerator, problem.program.ops
    peaks = {op.matmul_dtype: accelerator.peak(op.matmul_dtype) for op in ops}
    matmul = [op.matmul_flops / peaks[op.matmul_dtype] for op in ops]
    vector = [op.vector_flops / accelerator.vector_flops_per_s for op in ops]
    special = [op.transcendentals / accelerator.transcendentals_per_s for op in ops]
    return np.array([matmul, vector, special]).max(axis=0)
