"""Compiling for a TPU that is not there; and, without libtpu, all that surrounds it."""

import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_malloc
from frontends import hlo, tpu, tpu_cache, tpu_pool, tpu_worker
from jax_malloc import problem as problem_lib
from jax_malloc import validator
from jax_malloc.solvers import SOLVERS

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "testdata" / "tpu"
KINDS = ("slow", "xla")
MIB = 2**20

needs_libtpu = pytest.mark.skipif(
    not tpu.is_available(), reason='libtpu is not installed: pip install ".[tpu]"'
)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """One cache for all tests here, so that no program is compiled twice."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def no_libtpu(monkeypatch):
    monkeypatch.setattr(tpu, "is_available", lambda: False)


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def step(params, x, ignored, *, scale):
    """One step of gradient descent, and what it predicted."""
    with jax.named_scope("layer"):
        y = jnp.tanh(x @ params["w"])
    return {"w": params["w"] - scale * x.T @ y}, y


STEP = ({"w": shape(512, 512)}, shape(1024, 512), shape(3))
STEP_OPTIONS = {"static_argnames": "scale", "donate_argnums": 0}


def lower_step(**options):
    return tpu.lower(step, *STEP, scale=2, **STEP_OPTIONS, **options)


# --- What goes in --------------------------------------------------------------------


def test_a_lowering_keeps_names_donations_and_what_is_used():
    lowering = lower_step()
    assert lowering.name == "step"
    assert lowering.argument_names == ("params['w']", "x", "ignored")
    assert lowering.donated == (True, False, False)
    assert lowering.kept == (0, 1)
    assert lowering.mesh_axes == ()
    assert lowering.num_devices == 1


def test_a_lowering_is_the_same_wherever_it_is_made():
    """Source lines are no part of it, nor whether arrays or shapes were given."""
    first = lower_step()
    arrays = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), STEP)
    again = functools.partial(tpu.lower, step, *arrays)(scale=2, **STEP_OPTIONS)
    assert first == again
    assert hash(first) == hash(again)
    assert tpu.lower(step, *STEP, scale=3, **STEP_OPTIONS) != first


def test_a_jitted_function_keeps_its_own_options():
    jitted = jax.jit(step, **STEP_OPTIONS)
    assert tpu.lower(jitted, *STEP, scale=2) == lower_step()


@pytest.mark.parametrize(
    "mesh",
    [{"a": 2, "b": 2}, AbstractMesh((2, 2), ("a", "b"))],
    ids=["sizes", "abstract"],
)
def test_a_mesh_needs_no_devices(mesh):
    lowering = tpu.lower(
        lambda x, y: x @ y,
        *(shape(64, 64),) * 2,
        mesh=mesh,
        in_shardings=(P("a", "b"), P("b", None)),
        out_shardings=P("a"),
    )
    assert lowering.mesh_axes == (("a", 2), ("b", 2))
    assert lowering.num_devices == 4


def test_a_mesh_may_come_with_the_arguments():
    sharding = NamedSharding(AbstractMesh((4,), ("x",)), P("x"))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding)
    assert tpu.lower(lambda x: x * 2, x).mesh_axes == (("x", 4),)


def test_a_function_sees_the_mesh_it_is_partitioned_over():
    def total(x):
        local = jax.shard_map(
            lambda x: jax.lax.psum(x, "x"), in_specs=P("x"), out_specs=P()
        )
        return local(x)

    assert tpu.lower(total, shape(64, 64), mesh={"x": 4}).num_devices == 4


def test_what_cannot_be_traced_is_said():
    def branch(x):
        return x if x > 0 else -x

    with pytest.raises(ValueError, match=r"'branch' cannot be traced[\s\S]*static_arg"):
        tpu.lower(branch, shape())
    with pytest.raises(ValueError, match=r"PartitionSpec over no mesh.*mesh="):
        tpu.lower(step, *STEP, in_shardings=P("x"))
    with pytest.raises(ValueError, match="mesh is 4; expected"):
        tpu.lower(step, *STEP, mesh=4)


@pytest.mark.parametrize(
    ("given", "num_devices", "name"),
    [
        ("tpu_v5e", 1, "v5e:2x2"),
        ("v5e", 4, "v5e:2x2"),
        ("v5e", 5, "v5e:2x4"),
        ("v5e", 16, "v5e:4x4"),
        ("v5e:4x8", 1, "v5e:4x8"),
        ("tpu_v4", 1, "v4:2x2x1"),
        ("v5p", 8, "v5p:2x2x2"),
        ("tpu7x", 64, "tpu7x:4x4x4"),
    ],
)
def test_topologies_go_by_preset_generation_or_full_name(given, num_devices, name):
    assert tpu.topology_name(given, num_devices) == name
    assert tpu.msa_off(given) == tpu.MSA_OFF[name.partition(":")[0]]


@pytest.mark.parametrize("name", ["tpu_v9", "v4i", "gpu_h100_host", "v9:2x2"])
def test_an_unknown_topology_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}'; choose one of tpu_v4, tpu_v5e"):
        tpu.topology_name(name)


@needs_libtpu
def test_the_users_process_stays_as_it_was():
    """Nothing is printed, no TPU is looked for, the environment is left alone."""
    code = """
        import os
        before = dict(os.environ)
        import jax
        added = set(os.environ) - set(before)
        import jax.numpy as jnp
        from frontends import tpu
        lowering = tpu.lower(lambda x: x @ x, jax.ShapeDtypeStruct((8, 8), jnp.float32))
        assert set(os.environ) - set(before) == added
        assert jax.default_backend() != "tpu"
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- The texts -----------------------------------------------------------------------


