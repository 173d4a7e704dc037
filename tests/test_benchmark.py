"""The benchmark of solvers: which runs are made, and the tables of hand-made ones."""

import concurrent.futures
import csv
import dataclasses
import hashlib
import importlib
import io
import itertools
import multiprocessing
import os
import sys

import pytest
from absl import app, flags

import benchmark_plots
import benchmark_programs
import benchmark_runs
import benchmark_table
import corpus
import json_lines
from benchmark_programs import Source
from benchmark_runs import Failure, Job, Run
from frontends.program import Program
from hwmodel import presets
from jax_malloc import generate

MIB = 2**20
PROGRAMS = "--programs=generated:0:12,generated:1:12"


def made(program="a", solver="annealing", ms=8.0, **changes):
    """A run whose greedy takes 10 ms and whose all_slow takes 20 ms."""
    fields = {
        "program": program,
        "topology": "tpu_v5e",
        "accelerator": "tpu_v5e",
        "fast_bytes": 128 * MIB,
        "usable_bytes": 112 * MIB,
        "working_set_bytes": 224 * MIB,
        "solver": solver,
        "time_limit_s": 1.0,
        "seed": 0,
        "settings": {"jax_malloc": "1"},
        "ops": 7,
        "accesses": 20,
        "latency_s": ms / 1e3,
        "all_slow_s": 0.02,
        "greedy_s": 0.01,
        "xla_s": None,
        "wall_s": 1.0,
        "cold_s": None,
    }
    return Run(**{**fields, **changes})


