"""One hand-made mapping per rule, and random mappings broken in one place."""

import dataclasses

import pytest
import toy_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mappings import random_mapping
from toy_problems import KIB

from jax_malloc import validator
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.validator import ViolationKind


def problem_of(program, **machine):
    return toy_problems.problem(program, toy_problems.toy(**machine))


def mapping_of(problem, *records):
    """A mapping of `(label, offset KiB, begin, first, end)` for segments and
    `(label, "prefetch" or "evict", start, done)` for copies."""
    ids = {b.label: i for i, b in enumerate(problem.program.buffers)}
    segments, copies = [], []
    for label, *rest in records:
        b = ids[label]
        if isinstance(rest[0], str):
            direction, start, done = rest
            copies.append(
                Copy(
                    buffer_id=b,
                    direction=Direction(direction),
                    size_bytes=problem.program.buffers[b].size_bytes,
                    start=start,
                    done=done,
                )
            )
        else:
            offset_kib, begin, first, end = rest
            segments.append(
                Segment(
                    buffer_id=b,
                    offset_bytes=int(offset_kib * KIB),
                    begin=begin,
                    first=first,
                    end=end,
                )
            )
    return Mapping(tuple(segments), tuple(copies))


def alias_group():
    """`old` is dead when `new`, in the same place of slow memory, is written.

    op     0    1    2
           old  b    new
    x      =                 1 KiB, parameter
    old    W----=            2 KiB
    b           W----=       1 KiB
    new              W       2 KiB, output, where old was
    """
    draft = Draft("alias_group")
    x = draft.parameter(KIB, "x")
    (old,) = draft.op("fusion", [x], [2 * KIB], name="old")
    (b,) = draft.op("fusion", [old], [KIB], name="b")
    (new,) = draft.op("fusion", [b], [2 * KIB], name="new")
    draft.share([old, new])
    return draft.build([new])


def pinned():
    """One op on a parameter that may not be in fast memory."""
    draft = Draft("pinned")
    x = draft.parameter(KIB, "x", pinned_slow="it is on the host")
    draft.op("fusion", [], [KIB], name="a")
    (y,) = draft.op("fusion", [x], [KIB], name="y")
    return draft.build([y])


def scoped():
    """The op in the middle keeps 12 of 16 KiB for itself."""
    draft = Draft("scoped")
    x = draft.parameter(KIB, "x")
    (a,) = draft.op("fusion", [x], [2 * KIB], name="a")
    (b,) = draft.op("dot", [x], [KIB], name="b", scoped_bytes=12 * KIB)
    (y,) = draft.op("fusion", [a, b], [KIB], name="y")
    return draft.build([y])


VALID = {
    "nothing": ("chain", ()),
    "everything": (
        "chain",
        (
            ("x", 8, 0, 0, 1),
            ("x", "prefetch", 0, 0),
            ("a", 0, 0, 0, 2),
            ("b", 4, 1, 1, 3),
            ("y", 12, 2, 2, 3),
            ("y", "evict", 3, 3),
        ),
    ),
    "one place after the other": (
        "chain",
        (("a", 0, 0, 0, 2), ("y", 0, 2, 2, 3), ("y", "evict", 3, 3)),
    ),
    "evicted, read from slow memory": (
        "diamond",
        (("a", 0, 0, 0, 2), ("a", "evict", 1, 2)),
    ),
    "evicted and brought back": (
        "diamond",
        (
            ("b", 0, 1, 1, 2),
            ("b", "evict", 2, 2),
            ("b", 8, 2, 3, 4),
            ("b", "prefetch", 2, 3),
        ),
    ),
    "prefetched with slack": (
        "weight_reused",
        (("w", 8, 0, 1, 4), ("w", "prefetch", 0, 1)),
    ),
    "dropped and prefetched again": (
        "weight_reused",
        (
            ("w", 0, 0, 1, 2),
            ("w", "prefetch", 0, 1),
            ("w", 0, 2, 3, 4),
            ("w", "prefetch", 2, 3),
        ),
    ),
    "updated in place": (
        "cache_update",
        (("cache", 0, 0, 1, 3), ("cache", "prefetch", 0, 1), ("cache", "evict", 2, 3)),
    ),
    "updated in slow memory, then prefetched": (
        "cache_update",
        (("cache", 0, 2, 2, 3), ("cache", "prefetch", 2, 2)),
    ),
    "a loop from outside": (
        "loop",
        (
            ("init", 0, 0, 0, 5),
            ("w", 2, 0, 1, 4),
            ("w", "prefetch", 0, 1),
            ("h", 6, 1, 1, 3),
        ),
    ),
    "fast before the loop, slow in it": (
        "loop",
        (("init", 0, 0, 0, 1), ("init", "evict", 1, 1)),
    ),
    "slow in the loop, fast after it": (
        "loop",
        (("init", 0, 4, 4, 5), ("init", "prefetch", 4, 4)),
    ),
    "two results": (
        "two_outputs",
        (("a{0}", 0, 0, 0, 2), ("a{1}", 4, 0, 0, 2), ("a{1}", "evict", 1, 2)),
    ),
    "evicted before its place is taken over": (
        alias_group,
        (("old", 0, 0, 0, 2), ("old", "evict", 1, 2)),
    ),
    "under what an op keeps for itself": (scoped, (("a", 2, 0, 0, 3),)),
}


