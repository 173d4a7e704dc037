"""Loops, branches, calls and asynchronous ops of small modules, worked by hand."""

import pytest

from frontends import hlo
from frontends.program import Region


def buffer(program, name, *index):
    return program.buffers[program.buffer_index[name, index]]


def touched(program, op):
    """Bytes that an op reads and writes, by buffer."""
    op = program.ops[program.op_index[op]]
    return tuple(
        {program.buffers[a.buffer_id].label: a.touched_bytes for a in accesses}
        for accesses in (op.reads, op.writes)
    )


STATE = "(s32[], f32[8], f32[8])"
COUNTER = """%body (s: (s32[], f32[8], f32[8])) -> (s32[], f32[8], f32[8]) {
  %s = (s32[], f32[8], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(STEP)
  %next = s32[] add(%i, %one)
  %a = f32[8] get-tuple-element(%s), index=1
  %b = f32[8] get-tuple-element(%s), index=2
  BODY
}

%condition (c: (s32[], f32[8], f32[8])) -> pred[] {
  %c = (s32[], f32[8], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(LAST)
  ROOT %less = pred[] compare(ORDER), direction=DIRECTION
}

ENTRY %main (x: f32[8], y: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %y = f32[8] parameter(1)
  %zero = s32[] constant(FIRST)
  %i0 = s32[] copy(%zero)
  %a0 = f32[8] copy(%x)
  %t = (s32[], f32[8], f32[8]) tuple(%i0, %a0, %y)
  %loop = (s32[], f32[8], f32[8]) while(%t), condition=%condition, body=%bodyCONFIG
  AFTER
}
"""


def loop_text(
    body="%a1 = f32[8] add(%a, %b)",
    root="%next, %a1, %b",
    after="ROOT %r = f32[8] get-tuple-element(%loop), index=1",
    first=0,
    last=24,
    step=1,
    direction="LT",
    order="%j, %n",
    config="",
):
    """A loop that adds y to x; arguments change its parts."""
    text = "HloModule loop, is_scheduled=true\n\n" + COUNTER
    root = f"ROOT %u = {STATE} tuple({root})"
    for key, value in {
        "BODY": f"{body}\n  {root}",
        "AFTER": after,
        "FIRST": first,
        "LAST": last,
        "STEP": step,
        "DIRECTION": direction,
        "ORDER": order,
        "CONFIG": config,
    }.items():
        text = text.replace(key, str(value))
    return text


def test_loop_state_is_one_buffer_and_constants_of_the_loop_another():
    program = hlo.from_text(loop_text())
    assert [op.name for op in program.ops] == ["i0", "a0", "next", "a1", "loop"]
    assert touched(program, "a1") == ({"a0": 32, "y": 32}, {"a0": 32})
    assert touched(program, "loop") == (
        {"i0": 0, "a0": 0, "y": 0},
        {"i0": 0, "a0": 0},
    )
    assert buffer(program, "y") is buffer(program, "loop", 2)
    assert (buffer(program, "y").live.end, buffer(program, "x").live.end) == (5, 2)
    assert program.regions[1] == Region(
        name="loop", start=2, end=4, parent=0, trip_count=24.0
    )
    assert program.notes == ()


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({"last": 24, "step": 5}, 5),
        ({"direction": "LE"}, 25),
        ({"direction": "GT", "order": "%n, %j"}, 24),
        ({"first": 10, "last": -2, "step": -3, "direction": "GT"}, 4),
        ({"first": 10, "last": -2, "step": -3, "direction": "GE"}, 5),
        ({"direction": "NE", "step": 2}, 12),
        ({"first": 30}, 0),
        ({"config": ', backend_config={"known_trip_count":{"n":"7"}}'}, 7),
        # Not what counts to a bound: as XLA does, 5 is assumed.
        ({"direction": "NE", "step": 7}, None),
        ({"direction": "EQ"}, None),
        ({"direction": "GT"}, None),
        ({"order": "%n, %n"}, None),
        ({"step": 0}, None),
        ({"root": "%i, %a1, %b"}, None),
    ],
)
def test_trip_counts(changes, trips):
    program = hlo.from_text(loop_text(**changes))
    assert program.regions[1].trip_count == (5 if trips is None else trips)
    assert program.ops[program.op_index["next"]].count == program.regions[1].trip_count
    noted = "Loop 'loop' has no known trip count: 5 is assumed." in program.notes
    assert noted == (trips is None)


