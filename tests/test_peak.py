"""When fast memory is fullest, and of what."""

import json

import pytest
import toy_problems
from random_mappings import random_mapping
from test_plan import make_plan, weight_plan
from toy_problems import KIB

from jax_malloc import report
from jax_malloc.mapping import Mapping, Segment


def test_the_contributors_are_named():
    """a (8 KiB) during ops 0 to 2, c (4) during 2 and 3: both at op 2."""
    problem = toy_problems.problem("diamond")
    ids = problem.program.buffer_index
    a = Segment(buffer_id=ids["a", ()], offset_bytes=0, begin=0, first=0, end=3)
    c = Segment(buffer_id=ids["c", ()], offset_bytes=8 * KIB, begin=2, first=2, end=4)
    peak = make_plan(problem, Mapping((c, a))).peak()
    assert (peak.t, peak.op) == (2, "c")
    assert (peak.used_bytes, peak.capacity_bytes) == (12 * KIB, 16 * KIB)
    assert [(x.buffer, x.taken_bytes) for x in peak.contributors] == [
        ("a", 8 * KIB),
        ("c", 4 * KIB),
    ]
    assert [x.worth_s for x in peak.contributors] == pytest.approx([24, 8])
    text = str(peak)
    assert text.startswith("fast memory is fullest at op c (2): 12.0 KiB of 16.0 KiB")
    assert json.loads(json.dumps(peak.to_dict()))["op"] == "c"


def test_nothing_in_fast_memory_has_no_peak():
    peak = make_plan(toy_problems.problem("chain")).peak()
    assert (peak.t, peak.used_bytes, peak.contributors) == (None, 0, ())
    assert str(peak) == "fast memory is empty at every op"
    assert weight_plan().peak().used_bytes == 8 * KIB


@pytest.mark.parametrize("seed", range(6))
def test_the_peak_is_that_of_the_summary(seed):
    problem = toy_problems.random_problem(seed, num_ops=30, pressure=2.0)
    plan = make_plan(problem, random_mapping(problem, seed))
    peak = plan.peak()
    assert peak.used_bytes == report.peak_bytes(problem, plan.mapping)
    assert peak.used_bytes == sum(c.taken_bytes for c in peak.contributors)