def make_problem(program, **machine):
    program = program if isinstance(program, str) else program()
    return problem_of(program, **machine)


@pytest.mark.parametrize("name", VALID)
def test_valid_mappings_pass(name):
    program, records = VALID[name]
    problem = make_problem(program)
    assert validator.find_violations(problem, mapping_of(problem, *records)) == []


K = ViolationKind
W_STAY, W_PREFETCH = ("w", 0, 0, 1, 4), ("w", "prefetch", 0, 1)
INVALID = [
    (K.PINNED, pinned, [("x", 0, 0, 1, 2), ("x", "prefetch", 0, 1)], "'x' .* host"),
    (K.ALIGNMENT, "chain", [("a", 0.5, 0, 0, 2)], "'a' is at offset 512.* 1024"),
    (K.ALIGNMENT, "chain", [("a", -1, 0, 0, 2)], "offset -1024"),
    (K.CAPACITY, "chain", [("a", 13, 0, 0, 2)], "ends at byte 17408 .* 16384"),
    (K.CAPACITY, scoped, [("a", 3, 0, 0, 3)], "ends at byte 5120 .* 4096 .* 'b'"),
    (
        K.OVERLAP,
        "chain",
        [("a", 0, 0, 0, 2), ("b", 3, 1, 1, 3)],
        r"'a' at bytes \[0, 4096\) and 'b' at \[3072, 7168\) .* ops \[1, 2\)",
    ),
    (
        K.OVERLAP,  # the place is taken while the prefetch runs
        "weight_reused",
        [("a", 0, 0, 0, 2), W_STAY, W_PREFETCH],
        r"'a' .* 'w' .* ops \[0, 2\)",
    ),
    (
        K.TWO_PLACES,
        "weight_reused",
        [W_STAY, W_PREFETCH, ("w", 8, 2, 3, 4), ("w", "prefetch", 2, 3)],
        r"'w' has two places at once during ops \[2, 4\)",
    ),
    (K.SEGMENT_TIMES, "chain", [("a", 0, 1, 0, 2)], "begin 1, first 0, end 2"),
    (K.SEGMENT_TIMES, "chain", [("a", 0, 0, 0, 0)], "begin 0, first 0, end 0"),
    (K.SEGMENT_TIMES, "chain", [("b", 0, 1, 1, 4)], "end 4; .* end <= 3"),
    (
        K.LOOP,  # leaves its place in the middle of the loop
        "loop",
        [("w", 0, 0, 1, 2), W_PREFETCH],
        "boundary 2, .* every iteration of loop 'while'; .* boundary 1 or 4",
    ),
    (
        K.LOOP,  # ... or before the loop's own op
        "loop",
        [("w", 0, 0, 1, 3), W_PREFETCH],
        "boundary 3, .* every iteration",
    ),
    (
        K.LOOP,  # a temporary of the loop, evicted after it
        "loop",
        [("h", 0, 1, 1, 4), ("h", "evict", 2, 4)],
        "boundary 4, outside loop 'while'",
    ),
    (K.NO_SOURCE, "chain", [("b", 0, 2, 2, 3)], "'b' from op 'y' .* prefetch"),
    (K.NO_SOURCE, "chain", [("x", 0, 0, 0, 1)], "'x' from op 'a'"),
    (K.COPY_TIMES, "chain", [("x", "prefetch", 1, 0)], "from boundary 1 to 0"),
    (K.COPY_TIMES, "chain", [("x", "prefetch", 0, 4)], "done <= 3"),
    (K.PREFETCH_TARGET, "weight_reused", [W_PREFETCH], "fills no segment"),
    (
        K.PREFETCH_TARGET,
        "weight_reused",
        [W_STAY, W_PREFETCH, W_PREFETCH],
        "another prefetch",
    ),
    (
        K.PREFETCH_LATE,
        "weight_reused",
        [W_STAY, ("w", "prefetch", 0, 2)],
        "0 to 2 is done after op 'b'",
    ),
    (
        K.PREFETCH_PLACE,
        "weight_reused",
        [("w", 0, 1, 1, 4), W_PREFETCH],
        "begin the segment at 0",
    ),
    (
        K.PREFETCH_STALE,
        "diamond",
        [("b", 0, 1, 1, 2), ("b", 4, 2, 3, 4), ("b", "prefetch", 2, 3)],
        "boundary 2 finds no current contents in slow memory",
    ),
    (
        K.EVICT_SOURCE,  # gives its place away too early
        "two_outputs",
        [("a{1}", 0, 0, 0, 1), ("a{1}", "evict", 1, 2)],
        "not its own until boundary 2",
    ),
    (
        K.EVICT_SOURCE,  # was never there
        "two_outputs",
        [("a{1}", "evict", 1, 2)],
        r"evict of 'a\{1\}'",
    ),
    (
        K.EVICT_STALE,
        "weight_reused",
        [("w", 0, 0, 3, 4), ("w", "prefetch", 0, 3), ("w", "evict", 1, 2)],
        "boundary 1 finds no current contents in fast memory",
    ),
    (
        K.RACE,
        "cache_update",
        [("cache", 0, 0, 1, 3), ("cache", "prefetch", 0, 1), ("cache", "evict", 1, 3)],
        "'update' writes 'cache' while its evict runs from boundary 1 to 3",
    ),
    (
        K.RACE,
        "cache_update",
        [("cache", 0, 0, 2, 3), ("cache", "prefetch", 0, 2)],
        "'update' writes 'cache' while its prefetch",
    ),
    (K.READ_STALE, "chain", [("a", 0, 0, 0, 1)], "'b' needs .* 'a' in slow memory"),
    (
        K.READ_STALE,  # a partial update needs the rest of the contents
        "cache_update",
        [("row", 0, 0, 0, 1)],
        "'update' needs the contents of 'row' in slow memory",
    ),
    (
        K.READ_STALE,  # fast before the loop, lost on the way into it
        "loop",
        [("init", 0, 0, 0, 1)],
        "'h' needs the contents of 'init' in slow memory",
    ),
    (K.OUTPUT, "chain", [("y", 0, 2, 2, 3)], "output 'y' is not in slow memory"),
    (
        K.OUTPUT,  # evicted, but before the update
        "cache_update",
        [("cache", 0, 0, 1, 3), ("cache", "prefetch", 0, 1), ("cache", "evict", 1, 1)],
        "output 'cache'",
    ),
    (
        K.ALIAS_GROUP,
        alias_group,
        [("old", 0, 0, 0, 3), ("old", "evict", 1, 3)],
        "evict of 'old' runs until boundary 3, but 'new' takes over .* at 2",
    ),
]


