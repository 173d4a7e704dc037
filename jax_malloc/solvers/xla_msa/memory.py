"""What is placed so far: stays at exact offsets, and the copies that they need.

Source: `GlobalDecreasingSizeBestFitHeap` in
xla/service/heap_simulator/heap_simulator.cc for the places,
`MsaAlgorithm::AddAsyncCopyOrOtherMemOp` in
xla/service/memory_space_assignment/algorithm.cc for the copies.
"""

from __future__ import annotations

import dataclasses

from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.problem import Problem
from jax_malloc.solvers.packing import FitRule, Packing
from jax_malloc.solvers.uses import Life
from jax_malloc.solvers.xla_msa.copy_resource import CopyResource
from jax_malloc.solvers.xla_msa.costs import CostAnalysis
from jax_malloc.solvers.xla_msa.options import Options


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """One copy between boundaries; `copy_s` is the time it takes of the queue."""

    start: int
    done: int
    copy_s: float


@dataclasses.dataclass(slots=True, kw_only=True)
class Stay:
    """Uses `[first_use, last_use]` of a buffer in fast memory, both included.

    begin, end: ops `[begin, end)` for which the place is taken.
    prefetch, eviction: None where there is none.
    is_fixed: whether it keeps its offset when others are repacked.
    over: of the operand in whose place it is written, if that must be so.
    """

    key: int
    life: Life
    offset: int
    begin: int
    end: int
    first_use: int
    last_use: int
    prefetch: Transfer | None = None
    eviction: Transfer | None = None
    is_fixed: bool = False
    over: Stay | None = None