def test_texts_read_as_the_users_own():
    argument, call = "jax_malloc_argument", "call_exported"
    text = (
        f"ENTRY %main.1 ({argument}_0_.1: f32[2], {argument}_1_.1: f32[2])\n"
        f'  %{argument}_0_.1 = parameter(0), metadata={{op_name="{argument}[0]"}}\n'
        f'  %{argument}_1_.1 = parameter(1), metadata={{op_name="{argument}[1]"}}\n'
        f'  %copy.1 = copy(%{argument}_1_.1), metadata={{op_name="jit(f)/{call}"}}\n'
        f'  %{call}.2 = g(), metadata={{op_name="jit(f)/{call}/jit(f)/a"}}\n'
    )
    assert tpu_worker.with_user_names(text, "f", ["params['w']", "copy"]) == (
        "ENTRY %main.1 (params__w__.1: f32[2], copy_.1: f32[2])\n"
        "  %params__w__.1 = parameter(0), metadata={op_name=\"params['w']\"}\n"
        '  %copy_.1 = parameter(1), metadata={op_name="copy"}\n'
        '  %copy.1 = copy(%copy_.1), metadata={op_name=""}\n'
        '  %f.2 = g(), metadata={op_name="jit(f)/a"}\n'
    )


def test_texts_are_kept_by_all_that_they_follow_from(tmp_path):
    cache = tpu_cache.TextCache(tmp_path)
    key = tpu_cache.key({"topology": "v5e:2x2"}, b"module")
    assert cache.get(key) is None
    cache.put(key, "HloModule x")
    assert cache.get(key) == "HloModule x"
    others = [
        tpu_cache.key({"topology": "v5e:2x4"}, b"module"),
        tpu_cache.key({"topology": "v5e:2x2"}, b"another"),
    ]
    assert len({key, *others}) == 3
    (path,) = (tmp_path / "tpu").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    assert cache.get(key) is None  # damaged


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "tpu").write_text("a file where the directory should be")
    cache = tpu_cache.TextCache(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"cannot be written to.*cache_dir="):
        cache.put("key", "text")
    assert cache.get("key") is None
    assert tpu_cache.TextCache(False).get("key") is None


def test_without_libtpu_the_error_names_the_extra(no_libtpu):
    with pytest.raises(RuntimeError, match=r'pip install "jax_malloc\[tpu\]"'):
        tpu.compile(step, *STEP, scale=2, **STEP_OPTIONS)


