"""Results written over their operands: who may, where it shows, and what it saves."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest
import toy_problems
from stablehlo_helpers import arg
from toy_problems import KIB

from frontends import hlo, stablehlo
from frontends.program import Program
from jax_malloc import plan_file, report, validator
from jax_malloc import problem as problem_lib
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.solvers import greedy
from jax_malloc.solvers.allocation import Allocation
from jax_malloc.solvers.ruin_recreate import RuinRecreate
from jax_malloc.solvers.uses import lives
from jax_malloc.solvers.worth import Worth
from jax_malloc.violation import ViolationKind


def steps(length=3, size=8 * KIB):
    """Each op works on the result of the one before, element by element.

    op     0    1    2    3
           make a1   a2   y
    x      =                   1 KiB, parameter
    make   W----=              8 KiB
    a1          W----=         8 KiB, may be where make was
    a2               W----=    8 KiB, may be where a1 was
    y                     W    1 KiB, output
    """
    draft = Draft("steps")
    x = draft.parameter(KIB, "x")
    (a,) = draft.op("dot", [x], [size], name="make")
    for k in range(1, length):
        (a,) = draft.op("fusion", [a], [size], name=f"a{k}", elementwise=True)
    (y,) = draft.op("fusion", [a], [KIB], name="y")
    return draft.build([y])


def labelled_pairs(program, op):
    op = program.ops[program.op_index[op]]
    return [tuple(program.buffers[i].label for i in pair) for pair in op.reuses]


# --- programs -----------------------------------------------------------------------


def test_a_draft_knows_which_operands_die():
    program = steps()
    assert labelled_pairs(program, "a1") == [("make", "a1")]
    assert labelled_pairs(program, "a2") == [("a1", "a2")]
    assert labelled_pairs(program, "y") == []


def test_pairs_survive_json_and_change_the_fingerprint():
    program = steps()
    assert Program.from_json(program.to_json()) == program
    plain = dataclasses.replace(
        program, ops=tuple(dataclasses.replace(op, reuses=()) for op in program.ops)
    )
    assert program.fingerprint != plain.fingerprint
    assert '"ops":[["make","dot",[[0,1024]],[[1,8192]]],' in plain.to_json()


def keeping(program, label):
    """The same program with a buffer that the caller sees."""
    i = [b.label for b in program.buffers].index(label)
    b = program.buffers[i]
    live = dataclasses.replace(b.live, end=len(program.ops))
    kept = dataclasses.replace(b, is_output=True, live=live)
    return dataclasses.replace(
        program, buffers=(*program.buffers[:i], kept, *program.buffers[i + 1 :])
    )


def pairing(pair, op="a1"):
    program = steps()
    ids = [b.label for b in program.buffers]
    pairs = (tuple(ids.index(label) for label in pair),)
    ops = [
        dataclasses.replace(o, reuses=pairs if o.name == op else ())
        for o in program.ops
    ]
    return dataclasses.replace(program, ops=tuple(ops))


def in_a_loop():
    """An op in a loop that works on what comes from outside."""
    draft = Draft("in_a_loop")
    x = draft.parameter(4 * KIB, "x")
    with draft.loop(3):
        (h,) = draft.op("fusion", [x], [4 * KIB], name="h")
        draft.op("fusion", [h], [4 * KIB], name="g", elementwise=True)
    return draft.build([])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: keeping(steps(), "make"), "'make' is needed after t=1"),
        (lambda: pairing(("x", "make"), "make"), "1024 bytes are not 8192"),
        (lambda: pairing(("x", "a1")), "only read and one only written"),
        (lambda: pairing(("make", "a2")), "only read and one only written"),
        (lambda: pairing(("a1", "a1")), "only read and one only written"),
    ],
)
def test_impossible_pairs_are_refused(make, match):
    with pytest.raises(ValueError, match=f"cannot write buffer .*{match}"):
        make()


def test_what_a_loop_takes_in_is_not_written_over():
    program = in_a_loop()
    assert labelled_pairs(program, "g") == [("h", "g")]
    h = program.ops[program.op_index["h"]]
    ids = {b.label: i for i, b in enumerate(program.buffers)}
    ops = list(program.ops)
    ops[program.op_index["h"]] = dataclasses.replace(h, reuses=((ids["x"], ids["h"]),))
    with pytest.raises(ValueError, match="outlives the loop"):
        dataclasses.replace(program, ops=tuple(ops))


# --- frontends ----------------------------------------------------------------------

TEXT = """HloModule m, is_scheduled=true