@pytest.mark.parametrize(
    ("kind", "program", "records", "match"),
    INVALID,
    ids=[f"{n}-{case[0].name.lower()}" for n, case in enumerate(INVALID)],
)
def test_a_broken_rule_is_the_only_violation(kind, program, records, match):
    problem = make_problem(program)
    violations = validator.find_violations(problem, mapping_of(problem, *records))
    assert {v.kind for v in violations} == {kind}, [str(v) for v in violations]
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(str(violations[0]))


def test_a_copy_of_part_of_a_buffer():
    problem = problem_of("weight_reused")
    mapping = mapping_of(problem, W_STAY, W_PREFETCH)
    part = dataclasses.replace(mapping.copies[0], size_bytes=KIB)
    (violation,) = validator.find_violations(
        problem, Mapping(mapping.segments, (part,))
    )
    assert violation.kind is K.COPY_SIZE
    assert "1024 bytes" in violation.detail
    assert "8192 bytes" in violation.detail


@pytest.mark.parametrize("buffer_id", [-1, 6])
def test_a_buffer_that_is_not_there(buffer_id):
    problem = problem_of("weight_reused")
    mapping = mapping_of(problem, W_STAY, W_PREFETCH)
    mapping = Mapping(
        tuple(dataclasses.replace(s, buffer_id=buffer_id) for s in mapping.segments),
        tuple(dataclasses.replace(c, buffer_id=buffer_id) for c in mapping.copies),
    )
    found = validator.find_violations(problem, mapping)
    assert [v.kind for v in found] == [K.UNKNOWN_BUFFER] * 2


