"""What is installed, what an import costs, and what the source keeps away from."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import frontends
import jax_malloc

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("frontends", "hwmodel", "jax_malloc")


@pytest.fixture(scope="module")
def distribution():
    return importlib.metadata.distribution("jax_malloc")


def test_exactly_three_packages_are_installed(distribution):
    assert sorted(distribution.read_text("top_level.txt").split()) == sorted(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_directory_with_modules_is_a_package(package):
    """One without `__init__.py` would be left out of a wheel."""
    directories = {p.parent for p in (ROOT / package).rglob("*.py")}
    assert directories
    assert [d for d in directories if not (d / "__init__.py").exists()] == []


def test_the_versions_agree(distribution):
    assert distribution.version == jax_malloc.__version__ == "0.1.0"
    assert jax_malloc.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_requirements_are_those_of_setup(distribution):
    required = {r for r in distribution.requires if "extra ==" not in r}
    assert required == {
        "jax>=0.10.2",
        *("jaxlib", "numpy", "scipy", "flax", "mctx", "absl-py"),
        *("numba", "threadpoolctl", "optax", "rich", "msgpack"),
    }
    extras = set(distribution.metadata.get_all("Provides-Extra"))
    assert extras == {"tpu", "train", "viz", "docs", "dev"}
    assert distribution.metadata["Requires-Python"] == ">=3.11"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel that is built from a copy of the sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", built, source], check=True
    )
    (path,) = built.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_says_of_every_package_that_it_is_typed(package, wheel):
    assert f"{package}/py.typed" in wheel


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_has_every_file_of_a_package(package, wheel):
    """Weights, templates and scripts as well as modules."""
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files
    assert files - wheel == set()


def test_a_wheel_has_nothing_else(wheel):
    assert {name.split("/")[0] for name in wheel} - set(PACKAGES) == {
        f"jax_malloc-{jax_malloc.__version__}.dist-info"
    }


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("name", jax_malloc.__all__)
def test_every_public_name_is_there(name):
    assert getattr(jax_malloc, name) is not None
    assert name in dir(jax_malloc)


@pytest.mark.parametrize("name", frontends.__all__)
def test_every_frontend_is_there(name):
    assert getattr(frontends, name) is not None
    assert name in dir(frontends)


@pytest.mark.parametrize("package", [jax_malloc, frontends])
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        _ = package.optimise


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import jax_malloc", {"jax", "jaxlib", "flax", "mctx", "optax", "numpy"}),
        ("import frontends", {"jax", "jaxlib", "numpy"}),
        ("import frontends; frontends.hlo.load", {"jax", "jaxlib"}),
        ("import frontends.program", {"jax", "jaxlib", "numpy"}),
        ("import hwmodel.presets", {"jax", "jaxlib"}),
        ("import jax_malloc; jax_malloc.solve", {"jax", "jaxlib", "flax", "mctx"}),
        ("import jax_malloc; jax_malloc.load_program", {"jax", "jaxlib", "flax"}),
        ("import jax_malloc; jax_malloc.optimize", {"flax", "mctx", "optax"}),
        ("import jax_malloc.solvers as s; list(s.SOLVERS)", {"jax", "flax", "mctx"}),
    ],
)
def test_an_import_loads_only_what_it_needs(statement, forbidden):
    loaded = loaded_by(statement)
    assert "sys" in loaded
    assert loaded & forbidden == set()


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "examples"])
def test_nothing_private_to_jax_is_used(folder):
    private = "jax" + "._src"
    users = [p for p in (ROOT / folder).rglob("*.py") if private in p.read_text()]
    assert users == []


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("frontends", ("hwmodel", "jax_malloc")),
        ("hwmodel", ("frontends", "jax_malloc")),
    ],
)
def test_the_leaves_import_nothing_of_ours(package, others):
    imports = [
        f"{path.name}: {line}"
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        for other in others
        if line.strip().startswith((f"import {other}", f"from {other}"))
    ]
    assert imports == []
