"""Whole texts to programs: what the real TPU compiler wrote.

testdata/make_golden.py says what the texts are. What is asserted of them was read off
the text by hand.
"""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from frontends import hlo
from frontends.program import Program, Region

TESTDATA = pathlib.Path(__file__).parent / "testdata"
NAMES = sorted({p.name.split(".")[0] for p in TESTDATA.glob("*.hlo.gz")})
OTHER_CHIPS = sorted(
    "tpu/" + p.name.split(".")[0] for p in TESTDATA.glob("tpu/*.slow.hlo.gz")
)
KIB, MIB = 2**10, 2**20


def path(name, kind):
    return TESTDATA / f"{name}.{kind}.hlo.gz"


def pair(name):
    """The program of a golden text with the compiler's mapping beside it."""
    return hlo.load(path(name, "slow"), xla=path(name, "xla"))


def buffer(program, name, *index):
    return program.buffers[program.buffer_index[name, index]]


def touched(program, op):
    """Bytes that an op reads and writes, by buffer."""
    op = program.ops[program.op_index[op]]
    return tuple(
        {program.buffers[a.buffer_id].label: a.touched_bytes for a in accesses}
        for accesses in (op.reads, op.writes)
    )


def copies(program):
    return [
        (program.buffers[c.buffer_id].label, c.direction, c.size_bytes, c.start, c.done)
        for c in program.compiler_mapping.copies
    ]


def fast(program, op):
    """Buffers that an op finds in fast memory."""
    t = program.op_index[op]
    accesses = program.compiler_mapping.fast_accesses
    return {program.buffers[i].label for u, i in accesses if u == t}


# --- What the compiler wrote ---------------------------------------------------------


def test_mlp_train():
    program = pair("mlp_train")
    assert [op.name for op in program.ops] == [
        "fusion.19",
        "fusion.13",
        "fusion",
        "fusion.1",
    ]
    sizes = {b.label: (b.size_bytes, b.kind.value) for b in program.buffers}
    assert sizes == {
        "weights_0_.1": (4 * MIB, "parameter"),
        "weights_1_.1": (2 * MIB, "parameter"),
        "x.1": (1 * MIB, "parameter"),
        "y.1": (512 * KIB, "parameter"),
        "fusion.19": (2 * MIB, "temporary"),
        "fusion.13": (512 * KIB, "temporary"),
        "fusion": (4 * MIB, "output"),
        "fusion.1": (2 * MIB, "output"),
    }
    assert touched(program, "fusion.13") == (
        {"y.1": 512 * KIB, "weights_1_.1": 2 * MIB, "fusion.19": 2 * MIB},
        {"fusion.13": 512 * KIB},
    )
    # Arguments 0 and 1 are donated to outputs 0 and 1.
    groups = {b.label: b.alias_group for b in program.buffers}
    assert groups["weights_0_.1"] == groups["fusion"] == 0
    assert groups["weights_1_.1"] == groups["fusion.1"] == 1
    assert groups["x.1"] is None
    assert program.notes == ()


def test_mlp_train_work():
    forward, error, update_0, update_1 = pair("mlp_train").ops
    assert forward.matmul_flops == 2 * 512 * 1024 * 2048
    assert error.matmul_flops == 2 * 512 * 2048 * 512
    # The second layer's gradient is computed again inside.
    assert update_0.matmul_flops == 2 * 1024 * 512 * 2048 + 2 * 512 * 512 * 2048
    assert update_1.matmul_flops == 2 * 2048 * 512 * 512
    # convert.6, convert.4, convert.5, mul.5, sub.1, convert.7; four ops in fusion.2.
    assert update_1.vector_flops == 6 * 2048 * 512 + 4 * 512 * 2048
    assert {op.matmul_dtype for op in (forward, update_0)} == {"bf16"}
    assert update_1.op_name == "jit(step)/transpose(jvp())/dot_general"
    assert [op.scoped_bytes for op in (forward, error)] == [8749056, 7569408]


def test_mlp_train_estimates():
    forward, error, _, _ = pair("mlp_train").ops
    # All of x, w1 and the result in slow memory; then only w1 is.
    first, second = forward.estimates
    assert (first.cycles, first.slow_bytes) == (40900, 7 * MIB)
    assert (second.cycles, second.slow_bytes) == (31668, 4 * MIB)
    assert [(e.cycles, e.slow_bytes) for e in error.estimates] == [
        (26144, 5 * MIB),
        (11570, 0),
    ]


