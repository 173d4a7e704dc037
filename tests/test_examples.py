"""Every example from its command line to the lines that it prints."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import app, flags

import corpus
import jax_malloc
import model_zoo
from frontends import stablehlo, tpu
from jax_malloc.agent import checkpoint
from jax_malloc.solvers import muzero

EXAMPLES = Path(__file__).parent.parent / "examples"
# Binaries; the other modules beside them are imported by these.
BINARIES = sorted(
    path.stem for path in EXAMPLES.glob("*.py") if "app.run(main)" in path.read_text()
)


needs_linux = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="processes cannot be kept on a core"
)


@pytest.fixture
def load():
    """Imports an example anew; its flags are forgotten afterwards."""
    before, loaded = set(flags.FLAGS), []

    def load(name):
        sys.modules.pop(name, None)
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    for name in loaded:
        sys.modules.pop(name, None)
        # Of an example loaded twice, absl still lists the first flags as its own.
        flags.FLAGS.flags_by_module_dict().pop(name, None)


@pytest.fixture
def run(load, capsys, monkeypatch):
    """Runs an example's main with flags: its exit code and all that it printed."""
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", "")  # no plans of earlier runs

    def run(name, *args):
        with pytest.raises(SystemExit) as exit_info:
            app.run(load(name).main, argv=[f"{name}.py", *map(str, args)])
        printed = capsys.readouterr()
        code = exit_info.value.code
        message = code if isinstance(code, str) else ""
        return code, printed.out + printed.err + message

    return run


def cells(text, row):
    """What stands right of the first cell in the table's row that begins with `row`."""
    (line,) = re.findall(rf"^{re.escape(row)}  +(.*)$", text, re.MULTILINE)
    return re.split("  +", line.strip())


def ratio(cell):
    return float(cell.removesuffix("x"))


def test_every_binary_is_tested():
    tested = Path(__file__).read_text()
    for name in BINARIES:
        assert f'run("{name}"' in tested.replace("(\n        ", "("), name


@pytest.mark.parametrize("name", BINARIES)
def test_flags_are_explained(load, name):
    module = load(name)
    assert module.__doc__.count("\n") > 2
    own = [f for f in flags.FLAGS.flags_by_module_dict()[name]]
    assert own
    for flag in own:
        text, *_ = flag.help.split(";\n    repeat this option")  # absl's own words
        assert len(text) > 8, flag.name
        assert text.endswith("."), flag.name


def test_help_needs_no_arguments():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "plan_hlo_dump.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1)  # absl's own choice differs between versions
    assert "--hlo: Scheduled HLO text" in done.stdout


@pytest.mark.parametrize("name", BINARIES)
def test_stray_arguments_are_refused(run, name):
    required = ["--hlo=x"] if name == "plan_hlo_dump" else []
    code, printed = run(name, *required, "stray")
    assert code == 1
    assert "unexpected arguments: stray" in printed


def test_quickstart(run, tmp_path):
    out = tmp_path / "plan.json"
    sizes = ("--tokens=256", "--width=128")
    code, printed = run("quickstart", *sizes, "--solver=greedy", f"--out={out}")
    assert code is None
    assert "same values as jax.jit: True" in printed
    plan = jax_malloc.load_plan(out)
    assert f"speedup over all in slow memory: {plan.speedup:.2f}x" in printed
    assert json.loads(out.read_text())["format"] == "jax_malloc.plan"


def test_alphatensor_matmul(run):
    code, printed = run(
        "alphatensor_matmul",
        "--size=1024",
        "--factorization=strassen",
        "--solver=greedy",
    )
    assert code is None
    assert "strassen <2,2,2;7>: 7 block products instead of 8, checked" in printed
    error = float(re.search(r"max relative error (\S+)", printed)[1])
    assert 0 < error < 1e-5
    assert len(cells(printed, "jnp.matmul")) == 5
    slow, _, _, planned, speedup = cells(printed, "strassen <2,2,2;7>")
    assert slow.endswith("us")
    assert planned.endswith("us")
    assert ratio(speedup) >= 1
    assert len(cells(printed, "fast over plain")) == 4