@needs_libtpu
def test_a_refused_option_is_an_error_of_its_own(cache_dir):
    good, bad = {}, {"xla_no_such_option": "true"}
    texts = tpu.compile_texts(
        lower_step(),
        topology="v5e",
        compiler_options=(bad, good),
        cache_dir=cache_dir,
        return_errors=True,
    )
    assert isinstance(texts[0], tpu.CompileError)
    assert isinstance(texts[0], RuntimeError)
    assert "'step' for v5e:2x2 with xla_no_such_option='true'" in str(texts[0])
    assert "No such compile option: 'xla_no_such_option'" in str(texts[0])
    assert texts[1].startswith("HloModule jit_step, is_scheduled=true")
    with pytest.raises(tpu.CompileError, match="xla_no_such_option"):
        tpu.compile_texts(
            lower_step(), topology="v5e", compiler_options=(good, bad), cache_dir=False
        )


@needs_libtpu
def test_a_program_that_does_not_fit_is_refused():
    def too_large(x):
        return jnp.sort(x @ x.T, axis=0)

    with pytest.raises(tpu.CompileError, match=r"too_large.*(memory|hbm)"):
        tpu.compile(too_large, shape(2**17, 8), cache_dir=False)


@needs_libtpu
def test_texts_come_from_the_disk_the_second_time(cache_dir, monkeypatch):
    compile_step = functools.partial(
        tpu.compile, lower_step(), topology="v5e", cache_dir=cache_dir
    )
    first = compile_step()

    def no_pool():
        raise AssertionError("compiled again")

    monkeypatch.setattr(tpu_pool, "shared", no_pool)
    assert compile_step() == first
    assert compile_step().text == first.text


@needs_libtpu
def test_the_same_function_compiles_to_the_same_text(cache_dir):
    """So that plans in the cache are found again."""
    once, again = (
        tpu.compile(lower_step(), topology="v5e", cache_dir=directory)
        for directory in (cache_dir, False)
    )
    assert once.fingerprint == again.fingerprint


@needs_libtpu
def test_a_worker_that_dies_is_an_error_and_is_replaced():
    pool = tpu_pool.Pool(1)
    lowering = lower_step()
    header = {
        "topology": "v5e:2x2",
        "chip_config": "default",
        "options": {},
        "names": lowering.argument_names,
        "kept": lowering.kept,
        "donated": lowering.donated,
        "mesh": (),
    }
    try:
        text = pool.compile(header, lowering.module)
        (worker,) = pool._idle
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="v5e:2x2 ended with signal 9"):
            pool.compile(header, lowering.module)
        with pytest.raises(RuntimeError, match=r"for v5e:2x2 failed:\n.*Traceback"):
            pool.compile(header, b"not a module")
        assert pool.compile(header, lowering.module) == text
    finally:
        pool.close()


# --- The programs --------------------------------------------------------------------


def check(program, accelerator):
    """A valid plan beside the compiler's own mapping, which packs into place too."""
    plan = jax_malloc.solve(program, accelerator, solver="greedy")
    assert plan.latency_s <= plan.baselines["all_slow"] * (1 + 1e-9)
    assert plan.baselines["xla"] > 0
    problem = problem_lib.build(program, plan.accelerator)
    for mapping in (
        SOLVERS["greedy"](problem),
        jax_malloc.solve(program, accelerator, solver="xla").mapping,
    ):
        assert validator.find_violations(problem, mapping) == []
    assert not [n for n in program.notes if n.startswith(("No counterpart", "Left"))]


@pytest.mark.parametrize(
    ("name", "accelerator"),
    [
        ("attention_v4", "tpu_v4"),
        ("mlp_train_v5p", "tpu_v5p"),
        ("mlp_train_v6e", "tpu_v6e"),
        ("mlp_train_tpu7x", "tpu7x"),
        ("two_chips", "tpu_v5e"),
    ],
)
def test_the_compilers_text_for_every_generation_is_a_program(name, accelerator):
    slow, xla = (hlo.read_text(GOLDEN / f"{name}.{kind}.hlo.gz") for kind in KINDS)
    program = tpu.program_from_texts(slow, xla, name=name)
    assert (program.name, program.source) == (name, "tpu")
    assert program.compiler_mapping.fast_accesses
    assert any(c.cross_program for c in program.compiler_mapping.copies)
    check(program, accelerator)


