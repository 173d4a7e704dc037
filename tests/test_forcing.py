"""Ways to bring a buffer into fast memory."""

import dataclasses

import pytest
import toy_problems
from random_mappings import random_mapping
from toy_problems import KIB

from jax_malloc import validator
from jax_malloc.forcing import Forcing
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Mapping, Segment


def stay(problem, name, offset_kib, begin, end, first=None):
    return Segment(
        buffer_id=problem.program.buffer_index[name, ()],
        offset_bytes=offset_kib * KIB,
        begin=begin,
        first=begin if first is None else first,
        end=end,
    )


def test_a_free_place_is_taken():
    problem = toy_problems.problem("chain")
    forcing = Forcing(problem, Mapping())
    a = problem.program.buffer_index["a", ()]
    assert forcing.slow_runs(a) == [(0, 1)]
    attempt = forcing.bring_in(a, (0, 1), at=0)
    assert attempt.best is not None
    assert attempt.best == attempt.there == attempt.free
    assert attempt.best.evicted == ()
    assert attempt.best.gain_s == pytest.approx(8.0)  # written and read, 4 KiB each
    assert (attempt.best.stay.first, attempt.best.stay.end) == (0, 2)


def test_of_two_places_the_one_with_less_worth_makes_room():
    """a (8, saves 24 s) at 0 and y (2) beside it; c (4) fits only where y is."""
    problem = toy_problems.problem("diamond", toy_problems.toy(fast_kib=12))
    mapping = Mapping((stay(problem, "a", 0, 0, 3), stay(problem, "b", 8, 1, 4)))
    forcing = Forcing(problem, mapping)
    c = problem.program.buffer_index["c", ()]
    attempt = forcing.bring_in(c, (0, 1), at=2)
    assert [s.buffer_id for s in attempt.there.evicted] == [
        mapping.segments[1].buffer_id
    ]
    assert attempt.there.gain_s == pytest.approx(0.0, abs=1e-6)  # 8 s for 8 s
    assert attempt.free is None
    assert forcing.worth_s(mapping.segments[0]) == pytest.approx(24.0)


def test_two_stays_are_joined_over_their_gap():
    """w is prefetched before b and again before y; forced, its place is kept."""
    problem = toy_problems.problem("weight_reused")
    w = problem.program.buffer_index["w", ()]
    forcing = Forcing(problem, Mapping())
    attempt = forcing.bring_in(w, (0, 1), at=1)
    assert attempt.best.gain_s == pytest.approx(16.0)
    (kept,) = attempt.best.mapping.segments
    assert kept.first <= 1
    assert kept.end == 4


def test_an_operand_and_the_result_written_over_it_may_share_a_place():
    """8 KiB each in 8 KiB: only in place."""
    draft = Draft("in_place")
    x = draft.parameter(KIB, "x")
    (a,) = draft.op("fusion", [x], [8 * KIB], name="a")
    (b,) = draft.op("fusion", [a], [8 * KIB], name="b")
    (y,) = draft.op("fusion", [b], [KIB], name="y")
    program = draft.build([y])
    ids = program.buffer_index
    ops = list(program.ops)
    ops[1] = dataclasses.replace(ops[1], reuses=((ids["a", ()], ids["b", ()]),))
    program = dataclasses.replace(program, ops=tuple(ops))
    problem = toy_problems.problem(program, toy_problems.toy(fast_kib=8))
    forcing = Forcing(problem, Mapping((stay(problem, "a", 0, 0, 2),)))
    attempt = forcing.bring_in(ids["b", ()], (0, 1), at=1)
    assert attempt.free is not None
    assert attempt.free.stay.offset_bytes == 0
    assert len(attempt.free.mapping.segments) == 2


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_is_valid_and_as_fast_as_it_says(seed):
    problem = toy_problems.random_problem(seed, num_ops=20, pressure=2.0)
    mapping = random_mapping(problem, seed)
    before_s = problem.evaluate(mapping).latency_s
    forcing = Forcing(problem, mapping)
    answers = 0
    for b, life in forcing.lives.items():
        for run in forcing.slow_runs(b):
            attempt = forcing.bring_in(b, run, at=life.uses[run[0]].begin)
            for forced in {attempt.best, attempt.there, attempt.free} - {None}:
                answers += 1
                assert not validator.find_violations(problem, forced.mapping)
                after_s = problem.evaluate(forced.mapping).latency_s
                assert forced.latency_s == after_s
                assert forced.gain_s == before_s - after_s
                assert attempt.best.latency_s <= forced.latency_s * (1 + 1e-9)
    assert answers
