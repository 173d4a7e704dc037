"""Predicted latencies on machines that are not there."""

import builtins
import json

import pytest
import toy_problems
from test_explain import golden
from toy_problems import KIB

import jax_malloc
from hwmodel import presets
from jax_malloc import problem as problem_lib


def test_a_sweep_of_capacity_by_hand():
    """a (8) is worth most; 10 KiB hold it alone, 12 b or c beside it, 16 all three."""
    program = toy_problems.diamond()
    sizes = [16 * KIB, 4 * KIB, 2 * KIB, 10 * KIB, 32 * KIB]
    answer = jax_malloc.what_if(
        program, toy_problems.toy(), fast_capacity_bytes=sizes, solver="greedy"
    )
    assert [r.fast_capacity_bytes for r in answer.rows] == sorted(sizes)
    by_size = {r.fast_capacity_bytes // KIB: r for r in answer.rows}
    for size, row in by_size.items():
        machine = toy_problems.toy().replace(fast_capacity_bytes=size * KIB)
        plan = jax_malloc.solve(program, machine, solver="greedy")
        assert row.latency_s <= plan.latency_s * (1 + 1e-12)
        assert row.all_slow_latency_s == pytest.approx(44.0)
    assert by_size[16].latency_s == pytest.approx(4.0)
    assert by_size[32].latency_s == by_size[16].latency_s
    assert answer.knee == by_size[16]
    assert answer.knee.speedup == pytest.approx(11.0)
    lines = str(answer).splitlines()
    assert [line for line in lines if line.endswith(" knee")] == [
        line for line in lines if line.startswith("16.0 KiB")
    ]


def test_more_is_never_slower():
    answer = jax_malloc.what_if(
        toy_problems.random_program(3, 30),
        fast_capacity_bytes=[24 << 20, 48 << 20, 96 << 20, 192 << 20],
        slow_bandwidth=[4e11, 8e11, 16e11],
    )
    assert len(answer.rows) == 12
    assert len(answer.curves) == len(answer.knees) == 3
    for rows in (*answer.curves, *zip(*answer.curves, strict=True)):
        latencies = [r.latency_s for r in rows]
        assert latencies == sorted(latencies, reverse=True)
    assert {r["knee"] for r in answer.to_dict()["rows"]} == {True, False}
    json.dumps(answer.to_dict())


def test_a_compilers_estimates_scale_with_the_bandwidth():
    """Twice the bandwidth halves what slow memory adds to every op, and no more."""
    program = golden("mlp_train")
    machine = presets.get("tpu_v5e")
    double = machine.slow.bandwidth_bytes_per_s * 2
    varied = machine.replace(slow_bandwidth_bytes_per_s=double)
    own = problem_lib.build(program, machine)
    twice = problem_lib.build(program, varied, estimated_for=machine)
    assert twice.latency.base_s == pytest.approx(own.latency.base_s)
    slopes = own.latency.slope_s_per_byte / 2
    assert twice.latency.slope_s_per_byte == pytest.approx(slopes)
    rows = jax_malloc.what_if(program, machine, slow_bandwidth=[double]).rows
    assert rows[0].all_slow_latency_s == pytest.approx(twice.all_slow_latency_s)


def test_without_a_sweep_there_is_one_around_the_machines_own():
    answer = jax_malloc.what_if(toy_problems.chain(), toy_problems.toy())
    sizes = [r.fast_capacity_bytes // KIB for r in answer.rows]
    assert sizes == [2, 4, 8, 12, 16, 24, 32]


def test_progress_is_told():
    calls = []
    jax_malloc.what_if(
        toy_problems.chain(),
        toy_problems.toy(),
        slow_bandwidth=[1e3, 2e3],
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fast_capacity_bytes": []}, "fast_capacity_bytes is empty"),
        ({"fast_capacity_bytes": [0]}, "toy with 0 bytes of fast memory.*at least 1"),
        ({"slow_bandwidth": [-1.0]}, "toy with .* -1.0 bytes/s.*above 0"),
        ({"solver": "gredy"}, r"'gredy'; did you mean 'greedy'\?"),
    ],
)
def test_bad_sweeps(fields, message):
    with pytest.raises(ValueError, match=message):
        jax_malloc.what_if(toy_problems.chain(), toy_problems.toy(), **fields)


def test_a_plot_marks_the_knee():
    pytest.importorskip("matplotlib").use("agg")
    answer = jax_malloc.what_if(
        toy_problems.diamond(),
        toy_problems.toy(),
        fast_capacity_bytes=[4 * KIB, 16 * KIB, 32 * KIB],
        slow_bandwidth=[1024.0, 2048.0],
    )
    ax = answer.plot()
    assert len(ax.texts) == 2
    assert ax.texts[0].get_text().startswith("knee, ")
    assert answer.plot(ax) is ax


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    answer = jax_malloc.what_if(toy_problems.chain(), toy_problems.toy())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=r"pip install 'jax_malloc\[viz\]'"):
        answer.plot()
