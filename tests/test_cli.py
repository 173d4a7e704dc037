"""The command line: what it prints, where errors go, exit codes, pipes."""

import io
import json
import pathlib
import re
import subprocess
import sys
import time

import pytest
import toy_problems

import jax_malloc
from jax_malloc.cli import inputs, output
from jax_malloc.cli.main import main
from jax_malloc.plan import Plan

ROOT = pathlib.Path(__file__).parent.parent
TESTDATA = ROOT / "tests" / "testdata"
SLOW, XLA = (str(TESTDATA / f"mlp_train.{kind}.hlo.gz") for kind in ("slow", "xla"))
GREEDY = ("--solver=greedy", "--accelerator=machine.json")

MODEL = """
import jax.numpy as jnp

def forward(x, w):
    return jnp.tanh(x @ w) @ w

scale = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with a machine, a program, a plan and a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_model", raising=False)
    machine = toy_problems.toy()
    (tmp_path / "machine.json").write_text(json.dumps(machine.to_dict()))
    program = toy_problems.weight_reused()
    program.save(tmp_path / "program.json.gz")
    jax_malloc.solve(program, machine, solver="greedy").save("plan.json")
    (tmp_path / "cli_model.py").write_text(MODEL)
    return tmp_path


def run(*words):
    return main(["jax_malloc", *map(str, words)])


# --- the commands -------------------------------------------------------------------


def test_plan_prints_the_table(capsys):
    assert run("plan", "program.json.gz", *GREEDY) == 0
    plan = jax_malloc.load_plan("plan.json")
    assert capsys.readouterr() == (f"{plan}\n", "")


def test_plan_as_json_is_the_plan_file(capsys):
    assert run("plan", *GREEDY, "program.json.gz", "--format=json") == 0
    printed = capsys.readouterr().out
    assert Plan.from_json(printed).solver == "greedy"
    assert run("plan", "program.json.gz", *GREEDY, "--output=new.json.gz") == 0
    assert capsys.readouterr() == ("", "wrote new.json.gz\n")
    written = jax_malloc.load_plan("new.json.gz")
    assert written.latency_s == Plan.from_json(printed).latency_s


def test_plan_as_a_page_is_the_plans_own(capsys, monkeypatch):
    pages = []
    monkeypatch.setattr(
        Plan, "to_html", lambda plan, path: pages.append((plan.solver, path)), False
    )
    assert run("plan", "program.json.gz", *GREEDY, "--output=plan.html") == 0
    assert pages == [("greedy", "plan.html")]
    assert run("plan", "program.json.gz", *GREEDY, "--format=html") == 2
    assert "needs --output" in capsys.readouterr().err


def test_a_saved_plan_is_shown_as_it_is_unless_a_solver_is_named(capsys):
    assert run("plan", "plan.json") == 0
    assert " by greedy " in capsys.readouterr().out
    assert run("plan", "plan.json", "--solver=all_slow", GREEDY[1]) == 0
    assert " by all_slow " in capsys.readouterr().out


def test_explain_a_buffer_and_an_op(capsys):
    assert run("explain", "plan.json", "w", "y") == 0
    plan = jax_malloc.load_plan("plan.json")
    expected = f"{plan.explain('w')}\n\n{plan.explain('y')}\n"
    assert capsys.readouterr().out == expected
    assert run("explain", "plan.json", "w", "--format=json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["w"]["buffers"][0]["buffer"] == "w"


def test_explain_without_a_name_shows_the_peak_and_the_worst(capsys):
    assert run("explain", "plan.json", "--top=2") == 0
    printed = capsys.readouterr().out
    plan = jax_malloc.load_plan("plan.json")
    for part in (plan.summary(), str(plan.peak()), str(plan.top(2))):
        assert part in printed
    assert run("explain", "plan.json", "--output=answer.html") == 0
    page = pathlib.Path("answer.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "fast memory is fullest" in page


def test_compare_solvers_beside_the_compilers_mapping(capsys):
    words = ("compare", SLOW, f"--xla={XLA}", "--solvers=greedy,xla,greedy")
    assert run(*words) == 0
    rows = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in rows if line.count("x ") == 1]
    assert names == ["all_slow", "xla", "greedy", "xla, packed anew"]
    assert run(*words, "--format=json") == 0
    body = json.loads(capsys.readouterr().out)
    plan = jax_malloc.solve(jax_malloc.load_program(SLOW, xla=XLA), solver="greedy")
    by_name = {row["name"]: row for row in body["rows"]}
    assert by_name["greedy"]["latency_s"] == plan.latency_s
    assert by_name["xla"]["latency_s"] == plan.baselines["xla"]
    assert by_name["greedy"]["speedup"] == pytest.approx(plan.speedup)


def test_compare_two_plans_says_what_moved(capsys):
    assert run("plan", "program.json.gz", GREEDY[1], "--solver=all_slow",
               "--output=slow.json") == 0  # fmt: skip
    capsys.readouterr()
    assert run("compare", "slow.json", "plan.json") == 0
    printed = capsys.readouterr().out
    assert "all_slow -> greedy" in printed
    assert "w " in printed
    assert run("compare", "slow.json", "program.json.gz") == 1
    assert "both are saved plans" in capsys.readouterr().err


def test_whatif_with_units(capsys):
    words = ("whatif", "program.json.gz", GREEDY[1])
    assert run(*words, "--fast_capacity_bytes=4KiB,16384", "--format=json") == 0
    body = json.loads(capsys.readouterr().out)
    assert [row["fast_capacity_bytes"] for row in body["rows"]] == [4096, 16384]
    assert run(*words, "--slow_bandwidth=1KB/s,0.002MB/s") == 0
    printed = capsys.readouterr().out
    assert "1e-06 GB/s" in printed
    assert "2e-06 GB/s" in printed
    assert "knee" in printed


def test_whatif_draws_a_plot(capsys):
    pytest.importorskip("matplotlib").use("agg")
    assert run("whatif", "program.json.gz", GREEDY[1], "--plot=curve.png") == 0
    assert pathlib.Path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote curve.png" in capsys.readouterr().err


def test_a_function_of_a_module_in_the_working_directory(capsys):
    words = ("plan", "cli_model:forward", "--shapes=f32[64,128],f32[128,128]")
    assert run(*words, "--solver=greedy", "--lowering=stablehlo") == 0
    assert "plan of 'forward' for tpu_v5e by greedy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("f32[2,3], bf16[4]", [((2, 3), "float32"), ((4,), "bfloat16")]),
        ("s32[],pred[1],u8[2]", [((), "int32"), ((1,), "bool"), ((2,), "uint8")]),
        ("int8[5],f8e4m3fn[1]", [((5,), "int8"), ((1,), "float8_e4m3fn")]),
        ("", []),
    ],
)
def test_shapes(text, shapes):
    structs = inputs.parse_shapes(text)
    assert [(s.shape, str(s.dtype)) for s in structs] == shapes


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "plam.json"], r"no file plam.json; did you mean 'plan.json'\?"),
        (["plan", "nowhere/plan.json"], "no file nowhere/plan.json"),
        (["plan", "machine.json"], "machine.json: "),
        (["plan", "cli_model.py"], "cli_model.py"),
        (["plan", "plan.json", f"--xla={XLA}"], "--xla goes with HLO text"),
        (["plan", "plan.json", "--shapes=f32[1]"], "--shapes goes with module:func"),
        (["plan", "program.json.gz", "--solver=gredy"], "did you mean 'greedy'"),
        (["plan", "program.json.gz", "--solver=xla"], "carries no mapping"),
        (["plan", "program.json.gz", "--accelerator=tpu_v5"], "Did you mean 'tpu_v5"),
        (["plan", "plan.json", "--output=no/where.json"], "there is no directory"),
        (["plan", "plan.json", "--output=."], "is a directory"),
        (["explain", "plan.json", "ww"], r"no buffer and no op 'ww'; did you mean 'w'"),
        (
            ["explain", "old.json"],
            r"old.json: plan version 0, .* Plan the program again",
        ),
        (["compare", "plan.json", "--solvers=greedy,hybird"], "did you mean 'hybrid'"),
        (["plan", "cli_modle:forward"], "cannot import 'cli_modle'"),
        (["plan", "cli_model:foward"], "has no 'foward'; did you mean 'forward'"),
        (["plan", "cli_model:scale"], "is a int, not a function"),
        (["plan", "cli_model:forward"], "Give its arguments, such as --shapes="),
        (["plan", "cli_model:forward", "--shapes=f32"], "cannot read 'f32'"),
        (["plan", "cli_model:forward", "--shapes=g32[1]"], "element type .* 'g32'"),
        (["whatif", "plan.json", "--fast_capacity_bytes=0"], "must be a whole number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(words, message, capsys):
    text = pathlib.Path("plan.json").read_text()
    pathlib.Path("old.json").write_text(text.replace('"version": 1', '"version": 0', 1))
    words = words if "--accelerator" in words[-1] else [*words, GREEDY[1]]
    assert run(*words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("jax_malloc: error: ")
    assert re.search(message, line)


def test_a_plot_without_matplotlib_fails_before_the_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("whatif", "program.json.gz", GREEDY[1], "--plot=curve.png") == 1
    assert "pip install 'jax_malloc[viz]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plann", "x"], "no command 'plann'; did you mean 'plan'?"),
        (["plan"], "expected INPUT [flags]; given: nothing."),
        (["plan", "a", "b"], "given: a, b."),
        (["plan", "plan.json", "--formt=json"], "Did you mean: format"),
        (["plan", "plan.json", "--format=yaml"], "table|json|html"),
        (["plan", "plan.json", "--seed=-1"], "seed"),
        (["whatif", "plan.json", "--slow_bandwidth=fast"], "'fast' is no number"),
    ],
)
def test_bad_usage_is_exit_code_2(words, message, capsys):
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.splitlines()[-1].endswith("--help'.")


@pytest.mark.parametrize("command", ["plan", "explain", "compare", "whatif"])
def test_help(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m jax_malloc {command} ")
    assert "--accelerator" in text
    assert max(map(len, text.splitlines())) <= 88
    assert run("--help") == 0
    assert f"  {command} " in capsys.readouterr().out


def test_version_and_no_command(capsys):
    assert run("--version") == 0
    assert jax_malloc.__version__ in capsys.readouterr().out
    assert run() == 2
    assert capsys.readouterr().out == ""


# --- terminals and pipes ------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_appears_on_a_terminal_only_after_a_while(monkeypatch):
    for terminal, delay_s, drawn in ((True, 0.0, True), (True, 60.0, False),
                                     (False, 0.0, False)):  # fmt: skip
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(output, "_BAR_AFTER_S", delay_s)
        with output.progress("planning") as step:
            time.sleep(0.3 if drawn else 0)
            step(1, 2)
        assert ("planning" in stream.getvalue()) == drawn


def test_in_a_pipe_there_is_plain_text_only():
    words = [sys.executable, "-m", "jax_malloc", "explain", "plan.json"]
    env = {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, env=env, check=False)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    done.stdout.decode("ascii")


def test_a_reader_that_leaves_gets_no_traceback():
    command = f"{sys.executable} -m jax_malloc plan plan.json --format=json | true"
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.stderr == b""