def test_alphatensor_matmul_of_odd_rectangles(run):
    sizes = ("--m=300", "--k=130", "--n=70")
    code, printed = run(
        "alphatensor_matmul",
        *sizes,
        "--factorization=laderman",
        "--dtype=float32",
        "--accelerator=tpu_v5e",
        "--solver=greedy",
    )
    assert code is None
    assert "float32 300 x 130 by 130 x 70 on tpu_v5e" in printed
    assert len(cells(printed, "laderman <3,3,3;23>")) == 5


def test_alphatensor_matmul_refuses_what_is_no_factorization(run, tmp_path):
    path = tmp_path / "wrong.npz"
    np.savez(path, u=np.ones((4, 7)), v=np.ones((4, 7)), w=np.ones((4, 7)))
    code, printed = run("alphatensor_matmul", f"--factorization={path}")
    assert code not in (None, 0)
    assert re.search(r"does not multiply matrices: A\[0,0\] B\[0,0\] is in", printed)
    assert "Traceback" not in printed


def test_transformer_training_step(run, tmp_path):
    sizes = ("--layers=1", "--width=64", "--heads=2", "--sequence=64", "--batch=2")
    solvers = "all_slow,greedy"
    code, printed = run(
        "transformer_training_step",
        *sizes,
        "--vocabulary=512",
        f"--solvers={solvers}",
        "--time_limit_s=5",
        f"--out_dir={tmp_path / 'demo'}",
    )
    assert code is None
    for name in ("report.html", "memory_map.png", "trace.json.gz"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
        assert str(tmp_path / "demo" / name) in printed
    assert re.search(r"0\.1 M parameters, \d+ ops, \d+ buffers", printed)
    for solver in solvers.split(","):
        _, speedup, violations, _ = cells(printed, solver)
        assert violations == "0"
        assert ratio(speedup) >= 1
    assert cells(printed, "all_slow")[1] == "1.00x"


def test_transformer_training_step_refuses_heads_that_do_not_divide(run):
    code, printed = run("transformer_training_step", "--width=100", "--heads=8")
    assert code == 1
    assert "--heads=8 does not divide --width=100" in printed


def test_plan_hlo_dump(run, tmp_path):
    dump = sorted((Path(__file__).parent / "testdata").glob("*.hlo*"))[0]
    out, annotated = tmp_path / "plan.json", tmp_path / "annotated.hlo"
    code, printed = run(
        "plan_hlo_dump",
        f"--hlo={dump}",
        "--solvers=greedy",
        f"--out={out}",
        f"--annotated={annotated}",
    )
    assert code is None
    assert re.match(r"\d+: \d+ [a-z]", cells(printed, "ops")[0])
    assert cells(printed, "greedy")[2] == "0"
    assert jax_malloc.load_plan(out).solver == "greedy"
    assert "HloModule" in annotated.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("not an HLO module", "")],
)
def test_plan_hlo_dump_refuses_bad_files(run, tmp_path, content, message):
    path = tmp_path / "bad.hlo"
    if content is not None:
        path.write_text(content)
    code, printed = run("plan_hlo_dump", f"--hlo={path}")
    assert code not in (None, 0)
    assert "bad.hlo" in printed
    assert message in printed
    assert "Traceback" not in printed


def test_benchmark(run, tmp_path):  # tests/test_benchmark.py has the rest
    code, printed = run(
        "benchmark",
        "--programs=generated:0:12,zoo:mlp/small",
        "--solvers=greedy,all_slow",
        "--time_limits_s=1",
        "--jobs=0",
        f"--output={tmp_path}",
    )
    assert code is None
    assert re.search(r"\| geometric mean, all 2 \|.*\| 1\.0000 \| 1\.\d+ \|", printed)
    assert str(tmp_path / "quality-tpu_v5e-128.png") in printed


def test_measure_speed(run, tmp_path):
    dump = sorted((Path(__file__).parent / "testdata").glob("*.hlo*"))[0]
    code, printed = run(
        "measure_speed",
        "--rows=parse,game,solve",
        "--runs=1",
        f"--hlo={dump}",
        "--game_accesses=30",
        "--games=2",
        "--accesses=30,60",
        "--solvers=greedy",
        f"--plot={tmp_path / 'seconds.svg'}",
    )
    assert code is None
    assert "n log n" in (tmp_path / "seconds.svg").read_text()
    assert re.search(r"steps/s", printed)
    assert re.search(r"peak memory +\d+ MiB", printed)