def test_ops_on_a_v4_reserve_nothing_of_the_memory_that_is_planned():
    """They keep VMEM for themselves, S(1), and tensors are placed in CMEM, S(3)."""
    slow, xla = (hlo.read_text(GOLDEN / f"attention_v4.{k}.hlo.gz") for k in KINDS)
    assert '"used_scoped_memory_configs":[{"memory_space":"1"' in slow
    program = tpu.program_from_texts(slow, xla)
    assert not any(op.scoped_bytes for op in program.ops)


def test_a_prefetch_in_slices_is_several_copies_of_one_buffer():
    slow, xla = (hlo.read_text(GOLDEN / f"attention_v4.{k}.hlo.gz") for k in KINDS)
    assert "S(3)" in xla
    assert xla.count(" slice-start(") > 1
    program = tpu.program_from_texts(slow, xla)
    sliced = {}
    for copy in program.compiler_mapping.copies:
        sliced.setdefault(copy.buffer_id, []).append(copy.size_bytes)
    pieces = [sizes for sizes in sliced.values() if len(sizes) > 1]
    assert sum(map(len, pieces)) == xla.count(" slice-start(")
    for i, sizes in sliced.items():
        assert sum(sizes) == program.buffers[i].size_bytes


def test_collectives_are_ops_of_the_program_of_one_device():
    slow, xla = (hlo.read_text(GOLDEN / f"two_chips.{k}.hlo.gz") for k in KINDS)
    program = tpu.program_from_texts(slow, xla)
    collectives = [op for op in program.ops if op.opcode.startswith("all-reduce")]
    assert collectives
    assert all(op.reads and op.writes and not op.estimates for op in collectives)
    # 2048 rows of 1024 numbers, half of them on each device.
    sizes = {b.size_bytes for b in program.buffers if b.kind.value == "parameter"}
    assert sizes == {2 * 1024 * 1024}
    (note,) = (n for n in program.notes if "gives no estimate" in n)
    plan = jax_malloc.solve(program, "tpu_v5e", solver="greedy")
    assert note in plan.notes
    assert any("only the roofline times" in n for n in plan.notes)


@needs_libtpu
def test_a_compiled_program_reads_as_the_users_function(cache_dir):
    program = tpu.compile(lower_step(), topology="v5e", cache_dir=cache_dir)
    assert (program.name, program.source) == ("step", "tpu")
    assert program.notes[0].startswith("Compiled for v5e:2x2 by libtpu ")
    assert {op.op_name for op in program.ops} <= {
        "jit(step)/layer/dot_general",
        "jit(step)/layer/tanh",
        "jit(step)/dot_general",
        "jit(step)/sub",
        "",
    }
    inputs = {b.name for b in program.buffers if b.is_input}
    assert {"params__w__.1", "x.1"} <= inputs
    assert not any("ignored" in name for name in inputs)
    assert "\"params['w']\"" in program.text
    # The donated weights and the new ones share a place in slow memory.
    weights = program.buffers[program.buffer_index["params__w__.1", ()]]
    groups = [b for b in program.buffers if b.alias_group is not None]
    assert weights.is_output or (weights in groups and len(groups) == 2)
    assert all(len(op.estimates) == 2 for op in program.ops if op.opcode == "fusion")
    check(program, "tpu_v5e")


def loop(weights, x):
    def layer(x, w):
        return jax.lax.cond(w[0, 0] > 0, jnp.tanh, jnp.sin, x @ w), x.sum()

    return jax.lax.scan(layer, x, weights)


@needs_libtpu
def test_loops_and_branches_are_regions(cache_dir):
    program = tpu.compile(
        loop, shape(6, 512, 512), shape(1024, 512), cache_dir=cache_dir
    )
    assert 6.0 in {region.trip_count for region in program.regions}
    assert 3.0 in {op.count for op in program.ops}  # either branch half of the time
    assert any("2 branches" in note for note in program.notes)
    check(program, "tpu_v5e")


@needs_libtpu
@pytest.mark.parametrize("accelerator", sorted(tpu.TOPOLOGIES))
def test_every_generation_compiles(accelerator, cache_dir):
    program = tpu.compile(
        lambda x, w: jnp.tanh(x @ w) @ w,
        *(shape(1024, 1024),) * 2,
        topology=accelerator,
        cache_dir=cache_dir,
        name="two_layers",
    )
    assert program.name == "two_layers"
    assert program.compiler_mapping.fast_accesses
    check(program, accelerator)


