import dataclasses
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.program import (
    Access,
    Buffer,
    BufferKind,
    CompilerCopy,
    CompilerMapping,
    CycleEstimate,
    LiveRange,
    Op,
    Program,
    Region,
)

_names = st.text(min_size=1, max_size=8)
_costs = st.floats(0, 1e15)
_bytes = st.integers(0, 2**40)


def two_ops(**changes):
    """A program of two ops in a row; `changes` replace its fields.

    time            0          1
    x  (parameter)  [read )                  live range [0, 1)
    h  (temporary)  [write     read )        live range [0, 2)
    y  (output)                [write )      live range [1, 2)
    """
    fields = {
        "name": "two_ops",
        "ops": (
            Op(
                name="first",
                opcode="dot",
                reads=(Access(0, 8),),
                writes=(Access(1, 4),),
            ),
            Op(
                name="second",
                opcode="tanh",
                reads=(Access(1, 4),),
                writes=(Access(2, 4),),
            ),
        ),
        "buffers": (
            Buffer(
                name="x", size_bytes=8, live=LiveRange(0, 1), kind=BufferKind.PARAMETER
            ),
            Buffer(
                name="h",
                index=(1, 0),
                size_bytes=4,
                live=LiveRange(0, 2),
                kind=BufferKind.TEMPORARY,
                aliases=(("view", ()),),
            ),
            Buffer(
                name="y",
                size_bytes=4,
                live=LiveRange(1, 2),
                kind=BufferKind.OUTPUT,
                is_output=True,
            ),
        ),
    }
    return Program(**(fields | changes))


def with_op(t, **changes):
    """`two_ops` with fields of op `t` replaced."""
    ops = list(two_ops().ops)
    ops[t] = dataclasses.replace(ops[t], **changes)
    return two_ops(ops=tuple(ops))


def with_buffer(i, **changes):
    """`two_ops` with fields of buffer `i` replaced."""
    buffers = list(two_ops().buffers)
    buffers[i] = dataclasses.replace(buffers[i], **changes)
    return two_ops(buffers=tuple(buffers))


@st.composite
def programs(draw):
    """Any valid program: a buffer per op and per input, reads of what is there."""
    num_ops = draw(st.integers(0, 6))
    num_inputs = draw(st.integers(0, 3))
    region = Region(
        name="loop", start=0, end=num_ops, parent=0, trip_count=draw(_costs)
    )
    last = [0] * num_inputs + [t + 1 for t in range(num_ops)]
    ops = []
    for t in range(num_ops):
        earlier = range(num_inputs + t)
        reads = draw(st.sets(st.sampled_from(earlier), max_size=3)) if earlier else ()
        for i in reads:
            last[i] = t + 1
        in_place = draw(st.sets(st.sampled_from(sorted(reads)))) if reads else set()
        ops.append(
            Op(
                name=f"op.{t}",
                opcode=draw(_names),
                op_name=draw(_names),
                reads=tuple(Access(i, draw(_bytes)) for i in reads),
                writes=tuple(
                    Access(i, draw(_bytes)) for i in (*in_place, num_inputs + t)
                ),
                matmul_flops=draw(_costs),
                matmul_dtype=draw(st.sampled_from(["", "bf16"])),
                vector_flops=draw(_costs),
                transcendentals=draw(_costs),
                scoped_bytes=draw(_bytes),
                count=draw(_costs),
                region=draw(st.integers(0, 1)),
                estimates=tuple(
                    CycleEstimate(*pair)
                    for pair in draw(st.lists(st.tuples(_bytes, _bytes), max_size=2))
                ),
            )
        )
    buffers = []
    for i, end in enumerate(last):
        is_input = i < num_inputs
        is_output = draw(st.booleans())
        inputs = [BufferKind.PARAMETER, BufferKind.CONSTANT]
        others = [BufferKind.TEMPORARY, BufferKind.OUTPUT]
        buffers.append(
            Buffer(
                name=f"buffer.{i}",
                index=tuple(draw(st.lists(st.integers(0, 9), max_size=2))),
                size_bytes=draw(_bytes),
                live=LiveRange(
                    0 if is_input else i - num_inputs, num_ops if is_output else end
                ),
                kind=draw(st.sampled_from(inputs if is_input else others)),
                is_output=is_output,
                aliases=tuple(
                    (name, (k,)) for k, name in enumerate(draw(st.sets(_names)))
                ),
                alias_group=draw(st.none() | st.integers(0, 3)),
                pinned_slow=draw(st.just("") | _names),
            )
        )
    mapping = None
    if buffers and ops and draw(st.booleans()):
        some_op, some_buffer = (
            st.integers(0, num_ops - 1),
            st.integers(0, len(buffers) - 1),
        )
        mapping = CompilerMapping(
            fast_accesses=frozenset(draw(st.sets(st.tuples(some_op, some_buffer)))),
            copies=tuple(
                CompilerCopy(
                    buffer_id=draw(some_buffer),
                    direction=draw(st.sampled_from(["prefetch", "evict"])),
                    size_bytes=draw(_bytes),
                    start=start,
                    done=draw(st.integers(start, num_ops)),
                    cross_program=draw(st.booleans()),
                )
                for start in draw(st.lists(some_op, max_size=2))
            ),
            source=draw(_names),
        )
    return Program(
        name=draw(_names),
        ops=tuple(ops),
        buffers=tuple(buffers),
        regions=(Region(name="", start=0, end=num_ops), region),
        notes=tuple(draw(st.lists(_names, max_size=2))),
        source=draw(_names),
        compiler_mapping=mapping,
    )