def test_measure_speed_refuses_unknown_rows(run):
    code, printed = run("measure_speed", "--rows=parse,import_time")
    assert code == 1
    assert "--rows: no import_time; there are import, parse, game, solve" in printed


def test_model_zoo_names_programs_of_every_family():
    assert len(model_zoo.ZOO) >= 35
    families = {model_zoo.family(name) for name in model_zoo.ZOO}
    assert families == set(model_zoo.FAMILIES)


# Small enough to lower all of them in seconds.
TINY = {
    "autoencoder": {"batch": 2, "image": 16, "channels": 4, "depth": 2},
    "encoder_decoder": {"batch": 2, "source": 8, "target": 4, "width": 16, "layers": 1},
    "lstm_scan": {"batch": 2, "sequence": 4, "width": 8},
    "mixer": {"batch": 2, "patches": 4, "width": 8, "layers": 1},
    "mlp": {"batch": 2, "width": 8, "layers": 2},
    "resnet": {"batch": 2, "image": 32, "channels": 4, "blocks": (1, 1)},
    "transformer_decoder": {"batch": 2, "sequence": 8, "width": 16, "layers": 1},
    "transformer_encoder": {"batch": 2, "sequence": 8, "width": 16, "layers": 1},
    "unet": {"batch": 2, "image": 16, "channels": 8, "depth": 2},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", model_zoo.FAMILIES)
def test_every_family_lowers_from_shapes(family, training):
    function, arguments = model_zoo.FAMILIES[family](**TINY[family], training=training)
    leaves = jax.tree.leaves(arguments)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    program = stablehlo.from_jax(function, *arguments)
    assert sum(op.matmul_flops for op in program.ops) > 0


@pytest.mark.parametrize("family", ["lstm_scan", "mlp"])
def test_training_steps_lower_the_loss(family):
    step, arguments = model_zoo.FAMILIES[family](
        **TINY[family], training=True, dtype=jnp.float32
    )
    rng = np.random.default_rng(0)
    params, state, optimizer_state, *batch = jax.tree.map(
        lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), arguments
    )
    optimizer_state = jax.tree.map(jnp.zeros_like, optimizer_state)
    step, losses = jax.jit(step), []
    for _ in range(5):
        params, state, optimizer_state, loss = step(
            params, state, optimizer_state, *batch
        )
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_train_agent_leaves_a_checkpoint_and_a_curve(run, tmp_path):
    code, out = run(
        "train_agent",
        f"--run_dir={tmp_path}",
        "--minutes=0.01",
        "--generated=6",
        "--held_out=2",
        "--max_accesses=128",
        "--num_games=4",
        "--simulations=2",
        "--nocorpus",
    )
    assert not code
    assert re.search(r"\d+ programs to train on, \d held out", out)
    agent = checkpoint.load(str(tmp_path / "best.msgpack"))
    assert agent.header["about"]["seed"] == 0
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"minutes", "moves", "one_game", "score"} <= set(columns)


def test_ablate_agent_tables(run, tmp_path):
    curve = (
        "minutes,moves,updates,one_game,score\n0,0,0,1.4,1.2\n5.02,9000,40,1.1,1.05\n"
    )
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "metrics.csv").write_text(curve)
    shutil.copy(muzero.WEIGHTS, tmp_path / "base" / "best.msgpack")
    code, out = run(
        "ablate_agent",
        "--what=simulations,model,runs",
        f"--runs={tmp_path / 'base'}",
        "--simulations=0,2",
        "--model_simulations=2",
        "--games=2",
        "--model_games=2",
        "--max_accesses=48",
        "--model_accesses=48",
        f"--output={tmp_path / 'table.md'}",
    )
    assert not code
    text = (tmp_path / "table.md").read_text()
    assert re.search(r"\| 2 \| learned dynamics \| \d\.\d{4} \|", text)
    assert re.search(r"\| 2 \| the game itself \| \d\.\d{4} \|", text)
    assert re.search(r"\| base \| [\d,]+ \| 9,000 \| 40 \| 1.1000 \| 1.0500 \|", text)
    assert "| base | 1.2000 | 1.0500 |" in text
    assert "| 0 | " in out