def test_mlp_train_mapping():
    program = pair("mlp_train")
    assert copies(program) == [
        ("x.1", "prefetch", 1 * MIB, 0, 0),
        ("weights_1_.1", "prefetch", 2 * MIB, 0, 1),
        ("y.1", "prefetch", 512 * KIB, 0, 1),
        ("weights_0_.1", "prefetch", 1 * MIB, 0, 2),
        ("weights_0_.1", "prefetch", 1 * MIB, 0, 2),
        ("weights_0_.1", "prefetch", 1 * MIB, 0, 2),
        ("weights_0_.1", "prefetch", 1 * MIB, 1, 2),
        ("fusion", "evict", 4 * MIB, 3, 4),
        ("fusion.1", "evict", 2 * MIB, 4, 4),
    ]
    cross = [c.cross_program for c in program.compiler_mapping.copies]
    assert cross == [True] + [False] * 8
    assert fast(program, "fusion.19") == {"x.1", "fusion.19"}
    assert fast(program, "fusion.1") == {
        "weights_1_.1",
        "fusion.13",
        "fusion.19",
        "fusion.1",
    }
    assert program.compiler_mapping.source.endswith("mlp_train.xla.hlo.gz")


def test_conv_net():
    program = pair("conv_net")
    assert [op.name for op in program.ops] == [
        "fusion.2",
        "fusion.12",
        "convert_reduce_fusion",
        "fusion.8",
    ]
    # 64 channels fill half of a row of 128.
    assert buffer(program, "x.1").size_bytes == 8 * 32 * 32 * 128 * 2
    assert buffer(program, "dense.1").size_bytes == 1000 * 128 * 2
    assert buffer(program, "fusion.8").size_bytes == 8 * 1024 * 2
    pixels = 8 * 32 * 32
    assert program.ops[0].matmul_flops == 2 * pixels * 128 * (3 * 3 * 64)
    assert program.ops[1].matmul_flops == 2 * pixels * 128 * (3 * 3 * 128)
    # Three ops per element, a 2 x 2 window, a conversion and a sum per element left.
    elements = pixels * 128
    assert program.ops[2].vector_flops == 4 * elements + elements + 2 * elements // 4
    assert copies(program) == [
        ("kernels_1_.1", "prefetch", 3 * 3 * 128 * 128 * 2, 0, 1),
        ("dense.1", "prefetch", 256000, 2, 3),
    ]


def test_embedding():
    program = pair("embedding")
    rows = 512 * 256 * 2
    # 512 rows of the table are read, whatever its size.
    assert buffer(program, "table.1").size_bytes == 8192 * 256 * 2
    assert touched(program, "gather_fusion") == (
        {"table.1": rows, "pad_clamp_fusion": 4 * KIB},
        {"gather_fusion": rows},
    )
    # The gradient starts from zeros made inside: a buffer of its own, written whole.
    assert touched(program, "scatter_custom_fusion") == (
        {"fusion.8": 2 * KIB, "fusion.2": rows, "constant.7": 512},
        {"scatter_custom_fusion": 8192 * 256 * 2},
    )
    assert buffer(program, "constant.7").kind.value == "constant"
    assert "scalar" in buffer(program, "multiply_reduce_fusion", 0).pinned_slow
    assert buffer(program, "bitcast.3") is buffer(program, "fusion.2")
    assert program.ops[3].transcendentals == 4 * 128 * 256
    assert copies(program) == [("table.1", "prefetch", 4 * MIB, 0, 2)]
    assert "table.1" in fast(program, "gather_fusion")
    assert "scatter_custom_fusion" not in fast(program, "scatter_custom_fusion")


