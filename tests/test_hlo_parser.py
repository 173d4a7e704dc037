import gzip
import pathlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends import hlo, hlo_types
from frontends.hlo_parser import parse

TESTDATA = pathlib.Path(__file__).parent / "testdata"
GOLDEN = {
    path.name.removesuffix(".hlo.gz"): hlo.read_text(path)
    for path in sorted(TESTDATA.glob("*.hlo.gz"))
}


def module_text(entry, *, computations="", attributes=""):
    """A scheduled module with these lines in ENTRY."""
    lines = "\n".join(f"  {line}" for line in entry)
    return (
        f"HloModule toy, is_scheduled=true{attributes}\n\n{computations}\n"
        f"ENTRY %main (x: f32[2]) -> f32[2] {{\n{lines}\n}}\n"
    )


def entry_of(*lines, **kwargs):
    return parse(module_text(lines, **kwargs)).entry


@pytest.mark.parametrize(
    ("text", "dtype", "dims", "size_bytes", "space"),
    [
        ("f32[2,3]", "f32", (2, 3), 24, 0),
        ("f32[]", "f32", (), 4, 0),
        ("bf16[5]{0}", "bf16", (5,), 10, 0),
        ("pred[7]{0}", "pred", (7,), 7, 0),
        ("token[]", "token", (), 0, 0),
        ("c64[3]{0}", "c64", (3,), 24, 0),
        ("f8e4m3fn[9]{0}", "f8e4m3fn", (9,), 9, 0),
        ("f32[0,128]{1,0:T(8,128)}", "f32", (0, 128), 0, 0),
        # 5 rows fill a tile of 8, 130 columns two of 128.
        ("f32[5,130]{1,0:T(8,128)}", "f32", (5, 130), 8 * 256 * 4, 0),
        # The inner tile (2,1) only pairs up rows of the outer one.
        ("bf16[5,130]{1,0:T(8,128)(2,1)}", "bf16", (5, 130), 8 * 256 * 2, 0),
        ("bf16[16,1,256]{2,1,0:T(2,128)(2,1)S(1)}", "bf16", (16, 1, 256), 16384, 1),
        ("bf16[64]{0:T(256)(128)(2,1)}", "bf16", (64,), 512, 0),
        ("s32[]{:T(128)S(6)}", "s32", (), 512, 6),
        # Dimension 0 is the minor one: 1000 rows of 128.
        ("bf16[128,1000]{0,1:T(8,128)(2,1)}", "bf16", (128, 1000), 256000, 0),
        ("bf16[128,1000]{1,0:T(8,128)(2,1)}", "bf16", (128, 1000), 262144, 0),
        # A batch dimension is outside of the tile.
        ("f32[3,5,100]{2,1,0:T(8,128)}", "f32", (3, 5, 100), 3 * 8 * 128 * 4, 0),
        ("s4[512,256]{1,0:T(64,128)(8,1)E(4)S(1)}", "s4", (512, 256), 65536, 1),
        ("s4[3]{0:E(4)}", "s4", (3,), 2, 0),
        ("s4[3]{0}", "s4", (3,), 3, 0),
        ("f32[<=8,4]{1,0}", "f32", (8, 4), 128, 0),
        ("f32[100]{0:L(128)}", "f32", (100,), 512, 0),
        # 3 x 100 are one dimension of 300 in front of the tile.
        ("f32[3,100]{1,0:T(*,128)}", "f32", (3, 100), 384 * 4, 0),
    ],
)
def test_array_types(text, dtype, dims, size_bytes, space):
    array = hlo_types.ArrayType(dtype, dims, size_bytes, space)
    assert hlo_types.parse_array_type(text) == array
    root = entry_of(f"ROOT %x = {text} parameter(0)").root
    assert root.type == array


@pytest.mark.parametrize(
    "text",
    [
        "f33[2]",
        "f32[?]",
        "f32[2]{0:T(0)}",
        "f32[a]",
        "f32",
        "s8[9999999,9999999,9999999]",
    ],
)
def test_what_is_no_array_type(text):
    assert hlo_types.parse_array_type(text) is None
    with pytest.raises(ValueError, match="line 5: "):
        entry_of(f"ROOT %x = {text} parameter(0)")


def test_tuple_types_nest():
    line = "ROOT %x = (f32[2], /*index=1*/(s32[], ()), pred[]) parameter(0)"
    root = entry_of(line).root
    f32, (s32, empty), pred = root.type
    assert (f32.dtype, s32.dtype, empty, pred.dtype) == ("f32", "s32", (), "pred")
    assert [index for index, _ in hlo_types.leaves(root.type)] == [(0,), (1, 0), (2,)]
    assert hlo_types.size_bytes(root.type) == 8 + 4 + 1
    assert hlo_types.num_elements(root.type) == 2 + 1 + 1


