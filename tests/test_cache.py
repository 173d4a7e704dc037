"""The plan cache: what goes in comes out, and no damage to it stops the work."""

import json
import pathlib
import subprocess
import sys
import time
import warnings

import pytest
import toy_problems

import jax_malloc
from jax_malloc import cache as cache_lib

OPTIONS = {"solver": "hybrid", "seed": 0, "time_limit_s": None}


@pytest.fixture
def cache(tmp_path):
    return cache_lib.PlanCache(tmp_path / "plans")


def key(program=None, accelerator=None, **options):
    program = program or toy_problems.chain()
    accelerator = accelerator or toy_problems.toy()
    return cache_lib.plan_key(program, accelerator, **(OPTIONS | options))


def test_an_entry_comes_back_decoded(cache):
    cache.put("k", '{"a": 1}')
    assert cache.get("k", json.loads) == {"a": 1}


def test_an_unknown_key_is_none_and_makes_no_directory(cache, tmp_path):
    assert cache.get("k", json.loads) is None
    assert not (tmp_path / "plans").exists()


def test_a_second_put_replaces_the_first(cache):
    cache.put("k", "1")
    cache.put("k", "2")
    assert cache.get("k", int) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[" * 9**5])
def test_a_damaged_entry_warns_once_and_can_be_made_again(cache, tmp_path, damage):
    cache.put("k", "1")
    (tmp_path / "plans" / "k.json").write_bytes(damage)
    with pytest.warns(RuntimeWarning, match=r"k\.json is damaged"):
        assert cache.get("k", json.loads) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get("k", json.loads) is None
        cache.put("k", "3")
        assert cache.get("k", json.loads) == 3


def test_a_directory_that_cannot_be_made_warns_once(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    cache = cache_lib.PlanCache(tmp_path / "file" / "plans")
    with pytest.warns(RuntimeWarning, match="cannot be written to"):
        cache.put("k", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("k", "2")
        assert cache.get("k", json.loads) is None


def test_a_write_that_fails_leaves_the_old_entry_and_nothing_else(
    cache, tmp_path, monkeypatch
):
    def no_space(source, target):
        raise OSError(28, "No space left on device")

    cache.put("k", "1")
    monkeypatch.setattr("os.replace", no_space)
    with pytest.warns(RuntimeWarning, match="No space left"):
        cache.put("k", "2")
    assert cache.get("k", int) == 1
    assert [p.name for p in (tmp_path / "plans").iterdir()] == ["k.json"]


def test_an_error_that_is_not_damage_is_not_hidden(cache):
    def decode(text):
        raise KeyError("a mistake in our own code")

    cache.put("k", "1")
    with pytest.raises(KeyError, match="a mistake"):
        cache.get("k", decode)


@pytest.mark.parametrize("off", [False, ""])
def test_a_cache_that_is_off_keeps_nothing(off, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", str(tmp_path))
    cache = cache_lib.open_cache(off)
    cache.put("k", "1")
    assert cache.get("k", int) is None
    assert not list(tmp_path.iterdir())


def test_the_variable_names_the_directory_or_turns_the_cache_off(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", str(tmp_path / "a"))
    cache_lib.open_cache().put("k", "1")
    assert (tmp_path / "a" / "k.json").read_text() == "1"
    monkeypatch.setenv("JAX_MALLOC_CACHE_DIR", "")
    cache = cache_lib.open_cache()
    cache.put("k", "1")
    assert cache.get("k", int) is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is for the others")
def test_the_usual_place_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_MALLOC_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache_lib.open_cache().put("k", "1")
    assert (tmp_path / ".cache" / "jax_malloc" / "k.json").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache_lib.open_cache().put("k", "1")
    assert (tmp_path / "xdg" / "jax_malloc" / "k.json").exists()


def test_a_user_without_a_home_is_warned_and_served(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_MALLOC_CACHE_DIR", raising=False)
    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    with pytest.warns(RuntimeWarning, match="home directory"):
        cache = cache_lib.open_cache()
    cache.put("k", "1")
    assert cache.get("k", int) is None


def test_one_directory_is_one_cache(tmp_path):
    assert cache_lib.open_cache(tmp_path) is cache_lib.open_cache(str(tmp_path))


def test_true_is_not_a_directory():
    with pytest.raises(ValueError, match="cache_dir=True names no directory"):
        cache_lib.open_cache(True)


def test_the_same_question_has_the_same_key():
    assert key() == key()


@pytest.mark.parametrize(
    "other",
    [
        {"program": toy_problems.diamond()},
        {"accelerator": toy_problems.toy(fast_kib=8)},
        {"solver": "greedy"},
        {"seed": 1},
        {"time_limit_s": 0.0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_everything_that_a_plan_follows_from_is_in_its_key(other):
    assert key(**other) != key()


def test_another_version_has_another_key(monkeypatch):
    before = key()
    monkeypatch.setattr(jax_malloc, "__version__", "999")
    assert key() != before


RACER = """
import pathlib, sys, time, warnings
from jax_malloc import cache

warnings.simplefilter("error")
directory, me = pathlib.Path(sys.argv[1]), sys.argv[2]
plans = cache.open_cache(directory / "plans")
(directory / f"ready{me}").touch()
while not (directory / "go").exists():
    time.sleep(0.001)
for _ in range(300):
    plans.put("k", me * 200_000)
    seen = plans.get("k", str)
    assert seen in ("1" * 200_000, "2" * 200_000), (len(seen), set(seen))
"""


def test_two_processes_at_once_never_see_half_an_entry(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), me],
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in "12"
    ]
    try:
        while any(r.poll() is None for r in racers) and not all(
            (tmp_path / f"ready{me}").exists() for me in "12"
        ):
            time.sleep(0.001)
        (tmp_path / "go").touch()
        for racer in racers:
            _, errors = racer.communicate(timeout=60)
            assert racer.returncode == 0, errors
    finally:
        for racer in racers:
            racer.kill()
    assert [p.name for p in (tmp_path / "plans").iterdir()] == ["k.json"]