@pytest.mark.parametrize(("limit", "violations"), [(None, 0), (2, 0), (1, 1)])
def test_copies_in_flight(limit, violations):
    problem = problem_of("weight_reused", max_in_flight=limit)
    mapping = mapping_of(
        problem,
        ("a", 0, 0, 0, 3),
        ("a", "evict", 1, 3),
        ("w", 8, 2, 3, 4),
        ("w", "prefetch", 2, 3),
    )
    found = validator.find_violations(problem, mapping)
    assert [v.kind for v in found] == [K.IN_FLIGHT] * violations
    assert all(v.buffers == ("a", "w") and v.t == 2 for v in found)


@pytest.mark.parametrize(
    "records",
    [
        [("w", 0, 0, 2, 4), ("w", "prefetch", 0, 2)],
        [("init", 0, 0, 0, 4), ("init", "evict", 3, 4)],
        [("init", 0, 3, 4, 5), ("init", "prefetch", 3, 4)],
    ],
    ids=["prefetched in it", "evicted in it", "prefetched before its last iteration"],
)
def test_copies_inside_a_loop_that_the_buffer_outlives(records):
    problem = problem_of("loop")
    found = validator.find_violations(problem, mapping_of(problem, *records))
    assert K.LOOP in {v.kind for v in found}


def test_every_rule_has_a_case():
    covered = {kind for kind, *_ in INVALID}
    assert set(K) - covered == {K.COPY_SIZE, K.UNKNOWN_BUFFER, K.IN_FLIGHT}


def test_one_mistake_is_one_violation():
    """The stale contents are read twice, and by a prefetch, but reported once."""
    problem = problem_of("diamond")
    mapping = mapping_of(problem, ("a", 0, 0, 0, 1))
    (violation,) = validator.find_violations(problem, mapping)
    assert (violation.kind, violation.buffers, violation.t) == (K.READ_STALE, ("a",), 1)


@pytest.mark.parametrize("seed", range(30))
def test_random_valid_mappings_pass(seed):
    problem = toy_problems.random_problem(seed, num_ops=30)
    mapping = random_mapping(problem, seed)
    assert validator.find_violations(problem, Mapping()) == []
    assert validator.find_violations(problem, mapping) == []


# --- mutations ----------------------------------------------------------------------
# Each takes a problem, a valid mapping and a choice in [0, 1), and returns a mapping
# that breaks a rule, or None where it finds nothing to break.


def pick(items, choice):
    items = list(items)
    return items[int(choice * len(items))] if items else None


def change(mapping, record, **fields):
    """`mapping` with one segment or copy changed; without it if no field is given."""

    def swap(records):
        for r in records:
            if r is not record:
                yield r
            elif fields:
                yield dataclasses.replace(r, **fields)

    return Mapping(tuple(swap(mapping.segments)), tuple(swap(mapping.copies)))


def shift_offset(problem, mapping, choice):
    s = pick(mapping.segments, choice)
    return s and change(mapping, s, offset_bytes=s.offset_bytes + 1)


def leave_memory(problem, mapping, choice):
    s = pick(mapping.segments, choice)
    top = problem.accelerator.fast.usable_bytes
    return s and change(mapping, s, offset_bytes=top)


def go_below_zero(problem, mapping, choice):
    s = pick(mapping.segments, choice)
    return s and change(mapping, s, offset_bytes=-problem.granule_bytes)


def move_onto_another(problem, mapping, choice):
    # A result may be where its operand was: that is no mistake.
    may_meet = {frozenset(pair) for op in problem.program.ops for pair in op.reuses}
    pairs = [
        (a, b)
        for a in mapping.segments
        for b in mapping.segments
        if a is not b
        and a.begin < b.end
        and b.begin < a.end
        and {a.buffer_id, b.buffer_id} not in may_meet
    ]
    a, b = pick(pairs, choice) or (None, None)
    return a and change(mapping, a, offset_bytes=b.offset_bytes)


