"""A compiler's mapping, which has no offsets, given ours."""

import dataclasses

import pytest
import toy_problems
from toy_problems import KIB

from frontends.program import CompilerCopy, CompilerMapping
from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Mapping
from jax_malloc.solvers.compiler_mapping import from_compiler


def compiled(name, fast, copies=()):
    """A toy problem with a compiler's mapping; `fast` is `(op, label)` of accesses and
    `copies` are `(label, start, done)` of prefetches."""
    program = toy_problems.PROGRAMS[name]()
    ids = {b.label: i for i, b in enumerate(program.buffers)}
    mapping = CompilerMapping(
        fast_accesses=frozenset((t, ids[label]) for t, label in fast),
        copies=tuple(
            CompilerCopy(
                buffer_id=ids[label],
                direction="prefetch",
                size_bytes=program.buffers[ids[label]].size_bytes,
                start=start,
                done=done,
            )
            for label, start, done in copies
        ),
    )
    program = dataclasses.replace(program, compiler_mapping=mapping)
    return toy_problems.problem(program)


def realised(problem):
    mapping = from_compiler(problem)
    violations = validator.find_violations(problem, mapping)
    assert not violations, violations[:3]
    return mapping


def test_no_mapping_of_the_compiler_gives_none():
    assert from_compiler(toy_problems.problem("chain")) is None


def test_an_empty_mapping_gives_an_empty_one():
    assert realised(compiled("chain", [])) == Mapping()


def test_serves_the_same_accesses():
    problem = compiled("chain", [(0, "a"), (1, "a"), (1, "b")])
    # b is written to fast memory and read from slow: that takes an eviction that
    # nothing hides, and is not worth it.
    mapping = realised(problem)
    assert mapping.fast_accesses(problem.program) == {(0, 1), (1, 1)}
    problem = compiled("chain", [(0, "a"), (1, "a"), (1, "b"), (2, "b")])
    mapping = realised(problem)
    compiler = problem.program.compiler_mapping
    assert mapping.fast_accesses(problem.program) == compiler.fast_accesses
    assert problem.evaluate(mapping).latency_s == pytest.approx(8)


@pytest.mark.parametrize(
    ("copies", "stays"),
    [([("w", 0, 1)], 1), ([("w", 0, 1), ("w", 2, 3)], 2)],
    ids=["kept", "fetched_twice"],
)
def test_follows_the_compilers_prefetches(copies, stays):
    problem = compiled("weight_reused", [(1, "w"), (3, "w")], copies)
    assert len(realised(problem).segments) == stays


def test_what_finds_no_place_is_cut():
    """w would have to leave for q, the larger one; it comes back for its second use.

    op     0    1    2    3    4    5
           a    b    q    c    d    y
    w           =-------------------=      5 KiB, parameter
    q                W----=                12 KiB
    FLOPs  10                  10
    """
    draft = Draft("cut")
    w = draft.parameter(5 * KIB, "w")
    compute = {"matmul_flops": 10.0, "matmul_dtype": "f32"}
    draft.op("fusion", [], name="a", **compute)
    draft.op("fusion", [w], name="b")
    (q,) = draft.op("fusion", [], [12 * KIB], name="q")
    draft.op("fusion", [q], name="c")
    draft.op("fusion", [], name="d", **compute)
    (y,) = draft.op("fusion", [w], [KIB], name="y")
    fast = frozenset({(1, w), (5, w), (2, q), (3, q)})
    program = draft.build([y], compiler_mapping=CompilerMapping(fast_accesses=fast))
    problem = toy_problems.problem(program)
    mapping = realised(problem)
    assert mapping.fast_accesses(program) == fast
    assert [(s.begin, s.first, s.end) for s in mapping.segments_of(w)] == [
        (0, 1, 2),
        (4, 5, 6),
    ]
    assert problem.evaluate(mapping).latency_s == pytest.approx(10 + 10 + 1)