ENTRY %main (p: f32[1024], q: f32[1024]) -> f32[1024] {
  %p = f32[1024] parameter(0)
  %q = f32[1024] parameter(1)
  %a = f32[1024] exponential(%p)
  %b = f32[1024] add(%a, %q), backend_config={"aliasing_operands":CONFIG}
  ROOT %c = f32[1024] multiply(%b, LAST)
}
"""


@pytest.mark.parametrize(
    ("config", "last", "pairs"),
    [
        ('{"lists":[{"indices":["0","2"]}]}', "%b", [("a", "b")]),
        ('{"lists":[{"indices":["1","2"]}]}', "%b", [("q", "b")]),
        ('{"lists":[{"indices":["0","2"]}]}', "%a", []),  # needed again
        ('{"lists":[]}', "%b", []),
        ('{"lists":[{"indices":["0","1"]}]}', "%b", []),  # no result among them
        ('{"lists":[{"indices":["x","2"]}, 3]}', "%b", []),
        ('{"lists":{}}', "%b", []),
        ("7", "%b", []),
    ],
)
def test_hlo_says_which_operands(config, last, pairs):
    text = TEXT.replace("CONFIG", config).replace("LAST", last)
    assert labelled_pairs(hlo.from_text(text), "b") == pairs


def with_dot(x, w):
    return x @ w + x


def twice(x, w):
    y = jnp.tanh(x @ w)
    return y @ w + y.T


def residual(x, w):
    y = jnp.tanh(x @ w)
    return jnp.tanh(y @ w) @ w + y


@pytest.mark.parametrize(
    ("f", "number"),
    [
        (with_dot, 0),  # the product reads all of x for each element
        (twice, 0),  # y is read in another order
        (residual, 1),
    ],
)
def test_stablehlo_results_that_take_their_operands_place(f, number):
    program = stablehlo.from_jax(f, arg(256, 256), arg(256, 256))
    assert sum(len(op.reuses) for op in program.ops) == number


def test_stablehlo_keeps_what_is_needed_again():
    def f(x, w):
        y = jnp.tanh(x @ w)
        z = jnp.tanh(y @ w) @ w + y
        return z @ w, y

    program = stablehlo.from_jax(f, arg(256, 256), arg(256, 256))
    assert not any(op.reuses for op in program.ops)


def test_stablehlo_pairs_within_a_loop():
    def f(x, w):
        def body(c, _):
            y = jnp.tanh(c @ w)
            return (jnp.tanh(y @ w) @ w + y) @ w, None

        return jax.lax.scan(body, x, length=4)[0]

    program = stablehlo.from_jax(f, arg(256, 256), arg(256, 256))
    pairs = [(op, pair) for op in program.ops for pair in op.reuses]
    assert len(pairs) == 1
    op, (operand, result) = pairs[0]
    assert op.region == 1
    region = program.regions[1]
    for b in (program.buffers[operand], program.buffers[result]):
        assert region.start <= b.live.start < b.live.end <= region.end


# --- the validator ------------------------------------------------------------------


def stay(program, label, begin, end, offset_kib=0, first=None):
    b = [x.label for x in program.buffers].index(label)
    return Segment(
        buffer_id=b,
        offset_bytes=offset_kib * KIB,
        begin=begin,
        first=begin if first is None else first,
        end=end,
    )


def evict(program, label, start, done):
    b = [x.label for x in program.buffers].index(label)
    size_bytes = program.buffers[b].size_bytes
    return Copy(
        buffer_id=b,
        direction=Direction.EVICT,
        size_bytes=size_bytes,
        start=start,
        done=done,
    )


def kinds(problem, segments, copies=()):
    found = validator.find_violations(problem, Mapping(tuple(segments), tuple(copies)))
    return [v.kind for v in found]


def test_a_result_may_be_written_over_its_operand():
    p = steps()
    problem = toy_problems.problem(p, toy_problems.toy(fast_kib=8))
    one_place = [stay(p, "make", 0, 2), stay(p, "a1", 1, 3), stay(p, "a2", 2, 4)]
    assert kinds(problem, one_place) == []
    assert report.peak_bytes(problem, Mapping(tuple(one_place))) == 8 * KIB
    encoded = plan_file.encode_mapping(problem, Mapping(tuple(one_place)))
    offsets = [s["offset_bytes"] for b in encoded["buffers"] for s in b["segments"]]
    assert offsets == [0, 0, 0]


def test_but_not_any_other_way():
    p = steps()
    problem = toy_problems.problem(p, toy_problems.toy(fast_kib=32))
    overlap = [ViolationKind.OVERLAP]
    # At another offset, over what no op pairs it with, or beyond the one op.
    assert kinds(problem, [stay(p, "make", 0, 2), stay(p, "a1", 1, 3, 4)]) == overlap
    assert kinds(problem, [stay(p, "make", 0, 3), stay(p, "a1", 1, 3)]) == overlap
    assert kinds(problem, [stay(p, "make", 0, 3), stay(p, "a2", 2, 4)]) == overlap
    without = dataclasses.replace(
        p, ops=tuple(dataclasses.replace(op, reuses=()) for op in p.ops)
    )
    plain = toy_problems.problem(without, toy_problems.toy(fast_kib=32))
    assert kinds(plain, [stay(p, "make", 0, 2), stay(p, "a1", 1, 3)]) == overlap


def test_no_copy_of_an_operand_runs_while_it_is_written_over():
    p = steps()
    problem = toy_problems.problem(p)
    segments = [stay(p, "make", 0, 2), stay(p, "a1", 1, 3)]
    assert kinds(problem, segments, [evict(p, "make", 1, 2)]) == [ViolationKind.RACE]
    assert kinds(problem, segments, [evict(p, "make", 1, 1)]) == []
    # The result may leave as soon as it is complete.
    assert kinds(problem, segments, [evict(p, "a1", 2, 3)]) == []


# --- solvers ------------------------------------------------------------------------


def shared_pairs(problem, mapping):
    pairs = itertools.permutations(mapping.segments, 2)
    return sum(
        a.end == b.begin + 1
        and a.offset_bytes == b.offset_bytes
        and (a.buffer_id, b.buffer_id) in problem.program.ops[b.begin].reuses
        for a, b in pairs
    )


def test_a_chain_takes_one_place():
    """8 KiB hold all of a chain of buffers that are 8 KiB each."""
    problem = toy_problems.problem(steps(length=5), toy_problems.toy(fast_kib=8))
    mapping = greedy.solve(problem)
    assert validator.find_violations(problem, mapping) == []
    assert shared_pairs(problem, mapping) == 4
    assert len(mapping.segments) == 5
    # Only x and y, of 1 KiB each, are left in slow memory.
    assert problem.evaluate(mapping).latency_s == pytest.approx(2.0)


@pytest.mark.parametrize("order", list(itertools.permutations(["make", "a1", "a2"])))
def test_in_whatever_order_they_are_placed(order):
    program = steps()
    problem = toy_problems.problem(program, toy_problems.toy(fast_kib=8))
    labels = [b.label for b in program.buffers]
    allocation = Allocation(problem)
    placed = 0
    for label in order:
        b = labels.index(label)
        placed += allocation.try_place(b, 0, len(allocation.lives[b].uses) - 1)
        assert not validator.find_violations(problem, allocation.to_mapping())
    assert placed == 3
    # Taking one out leaves the others where they are.
    middle = next(
        s for s in allocation.all_stays() if s.buffer_id == labels.index("a1")
    )
    allocation.remove([middle])
    assert not validator.find_violations(problem, allocation.to_mapping())
    assert allocation.try_place(labels.index("a1"), 0, 1)


def test_part_of_a_life_shares_only_at_its_end():
    """What is read once more after a gap in slow memory is not written over before."""
    draft = Draft("twice")
    x = draft.parameter(KIB, "x")
    (a,) = draft.op("dot", [x], [8 * KIB], name="a")
    (b,) = draft.op("fusion", [a], [8 * KIB], name="b", elementwise=True)
    (c,) = draft.op("fusion", [a, b], [8 * KIB], name="c", elementwise=True)
    (y,) = draft.op("fusion", [c], [KIB], name="y")
    program = draft.build([y])
    assert labelled_pairs(program, "b") == []
    assert labelled_pairs(program, "c") == [("a", "c"), ("b", "c")]
    problem = toy_problems.problem(program, toy_problems.toy(fast_kib=16))
    assert lives(problem)[c].written_over == (a, b)
    assert lives(problem)[a].overwritten_by == (c,)
    mapping = greedy.solve(problem)
    assert validator.find_violations(problem, mapping) == []
    assert problem.evaluate(mapping).latency_s == pytest.approx(2.0)
    assert shared_pairs(problem, mapping) == 1


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 6, 7])
def test_random_programs_share_and_stay_valid(seed):
    problem = toy_problems.random_problem(
        seed, num_ops=40, fast_mib=32, family="wide_mlp", pressure=2.0
    )
    assert any(op.reuses for op in problem.program.ops)
    allocation = Allocation.from_mapping(problem, greedy.solve(problem))
    worth = Worth(problem, allocation.lives)
    search = RuinRecreate(allocation, worth, seed)
    for _ in range(4):
        search.run(15, None)
        mapping = allocation.to_mapping()
        assert validator.find_violations(problem, mapping) == []
        again = Allocation.from_mapping(problem, mapping)
        assert again.to_mapping() == mapping
        assert again.latency_s == pytest.approx(allocation.latency_s, rel=1e-12)


def test_sharing_never_costs_and_mostly_saves():
    saved = 0
    for seed in range(8):
        problem = toy_problems.random_problem(
            seed, num_ops=40, fast_mib=16, family="wide_mlp", pressure=3.0
        )
        program = problem.program
        ops = tuple(dataclasses.replace(op, reuses=()) for op in program.ops)
        plain = problem_lib.build(
            dataclasses.replace(program, ops=ops), problem.accelerator
        )
        with_s = problem.evaluate(greedy.solve(problem)).latency_s
        without_s = plain.evaluate(greedy.solve(plain)).latency_s
        saved += with_s < 0.999 * without_s
    assert saved >= 3
