"""What is kept of compiled loops is dropped when any of them changes."""

import os

from jax_malloc.compiled import drop_stale


def test_only_what_is_older_than_a_source_is_dropped(tmp_path):
    kept = tmp_path / "__pycache__"
    kept.mkdir()
    for name in ("a.f-1.py311.nbi", "a.f-1.py311.1.nbc", "b.g-2.py311.1.nbc", "a.pyc"):
        (kept / name).touch()
        os.utime(kept / name, (100, 100))
    os.utime(kept / "b.g-2.py311.1.nbc", (300, 300))
    for name, changed in (("a.py", 50), ("b.py", 200)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    drop_stale(kept, tmp_path.glob("*.py"))
    assert sorted(path.name for path in kept.iterdir()) == [
        "a.pyc",
        "b.g-2.py311.1.nbc",
    ]


def test_a_directory_without_machine_code_is_left_alone(tmp_path):
    (tmp_path / "a.py").touch()
    drop_stale(tmp_path / "none", [tmp_path / "a.py"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]
