"""Places found by hand, and by trying every offset."""

import numpy as np
import pytest

from jax_malloc.solvers.packing import FitRule, Packing


def three_stays():
    """Gaps of 2, 3 and 4 granules during op 1; the one of 4 is the topmost.

    offset  10 |        .
             6 |[---c---].      granules [3, 6) taken by c at ops 0 to 2
             3 |
    """
    packing = Packing(np.full(4, 16))
    packing.add(1, size=1, offset=2, begin=0, end=2)
    packing.add(2, size=3, offset=6, begin=1, end=3)
    packing.add(3, size=3, offset=9, begin=0, end=4)
    return packing


@pytest.mark.parametrize(
    ("rule", "size", "offset"),
    [
        (FitRule.BEST, 2, 0),  # the gap of 2
        (FitRule.BEST, 3, 3),  # the gap of 3
        (FitRule.BEST, 4, 12),  # only the topmost gap is left
        (FitRule.BEST_TOP, 4, 12),
        (FitRule.BEST_TOP, 3, 3),
        (FitRule.LOWEST, 1, 0),
        (FitRule.LOWEST, 3, 3),
        (FitRule.HIGHEST, 1, 15),
        (FitRule.HIGHEST, 3, 13),
        (FitRule.BEST, 5, None),
    ],
)
def test_gap_by_rule(rule, size, offset):
    assert three_stays().find(size, 1, 2, rule) == offset


def test_topmost_gap_is_filled_from_its_top():
    packing = Packing(np.full(4, 16))
    assert packing.find(5, 0, 4, FitRule.BEST_TOP) == 11
    assert packing.find(5, 0, 4, FitRule.BEST) == 0


def test_only_stays_of_the_same_time_are_in_the_way():
    packing = three_stays()
    assert packing.find(9, 0, 1, FitRule.LOWEST) is None
    assert packing.find(6, 0, 1, FitRule.LOWEST) == 3
    packing.remove(3)
    assert packing.find(13, 0, 1, FitRule.LOWEST) == 3


def test_an_op_that_keeps_memory_for_itself_lowers_the_top():
    packing = Packing(np.array([16, 8, 16]))
    assert packing.find(9, 0, 1, FitRule.BEST) == 0
    assert packing.find(9, 0, 2, FitRule.BEST) is None
    assert packing.find(2, 0, 3, FitRule.HIGHEST) == 6
    packing.add(1, size=4, offset=10, begin=2, end=3)
    assert packing.find(9, 1, 3, FitRule.BEST) is None


def test_restore_gives_back_what_was_there():
    packing = three_stays()
    snapshot = packing.save()
    packing.remove(2)
    packing.add(4, size=2, offset=0, begin=0, end=4)
    packing.restore(snapshot)
    assert packing.in_the_way(16, 0, 1, 2) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_finds_a_place_exactly_where_there_is_one(seed):
    rng = np.random.default_rng(seed)
    capacity = rng.integers(6, 12, size=6)
    packing = Packing(capacity)
    for key in range(100):
        begin = int(rng.integers(6))
        end = int(rng.integers(begin + 1, 7))
        size = int(rng.integers(1, 7))
        free = [
            offset
            for offset in range(12)
            if packing.is_free(size, offset, begin, end)
            and not packing.in_the_way(size, offset, begin, end)
        ]
        rule = rng.choice(list(FitRule))
        found = packing.find(size, begin, end, rule)
        assert (found is None) == (not free)
        if found is not None:
            assert found in free
            packing.add(key, size, found, begin, end)
        elif key % 3 == 0:
            (first, *_) = packing.in_the_way(12, 0, 0, 6)
            packing.remove(first)


def test_a_place_may_be_free_beside_what_shares_it():
    packing = Packing(np.full(4, 16))
    packing.add(1, size=4, offset=0, begin=0, end=2)
    packing.add(2, size=4, offset=2, begin=2, end=4)
    assert not packing.is_free(4, 0, 1, 2)
    assert packing.is_free(4, 0, 1, 2, beside=[1])
    assert not packing.is_free(4, 0, 1, 3, beside=[1])
    assert packing.is_free(4, 0, 1, 3, beside=[1, 2])
    assert not packing.is_free(20, 0, 1, 2, beside=[1])  # beyond the capacity
