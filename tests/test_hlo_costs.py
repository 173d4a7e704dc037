import pytest

from frontends import hlo, hlo_opcodes
from frontends.hlo_costs import Work


def program(*lines, computations="", attributes=""):
    """The program of a module with these lines in ENTRY, and nothing else."""
    entry = "\n".join(f"  {line}" for line in lines)
    return hlo.from_text(
        f"HloModule toy, is_scheduled=true{attributes}\n{computations}\n"
        f"ENTRY %main (x: f32[2]) -> f32[2] {{\n{entry}\n}}\n"
    )


def computation(name, *lines):
    body = "\n".join(f"  {line}" for line in lines)
    return f"%{name} (p: f32[2]) -> f32[2] {{\n{body}\n}}\n"


def touched(program, t=-1):
    """Bytes that an op reads and writes, by buffer."""
    op = program.ops[t]
    return tuple(
        {program.buffers[a.buffer_id].label: a.touched_bytes for a in accesses}
        for accesses in (op.reads, op.writes)
    )


TABLE = "%table = f32[100,8] parameter(0)"
START = "%i = s32[] parameter(1)"
UPDATE = "%u = f32[1,8] parameter(2)"


def test_a_gather_touches_what_it_takes():
    p = program(
        TABLE,
        "%ids = s32[3,1] parameter(1)",
        "ROOT %g = f32[3,8] gather(%table, %ids), offset_dims={1}",
    )
    assert touched(p) == ({"table": 3 * 8 * 4, "ids": 12}, {"g": 3 * 8 * 4})


def test_slices_touch_what_they_take():
    p = program(
        TABLE,
        START,
        "%s = f32[10,8] slice(%table), slice={[0:10], [0:8]}",
        "ROOT %d = f32[2,8] dynamic-slice(%table, %i, %i), dynamic_slice_sizes={2,8}",
    )
    assert touched(p, 0) == ({"table": 320}, {"s": 320})
    assert touched(p, 1) == ({"table": 64, "i": 4}, {"d": 64})


def test_an_update_in_place_touches_the_update():
    p = program(
        TABLE,
        START,
        UPDATE,
        "ROOT %d = f32[100,8] dynamic-update-slice(%table, %u, %i, %i)",
    )
    assert touched(p) == ({"table": 0, "u": 32, "i": 4}, {"table": 32})
    table = p.buffers[p.buffer_index["d", ()]]
    assert (table.name, table.is_output, table.kind.value) == (
        "table",
        True,
        "parameter",
    )


def test_a_scatter_is_in_place():
    p = program(
        TABLE,
        "%ids = s32[1,1] parameter(1)",
        UPDATE,
        "ROOT %s = f32[100,8] scatter(%table, %ids, %u), to_apply=%add",
        computations=computation(
            "add",
            "%a = f32[] parameter(0)",
            "%b = f32[] parameter(1)",
            "ROOT %c = f32[] add(%a, %b)",
        ),
    )
    assert touched(p) == ({"table": 3200, "ids": 4, "u": 32}, {"table": 3200})
    assert p.ops[0].vector_flops == 8