def test_attributes_of_every_kind():
    root = entry_of(
        "%x = f32[2]{0} parameter(0), sharding={replicated}",
        "ROOT %y.1 = f32[2]{0} custom-call(%x, /*index=1*/%x), "
        'custom_call_target="a, \\"b\\" }{", window={size=3x3 pad=1_1x1_1}, '
        "dim_labels=b01f_01io->b01f, replica_groups=[2,2]<=[2,2]T(1,0), "
        "control-predecessors={%x}, "
        "metadata={op_name=\"p[\\'w\\']/{dot}\" stack_frame_id=3}, "
        'backend_config={"a":{"b":"}"},"estimated_cycles":"12"}',
    ).root
    assert (root.name, root.operands, root.is_root) == ("y.1", ("x", "x"), True)
    assert root.attributes["custom_call_target"] == 'a, "b" }{'
    assert root.attributes["window"] == "{size=3x3 pad=1_1x1_1}"
    assert root.attributes["dim_labels"] == "b01f_01io->b01f"
    assert root.attributes["replica_groups"] == "[2,2]<=[2,2]T(1,0)"
    assert root.attributes["control-predecessors"] == "{%x}"
    assert root.op_name == "p['w']/{dot}"
    assert root.backend_config() == {"a": {"b": "}"}, "estimated_cycles": "12"}
    assert root.estimated_cycles == 12
    assert root.line == 6


def test_device_groups_may_be_named_by_mesh_axes():
    groups = "mesh['x'=4,'y'=1] {'x'}"
    root = entry_of(
        "%x = f32[2]{0} parameter(0)",
        f"ROOT %y = f32[8]{{0}} all-gather(%x), replica_groups={groups}, "
        "dimensions={0}, use_global_device_ids=true",
    ).root
    assert root.attributes["replica_groups"] == groups
    assert root.attributes["dimensions"] == "{0}"


@pytest.mark.parametrize("config", ['"text"', "{not json}", "{}", "[1]"])
def test_a_backend_config_that_is_no_json_object_is_empty(config):
    root = entry_of(f"ROOT %x = f32[] parameter(0), backend_config={config}").root
    assert root.backend_config() == {}
    assert root.estimated_cycles is None


@pytest.mark.parametrize(
    "literal",
    ["-inf", "{...}", "{ {1, 2}, /*i1=1*/{3, 4} }", "(1, -2)", '"a ) b"', "true", ""],
)
def test_literals_are_skipped(literal):
    root = entry_of(f"ROOT %c = f32[2,2] constant({literal}), metadata={{}}").root
    assert root.literal == literal
    assert root.operands == ()
    assert root.attributes == {"metadata": "{}"}


def test_printer_options():
    """Names without %, operands with types, comments, tables, extra attributes."""
    text = """// a comment
HloModule m.1, is_scheduled=true, entry_computation_layout={(f32[2]{0})->f32[2]{0}}

FileNames
1 "model {.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT sum = f32[] add(f32[] a, f32[] b)
}, execution_thread="host"

ENTRY main {
  x = f32[2]{0} parameter(0)
  t = (f32[2]{0}) tuple(x) /* trailing */
  ROOT y = f32[2]{0} custom-call((f32[2]{0}) t, f32[2]{0} %x), to_apply=add
}"""
    module = parse(text)
    assert module.name == "m.1"
    assert list(module.computations) == ["add", "main"]
    assert module.entry.root.operands == ("t", "x")
    assert module.entry.root.called == ("add",)
    assert module.computations["add"].root.operands == ("a", "b")
    assert module.entry.root.line == 20


def test_the_tree_knows_parameters_users_and_operands():
    entry = entry_of(
        "%b = f32[2] parameter(1)",
        "%a = f32[2] parameter(0)",
        "%c = f32[2] add(%a, %a)",
        "ROOT %d = f32[2] add(%c, %a)",
    )
    assert [p.name for p in entry.parameters] == ["a", "b"]
    assert [(user.name, n) for user, n in entry.users["a"]] == [
        ("c", 0),
        ("c", 1),
        ("d", 1),
    ]
    assert entry.operand(entry.root, 0).name == "c"
    assert entry.operand(entry.root, 2) is None


