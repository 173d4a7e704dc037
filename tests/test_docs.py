"""The documents run: blocks of Python, commands, names of files, modules, solvers."""

import pathlib
import re
import shutil
import subprocess
import sys

import matplotlib
import pytest

import docstring_fields
import jax_malloc
import page_runner
from frontends import tpu
from hwmodel import presets
from jax_malloc.cli.commands import COMMANDS
from jax_malloc.solvers import SOLVERS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {str(p.relative_to(page_runner.DOCS)): p for p in page_runner.pages()}
BLOCKS = {name: page_runner.blocks(page) for name, page in PAGES.items()}


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
    if not tpu.is_available():
        pytest.skip("the plan shown is of what libtpu compiles; it is not installed")
    assert "over xla" in "".join(printed)
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
    scope = {"jax_malloc": jax_malloc}
    exec(code, scope)
    assert (tmp_path / "plan.json").exists()
    assert op in capsys.readouterr().out
    # The block of questions goes on where it ended.
    exec(blocks("python")[2].replace("fusion.12", op), scope)
    exec(blocks("python")[3], scope)
    for name in ("plan.png", "report.html", "trace.json.gz"):
        assert (tmp_path / name).exists()
    printed = capsys.readouterr().out
    for part in ("loses", "fullest", "xla -> hybrid", "knee"):
        assert part in printed


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


# --- the pages of docs/ -------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be a reader in, but for dumps, and no picture on a screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    matplotlib.use("Agg")
    for path in page_runner.DUMPS:
        shutil.copy(path, tmp_path)
    return tmp_path


def has(name, *languages, mark=""):
    return any(b.language in languages and b.mark == mark for b in BLOCKS[name])


@pytest.mark.parametrize("name", [n for n in PAGES if has(n, "python", "sh")])
def test_a_page_does_what_it_says(name, folder):
    page_runner.run(PAGES[name])


@pytest.mark.skipif(not tpu.is_available(), reason="libtpu is not installed")
@pytest.mark.parametrize(
    "name", [n for n in PAGES if has(n, "python", "sh", mark="needs libtpu")]
)
def test_a_page_that_compiles_for_a_tpu_does_what_it_says(name, folder):
    page_runner.run(PAGES[name], with_libtpu=True)


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_could_be(name):
    """Python that parses, commands that exist with the flags that they are given."""
    for block in BLOCKS[name]:
        if block.mark and block.language == "python":
            compile(block.text, name, "exec")
        for words in block.commands if block.mark else ():
            if words[0] == "-m":
                COMMANDS[words[2]].flags()(words[2:])
                continue
            source = (ROOT / words[0]).read_text()
            for flag in re.findall(r"--(\w+)", " ".join(words)):
                assert re.search(rf'DEFINE\w*\([^"]*"{flag}"', source), flag


def test_a_page_that_is_wrong_is_found_out(folder):
    path = folder / "wrong.md"
    shown = "```python\nprint('3 ms here')\n```\n\n```text\n{}\n```\n"
    for text, error in (("4.5 us here", None), ("3 ms there", AssertionError)):
        path.write_text(shown.format(text))
        if error is None:
            page_runner.run(path)
        else:
            with pytest.raises(error, match="the page shows '3 ms there'"):
                page_runner.run(path)
    path.write_text("```sh\npython -m jax_malloc plan no_such_file\n```\n")
    with pytest.raises(AssertionError, match="ended with 1"):
        page_runner.run(path)


@pytest.mark.parametrize("name", PAGES)
def test_pictures_are_there_and_made_by_a_script(name):
    text = PAGES[name].read_text()
    scripts = [(ROOT / "docs" / "make_pictures.py").read_text()]
    scripts += [b.text for b in BLOCKS[name] if b.language == "python"]
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        picture = PAGES[name].parent / link
        assert picture.exists(), link
        assert any(f'"{picture.name}"' in script for script in scripts), link


def test_the_table_of_solvers_on_its_page_is_the_readmes():
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["concepts/solvers.md"].read_text(), re.M)
    assert rows == list(SOLVERS)


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(
        page.read_text() for name, page in PAGES.items() if "reference" in name
    )
    for name in set(jax_malloc.__all__) - {"__version__"}:
        module = jax_malloc._MODULES[name]
        assert re.search(rf"^::: {module}(\.{name})?$", reference, re.M), name


def test_a_docstring_becomes_one_item_per_name():
    text = docstring_fields.rewritten(
        "A memory.\n\nfast, slow: where it is\n  now.\nwhy: not a field.\n"
        "Raises: ValueError naming\n  it.\n",
        {"fast", "slow"},
    )
    assert "Attributes:\n    fast: where it is now.\n    slow: where it is now." in text
    assert "Raises:\n    ValueError: naming it." in text
    assert "\nwhy: not a field." in text
    text = docstring_fields.rewritten(
        "Sum.\n\nArgs:\n  a, b: terms\n    of it.\nReturns:\n  It.\n", ()
    )
    assert "    a: terms of it.\n    b: terms of it.\n" in text
    assert "Returns:\n  It." in text


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "jax_malloc.html").read_text()
    assert "static_argnums" in page
