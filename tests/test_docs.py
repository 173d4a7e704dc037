"""The documents run: blocks of Python, names of files, modules and solvers."""

import pathlib
import re

import pytest

import jax_malloc
from hwmodel import presets
from jax_malloc.solvers import SOLVERS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_block_prints_a_plan_like_the_one_shown(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", str(tmp_path))
    scope = {}
    exec(blocks("python")[0], scope)
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[0]
    assert printed[0] in shown  # what was planned, where, by which solver
    headings = [x.split() for x in printed if x.startswith("buffer ")]
    assert headings[0] in [line.split() for line in shown.splitlines()]
    shown_speedup = float(re.search(r"([\d.]+)x over all_slow", shown)[1])
    assert scope["plan"].speedup == pytest.approx(shown_speedup, rel=0.02)


def test_the_second_block_runs(monkeypatch, capsys, tmp_path):
    golden = ROOT / "tests" / "testdata"
    pairs = sorted(golden.glob("*.slow.hlo.gz"))
    assert pairs
    slow = pairs[0]
    code = blocks("python")[1]
    code = code.replace("slow.hlo.gz", str(slow), 1)
    code = code.replace("xla.hlo.gz", str(slow).replace(".slow.", ".xla."), 1)
    op = jax_malloc.load_program(slow).ops[0].name
    code = code.replace("fusion.12", op).replace("time_limit_s=10", "time_limit_s=0")
    monkeypatch.chdir(tmp_path)
    exec(code, {"jax_malloc": jax_malloc})
    assert (tmp_path / "plan.json").exists()
    assert op in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(re.findall(r"`(\w+\.py)`", README)))
def test_examples_that_the_readme_names_exist(name):
    assert (ROOT / "examples" / name).exists()


def test_the_readme_lists_the_solvers_and_machines_that_exist():
    table = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert sorted(table) == sorted(SOLVERS)
    for name in presets.PRESETS:
        assert f"`{name}`" in README


def test_modules_that_the_architecture_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    have = {
        p.stem if p.suffix else p.name
        for package in ("frontends", "hwmodel", "jax_malloc")
        for p in (ROOT / package).rglob("*")
    }
    named = set(re.findall(r"`(\w+)\.py`", text))
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    named |= {n for row in rows for n in re.findall(r"`(\w+)/?`", row)}
    assert named
    assert named <= have


def test_make_targets_that_the_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