@given(programs())
def test_json_gives_the_same_program_back(program):
    again = Program.from_json(program.to_json())
    assert again == program
    assert again.fingerprint == program.fingerprint


@pytest.mark.parametrize("name", ["program.json", "program.json.gz"])
def test_save_and_load(tmp_path, name):
    path = tmp_path / name
    two_ops().save(path)
    assert Program.load(path) == two_ops()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


def test_json_leaves_out_defaults_at_the_end():
    op, _ = two_ops().to_dict()["ops"]
    assert op == ["first", "dot", [[0, 8]], [[1, 4]]]
    x, h, y = two_ops().to_dict()["buffers"]
    assert x == ["x", [], 8, [0, 1], "parameter"]
    assert h == ["h", [1, 0], 4, [0, 2], "temporary", False, [["view", []]]]
    assert y == ["y", [], 4, [1, 2], "output", True]


def test_fingerprint_is_of_what_a_plan_depends_on():
    program = two_ops()
    same = two_ops(name="other", notes=("note",), source="hlo", text="HloModule")
    assert same.fingerprint == program.fingerprint
    assert with_op(1, count=2.0).fingerprint != program.fingerprint
    assert with_buffer(2, size_bytes=5).fingerprint != program.fingerprint


def test_text_is_no_part_of_equality_or_json():
    assert two_ops(text="HloModule") == two_ops()
    assert "HloModule" not in two_ops(text="HloModule").to_json()


def test_indices_find_ops_and_buffers_by_every_name():
    program = two_ops()
    assert program.op_index == {"first": 0, "second": 1}
    names = {("x", ()): 0, ("h", (1, 0)): 1, ("view", ()): 1, ("y", ()): 2}
    assert program.buffer_index == names
    assert [b.label for b in program.buffers] == ["x", "h{1}{0}", "y"]
    assert [b.is_input for b in program.buffers] == [True, False, False]


def test_a_name_of_a_buffers_own_wins_over_an_alias():
    program = with_buffer(1, aliases=(("y", ()),))
    assert program.buffer_index["y", ()] == 2


def test_accesses_add_up_per_op_and_buffer():
    x, h, y = two_ops().buffers
    first, second = two_ops().ops
    program = two_ops(
        ops=(
            dataclasses.replace(first, writes=(Access(1, 4), Access(2, 1))),
            dataclasses.replace(
                second, reads=(Access(1, 4), Access(2, 0)), writes=(Access(2, 3),)
            ),
        ),
        buffers=(x, h, dataclasses.replace(y, live=LiveRange(0, 2))),
    )
    assert list(program.accesses()) == [
        (0, 0, 8, True, False),
        (0, 1, 4, False, True),
        (0, 2, 1, False, True),
        (1, 1, 4, True, False),
        (1, 2, 3, True, True),
    ]


def test_live_ranges_are_half_open():
    assert not LiveRange(0, 2).overlaps(LiveRange(2, 3))
    assert LiveRange(0, 3).overlaps(LiveRange(2, 3))
    assert not LiveRange(1, 1).overlaps(LiveRange(1, 3))


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2)])
def test_a_live_range_must_be_ordered(start, end):
    with pytest.raises(ValueError, match="is not ordered or begins before 0"):
        LiveRange(start, end)