def test_kv_decode():
    program = pair("kv_decode")
    cache = buffer(program, "cache_v.1")
    assert cache is buffer(program, "dynamic_update_slice.3")
    assert cache is buffer(program, "tuple.3", 1)
    assert (cache.kind.value, cache.is_output) == ("parameter", True)
    assert (cache.live.start, cache.live.end) == (0, 16)
    assert cache.alias_group is None  # it is updated in place, nothing to share with
    # The update of 16 x 1 x 256 is padded to two rows.
    assert touched(program, "dynamic_update_slice.3") == (
        {"cache_v.1": 0, "copy.1": 16 * KIB, "constant.13": 512, "select_n.4": 512},
        {"cache_v.1": 16 * KIB},
    )
    pinned = buffer(program, "select_n.4").pinned_slow
    assert pinned == "lives in memory space S(6), not ours to place"
    assert copies(program) == [
        ("wqkv.1", "prefetch", 256 * 768 * 2, 0, 4),
        ("cache_v.1", "prefetch", 4 * MIB, 0, 14),
        ("cache_v.1", "evict", 4 * MIB, 15, 16),
    ]
    assert fast(program, "dynamic_update_slice.2") == {"copy"}
    assert fast(program, "dynamic_update_slice.3") == {"cache_v.1", "copy.1"}


def test_scan_rnn():
    program = pair("scan_rnn")
    assert [op.name for op in program.ops] == [
        "copy.12",
        "copy.13",
        "custom-call",
        "copy.4",
        "add.7",
        "fusion.21",
        "bitcast_dynamic-update-slice_fusion.2",
        "while",
    ]
    assert program.regions == (
        Region(name="", start=0, end=8),
        Region(name="while", start=3, end=7, parent=0, trip_count=24.0),
    )
    assert [op.count for op in program.ops] == [1, 1, 1, 24, 24, 24, 24, 1]
    assert [op.region for op in program.ops] == [0, 0, 0, 1, 1, 1, 1, 0]
    state = buffer(program, "copy.12")
    for name in (
        ("wide.arg_tuple.0", (1,)),
        ("bitcast_dynamic-update-slice_fusion.2", (1,)),
        ("tuple.17", (1,)),
        ("while", (1,)),
        ("tuple.5", (0,)),
    ):
        assert program.buffers[program.buffer_index[name]] is state
    assert (state.live.start, state.live.end, state.is_output) == (0, 8, True)
    # A slice of the inputs is read and a slice of the outputs written per iteration.
    step = 128 * 512 * 2
    assert touched(program, "bitcast_dynamic-update-slice_fusion.2") == (
        {
            "custom-call": 0,
            "copy.4": 512,
            "fusion.21": step,
            "u.1": 512 * 512 * 2,
            "xs.1": step,
        },
        {"custom-call": step, "copy.12": step},
    )
    # The buffer for the outputs is only reserved before the loop.
    assert touched(program, "custom-call") == ({}, {"custom-call": 0})
    # The loop itself costs nothing; it changes the counter, the state and the outputs.
    reads, writes = touched(program, "while")
    assert set(reads.values()) | set(writes.values()) == {0}
    assert list(writes) == ["copy.13", "copy.12", "custom-call"]
    assert {"u.1", "w.1", "xs.1"} < set(reads)
    # Weights are needed until the last iteration.
    assert buffer(program, "w.1").live.end == 8
    assert buffer(program, "constant.19..sunk").live.end == 7
    assert copies(program) == [("copy.12", "evict", step, 8, 8)]
    assert fast(program, "while") == {"copy.12"}
    assert program.notes == ()


def test_while_cond():
    program = pair("while_cond")
    assert program.notes == (
        "Loop 'while.4' has no known trip count: 5 is assumed.",
        "The 2 branches of 'cond.3.clone.5' are scheduled one after another, each with "
        "0.5 of its cost.",
    )
    _, loop, first, second = program.regions
    assert (loop.name, loop.start, loop.end, loop.trip_count) == ("while.4", 4, 23, 5)
    branch = {"name": "cond.3.clone.5", "parent": 1, "trip_count": 0.5}
    assert first == Region(start=19, end=20, **branch)
    assert second == Region(start=20, end=21, **branch)
    assert program.op_index["cond.3.clone.5"] == 21
    assert program.ops[19].count == 2.5
    # Both branches write the result, and a copy takes it into the loop's state.
    result = {"copy.16": 512, "cond.3.clone.5{0}": 512 * KIB}
    assert touched(program, "abs_reduce_fusion")[1] == result
    assert touched(program, "abs_reduce_fusion.1")[1] == result
    assert touched(program, "copy.11") == (
        {"cond.3.clone.5{0}": 512 * KIB},
        {"copy.15": 512 * KIB},
    )
    assert buffer(program, "while.4", 1) is buffer(program, "copy.15")
    # The compiler made copy.15 of the parameter v asynchronous, into fast memory.
    assert fast(program, "copy.15") == {"copy.15"}
    assert copies(program) == [
        ("a.1", "prefetch", 1 * MIB, 1, 3),
        ("convert.2", "evict", 512 * KIB, 4, 19),
        ("convert.2", "prefetch", 512 * KIB, 22, 23),
        ("copy.15", "evict", 512 * KIB, 24, 24),
    ]
    # The body begins at op 4; what is copied within it is copied in every turn.
    assert [c.region for c in program.compiler_mapping.copies] == [0, 1, 1, 0]