@needs_linux
def test_measure_scaling(run, tmp_path, monkeypatch):
    # Compiles in half the time.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    output = tmp_path / "scaling.md"
    code, printed = run(
        "measure_scaling",
        "--allow_shared_core",
        "--num_games=4",
        "--simulations=0",
        "--updates=1",
        "--unroll=1",
        "--batch=16",
        "--reanalysed=16",
        "--hidden=16",
        "--latent=8",
        "--generated=6",
        "--max_accesses=128",
        "--iterations=1",
        "--hosts=2",
        f"--output={output}",
    )
    assert code is None, printed
    text = output.read_text()
    titles = re.findall("^### (.*)$", text, re.MULTILINE)
    assert [x.split(":")[0] for x in titles] == [
        *["Measured"] * 4,
        "Check of the arithmetic",
        "Predicted",
    ]
    assert all(title in printed for title in titles)
    assert re.search(r"^\| accesses \| up to 128 \|$", text, re.MULTILINE)
    assert re.search(r"^\| efficiency \|  \| \d+% \|$", text, re.MULTILINE)
    # Of two processes, a half of the batch each, and the whole batch each.
    assert "| 2 | 8 | 16 |" in text
    assert "| 2 | 16 | 32 |" in text
    # The network has 30 arrays of parameters, float32.
    assert re.search(
        r"^\| the same array by array \| 30 \| [\d,]+ \|", text, re.MULTILINE
    )
    assert text.count("| as it is | 2 |") == 1
    assert "by the same arithmetic" in text