FUSED = {
    # Two slices of one parameter, behind a bitcast and a nested fusion.
    "slices": (
        computation(
            "inner",
            "%q = f32[100,8] parameter(0)",
            "ROOT %s = f32[5,8] slice(%q), slice={[0:5], [0:8]}",
        )
        + computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%v = f32[10,10,8] bitcast(%p)",
            "%a = f32[2,10,8] slice(%v), slice={[0:2], [0:10], [0:8]}",
            "%b = f32[5,8] fusion(%p), kind=kLoop, calls=%inner",
            "ROOT %t = (f32[2,10,8], f32[5,8]) tuple(%a, %b)",
        ),
        "(f32[2,10,8], f32[5,8])",
        ({"table": 640 + 160}, {"f{0}": 640, "f{1}": 160}),
    ),
    # One use that reads all of it counts for all.
    "whole": (
        computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%a = f32[5,8] slice(%p), slice={[0:5], [0:8]}",
            "%n = f32[100,8] negate(%p)",
            "ROOT %t = (f32[5,8], f32[100,8]) tuple(%a, %n)",
        ),
        "(f32[5,8], f32[100,8])",
        ({"table": 3200}, {"f{0}": 160, "f{1}": 3200}),
    ),
    # A parameter that comes out again is read.
    "handed through": (
        computation("fused", "ROOT %p = f32[100,8] parameter(0)"),
        "f32[100,8]",
        ({"table": 3200}, {"f": 3200}),
    ),
    "unused": (
        computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "ROOT %c = f32[4] iota(), iota_dimension=0",
        ),
        "f32[4]",
        ({"table": 0}, {"f": 16}),
    ),
    # The updated array is only returned: nothing of it is read.
    "update": (
        computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%i = s32[] constant(3)",
            "%u = f32[1,8] iota(), iota_dimension=1",
            "%d = f32[100,8] dynamic-update-slice(%p, %u, %i, %i)",
            "ROOT %v = f32[800] bitcast(%d)",
        ),
        "f32[800]",
        ({"table": 0}, {"table": 32}),
    ),
    # The updated array is used on: all of it is read, and there is no place to share.
    "update inside": (
        computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%i = s32[] constant(3)",
            "%u = f32[1,8] iota(), iota_dimension=1",
            "%d = f32[100,8] dynamic-update-slice(%p, %u, %i, %i)",
            "ROOT %n = f32[100,8] negate(%d)",
        ),
        "f32[100,8]",
        ({"table": 3200}, {"f": 3200}),
    ),
    # Into an array made inside: everything is written.
    "update of a new array": (
        computation(
            "fused",
            "%p = f32[1,8] parameter(0)",
            "%i = s32[] constant(3)",
            "%z = f32[100,8] iota(), iota_dimension=1",
            "ROOT %d = f32[100,8] dynamic-update-slice(%z, %p, %i, %i)",
        ),
        "f32[100,8]",
        ({"table": 3200}, {"f": 3200}),
    ),
    # Element 1 of the tuple is the update, through a nested fusion.
    "update in a tuple": (
        computation(
            "inner",
            "%q = f32[100,8] parameter(0)",
            "%i = s32[] constant(3)",
            "%u = f32[1,8] iota(), iota_dimension=1",
            "ROOT %d = f32[100,8] dynamic-update-slice(%q, %u, %i, %i)",
        )
        + computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%c = f32[4] iota(), iota_dimension=0",
            "%n = f32[100,8] fusion(%p), kind=kLoop, calls=%inner",
            "ROOT %t = (f32[4], f32[100,8]) tuple(%c, %n)",
        ),
        "(f32[4], f32[100,8])",
        ({"table": 0}, {"f{0}": 16, "table": 32}),
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fusions_are_looked_into(case):
    computations, result, expected = FUSED[case]
    p = program(
        TABLE,
        f"ROOT %f = {result} fusion(%table), kind=kLoop, calls=%fused",
        computations=computations,
    )
    assert touched(p) == expected


def test_an_operand_read_twice_counts_once():
    p = program(TABLE, "ROOT %a = f32[100,8] add(%table, %table)")
    assert touched(p) == ({"table": 3200}, {"a": 3200})


def test_output_to_operand_aliasing_shares_places():
    """What a fusion hands on is a view; a kernel that says so writes in place."""
    p = program(
        TABLE,
        START,
        "%f = (f32[100,8], f32[4]) fusion(%table), kind=kCustom, calls=%fused, "
        "output_to_operand_aliasing={{0}: (0, {})}",
        "%g = f32[100,8] get-tuple-element(%f), index=0",
        "ROOT %k = f32[100,8] custom-call(%i, %g), custom_call_target="
        '"tpu_custom_call", output_to_operand_aliasing={{}: (1, {})}',
        computations=computation(
            "fused",
            "%p = f32[100,8] parameter(0)",
            "%c = f32[4] iota(), iota_dimension=0",
            "ROOT %t = (f32[100,8], f32[4]) tuple(%p, %c)",
        ),
    )
    assert touched(p, 0) == ({"table": 0}, {"f{1}": 16})
    assert touched(p, 1) == ({"i": 4, "table": 3200}, {"table": 3200})
    names = {key for key, i in p.buffer_index.items() if p.buffers[i].name == "table"}
    assert {("f", (0,)), ("g", ()), ("k", ())} < names