def test_a_bound_in_the_loops_state_is_a_bound():
    text = loop_text().replace("%n = s32[] constant(24)", "%n = s32[] copy(%m)")
    text = text.replace("f32[8], f32[8])", "f32[8], s32[])")
    text = text.replace(
        "%c = (s32[], f32[8], s32[]) parameter(0)",
        "%c = (s32[], f32[8], s32[]) parameter(0)\n"
        "  %m = s32[] get-tuple-element(%c), index=2",
    )
    text = text.replace("%b = f32[8] get", "%b = s32[] get")
    text = text.replace("add(%a, %b)", "add(%a, %a)")
    text = text.replace("%y = f32[8] parameter(1)", "%y = s32[] constant(9)")
    assert hlo.from_text(text).regions[1].trip_count == 9


def test_a_counter_inside_fusions_is_followed():
    wrapped = """%wrapped_add (p: s32[], q: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  ROOT %sum = s32[] add(%p, %q)
}

%wrapped_compare (v: s32[], w: s32[]) -> pred[] {
  %w = s32[] parameter(1)
  %v = s32[] parameter(0)
  ROOT %lt = pred[] compare(%v, %w), direction=LT
}

"""
    text = loop_text().replace("%body (s", wrapped + "%body (s", 1)
    text = text.replace("add(%i, %one)", "fusion(%i, %one), calls=%wrapped_add")
    text = text.replace(
        "compare(%j, %n), direction=LT", "fusion(%j, %n), calls=%wrapped_compare"
    )
    assert hlo.from_text(text).regions[1].trip_count == 24


def test_a_condition_that_costs_something_is_scheduled():
    text = loop_text().replace(
        "%n = s32[] constant(24)",
        "%n = s32[] constant(24)\n  %e = f32[8] get-tuple-element(%c), index=1\n"
        "  %e2 = f32[8] negate(%e)",
    )
    program = hlo.from_text(text)
    names = ["i0", "a0", "e2", "less", "next", "a1", "loop"]
    assert [op.name for op in program.ops] == names
    assert program.regions[1].start == 2
    assert touched(program, "e2")[0] == {"a0": 32}


PINNED = "shares a place with a value that is needed at the same time"


def test_a_value_beside_the_state_that_it_becomes_has_a_buffer_of_its_own():
    """a1 is the next state while the old state is still to be read."""
    body = "%a1 = f32[8] add(%a, %b)\n  %late = f32[8] multiply(%a, %a1)"
    program = hlo.from_text(loop_text(body=body, root="%next, %a1, %b"))
    assert buffer(program, "a1") is not buffer(program, "a0")
    assert buffer(program, "a1").pinned_slow == PINNED
    assert buffer(program, "a0").pinned_slow == PINNED
    assert buffer(program, "a0") is buffer(program, "loop", 1)
    assert touched(program, "loop") == (
        {"i0": 0, "a1": 0, "y": 0},
        {"i0": 0, "a0": 0},
    )
    assert len(program.notes) == 2
    assert program.notes[0].startswith("Buffer 'a0' shares a place")


def test_swapped_state_is_kept_apart():
    text = loop_text(body="", root="%next, %b, %a").replace("a0, %y)", "a0, %b0)")
    text = text.replace("  %t = ", "  %b0 = f32[8] copy(%y)\n  %t = ")
    program = hlo.from_text(text)
    assert buffer(program, "a0") is not buffer(program, "b0")
    assert buffer(program, "a0").pinned_slow == buffer(program, "b0").pinned_slow
    assert buffer(program, "a0").pinned_slow == PINNED


def test_nested_loops_multiply():
    inner = loop_text().split("ENTRY")[0].split("\n\n", 1)[1]
    for name in (
        "body",
        "condition",
        "s",
        "i",
        "one",
        "next",
        "a",
        "b",
        "a1",
        "u",
        "c",
    ):
        inner = inner.replace(f"%{name} ", f"%inner_{name} ")
        inner = inner.replace(f"%{name})", f"%inner_{name})")
        inner = inner.replace(f"%{name},", f"%inner_{name},")
    outer = loop_text(
        body="%again = (s32[], f32[8], f32[8]) tuple(%zero2, %a, %b)\n"
        "  %in = (s32[], f32[8], f32[8]) while(%again), condition=%inner_condition, "
        "body=%inner_body\n  %a1 = f32[8] get-tuple-element(%in), index=1",
        last=3,
    ).replace(
        "  %again", "  %k = s32[] constant(0)\n  %zero2 = s32[] copy(%k)\n  %again"
    )
    head, rest = outer.split("\n\n", 1)
    program = hlo.from_text(f"{head}\n\n{inner}{rest}")
    assert [(r.name, r.parent, r.trip_count) for r in program.regions] == [
        ("", -1, 1),
        ("loop", 0, 3),
        ("in", 1, 24),
    ]
    assert program.ops[program.op_index["inner_a1"]].count == 72
    assert buffer(program, "inner_a1") is buffer(program, "a0")
    # y is needed by every iteration of both loops.
    assert buffer(program, "y").live.end == len(program.ops)
    assert program.notes == ()