def test_a_copy_of_a_parameter_that_the_loop_changes_stays_an_op():
    """XLA's text has no copy.15; its prefetch of v must not let the loop change v."""
    program = hlo.load(path("while_cond", "xla"))
    op = program.ops[program.op_index["copy-done.1"]]
    assert op.opcode == "copy"
    assert touched(program, "copy-done.1") == (
        {"v.1": 512 * KIB},
        {"copy-done.1": 512 * KIB},
    )
    assert buffer(program, "v.1").live.end == program.op_index["copy-done.1"] + 1
    assert not buffer(program, "v.1").is_output
    assert [label for label, *_ in copies(program)].count("v.1") == 0


@pytest.mark.parametrize("name", [n for n in NAMES if n != "while_cond"])
def test_both_texts_of_a_pair_are_the_same_program(name):
    slow, xla = hlo.load(path(name, "slow")), hlo.load(path(name, "xla"))
    assert slow.compiler_mapping is None
    for mine, theirs in zip(slow.ops, xla.ops, strict=True):
        # Where data is decides how an op is tiled, so what it reserves and costs, and
        # what is written over what.
        same = {
            "estimates": mine.estimates,
            "scoped_bytes": mine.scoped_bytes,
            "reuses": mine.reuses,
        }
        assert mine == dataclasses.replace(theirs, **same)
    both = pair(name)
    for mine, theirs in zip(slow.buffers, xla.buffers, strict=True):
        # Views have different names in the two.
        assert mine == dataclasses.replace(theirs, aliases=mine.aliases)
    assert both.buffers == slow.buffers
    assert both.compiler_mapping == xla.compiler_mapping


@pytest.mark.parametrize("name", NAMES + OTHER_CHIPS)
def test_the_compilers_mapping_makes_sense(name):
    """Data is where each access looks for it: replay with a version per write."""
    for program in (pair(name), hlo.load(path(name, "xla"))):
        mapping = program.compiler_mapping
        accesses = {}
        for t, i, _, reads, writes in program.accesses():
            accesses.setdefault(i, {})[t] = reads, writes
        for i, b in enumerate(program.buffers):
            start = {"slow": 0, "fast": None} if b.is_input else {}
            held, version, moving = dict(start), 0, []
            mine = [c for c in mapping.copies if c.buffer_id == i]
            for t in range(len(program.ops) + 1):
                moving += [
                    (c, held.get("fast" if c.direction == "evict" else "slow"))
                    for c in mine
                    if c.start == t
                ]
                for c, moved in [m for m in moving if m[0].done == t]:
                    assert moved == version
                    held["slow" if c.direction == "evict" else "fast"] = moved
                reads, writes = accesses.get(i, {}).get(t, (False, False))
                space = "fast" if (t, i) in mapping.fast_accesses else "slow"
                assert not reads or held.get(space) == version
                if writes:
                    version += 1
                    held[space] = version
            assert not b.is_output or held["slow"] == version


@pytest.mark.parametrize("name", NAMES)
def test_programs_survive_json(name):
    program = pair(name)
    assert Program.from_json(program.to_json()) == program
    assert program.name == f"{name}.slow"
    assert program.source == "hlo"
    assert program.text == hlo.read_text(path(name, "slow"))


def test_cmem_is_the_fast_memory_where_there_is_one():
    """On a TPU v4 tensors go to S(3); what is in S(1) is not ours to place."""
    text = hlo.read_text(path("mlp_train", "xla")).replace("S(1)", "S(3)")
    program = hlo.from_text(text)
    assert program.compiler_mapping.fast_accesses == (
        pair("mlp_train").compiler_mapping.fast_accesses
    )
    assert copies(program) == copies(pair("mlp_train"))
    # Its ops reserve VMEM, which is not the memory that is planned.
    assert [op.scoped_bytes for op in program.ops] == [0, 0, 0, 0]
    assert not any(b.pinned_slow for b in program.buffers)