CONVOLUTIONS = {
    # Every output: 3 x 3 window, 16 inputs. Padding of less than the window counts.
    "same padding": (
        "f32[2,8,8,16]",
        "f32[3,3,16,32]",
        "f32[2,8,8,32]",
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
        2 * (2 * 8 * 8 * 32) * (3 * 3 * 16),
    ),
    "strided": (
        "f32[2,8,8,16]",
        "f32[2,2,16,32]",
        "f32[2,4,4,32]",
        "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f",
        2 * (2 * 4 * 4 * 32) * (2 * 2 * 16),
    ),
    "a plain product": (
        "f32[8,16]",
        "f32[16,32]",
        "f32[8,32]",
        "dim_labels=bf_io->bf",
        2 * 8 * 16 * 32,
    ),
    # 12 heads: a window over all of them, of which one meets data.
    "a batched product": (
        "f32[12,128,64]",
        "f32[12,64,128]",
        "f32[12,128,128]",
        "window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0io->0bf",
        2 * 12 * 128 * 128 * 64,
    ),
    # As much padding as window: 5 outputs, but only 3 x 3 places and elements meet.
    "full padding": (
        "f32[1,3,16]",
        "f32[3,16,8]",
        "f32[1,5,8]",
        "window={size=3 pad=2_2}, dim_labels=b0f_0io->b0f",
        2 * 3 * 3 * 16 * 8,
    ),
    # Every second place of the dilated input is a hole: 4 of 7 per row are not.
    "transposed": (
        "f32[1,4,16]",
        "f32[1,16,8]",
        "f32[1,7,8]",
        "window={size=1 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
        2 * (1 * 4 * 8) * 16,
    ),
    "no labels": ("f32[8,16]", "f32[16,32]", "f32[8,32]", "window={}", 0),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_flops(case):
    lhs, rhs, out, attributes, flops = CONVOLUTIONS[case]
    p = program(
        f"%a = {lhs} parameter(0)",
        f"%b = {rhs} parameter(1)",
        f"ROOT %c = {out} convolution(%a, %b), {attributes}",
    )
    assert p.ops[0].matmul_flops == flops
    assert p.ops[0].matmul_dtype == "f32"


def test_dot_flops_and_the_narrower_operand():
    p = program(
        "%a = f32[4,8,16] parameter(0)",
        "%b = bf16[4,16,32] parameter(1)",
        "ROOT %c = f32[4,8,32] dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_contracting_dims={1}",
    )
    assert p.ops[0].matmul_flops == 2 * 4 * 8 * 16 * 32
    assert p.ops[0].matmul_dtype == "bf16"


def test_work_inside_fusions_adds_up():
    fused = computation(
        "fused",
        "%p = bf16[8,16] parameter(0)",
        "%w = bf16[16,4] parameter(1)",
        "%d = bf16[8,4] dot(%p, %w), lhs_contracting_dims={1}",
        "%c = f32[8,4] convert(%d)",
        "%e = f32[8,4] exponential(%c)",
        "%b = f32[8,4] broadcast(%e), dimensions={0,1}",
        "%z = f32[] constant(0)",
        "ROOT %r = f32[8] reduce(%b, %z), dimensions={1}, to_apply=%add",
    )
    add = computation(
        "add",
        "%x = f32[] parameter(0)",
        "%y = f32[] parameter(1)",
        "ROOT %s = f32[] add(%x, %y)",
    )
    p = program(
        "%a = bf16[8,16] parameter(0)",
        "%b = bf16[16,4] parameter(1)",
        "ROOT %f = f32[8] fusion(%a, %b), kind=kOutput, calls=%fused",
        computations=add + fused,
    )
    (op,) = p.ops
    assert (op.matmul_flops, op.matmul_dtype) == (2 * 8 * 4 * 16, "bf16")
    assert op.vector_flops == 32 + 32  # convert, reduce
    assert op.transcendentals == 32


def test_a_window_reduction_looks_at_every_place_of_the_window():
    p = program(
        "%a = f32[1,8,8,4] parameter(0)",
        "%z = f32[] constant(0)",
        "ROOT %r = f32[1,4,4,4] reduce-window(%a, %z), "
        "window={size=1x3x3x1 stride=1x2x2x1 pad=0_0x0_1x0_1x0_0}, to_apply=%max",
        computations=computation(
            "max",
            "%x = f32[] parameter(0)",
            "%y = f32[] parameter(1)",
            "ROOT %m = f32[] maximum(%x, %y)",
        ),
    )
    assert p.ops[0].vector_flops == 4 * 4 * 4 * 9


def test_a_kernel_costs_what_its_author_said():
    p = program(
        "%a = bf16[8,16] parameter(0)",
        'ROOT %k = bf16[8,16] custom-call(%a), custom_call_target="tpu_custom_call", '
        'backend_config={"custom_call_config":{"body":"TUz}","cost_estimate":'
        '{"flops":"4096","transcendentals":"7","bytes_accessed":"512"}}}',
    )
    (op,) = p.ops
    assert (op.matmul_flops, op.matmul_dtype, op.transcendentals) == (4096, "bf16", 7)


def test_work_takes_the_type_of_the_larger_product():
    small, large = Work(10.0, "f32", 1.0), Work(20.0, "bf16", 0.0, 5.0)
    assert small + large == large + small == Work(30.0, "bf16", 1.0, 5.0)


@pytest.mark.parametrize(
    ("opcode", "known"),
    [
        ("add", True),
        ("all-gather-start", True),
        ("async-done", True),
        ("copy-start", True),
        ("frobnicate", False),
        ("frobnicate-start", False),
    ],
)
def test_known_opcodes(opcode, known):
    assert hlo_opcodes.is_known(opcode) == known


def test_an_unknown_opcode_touches_everything_and_is_noted_once():
    p = program(
        TABLE,
        "%a = f32[100,8] frobnicate(%table)",
        "ROOT %b = f32[100,8] frobnicate(%a)",
    )
    assert touched(p, 0) == ({"table": 3200}, {"a": 3200})
    (note,) = p.notes
    assert note.startswith("Opcode 'frobnicate' is unknown")


@pytest.mark.parametrize("operands", ["%table", "%t, %table"])
def test_a_product_of_less_than_two_arrays_is_refused(operands):
    with pytest.raises(ValueError, match=r"line \d+: dot 'd' needs two arrays"):
        program(
            TABLE,
            "%t = (f32[100,8]) tuple(%table)",
            f"ROOT %d = f32[8] dot({operands})",
        )