@needs_libtpu
def test_a_mesh_of_devices_compiles_to_the_program_of_one(cache_dir):
    def f(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"].T

    program = tpu.compile(
        f,
        {"w": shape(1024, 2048)},
        shape(2048, 1024),
        topology="v5e",
        mesh={"data": 2, "model": 2},
        in_shardings=({"w": P(None, "model")}, P("data")),
        out_shardings=P("data"),
        cache_dir=cache_dir,
    )
    parameters = [b for b in program.buffers if b.kind.value == "parameter"]
    assert {b.size_bytes for b in parameters} == {2 * MIB}
    assert any("all-reduce" in op.opcode for op in program.ops)
    check(program, "tpu_v5e")


@needs_libtpu
def test_a_mesh_larger_than_its_topology_is_refused(cache_dir):
    with pytest.raises(tpu.CompileError, match=r"the mesh has 8 devices.*has 4"):
        tpu.compile(
            lambda x: x * 2,
            shape(64, 64),
            topology="v5e:2x2",
            mesh={"x": 8},
            cache_dir=cache_dir,
        )


@needs_libtpu
def test_trees_of_the_users_own_types_go_in_and_out(cache_dir):
    """The process that compiles knows nothing of them."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class State:
        w: jax.Array
        b: jax.Array

    def f(state):
        return State(state.w @ state.w, state.b)

    program = tpu.compile(f, State(shape(256, 256), shape(256)), cache_dir=cache_dir)
    assert {b.name for b in program.buffers if b.is_input} >= {"state_w.1"}


# --- The decorator -------------------------------------------------------------------


def optimize(f, **options):
    return jax_malloc.optimize(f, solver="greedy", **options)


@needs_libtpu
@pytest.mark.parametrize("lowering", ["auto", "tpu"])
def test_optimize_compiles_where_it_can(lowering, cache_dir, monkeypatch):
    f = optimize(step, lowering=lowering, cache_dir=cache_dir, **STEP_OPTIONS)
    plan = f.plan(*STEP, scale=2)
    assert plan.program.source == "tpu"
    assert "Compiled for v5e:2x2" in str(plan)
    assert "xla" in plan.baselines
    # The same arguments are not even read again.
    monkeypatch.setattr(tpu, "compile", None)
    assert f.plan(*STEP, scale=2) is plan


def test_optimize_reads_stablehlo_without_libtpu(no_libtpu, tmp_path):
    plan = optimize(step, cache_dir=tmp_path, **STEP_OPTIONS).plan(*STEP, scale=2)
    assert plan.program.source == "stablehlo"
    (note,) = (note for note in plan.notes if "StableHLO" in note)
    assert 'libtpu is not installed (pip install "jax_malloc[tpu]")' in note
    with pytest.raises(RuntimeError, match=r"jax_malloc\[tpu\]"):
        optimize(step, lowering="tpu", cache_dir=tmp_path).plan(*STEP, scale=2)


@pytest.mark.parametrize("accelerator", ["tpu_v4i", "gpu_h100_host"])
def test_optimize_reads_stablehlo_where_no_compiler_knows_the_machine(
    accelerator, tmp_path
):
    f = optimize(lambda x: x @ x, accelerator=accelerator, cache_dir=tmp_path)
    plan = f.plan(shape(1024, 1024))
    assert plan.program.source == "stablehlo"
    assert any(f"no TPU compiler knows '{accelerator}'" in note for note in plan.notes)
    with pytest.raises(ValueError, match=f"the accelerator is '{accelerator}'"):
        optimize(step, lowering="tpu", accelerator=accelerator)


@needs_libtpu
def test_auto_falls_back_where_the_compiler_refuses(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise tpu.CompileError("the TPU compiler refused 'f': too large")

    monkeypatch.setattr(tpu, "compile", refuse)
    plan = optimize(lambda x: x @ x, cache_dir=tmp_path).plan(shape(512, 512))
    assert plan.program.source == "stablehlo"
    assert any("refused 'f': too large" in note for note in plan.notes)