def test_texts_that_do_not_match_keep_what_matches():
    slow = hlo.read_text(path("mlp_train", "slow"))
    xla = hlo.read_text(path("mlp_train", "xla"))
    renamed = xla.replace("%fusion.13 ", "%other ").replace("%fusion.13,", "%other,")
    program = hlo.from_text(slow, xla_text=renamed)
    assert program.notes == (
        "No counterpart for 1 op (fusion.13) of the program.",
        "No counterpart for 1 op (other) of the compiler's mapping.",
        # Only the op that is gone read y.
        "Left out 1 copy (y.1) of the compiler's mapping.",
    )
    assert fast(program, "fusion.13") == set()
    assert fast(program, "fusion.19") == {"x.1", "fusion.19"}
    assert [len(op.estimates) for op in program.ops] == [2, 1, 2, 2]
    assert "y.1" not in [label for label, *_ in copies(program)]


def test_a_second_text_with_nothing_in_fast_memory_is_a_mapping_too():
    text = hlo.read_text(path("mlp_train", "slow"))
    program = hlo.from_text(text, xla_text=text)
    assert program.compiler_mapping.fast_accesses == frozenset()
    assert program.compiler_mapping.copies == ()
    assert program.notes == (
        "In the compiler's own mapping everything is in slow memory.",
    )


def test_a_bad_second_text_is_named():
    text = hlo.read_text(path("mlp_train", "slow"))
    with pytest.raises(ValueError, match=r"^b\.hlo, line 1: the text is empty"):
        hlo.from_text(text, xla_text="", where="a.hlo", xla_where="b.hlo")


def test_reading_a_dump_needs_no_jax():
    code = (
        "import sys; from frontends import hlo; hlo.load(sys.argv[1]); "
        "sys.exit(bool({'jax', 'jaxlib', 'numpy'} & sys.modules.keys()))"
    )
    dump = path("mlp_train", "slow")
    root = TESTDATA.parent.parent
    subprocess.run([sys.executable, "-c", code, str(dump)], cwd=root, check=True)


# --- Placements in the text ----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_annotated_text_is_the_same_program(name):
    text = hlo.read_text(path(name, "slow"))
    program = hlo.from_text(text)
    placements = {b.name: f'"fast" {i}\\' for i, b in enumerate(program.buffers)}
    annotated = hlo.annotate(text, placements)
    assert hlo.from_text(annotated) == program
    for computation in hlo.parse(annotated).computations.values():
        for inst in computation.instructions:
            attributes = inst.attributes.get("frontend_attributes", "")
            if inst.name in placements:
                value = placements[inst.name].replace("\\", "\\\\").replace('"', '\\"')
                assert f'{{jax_malloc.placement="{value}"' in attributes
            else:
                assert "jax_malloc" not in attributes
    assert hlo.annotate(annotated, placements) == annotated


def test_annotations_join_those_that_are_there():
    text = (
        "HloModule m, is_scheduled=true\n\nENTRY %main (x: f32[8]) -> f32[8] {\n"
        '  %x = f32[8] parameter(0), metadata={op_name="frontend_attributes={"}, '
        'frontend_attributes={a="b"}\n  ROOT %y = f32[8] negate(%x), metadata={}\n}\n'
    )
    annotated = hlo.annotate(text, {"x": "slow", "y": "fast"})
    x, y = hlo.parse(annotated).entry.instructions
    assert x.attributes["frontend_attributes"] == (
        '{jax_malloc.placement="slow",a="b"}'
    )
    assert y.attributes["frontend_attributes"] == '{jax_malloc.placement="fast"}'
    assert x.op_name == "frontend_attributes={"
    again = hlo.annotate(annotated, {"x": "fast"})
    assert again == annotated.replace('"slow"', '"fast"')


def test_placements_of_unknown_names_are_refused():
    text = hlo.read_text(path("mlp_train", "slow"))
    placements = {"b": "fast", "x.1": "slow", "a": "fast"}
    with pytest.raises(ValueError, match=r"^m, line \d+: no instruction .*'a', 'b'\."):
        hlo.annotate(text, placements, where="m")