def cells(markdown, row):
    """The cells of a row of a Markdown table, by the heading above them."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    headings = rows[0]
    (values,) = [values for values in rows if values[0] == row]
    return dict(zip(headings, values, strict=True))


@pytest.fixture
def benchmark(tmp_path, capsys, monkeypatch):
    """Runs the example in this process: its exit code and all that it printed."""
    before = set(flags.FLAGS)
    sys.modules.pop("benchmark", None)
    main = importlib.import_module("benchmark").main

    def run(*args):
        output = f"--output={tmp_path / 'out'}"
        with pytest.raises(SystemExit) as exit_info:
            app.run(main, argv=["benchmark.py", "--jobs=0", output, *args])
        printed = capsys.readouterr()
        flags.FLAGS.unparse_flags()
        return exit_info.value.code, printed.out + printed.err

    yield run
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    flags.FLAGS.flags_by_module_dict().pop("benchmark", None)
    sys.modules.pop("benchmark", None)


def test_runs_are_made_once(benchmark, tmp_path, monkeypatch):
    asked = (
        "--programs=generated:0:12",
        "--solvers=greedy,random,lower_bound",
        "--seeds=0,1",
    )
    code, printed = benchmark(*asked, "--time_limits_s=0.1", "--noplots")
    assert code is None, printed
    # Random play has two seeds; of the others one is as good as all.
    assert "4 runs, 0 of them in" in printed
    lines = tmp_path / "out" / "runs.jsonl"
    runs = json_lines.read(lines, Run)
    assert len(runs) == 4
    for run in runs:
        assert run.latency_s <= run.all_slow_s * (1 + 1e-9)
        if run.solver == "greedy":
            assert run.latency_s == run.greedy_s
        if run.solver == "lower_bound":
            assert run.latency_s <= run.greedy_s * (1 + 1e-9)
    mean = cells(printed, "geometric mean, all 1")
    assert float(mean["greedy"]) == 1.0
    assert float(mean["random"]) >= float(mean["lower bound"])

    # The last line is cut off, as by a kill: of all runs only that one is missing.
    text = lines.read_text()
    lines.write_text(text[: text[:-1].rindex("\n") + 30])
    execute, jobs = benchmark_runs.execute, []

    def counted(job):
        jobs.append(job)
        return execute(job)

    monkeypatch.setattr(benchmark_runs, "execute", counted)
    code, printed = benchmark(*asked, "--time_limits_s=0.1", "--noplots")
    assert code is None, printed
    assert "4 runs, 3 of them in" in printed
    assert [job.key for job in jobs] == [runs[-1].key]
    again = json_lines.read(lines, Run)
    assert [run.key for run in again] == [run.key for run in runs]

    code, printed = benchmark(*asked, "--time_limits_s=0.1", "--noplots", "--label=b")
    assert "4 runs, 0 of them in" in printed  # other code


def test_a_run_that_crashes_is_reported_and_the_others_go_on(
    benchmark, tmp_path, monkeypatch
):
    solvers = dict(benchmark_runs.SOLVERS)

    def broken(problem, **_):
        raise ZeroDivisionError("of this test")

    monkeypatch.setattr(benchmark_runs, "SOLVERS", {**solvers, "annealing": broken})
    code, printed = benchmark(
        PROGRAMS, "--solvers=annealing,greedy", "--time_limits_s=none", "--noplots"
    )
    assert "generated:1:12 on tpu_v5e, 128 MiB, by annealing, seed 0: ZeroDiv" in code
    assert "of this test" in code
    assert printed.count("FAILED") == 2
    runs = json_lines.read(tmp_path / "out" / "runs.jsonl", Run)
    assert [run.solver for run in runs] == ["greedy", "greedy"]
    assert (tmp_path / "out" / "table.csv").read_text().count("\n") == 3


def test_a_process_of_its_own():
    jobs = [
        Job(
            source=Source(name=name, digest=name),
            accelerator=presets.get("tpu_v5e"),
            solver=solver,
            time_limit_s=None,
            seed=0,
        )
        for name, solver in itertools.product(
            ("generated:0:12", "generated:x"), ("greedy", "all_slow")
        )
    ]
    outcomes = list(benchmark_runs.execute_all(jobs, 1))
    assert [type(o) for o in outcomes] == [Run, Run, Failure, Failure]
    assert [o.key for o in outcomes[:2]] == [job.key for job in jobs[:2]]
    assert outcomes[0].latency_s <= outcomes[1].latency_s == outcomes[1].all_slow_s
    assert "generated:SEED:NUM_OPS" in outcomes[2].message


def die_of_seed_0(job):
    if job.seed == 0:
        os._exit(9)
    return benchmark_runs.execute(job)  # the worker's own, which is the true one


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
def test_processes_keep_to_cores_of_their_own(monkeypatch, processes):
    cores = {0, 1, 4, 7}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    shares = benchmark_runs.shares_of_cores(processes)
    assert len(shares) == processes
    if processes > len(cores):
        assert not any(shares)  # wherever there is time
    else:
        assert set().union(*shares) == cores
        assert sum(map(len, shares)) == len(cores)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def cores_of_threads():
    tasks = os.listdir("/proc/self/task")
    return [os.sched_getaffinity(int(task)) for task in tasks]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_all_threads_of_a_process_keep_to_its_cores():
    core = min(os.sched_getaffinity(0))
    with concurrent.futures.ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=benchmark_runs._begin,
        initargs=({core},),
    ) as pool:
        assert set(map(frozenset, pool.submit(cores_of_threads).result())) == {
            frozenset({core})
        }


def test_where_nobody_can_say_processes_have_no_cores_of_their_own(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert benchmark_runs.shares_of_cores(2) == [set(), set()]


def test_a_process_that_dies_takes_one_run_with_it(monkeypatch):
    monkeypatch.setattr(benchmark_runs, "execute", die_of_seed_0)
    job = Job(
        source=Source(name="generated:0:12", digest="x"),
        accelerator=presets.get("tpu_v5e"),
        solver="greedy",
        time_limit_s=None,
        seed=0,
    )
    other = dataclasses.replace(job, seed=1)
    first, second = benchmark_runs.execute_all([job, other], 1)
    assert first == Failure(job=job, message="its process died; out of memory?")
    assert isinstance(second, Run)


def test_sizes_of_fast_memory_and_pressure(benchmark, tmp_path):
    code, printed = benchmark(
        PROGRAMS,
        "--solvers=greedy,all_slow",
        "--fast_memory_mib=24,48",
        "--time_limits_s=none",
        "--pressured_only",
    )
    assert code is None, printed
    runs = json_lines.read(tmp_path / "out" / "runs.jsonl", Run)
    assert runs
    # Pressure is that of the accelerator as it is, whatever is tried.
    assert all(run.working_set_bytes > 112 * MIB for run in runs)
    assert {run.fast_bytes for run in runs} == {24 * MIB, 48 * MIB}
    assert {run.usable_bytes for run in runs} == {8 * MIB, 32 * MIB}
    for name in ("saving-tpu_v5e.png", "saving-tpu_v5e.svg", "table.md", "table.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert not list((tmp_path / "out").glob("quality*"))  # it takes time limits


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--programs=nonesuch"], "no program is called 'nonesuch'"),
        (["--programs=generated:1"], "expected generated:SEED:NUM_OPS"),
        ([PROGRAMS, "--accelerators=tpu_v99"], "tpu_v99"),
        ([PROGRAMS, "--finetune_s=inf"], "finetune_s is inf; expected seconds >= 0"),
    ],
)
def test_what_does_not_exist_is_refused(benchmark, args, message):
    code, printed = benchmark(*args)
    assert message in f"{code}{printed}"
    assert "Traceback" not in printed


def test_words_for_programs(tmp_path):
    path = tmp_path / "saved.json.gz"
    generate.random_program(0, num_ops=12).save(path)
    words = [str(path), "generated:3:20", "zoo:mlp/*", "generated:3:20"]
    found = benchmark_programs.find(words, directory=tmp_path)
    names = [source.name for source in found]
    assert names[:2] == ["saved", "generated:3:20"]
    assert len(names) == len(set(names)) > 3
    assert all(name.startswith("zoo:mlp/") for name in names[2:])
    program = found[0].load(presets.get("tpu_v5e"))
    assert isinstance(program, Program)
    assert program.name == "saved"
    before = found[0].digest
    generate.random_program(1, num_ops=12).save(path)
    (after,) = benchmark_programs.find([str(path)])
    assert after.digest != before


def corpus_entry(directory, name, split, topology="tpu_v5e"):
    """A random program in a corpus, with its file."""
    program = generate.random_program(len(name), num_ops=12)
    path = directory / f"{name.replace('/', '-')}-{topology}.json.gz"
    program.save(path)
    return corpus.Entry(
        name=name,
        family=name.split("/")[0],
        split=split,
        topology=topology,
        file=path.name,
        file_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        setting={"batch": 8},
        versions={},
        ops=len(program.ops),
        accesses=0,
        touched_bytes=0,
        peak_bytes=0,
        fast_bytes=1,
        directory=directory,
    )


def test_words_for_the_corpus(tmp_path):
    corpus.write(
        [
            corpus_entry(tmp_path, "mlp/small", "train"),
            corpus_entry(tmp_path, "vit/small", "test"),
            corpus_entry(tmp_path, "vit/large", "test"),
            corpus_entry(tmp_path, "vit/small", "test", "tpu_v4"),
        ],
        tmp_path,
    )

    def names(*words, **options):
        found = benchmark_programs.find(words, directory=tmp_path, **options)
        return [(source.name, source.topology) for source in found]

    assert len(names("*")) == 4
    assert names("*", split="train") == [("mlp/small", "tpu_v5e")]
    assert names("*/small", topologies=["tpu_v4"]) == [("vit/small", "tpu_v4")]
    assert len(names("vit/small", "vit/*")) == 3
    (source,) = benchmark_programs.find(["mlp/small"], directory=tmp_path)
    assert source.load(presets.get("tpu_v5e")).name == "mlp/small"
    with pytest.raises(ValueError, match=r"called 'mlp/\*'.* \(split test, topolog"):
        names("mlp/*", split="test")


def test_a_table_by_hand():
    runs = [
        # Greedy's 10 ms on every program; the best known 5 ms.
        made("a", "greedy", 10.0, wall_s=0.1),
        made("a", "annealing", 6.0, seed=0),
        made("a", "annealing", 5.0, seed=1),
        made("a", "annealing", 9.0, seed=2),
        made("a", "hybrid", 7.5, xla_s=0.012, cold_s=9.0, wall_s=2.0),
        made("a", "lower_bound", 4.0),
        made(
            "b", "greedy", 10.0, wall_s=0.3, working_set_bytes=56 * MIB, accesses=1001
        ),
        made("b", "annealing", 9.0, working_set_bytes=56 * MIB),
        made("b", "hybrid", 8.0, wall_s=4.0, working_set_bytes=56 * MIB),
        # Better, and of another time limit: a known latency.
        made("b", "annealing", 5.0, time_limit_s=9.0),
        # Not planned by all: in no mean.
        made("c", "annealing", 40.0, working_set_bytes=56 * MIB),
    ]
    text, longer = benchmark_table.markdown(runs).split("### tpu_v5e, 128 MiB")[1:]
    assert text.startswith(" of fast memory, 1 s\n")
    assert cells(longer, "gap closed")["annealing"] == "100%"
    a = cells(text, "a")
    assert (a["ops"], a["working set"], a["all_slow"]) == ("7", "2.00", "2.0000")
    assert (a["annealing"], a["lower bound"]) == ("0.6000", "0.4000")
    assert cells(text, "c")["annealing"] == "4.0000"
    assert cells(text, "c")["hybrid"] == ""
    mean = cells(text, "geometric mean, all 2")
    assert mean["annealing"] == f"{(0.6 * 0.9) ** 0.5:.4f}"
    assert mean["hybrid"] == f"{(0.75 * 0.8) ** 0.5:.4f}"
    assert mean["lower bound"] == ""  # not known of b
    pressured = cells(text, "geometric mean, 1 pressured")
    assert (pressured["annealing"], pressured["hybrid"]) == ("0.6000", "0.7500")
    long = cells(text, "geometric mean, 1 above 1,000 accesses")
    assert (long["annealing"], long["hybrid"]) == ("0.9000", "0.8000")
    assert "above 3,000 accesses" not in text
    worst = cells(text, "worst of any program and seed")
    assert (worst["annealing"], worst["hybrid"]) == ("4.0000", "0.8000")
    closed = cells(text, "gap closed")
    # Of a 4 and 2.5 of 5 ms, of b 1 and 2 of 5 ms.
    assert (closed["annealing"], closed["hybrid"]) == ("50%", "45%")
    assert closed["greedy"] == "0%"
    assert cells(text, "seconds, median")["greedy"] == "0.20"
    assert cells(text, "seconds of cold runs, median")["hybrid"] == "9.00"

    rows = list(csv.DictReader(io.StringIO(benchmark_table.comma_separated(runs))))
    assert len(rows) == 9  # three seeds are one
    (row,) = [r for r in rows if (r["program"], r["solver"]) == ("a", "annealing")]
    assert row["seeds"] == "3"
    assert [float(row[x]) for x in ("ratio", "lowest", "highest")] == (
        pytest.approx([0.6, 0.5, 0.9])
    )


def test_xla_has_a_column_where_it_is_known():
    text = benchmark_table.markdown([made("a", xla_s=0.012), made("b", xla_s=0.01)])
    assert cells(text, "a")["XLA"] == "1.2000"
    assert cells(text, "geometric mean, all 2")["XLA"] == f"{1.2**0.5:.4f}"


def test_each_machine_and_limit_has_a_table():
    runs = [
        made(),
        made(time_limit_s=None),
        made(fast_bytes=64 * MIB),
        made(accelerator="tpu_v4"),
    ]
    text = benchmark_table.markdown(runs)
    assert text.count("### ") == 4
    assert "no time limit" in text
    assert "| a (tpu_v5e) |" in text  # compiled for another machine


def test_points_of_the_plots_by_hand():
    def runs_at(fast_mib, limit_s, ms):
        changes = {"fast_bytes": fast_mib * MIB, "time_limit_s": limit_s}
        wall_s = limit_s or 40.0
        return [
            made("a", "annealing", ms, wall_s=wall_s, **changes),
            made("b", "annealing", 4 * ms, wall_s=4 * wall_s, **changes),
            made("a", "lower_bound", 1.0, **changes),
        ]

    runs = [*runs_at(128, 10.0, 4.0), *runs_at(128, 1.0, 5.0)]
    runs.append(made("c", "annealing", 90.0))  # not there at 10 s: in no point
    curves = benchmark_plots.quality_against_time(runs)
    (points,) = curves.values()
    assert list(curves) == ["annealing"]
    assert points == [pytest.approx((2.0, 1.0)), pytest.approx((20.0, 0.8))]
    runs = [*runs_at(64, 1.0, 6.0), *runs_at(128, 1.0, 4.0), *runs_at(128, 9.0, 3.0)]
    curves = benchmark_plots.saving_against_memory(runs)
    # Of 20 ms, 12 are left with 64 MiB and 6 with 128 MiB at the longest limit.
    points = [pytest.approx((64, 40)), pytest.approx((128, 70))]
    assert curves == {"annealing": points}


def test_plots_are_written(tmp_path):
    runs = [made(time_limit_s=s, wall_s=s, ms=9 - s) for s in (1.0, 4.0)]
    runs += [made(fast_bytes=64 * MIB, time_limit_s=4.0)]
    written = benchmark_plots.save(runs, tmp_path)
    names = {path.name for path in written}
    assert {"quality-tpu_v5e-128.png", "saving-tpu_v5e.svg"} <= names
    assert all(path.stat().st_size > 1000 for path in written)


def test_runs_made_otherwise_have_other_keys():
    run = made()
    job = Job(
        source=Source(name="generated:0:12", digest="x"),
        accelerator=presets.get("tpu_v5e"),
        solver="greedy",
        time_limit_s=None,
        seed=0,
    )
    others = [
        dataclasses.replace(job, seed=1),
        dataclasses.replace(job, time_limit_s=1.0),
        dataclasses.replace(job, label="b"),
        dataclasses.replace(job, solver="muzero"),
        dataclasses.replace(job, source=Source(name="generated:0:12", digest="y")),
        dataclasses.replace(
            job, accelerator=job.accelerator.replace(slow_bandwidth_bytes_per_s=1e12)
        ),
    ]
    assert len({job.key, run.key, *(other.key for other in others)}) == 8
    assert "weights" in others[3].settings


def test_a_finetuned_run_trains_once_and_says_how_long(
    benchmark, tmp_path, monkeypatch
):
    trained = []

    def improve(problem, mapping, *, seed, finetune_s):
        trained.append((problem.program.name, mapping, seed, finetune_s))
        return mapping

    monkeypatch.setattr(benchmark_runs.finetuned, "improve", improve)
    asked = ("--programs=generated:0:12", "--solvers=hybrid,finetuned", "--noplots")
    code, printed = benchmark(*asked, "--time_limits_s=0.5", "--finetune_s=3")
    assert code is None, printed
    ((program, mapping, seed, seconds),) = trained
    assert (program, seed, seconds) == ("generated:0:12", 0, 3.0)
    assert mapping.segments
    hybrid, run = json_lines.read(tmp_path / "out" / "runs.jsonl", Run)
    assert run.settings == {**hybrid.settings, "finetune_s": "3"}
    mean = cells(printed, "geometric mean, all 1")
    assert mean["finetuned"] == mean["hybrid"]
    # Longer training is another run; the hybrid's is the same.
    code, printed = benchmark(*asked, "--time_limits_s=0.5", "--finetune_s=4")
    assert "2 runs, 1 of them in" in printed
    assert len(trained) == 2
    assert "trains on the very program, for 4 s more" in printed


def test_a_finetuned_run_without_training_is_the_hybrid(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark_runs.finetuned, "improve", None)
    asked = ("--programs=generated:0:12", "--solvers=hybrid,finetuned", "--noplots")
    code, printed = benchmark(*asked, "--time_limits_s=0.5", "--finetune_s=0")
    assert code is None, printed
    mean = cells(printed, "geometric mean, all 1")
    assert mean["finetuned"] == mean["hybrid"]


def test_a_finetuned_run_that_really_trains():
    job = Job(
        source=Source(name="generated:0:40", digest="x"),
        accelerator=presets.get("tpu_v5e").replace(fast_capacity_bytes=32 * MIB),
        solver="finetuned",
        time_limit_s=0.5,
        seed=0,
        finetune_s=1.0,
    )
    # In a process of its own, where the run is its solver's first, and compiles.
    (run,) = benchmark_runs.execute_all([job], 1)
    assert isinstance(run, Run), run
    assert run.key == job.key
    assert run.finetune_s == 1.0
    assert run.latency_s <= run.greedy_s * (1 + 1e-9)
    assert run.wall_s >= 1.0  # the training alone
    assert run.cold_s is None  # it was not made again


def test_the_table_says_what_finetuned_is():
    runs = [
        made("a", "greedy", 10.0),
        made("a", "hybrid", 8.0),
        made("a", "finetuned", 7.0, wall_s=131.0, settings={"finetune_s": "120"}),
    ]
    text = benchmark_table.markdown(runs)
    assert cells(text, "a")["finetuned"] == "0.7000"
    assert cells(text, "gap closed")["finetuned"] == "100%"
    assert cells(text, "seconds, median")["finetuned"] == "131.00"
    assert "trains on the very program, for 120 s more." in text
    assert "the very program" not in benchmark_table.markdown(runs[:2])
    rows = csv.DictReader(io.StringIO(benchmark_table.comma_separated(runs)))
    assert [row["finetune_s"] for row in rows] == ["", "", "120.0"]
