"""When a prefetch may start, and until when a buffer may wait in fast memory.

    boundary    earliest            preferred     latest      use
                |-------------------|-------------|-----------|
                at most             ops take      ops take at least
                max_overlap_ratio   preferred     min ratio x copy, less
                x copy of all       ratio x copy  what the use gains
                of fast memory

Source: `CostAnalysisPrefetchIntervalPicker` in
xla/service/memory_space_assignment/prefetch_interval_picker.cc.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

from jax_malloc.problem import Problem
from jax_malloc.solvers.uses import CopyBoundaries, Life, Use
from jax_malloc.solvers.xla_msa.costs import CostAnalysis
from jax_malloc.solvers.xla_msa.options import Options

# Once the later starts are used up, earlier ones are tried in steps of this share of
# the time there is.
_EARLY_STEPS = 100


class IntervalPicker:
    """Start times of prefetches and end times of evictions, as op boundaries.

    max_interval_s: the longest that a buffer may wait in fast memory unused.
    """

    def __init__(self, problem: Problem, costs: CostAnalysis, options: Options) -> None:
        self._costs, self._options = costs, options
        self._boundaries = CopyBoundaries(problem)
        weighted = (
            s * costs.loop_weight(nest)
            for s, nest in zip(costs.elapsed_s, costs.nest, strict=True)
        )
        self._clock = list(itertools.accumulate(weighted, initial=0.0))
        all_of_memory = problem.accelerator.fast.capacity_bytes
        self.max_interval_s = options.max_overlap_ratio * costs.copy_s(all_of_memory)

    def elapsed_s(self, begin: int, end: int, nest: int = 0) -> float:
        """Seconds of the ops between two boundaries, seen from inside `nest` loops."""
        if end <= begin:
            return 0.0
        taken = self._clock[end] - self._clock[begin]
        return taken / self._costs.loop_weight(nest)

    def may_wait(self, begin: int, end: int, nest: int = 0) -> bool:
        """Whether a buffer may stay in fast memory unused between two boundaries."""
        return self.elapsed_s(begin, end, nest) < self.max_interval_s

    def latest_start(self, life: Life, use: Use, nest: int = 0) -> int:
        """The last boundary at which a prefetch for a use may start."""
        copy_s = self._costs.copy_s(life.size_bytes)
        needed_s = self._options.min_overlap_ratio * copy_s - self._costs.saved_s(use)
        latest = self._before(use.begin, max(needed_s, 0.0), nest)
        return self._boundaries.at_or_before(life.home, latest) if latest >= 0 else -1

    def starts(
        self, life: Life, use: Use, earliest: int, nest: int = 0
    ) -> Iterator[int]:
        """Boundaries at which to try to start a prefetch, in order.

        Around the preferred one: one later, one earlier, two later and so on.

        Args:
          life: the buffer.
          use: what the prefetch is for.
          earliest: boundary from which the contents are in slow memory.
          nest: loops around it.
        """
        end = use.begin
        limit = self._clock[end] - self.max_interval_s * self._costs.loop_weight(nest)
        earliest = max(earliest, bisect.bisect_left(self._clock, limit))
        if earliest > end:
            return
        latest = self.latest_start(life, use, nest)
        earliest = self._boundaries.at_or_after(life.home, earliest)
        if earliest > latest:
            return
        wanted_s = self._options.preferred_overlap_ratio * self._costs.copy_s(
            life.size_bytes
        )
        preferred = self._preferred(life, earliest, latest, end, wanted_s, nest)
        yield preferred
        later, earlier = preferred, preferred
        step_s = self.elapsed_s(earliest, end, nest) / _EARLY_STEPS
        while later < latest or earlier > earliest:
            has_later = later < latest
            if has_later:
                later = self._boundaries.at_or_after(life.home, later + 1)
                if later <= latest:
                    yield later
            if earlier > earliest:
                below = earlier - 1
                if not has_later:
                    from_end_s = self.elapsed_s(earlier, end, nest) + step_s
                    below = min(below, self._before(end, from_end_s, nest))
                earlier = self._boundaries.at_or_before(life.home, max(below, earliest))
                if earlier < earliest:
                    earlier = earliest
                yield earlier

    def program_end_start(self, life: Life) -> int:
        """Where a copy that must be over at the program's end would start."""
        end = len(self._clock) - 1
        wanted_s = self._options.preferred_overlap_ratio * self._costs.copy_s(
            life.size_bytes
        )
        return max(self._before(end, wanted_s, 0), 0)

    def preferred_eviction_end(
        self, life: Life, start: int, retry: int, nest: int = 0
    ) -> int:
        """The first boundary by which ops took the preferred time of an eviction."""
        ratio = (1 + 2 * retry) * self._options.preferred_overlap_ratio
        wanted_s = ratio * self._costs.copy_s(life.size_bytes)
        at = self._clock[start] + wanted_s * self._costs.loop_weight(nest)
        end = min(bisect.bisect_left(self._clock, at), len(self._clock) - 1)
        return self._boundaries.at_or_after(life.home, max(end, start))

    def _before(self, end: int, elapsed_s: float, nest: int) -> int:
        """The last boundary from which ops take that long until `end`, or -1."""
        at = self._clock[end] - elapsed_s * self._costs.loop_weight(nest)
        return min(bisect.bisect_right(self._clock, at) - 1, end)

    def _preferred(
        self,
        life: Life,
        earliest: int,
        latest: int,
        end: int,
        wanted_s: float,
        nest: int,
    ) -> int:
        """The allowed boundary whose time until `end` is nearest to what is wanted."""
        before = self._before(end, wanted_s, nest)
        near = {earliest, latest}
        if before >= 0:
            near.add(self._boundaries.at_or_before(life.home, before))
            near.add(self._boundaries.at_or_after(life.home, before + 1))
        near = {q for q in near if earliest <= q <= latest}
        return min(
            sorted(near, reverse=True),
            key=lambda q: abs(wanted_s - self.elapsed_s(q, end, nest)),
        )
