"""Rows of the study of TPU compiles: files that a killed run leaves, and the tables."""

import pytest

import json_lines
import results_table


def row(program="mixer", topology="tpu_v5e", **latency_ms):
    return results_table.Row(
        program=program,
        topology=topology,
        settings={"seed": 0, "solvers": "hybrid"},
        ops=7,
        accesses=20,
        touched_bytes=3 * 2**20,
        latency_s={name: ms / 1e3 for name, ms in latency_ms.items()},
        wall_s={"compile": 1.25},
    )


def test_rows_come_back_after_a_run_that_was_killed(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert json_lines.read(path, results_table.Row) == []
    first, second = row(xla=4.0, hybrid=2.0), row("convnext", xla=1.0)
    json_lines.append(path, first)
    with path.open("a") as f:
        f.write('{"program": "dens')  # no more was written
    assert json_lines.read(path, results_table.Row) == [first]
    json_lines.append(path, second)
    assert json_lines.read(path, results_table.Row) == [first, second]


def test_rows_made_otherwise_have_other_keys():
    made = row()
    assert made.key == results_table.key("mixer", "tpu_v5e", dict(made.settings))
    others = [
        results_table.key("mixer", "tpu_v4", made.settings),
        results_table.key("convnext", "tpu_v5e", made.settings),
        results_table.key("mixer", "tpu_v5e", {**made.settings, "seed": 1}),
    ]
    assert made.key not in others


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"program": "mixer", "speed": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not a row"):
        json_lines.read(path, results_table.Row)


def test_tables_by_hand():
    text = results_table.markdown(
        [
            row("a", xla=4.0, hybrid=2.0),
            row("b", xla=8.0, hybrid=1.0, steered=4.0),
            row("c", "tpu_v4", all_slow=1.0),
        ]
    )
    v5e, v4 = text.split("### tpu_v4")
    assert v5e.startswith("### tpu_v5e\n")
    assert "| program | ops | touched | XLA | hybrid | obtained by steering |" in v5e
    assert "| a | 7 | 3.0 MiB | 4.000 | 2.000 |  |" in v5e
    # sqrt(2 * 8) for the hybrid plan; steering counts where there was any.
    assert "| 1.0000 | 4.0000 | 2.0000 |" in v5e
    assert "| a | 1.2 |" in v5e
    assert "all in HBM" in v4
    assert "XLA |" not in v4