CALLS = """HloModule calls, is_scheduled=true

%square (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  %n = f32[8] negate(%p)
  ROOT %q = f32[8] multiply(%n, %n)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %one = f32[8] call(%x), to_apply=%square
  ROOT %two = f32[8] call(%one), to_apply=%square
}
"""


def test_calls_are_laid_out_each_time():
    program = hlo.from_text(CALLS)
    assert [op.name for op in program.ops] == [
        "n",
        "q",
        "one",
        "n.again",
        "q.again",
        "two",
    ]
    assert [(r.name, r.start, r.end, r.trip_count) for r in program.regions[1:]] == [
        ("one", 0, 2, 1),
        ("two", 3, 5, 1),
    ]
    # Named as in the entry, where there is a name for it.
    assert [b.label for b in program.buffers] == ["x", "n", "one", "n.again", "two"]
    assert touched(program, "q.again") == ({"n.again": 32}, {"two": 32})
    assert touched(program, "two") == ({"two": 0}, {})
    assert hlo.annotate(CALLS, {"one": "fast", "n.again": "slow"}).count("fast") == 1


BRANCHES = """HloModule branches, is_scheduled=true

%yes (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %n = f32[8] negate(%p)
}

%no (q: f32[8]) -> f32[8] {
  %q = f32[8] parameter(0)
  ROOT %c = f32[8] copy(%q)
}

ENTRY %main (w: pred[], x: f32[8]) -> f32[8] {
  %w = pred[] parameter(0)
  %x = f32[8] parameter(1)
  %r = f32[8] conditional(%w, %x, %x), true_computation=%yes, false_computation=%no
  ROOT %z = f32[8] add(%r, %x)
}
"""


def test_branches_write_one_result():
    program = hlo.from_text(BRANCHES)
    assert [op.name for op in program.ops] == ["n", "c", "r", "z"]
    assert [op.count for op in program.ops] == [0.5, 0.5, 1, 1]
    assert touched(program, "n") == ({"x": 32}, {"r": 32})
    assert touched(program, "c") == ({"x": 32}, {"r": 32})
    assert touched(program, "r") == ({"r": 0, "w": 0}, {})
    assert buffer(program, "r").live.start == 0


def test_a_branch_that_hands_its_operand_on_is_kept_in_slow_memory():
    text = BRANCHES.replace("  ROOT %c = f32[8] copy(%q)\n", "")
    text = text.replace("%q = ", "ROOT %q = ")
    program = hlo.from_text(text)
    assert buffer(program, "r").pinned_slow == PINNED
    assert len(program.notes) == 2


ASYNC = """HloModule async, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[8]) -> f32[16] {
  %p = f32[8] parameter(0)
  ROOT %g = f32[16] all-gather(%p), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[16] {
  %x = f32[8] parameter(0)
  %h = f32[8] negate(%x)
  %ars = f32[8] all-reduce-start(%h), to_apply=%add
  %ags = (f32[8], f32[16]) all-gather-start(%x), dimensions={0}
  %cps = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x)
  %as = ((f32[8]), f32[16], u32[]) async-start(%x), calls=%wrapped
  %au = ((f32[8]), f32[16], u32[]) async-update(%as)
  %e = f32[8] exponential(%x)
  %ard = f32[8] all-reduce-done(%ars)
  %agd = f32[16] all-gather-done(%ags)
  %cpd = f32[8] collective-permute-done(%cps)
  %ad = f32[16] async-done(%au)
  %k = f32[8] add(%ard, %cpd)
  %l = f32[8] add(%k, %e)
  ROOT %m = f32[16] add(%agd, %ad)
}
"""


def test_an_asynchronous_op_is_its_start():
    program = hlo.from_text(ASYNC)
    assert [op.opcode for op in program.ops] == [
        "negate",
        "all-reduce-start",
        "all-gather-start",
        "collective-permute-start",
        "async-start",
        "exponential",
        "add",
        "add",
        "add",
    ]
    assert touched(program, "ags") == ({"x": 32}, {"ags{1}": 64})
    assert touched(program, "as") == ({"x": 32}, {"as{1}": 64, "as{2}": 4})
    assert buffer(program, "ad") is buffer(program, "as", 1)
    assert buffer(program, "ags", 0) is buffer(program, "x")
    assert buffer(program, "cpd") is buffer(program, "cps", 1)
    assert buffer(program, "ard") is buffer(program, "ars")
    # The operand must be there until the done, behind op 5.
    assert buffer(program, "h").live.end == 6
    assert program.notes == ()