def drop_copy(problem, mapping, choice):
    c = pick(mapping.copies, choice)
    return c and change(mapping, c)


def shrink_copy(problem, mapping, choice):
    c = pick(mapping.copies, choice)
    return c and change(mapping, c, size_bytes=c.size_bytes - 1)


def copy_twice(problem, mapping, choice):
    prefetches = (c for c in mapping.copies if c.direction is Direction.PREFETCH)
    c = pick(prefetches, choice)
    return c and Mapping(mapping.segments, (*mapping.copies, c))


def drop_segment(problem, mapping, choice):
    copied = {c.buffer_id for c in mapping.copies}
    s = pick((s for s in mapping.segments if s.buffer_id in copied), choice)
    alone = s and sum(o.buffer_id == s.buffer_id for o in mapping.segments) == 1
    return change(mapping, s) if alone else None


def release_during_eviction(problem, mapping, choice):
    pairs = [
        (s, c)
        for c in mapping.copies
        for s in mapping.segments
        if c.direction is Direction.EVICT
        and s.buffer_id == c.buffer_id
        and s.end == c.done > c.start > s.first
    ]
    s, c = pick(pairs, choice) or (None, None)
    return s and change(mapping, s, end=c.start)


def reserve_too_late(problem, mapping, choice):
    s = pick((s for s in mapping.segments if s.begin < s.first), choice)
    return s and change(mapping, s, begin=s.first)


def use_before_prefetch(problem, mapping, choice):
    pairs = [
        (s, c)
        for c in mapping.copies
        for s in mapping.segments
        if c.direction is Direction.PREFETCH
        and s.buffer_id == c.buffer_id
        and s.begin <= c.start < c.done <= s.first
    ]
    s, c = pick(pairs, choice) or (None, None)
    return s and change(mapping, s, first=c.start)


def swap_times(problem, mapping, choice):
    c = pick((c for c in mapping.copies if c.start < c.done), choice)
    return c and change(mapping, c, start=c.done, done=c.start)


def run_backwards(problem, mapping, choice):
    s = pick(mapping.segments, choice)
    return s and change(mapping, s, first=s.end, end=s.first)


def evict_before_write(problem, mapping, choice):
    """Starts an eviction at the op that makes the contents that it saves."""
    writes = [
        (c, t)
        for c in mapping.copies
        if c.direction is Direction.EVICT
        for t, b, _, _, is_write in problem.program.accesses()
        if b == c.buffer_id and is_write and t < c.start
    ]
    c, t = pick(writes, choice) or (None, None)
    return c and change(mapping, c, start=t)


def point_elsewhere(problem, mapping, choice):
    s = pick(mapping.segments, choice)
    return s and change(mapping, s, buffer_id=len(problem.program.buffers))


MUTATIONS = [
    shift_offset,
    leave_memory,
    go_below_zero,
    move_onto_another,
    drop_copy,
    shrink_copy,
    copy_twice,
    drop_segment,
    release_during_eviction,
    reserve_too_late,
    use_before_prefetch,
    swap_times,
    run_backwards,
    evict_before_write,
    point_elsewhere,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 200),
    choice=st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_one_mutation_is_caught(mutate, seed, choice):
    problem = toy_problems.random_problem(seed, num_ops=25, pressure=1.0)
    mapping = random_mapping(problem, seed)
    broken = mutate(problem, mapping, choice)
    if broken is not None:
        assert validator.find_violations(problem, broken)


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_each_mutation_applies_somewhere(mutate):
    problems = (toy_problems.random_problem(s, num_ops=25) for s in range(10))
    assert any(
        mutate(problem, random_mapping(problem, seed), 0.5) is not None
        for seed, problem in enumerate(problems)
    )


def test_a_large_mapping_is_checked_in_little_time():
    """1000 buffers and 3000 accesses; the bound is loose, for loaded machines."""
    import time

    problem = toy_problems.random_problem(
        1, num_ops=600, family="dense_blocks", training=True
    )
    mapping = random_mapping(problem, 0)
    assert len(problem.access_op) > 3000
    began_s = time.monotonic()
    assert validator.find_violations(problem, mapping) == []
    assert time.monotonic() - began_s < 5