@needs_linux
def test_measure_scaling_needs_two_cores(run, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    code, printed = run("measure_scaling")
    assert "two processes need a core each; this process may use 1, core 3" in printed
    assert "--allow_shared_core" in code


def test_measure_scaling_refuses_batches_that_do_not_divide(run):
    code, printed = run("measure_scaling", "--batch=512", "--hosts=2,3")
    assert code == 1
    assert "--batch=512 positions cannot be divided over 3 hosts" in printed


def test_build_corpus_goes_on_where_it_was(run, tmp_path, monkeypatch):
    compiled = []

    def compile(lowering, *, topology, name, **_):
        compiled.append(name)
        if name == "mlp/wide":
            raise tpu.CompileError("no room")
        program = stablehlo.from_jax(jnp.dot, jnp.ones((8, 8)), jnp.ones((8, 8)))
        return dataclasses.replace(program, name=name)

    monkeypatch.setattr(tpu, "compile", compile)
    monkeypatch.setattr(tpu, "is_available", lambda: True)
    flags = "--topologies=tpu_v5e", f"--output={tmp_path}", "--jobs=1"
    code, out = run("build_corpus", *flags, "--programs=mlp/small,mlp/wide,vit/small")
    assert code == "mlp/wide on tpu_v5e: no room"
    assert re.search(r"^tpu_v5e +test +1 +0 ", out, re.MULTILINE)
    assert compiled == ["mlp/small", "mlp/wide", "vit/small"]
    assert {e.name for e in corpus.read(tmp_path)} == {"mlp/small", "vit/small"}
    (tmp_path / "programs/tpu_v5e/mlp-small.json.gz").unlink()
    code, out = run("build_corpus", *flags, "--programs=mlp/small,vit/small")
    assert code is None
    assert compiled[3:] == ["mlp/small"]
    assert [e.load().name for e in corpus.read(tmp_path)] == ["mlp/small", "vit/small"]


def test_build_corpus_refuses_unknown_programs(run):
    code, out = run("build_corpus", "--programs=mlp,gpt9")
    assert code == 1
    assert "families of them" in out


needs_libtpu = pytest.mark.skipif(
    not tpu.is_available(), reason='libtpu is not installed: pip install ".[tpu]"'
)


@needs_libtpu
def test_alphatensor_matmul_by_the_tpu_compiler(run):
    code, printed = run(
        "alphatensor_matmul",
        "--lowering=tpu",
        "--accelerator=tpu_v5e",
        "--size=256",
        "--size=512",
        "--factorization=strassen",
        "--solver=greedy",
    )
    assert code is None
    assert "bfloat16 512 x 512 by 512 x 512 on tpu_v5e" in printed
    assert printed.count("XLA's own") == printed.count("\njnp.matmul ") == 2


def test_alphatensor_matmul_refuses_machines_that_libtpu_does_not_know(run):
    flags = ("--lowering=tpu", "--accelerator=tpu_v4i", "--size=64")
    code, printed = run("alphatensor_matmul", *flags)
    assert "no topology is called 'tpu_v4i'" in code
    assert "Traceback" not in printed


@needs_libtpu
def test_tpu_compile(run):
    solvers = "all_slow,greedy"
    code, printed = run(
        "tpu_compile", "--model=mlp/small", f"--solvers={solvers}", "--compiles=2"
    )
    assert code is None
    assert re.search(r"mlp/small for tpu_v5e: \d+ ops that touch \d+\.\d MiB", printed)
    for solver in solvers.split(","):
        assert cells(printed, solver)[2] == "0"
    assert ratio(cells(printed, "XLA's own")[1]) > 1
    assert "steering 'mlp/small' on v5e:2x2: 2 compilations" in printed


@needs_libtpu
def test_tpu_results_go_on_where_they_stopped(run, tmp_path, monkeypatch):
    output = tmp_path / "rows.jsonl"
    args = ("--programs=mlp/small", "--solvers=greedy", "--compiles=0")
    code, first = run("tpu_results", *args, f"--output={output}")
    assert code is None
    (line,) = output.read_text().splitlines()
    latency_s = json.loads(line)["latency_s"]
    assert latency_s["lower_bound"] <= latency_s["greedy"] <= latency_s["all_slow"]
    assert f"| {latency_s['xla'] * 1e3:#.4g} |" in first

    monkeypatch.setattr(tpu, "compile", None)  # nothing is compiled again
    code, second = run("tpu_results", *args, f"--output={output}")
    assert code is None
    assert first.startswith(second)
    assert output.with_suffix(".md").read_text() == second.removesuffix("\n")
    assert output.read_text() == f"{line}\n"


@pytest.mark.parametrize("name", ["tpu_compile", "tpu_results"])
def test_tpu_examples_say_what_to_install(run, monkeypatch, name):
    monkeypatch.setattr(tpu, "is_available", lambda: False)
    code, printed = run(name)
    assert "pip install" in code
    assert "Traceback" not in printed


def test_xla_msa_fidelity_compares_with_the_compilers_mapping(run):
    dump = Path(__file__).parent / "testdata" / "mlp_train.slow.hlo.gz"
    code, printed = run("xla_msa_fidelity", f"--hlo={dump}")
    assert code is None
    assert "100.0%" in printed
    assert "geometric mean" in printed


def test_xla_msa_fidelity_needs_programs(run):
    code, printed = run("xla_msa_fidelity")
    assert code
    assert "--hlo" in printed


def test_calibration_compares_both_paths(run, monkeypatch):
    # In the place of the compiler: a program that knows nothing of tiles.
    def compiled(f, *args, topology, cache_dir, name):
        assert topology == "tpu_v5e"
        return stablehlo.from_jax(f, *args, name=name)

    monkeypatch.setattr(tpu, "compile", compiled)
    names = "mlp/small,resnet/small,autoencoder/small"
    code, printed = run("calibrate_stablehlo", "--fit", f"--programs={names}")
    assert not code, printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    found = {row[0].strip("| "): row[1:] for row in rows if len(row) > 1}
    assert found["mlp/small"][0] == "fit"
    assert found["autoencoder/small"][0] == "held out"
    # Fitted to itself where nothing is padded: fully efficient, to the digit.
    assert found["mlp/small"][1] == found["mlp/small"][2]
    assert found["mlp/small"][3] == "+0%"
    assert found["fit"][0] == "2"