def _mapping(t=0, i=0, start=0, done=1):
    copy = CompilerCopy(
        buffer_id=i, direction="evict", size_bytes=4, start=start, done=done
    )
    return CompilerMapping(fast_accesses=frozenset({(t, 0)}), copies=(copy,))


_TWICE = (Access(1, 1), Access(1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_op(1, name="first"), "two ops are named 'first'"),
        (lambda: with_op(1, region=1), "'second' is in region 1, there are 1"),
        (lambda: with_op(0, writes=_TWICE), "'first' lists one buffer twice"),
        (lambda: with_op(1, reads=_TWICE), "'second' lists one buffer twice"),
        (lambda: with_op(1, reads=(Access(3, 1),)), "touches buffer 3, there are 3"),
        (lambda: with_op(1, reads=(Access(-1, 1),)), "touches buffer -1, there are 3"),
        (
            lambda: with_op(1, reads=(Access(1, -4),)),
            r"touches -4 bytes of 'h\{1\}\{0\}",
        ),
        (lambda: with_op(1, reads=(Access(0, 1),)), r"'x' at t=1, outside .* \[0, 1\)"),
        (lambda: with_op(0, writes=()), r"reads 'h\{1\}\{0\}' at t=1, before anything"),
        (lambda: with_buffer(2, name="x"), "two buffers are named 'x'"),
        (lambda: with_buffer(1, size_bytes=-1), r"'h\{1\}\{0\}' has -1 bytes"),
        (lambda: with_buffer(1, live=LiveRange(0, 3)), r"\[0, 3\) of a schedule of 2"),
        (lambda: with_buffer(0, live=LiveRange(1, 2)), r"'x' \(parameter\) lives over"),
        (lambda: with_buffer(1, is_output=True, live=LiveRange(0, 1)), "until 2"),
        (lambda: two_ops(regions=(Region(name="", start=0, end=1),)), "not inside its"),
        (
            lambda: two_ops(
                regions=(
                    Region(name="", start=0, end=2),
                    Region(name="loop", start=1, end=3, parent=0),
                )
            ),
            r"region 1 \('loop'\) \[1, 3\) is not inside its parent",
        ),
        (lambda: two_ops(compiler_mapping=_mapping(t=2)), "names op 2 and buffer 0"),
        (lambda: two_ops(compiler_mapping=_mapping(i=3)), "copies buffer 3 over"),
        (lambda: two_ops(compiler_mapping=_mapping(done=3)), r"over \[0, 3\]"),
        (lambda: two_ops(compiler_mapping=_mapping(start=2)), r"over \[2, 1\]"),
    ],
)
def test_contradictions_are_refused(make, message):
    with pytest.raises(ValueError, match=f"program 'two_ops': .*{message}"):
        make()


def _json(**changes):
    return json.dumps(two_ops().to_dict() | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format is 'list', expected 'jax_malloc.program'"),
        ("{}", "format is None"),
        (_json(format="jax_malloc.plan"), "format is 'jax_malloc.plan'"),
        (_json(version=2), "program version 2, this package reads version 1"),
        (_json(ops=None), r"malformed program \(TypeError"),
        (_json(ops=[["first"]]), r"malformed program \(KeyError"),
        (_json(ops=[["first", "dot", [[0]], []]]), r"malformed program \(TypeError"),
        (_json(regions=[["", 0]]), "shorter"),
        (_json(buffers=[["x", [], 8, [0, 1], "heap"]]), "'heap' is not a valid"),
        (_json(buffers=[["x", [], 8, [2, 1], "constant"]]), "is not ordered"),
        (_json(buffers=[]), "touches buffer 0, there are 0"),
    ],
)
def test_bad_json_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=f"^some.json: .*{message}"):
        Program.from_json(text, where="some.json")


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(two_ops().to_json().encode())[:-9],
        b"\x1f\x8b" + bytes(30),
        gzip.compress(two_ops().to_json().encode())[:20] + bytes(30),
        b"\xff\xfe\x00",
    ],
    ids=["cut gzip", "no gzip", "damaged gzip", "binary"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, data):
    path = tmp_path / "program.json.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"program\.json\.gz: cannot be read as"):
        Program.load(path)