def test_a_last_line_without_ROOT_is_the_root():
    assert entry_of("%a = f32[2] parameter(0)").root.name == "a"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the text is empty, expected 'HloModule"),
        (" \n\n", 1, "the text is empty"),
        ("\x00\x12binary", 1, r"not HLO text: it begins with '\\x00"),
        ("module @jit_f attributes {", 1, "StableHLO goes to the stablehlo frontend"),
        ("HloModule toy\n", 1, "'toy' is not scheduled .*after_optimizations"),
        ("HloModule toy, is_scheduled=false\n", 1, "is not scheduled"),
        ("HloModule toy, is_scheduled=true\n", 1, "0 computations but no ENTRY"),
        (module_text(["%x = f32[2] parameter(0"]), 5, "'[(]' here is never closed"),
        (module_text(["%x = f32[2] "]), 6, "found '}' where the opcode of 'x'"),
        (module_text(["%x = parameter(0)"]), 5, "where a type should stand"),
        (
            module_text(["%x = f32[2] parameter(1)"]),
            4,
            "are numbered 1, expected 0 to 0",
        ),
        (
            module_text(["%x = f32[2] add(%y)"]),
            5,
            "'x' reads 'y', which no line before",
        ),
        (
            module_text(["%x = f32[2] add(3)"]),
            5,
            "found '3[)]' where an operand of 'x'",
        ),
        (
            module_text(["%x = f32[] constant(1)", "%x = f32[] constant(1)"]),
            6,
            "a second instruction is named 'x'",
        ),
        (
            module_text(["ROOT %x = f32[] constant(1)", "ROOT %y = f32[] constant(1)"]),
            4,
            "'main' has 2 roots, expected one",
        ),
        (
            module_text(["%x = f32[2] fusion(), calls=%lost"]),
            5,
            "'x' calls 'lost', which no computation before it is named",
        ),
        (module_text(["%x = f32[] constant(1), a=b c"]), 6, "'=' after 'c'"),
        (module_text(["%x = f32[] constant(1), ="]), 5, "where an attribute should"),
        (module_text(["%x = f32[] constant(1), a={{{"]), 5, "'{' here is never closed"),
        (module_text([f"%x = {'(' * 60}"]), 5, "nested more than 50 deep"),
        (
            module_text(["%x = f32[] constant(1)"]).rstrip("}\n"),
            5,
            "the text ends where",
        ),
        (module_text([]), 4, "'main' has 0 roots"),
    ],
)
def test_errors_name_text_line_and_remedy(text, line, message):
    with pytest.raises(ValueError, match=rf"(?s)^a\.hlo, line {line}: .*{message}"):
        parse(text, where="a.hlo")


@pytest.mark.parametrize("name", GOLDEN)
def test_every_cut_is_noticed(name):
    text = GOLDEN[name].rstrip()
    for at in range(0, len(text), 997):
        with pytest.raises(ValueError, match=r"^cut, line \d+: "):
            parse(text[:at], where="cut")


def _complaint(text):
    """What the frontend says against a text, if anything."""
    try:
        hlo.from_text(text, where="damaged")
    except ValueError as error:
        return str(error)
    return None


_PIECES = ["(", ")", "{", "}", "[", "]", ",", "=", '"', "%", "\\", "/*", "\n", "0", "-"]
_PIECES += ["ROOT ", "S(1)", "tuple(", "parameter(0)", "->", "index=9", "token[]"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_text_raises_nothing_but_value_errors_with_a_line(data):
    text = GOLDEN[data.draw(st.sampled_from(sorted(GOLDEN)))]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.sampled_from(["", *_PIECES])) + text[at + cut :]
    complaint = _complaint(text)
    assert complaint is None or complaint.startswith("damaged, line ")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mixed_up_names_raise_nothing_but_value_errors_with_a_line(data):
    words = GOLDEN[data.draw(st.sampled_from(sorted(GOLDEN)))].split(" ")
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(words) - 1))
        j = data.draw(st.integers(0, len(words) - 1))
        words[i], words[j] = words[j], words[i]
    complaint = _complaint(" ".join(words))
    assert complaint is None or complaint.startswith("damaged, line ")


@given(st.text(max_size=200))
def test_any_other_text_is_refused_with_a_line(text):
    with pytest.raises(ValueError, match=r"^any, line \d+: "):
        parse(text, where="any")


def test_a_megabyte_takes_less_than_two_seconds():
    body = GOLDEN["mlp_train.slow"].partition("ENTRY")[2]
    lines = body.partition("\n")[2].partition("ROOT")[0]
    lines = [line for line in lines.split("\n") if "parameter(" not in line]
    config = lines[0].partition("backend_config")[2]
    entry = ["%v0 = f32[8,128]{1,0:T(8,128)} parameter(0)"]
    while sum(map(len, entry)) < 1_000_000:
        i = len(entry)
        entry.append(
            f"%v{i} = f32[8,128]{{1,0:T(8,128)S(1)}} add(%v{i - 1}, %v{i // 2}), "
            f'metadata={{op_name="step/{i}"}}, backend_config{config}'
        )
    text = module_text(entry)
    begin = time.process_time()
    module = parse(text)
    assert time.process_time() - begin < 2
    assert len(module.entry.instructions) == len(entry)


def test_runs_of_spaces_take_no_time():
    text = module_text(["%x = f32[] constant(1)" + " " * 50_000 + "$"])
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"found '\$' where an instruction"):
        parse(text)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("name", ["plain.hlo", "packed.hlo.gz", "no_ending"])
def test_files_may_be_gzipped_under_any_name(tmp_path, name):
    path = tmp_path / name
    text = GOLDEN["mlp_train.slow"]
    path.write_bytes(
        text.encode() if name == "plain.hlo" else gzip.compress(text.encode())
    )
    assert hlo.read_text(path) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"HloModule" * 99)[:-9], "gzip data is damaged"),
        (b"\x1f\x8bnonsense", "gzip data is damaged"),
        (b"HloModule\n\n\xff\xfe", "line 3: byte 0xff is not text"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, data, message):
    path = tmp_path / "dump.hlo.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"dump\.hlo\.gz.*{message}"):
        hlo.load(path)


def test_a_missing_file_is_not_a_bad_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        hlo.load(tmp_path / "none.hlo")