class FastMemory:
    """Places and copy times taken, both of which can be given back.

    stays: all stays, by key.
    """

    def __init__(self, problem: Problem, costs: CostAnalysis, options: Options) -> None:
        self._problem = problem
        self._packing = Packing(problem.op_capacity_granules)
        self.prefetches = CopyResource(
            costs.elapsed_s, options.max_outstanding_prefetches
        )
        self.evictions = CopyResource(
            costs.elapsed_s, options.max_outstanding_evictions
        )
        self.stays: dict[int, Stay] = {}
        self._reserved: list[tuple[int, int, int, int]] = []
        self._next_key = 0

    def find(self, life: Life, begin: int, ends: list[int]) -> int | None:
        """An offset that is free for a buffer from `begin` on, for as long as possible.

        The best fit for the last of `ends` (in order) until which there is one at all;
        None if there is none even for the first.
        """
        best = self._packing.find(life.granules, begin, ends[0], FitRule.BEST)
        if best is None or len(ends) == 1:
            return best
        low, high = 0, len(ends) - 1  # ends[low] fits, ends[high + 1:] do not
        while low < high:
            middle = (low + high + 1) // 2
            offset = self._packing.find(
                life.granules, begin, ends[middle], FitRule.BEST
            )
            if offset is None:
                high = middle - 1
            else:
                low, best = middle, offset
        return best

    def is_free(self, life: Life, offset: int, begin: int, end: int) -> bool:
        """Whether a place is free during ops `[begin, end)`."""
        return self._packing.is_free(life.granules, offset, begin, end)

    def free_until(self, life: Life, offset: int, begin: int, end: int) -> int:
        """The last boundary up to `end` until which a place is free from `begin` on."""
        low, high = begin, max(begin, end)
        while low < high:
            middle = (low + high + 1) // 2
            if self.is_free(life, offset, begin, middle):
                low = middle
            else:
                high = middle - 1
        return low

    def may_prefetch(self, transfer: Transfer) -> bool:
        """Whether a prefetch finds room among the copies in flight, and time."""
        return self._may_copy(self.prefetches, transfer)

    def may_evict(self, transfer: Transfer) -> bool:
        """The same for an eviction."""
        return self._may_copy(self.evictions, transfer)

    def _may_copy(self, queue: CopyResource, transfer: Transfer) -> bool:
        between = (transfer.start, transfer.done)
        limit = self._problem.accelerator.dma.max_in_flight
        if limit is not None:
            # The machine's own, of both directions together.
            in_flight = self.prefetches.in_flight(*between)
            if in_flight + self.evictions.in_flight(*between) >= limit:
                return False
        return not queue.is_full(*between) and queue.has_time(*between, transfer.copy_s)

    def add(
        self,
        life: Life,
        offset: int,
        begin: int,
        use: int,
        *,
        end: int,
        last_use: int | None = None,
        prefetch: Transfer | None = None,
        is_fixed: bool = False,
    ) -> Stay:
        """Takes a place for ops `[begin, end)` and the time of its prefetch.

        Args:
          life: the buffer.
          offset: in granules; free in that time.
          begin, end: ops that it is taken for.
          use: the first one that it serves.
          last_use: the last one; None for the first again.
          prefetch: what fills it; None where the buffer is defined in place.
          is_fixed: keeps its offset when others are repacked.
        """
        self._next_key += 1
        stay = Stay(
            key=self._next_key,
            life=life,
            offset=offset,
            begin=begin,
            end=end,
            first_use=use,
            last_use=use if last_use is None else last_use,
            prefetch=prefetch,
            is_fixed=is_fixed,
        )
        self.stays[stay.key] = stay
        self._packing.add(stay.key, life.granules, offset, begin, end)
        if prefetch is not None:
            self.prefetches.add(prefetch.start, prefetch.done, prefetch.copy_s)
        return stay

    def add_over(self, life: Life, operand: Stay) -> Stay:
        """Takes over the place of an operand at the op that writes over it."""
        define = life.uses[0]
        stay = self.add(life, operand.offset, define.begin, 0, end=define.end)
        stay.over = operand
        return stay

    def extend(self, stay: Stay, end: int) -> None:
        """Holds the place of a stay until a later boundary; it must be free."""
        if end > stay.end:
            self._packing.remove(stay.key)
            stay.end = end
            self._packing.add(
                stay.key, stay.life.granules, stay.offset, stay.begin, end
            )

    def evict(self, stay: Stay, eviction: Transfer) -> None:
        """Takes the time of a stay's eviction, and its place until that is done."""
        stay.eviction = eviction
        self.evictions.add(eviction.start, eviction.done, eviction.copy_s)
        self.extend(stay, eviction.done)

    def remove(self, stay: Stay) -> None:
        """Gives back a stay's place and the time of its copies."""
        del self.stays[stay.key]
        self._packing.remove(stay.key)
        for queue, transfer in (
            (self.prefetches, stay.prefetch),
            (self.evictions, stay.eviction),
        ):
            if transfer is not None:
                queue.remove(transfer.start, transfer.done, transfer.copy_s)

    def reserve(self, life: Life, offset: int, begin: int, end: int) -> None:
        """Takes a place for good that no use is served from."""
        self._reserved.append((life.granules, offset, begin, end))
        self._packing.add(-len(self._reserved), life.granules, offset, begin, end)

    def repack(self) -> bool:
        """Places all stays anew, the longest first; whether that moved any.

        Keeps things as they are if not all of them find a place.

        Source: `MemorySpaceAssignmentBestFitRepacker` in
        xla/service/memory_space_assignment/best_fit_repacker.cc.
        """
        packing = Packing(self._problem.op_capacity_granules)
        for i, place in enumerate(self._reserved, 1):
            packing.add(-i, *place)
        offsets: dict[int, int] = {}
        for block in sorted(self._blocks(), key=_repacking_order):
            begin, end = block[0].begin, block[-1].end
            granules = block[0].life.granules
            offset: int | None = block[0].offset
            if not block[0].is_fixed:
                offset = packing.find(granules, begin, end, FitRule.BEST)
            if offset is None:
                return False
            for stay in block:
                offsets[stay.key] = offset
                packing.add(stay.key, granules, offset, stay.begin, stay.end)
        moved = any(self.stays[k].offset != offset for k, offset in offsets.items())
        for key, offset in offsets.items():
            self.stays[key].offset = offset
        self._packing = packing
        return moved

    def _blocks(self) -> list[list[Stay]]:
        """Stays, each with those that are written over it in turn."""
        blocks: dict[int, list[Stay]] = {}
        for stay in self.stays.values():
            if stay.over is None:
                blocks[stay.key] = [stay]
            else:
                block = blocks[stay.over.key]
                block.append(stay)
                blocks[stay.key] = block
        return [block for key, block in blocks.items() if block[0].key == key]

    def to_mapping(self) -> Mapping:
        """All stays and copies, in bytes and boundaries."""
        segments, copies = [], []
        granule_bytes = self._problem.granule_bytes
        for stay in sorted(self.stays.values(), key=lambda s: (s.begin, s.key)):
            life = stay.life
            segments.append(
                Segment(
                    buffer_id=life.buffer_id,
                    offset_bytes=stay.offset * granule_bytes,
                    begin=stay.begin,
                    first=life.uses[stay.first_use].begin,
                    end=stay.end,
                )
            )
            for direction, transfer in (
                (Direction.PREFETCH, stay.prefetch),
                (Direction.EVICT, stay.eviction),
            ):
                if transfer is not None:
                    copies.append(
                        Copy(
                            buffer_id=life.buffer_id,
                            direction=direction,
                            size_bytes=life.size_bytes,
                            start=transfer.start,
                            done=transfer.done,
                        )
                    )
        return Mapping(tuple(segments), tuple(copies))


def _repacking_order(block: list[Stay]) -> tuple:
    """Fixed places first, then the longest taken, the largest, the oldest."""
    first = block[0]
    duration = block[-1].end - first.begin
    return (not first.is_fixed, -duration, -first.life.granules, first.key)