def test_copies_that_change_no_memory_are_ops():
    """Nor are those to other memories (S(5) is the host's) the compiler's mapping."""
    text = """HloModule copies, is_scheduled=true

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %cs = (f32[8]{0:S(5)}, f32[8]{0}, u32[]) copy-start(%x)
  %cd = f32[8]{0:S(5)} copy-done(%cs)
  %ss = ((f32[8]{0}), f32[4]{0:S(1)}, s32[]) slice-start(%x), slice={[0:4]}
  %sd = f32[4]{0:S(1)} slice-done(%ss)
  ROOT %n = f32[4]{0} negate(%sd)
}
"""
    program = hlo.from_text(text)
    assert [op.opcode for op in program.ops] == ["copy-start", "slice-start", "negate"]
    assert touched(program, "cs") == ({"x": 32}, {"cs{0}": 32, "cs{2}": 4})
    host = "lives in memory space S(5), not ours to place"
    assert buffer(program, "cd").pinned_slow == host
    assert touched(program, "n")[0] == {"ss{1}": 16}
    assert program.compiler_mapping.copies == ()
    piece = program.buffer_index["ss", (1,)]
    assert program.compiler_mapping.fast_accesses == {(1, piece), (2, piece)}


def test_what_may_not_be_in_fast_memory_is_pinned():
    program = hlo.from_text(
        "HloModule pins, is_scheduled=true\n\nENTRY %main (x: f32[8]) -> f32[8] {\n"
        "  %x = f32[8] parameter(0)\n  %unused = f32[8] parameter(1)\n"
        "  %k = token[] after-all()\n  %e = f32[0,4] iota(), iota_dimension=0\n"
        "  %c = f32[8] constant({...})\n  %s = f32[1,1] constant({ {1} })\n"
        "  ROOT %r = f32[8] add(%x, %c)\n}\n"
    )
    reasons = {b.label: b.pinned_slow for b in program.buffers}
    assert reasons == {
        "x": "",
        "unused": "",
        "k": "holds no bytes",
        "e": "holds no bytes",
        "c": "",
        "s": "is a scalar, which compilers keep out of fast memory",
        "r": "",
    }
    assert buffer(program, "c").kind.value == "constant"
    assert buffer(program, "unused").live.end == 0


def test_tuple_parameters_are_buffers_by_element():
    program = hlo.from_text(
        "HloModule tuples, is_scheduled=true, "
        "input_output_alias={ {1}: (0, {0}, must-alias) }\n\n"
        "ENTRY %main (p: (f32[8], f32[4])) -> (f32[4], f32[8]) {\n"
        "  %p = (f32[8], f32[4]) parameter(0)\n"
        "  %a = f32[8] get-tuple-element(%p), index=0\n"
        "  %b = f32[4] get-tuple-element(%p), index=1\n"
        "  %n = f32[8] negate(%a)\n  ROOT %t = (f32[4], f32[8]) tuple(%b, %n)\n}\n"
    )
    assert [(b.label, b.alias_group) for b in program.buffers] == [
        ("p{0}", 0),
        ("p{1}", None),
        ("n", 0),
    ]
    assert buffer(program, "t", 0).is_output
    assert buffer(program, "t", 0).kind.value == "parameter"


ELEMENT_3 = "ROOT %r = f32[8] get-tuple-element(%loop), index=3"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (loop_text(root="%next, %a1"), 28, "'loop'.*tuples of different lengths"),
        (
            loop_text(after=ELEMENT_3),
            29,
            "'r' takes element '3' of 'loop', which has 3",
        ),
        (CALLS.replace("call(%x)", "call(%x, %x)"), 3, "is called with 2 arguments"),
        (CALLS.replace("to_apply", "calls", 1), 11, "call 'one' has no to_apply="),
        (BRANCHES.replace("(%w, %x, %x)", "(%w, %x)"), 16, "2 branches and 2 operands"),
        (ASYNC.replace("(f32[8], f32[16]) all", "(f32[8]) all"), 18, "has no result"),
    ],
)
def test_what_does_not_fit_together_is_refused(text, line, message):
    with pytest.raises(ValueError, match=rf"^a\.hlo, line {line}: .*{message}"):
        hlo.from_text(text, where="a.hlo")
