"""The corpus: what it lists, what is on disk, and how it is read."""

import collections
import dataclasses
import hashlib
import json

import jax
import pytest

import corpus
import corpus_families
import model_zoo
import pressured_programs
from corpus_programs import PROGRAMS, SPLITS
from frontends import stablehlo
from frontends.program import Access, Buffer, BufferKind, LiveRange, Op, Program

TOPOLOGIES = ("tpu_v5e", "tpu_v6e", "tpu_v4")  # of the corpus
ENTRIES = corpus.read()


def test_every_family_is_in_one_split():
    counts = collections.Counter(sum(SPLITS.values(), ()))
    assert set(counts) == set(corpus_families.FAMILIES)
    assert set(counts.values()) == {1}
    assert {program.family for program in PROGRAMS.values()} == set(counts)
    assert len(PROGRAMS) >= 60


def test_pressured_programs_are_in_it_as_they_are():
    found = {p.make.func for p in PROGRAMS.values() if p.name.endswith("/pressured")}
    assert found == set(pressured_programs.PRESSURED.values())
    assert PROGRAMS["convnext/pressured"].setting == {
        "batch": 64,
        "image": 224,
        "blocks": [1, 1, 1, 1],
    }


@pytest.mark.parametrize(
    "name", ["mlp/train", "densenet/train", "normalising_flow/train", "t5/pressured"]
)
def test_training_steps_overwrite_what_they_are_given(name):
    step, arguments = PROGRAMS[name].make()
    leaves = jax.tree.leaves(arguments)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    donated = [
        info.donated for info in jax.tree.leaves(step.lower(*arguments).args_info)
    ]
    params = len(jax.tree.leaves(arguments[:3]))
    assert donated == [True] * params + [False] * (len(leaves) - params)


def test_a_family_trains_in_place_and_infers_as_the_zoo_does():
    setting = {"layers": 2, "width": 8, "batch": 4}
    ours = corpus_families.FAMILIES["mlp"](**setting)
    theirs = model_zoo.mlp(**setting)
    a, b = (stablehlo.from_jax(f, *arguments) for f, arguments in (ours, theirs))
    assert a.fingerprint == b.fingerprint


#  t         0      1      2
#  table     [------)               2 KiB of its 100 are gathered
#  rows      [-------------)        2 KiB
#  out              [-------------) 4 KiB
def gather_then_widen():
    return Program(
        name="gather",
        ops=(
            Op(name="gather", opcode="gather", reads=(Access(0, 2048),),
               writes=(Access(1, 2048),)),
            Op(name="widen", opcode="fusion", reads=(Access(1, 2048),),
               writes=(Access(2, 4096),)),
        ),
        buffers=(
            Buffer(name="table", size_bytes=102400, live=LiveRange(0, 1),
                   kind=BufferKind.PARAMETER),
            Buffer(name="gather", size_bytes=2048, live=LiveRange(0, 2),
                   kind=BufferKind.TEMPORARY),
            Buffer(name="widen", size_bytes=4096, live=LiveRange(1, 2),
                   kind=BufferKind.OUTPUT, is_output=True),
        ),
    )  # fmt: skip


def test_working_set_is_the_peak_of_what_is_touched():
    assert corpus.peak_bytes(gather_then_widen()) == 2048 + 4096


@pytest.fixture
def small_corpus(tmp_path):
    """A manifest of two entries for one program file."""
    program = gather_then_widen()
    program.save(tmp_path / "gather.json.gz")
    data = (tmp_path / "gather.json.gz").read_bytes()
    first = corpus.Entry(
        name="mlp/gather",
        family="mlp",
        split="train",
        topology="tpu_v5e",
        file="gather.json.gz",
        file_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        setting={"batch": 4},
        versions={"jax": "1"},
        ops=2,
        accesses=4,
        touched_bytes=10240,
        peak_bytes=6144,
        fast_bytes=2**27,
        directory=tmp_path,
    )
    second = dataclasses.replace(
        first, name="vit/gather", family="vit", split="test", sha256="0" * 64
    )
    corpus.write([first, second], tmp_path)
    return tmp_path


def test_entries_come_back_by_split_topology_and_family(small_corpus):
    every = corpus.entries(directory=small_corpus)
    assert [entry.name for entry in every] == ["mlp/gather", "vit/gather"]
    assert corpus.entries(split="test", directory=small_corpus) == every[1:]
    assert corpus.entries(family="mlp", directory=small_corpus) == every[:1]
    with pytest.raises(ValueError, match=r"no program of .*tpu_v4.*it has .*tpu_v5e"):
        corpus.entries(topology="tpu_v4", directory=small_corpus)


def test_an_entry_loads_its_program_and_no_other(small_corpus):
    first, second = corpus.entries(directory=small_corpus)
    assert first.load() == gather_then_widen()
    with pytest.raises(ValueError, match=r"the manifest says 0000.*build_corpus"):
        second.load()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": "jax_malloc.corpus", "version": 2, "entries": []}',
     '{"format": "jax_malloc.corpus", "version": 1, "entries": [{"name": "x"}]}'],
)  # fmt: skip
def test_another_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is not a corpus manifest"):
        corpus.entries(directory=tmp_path)


def test_a_directory_without_a_manifest_is_empty(tmp_path):
    assert corpus.read(tmp_path) == []


def test_every_program_is_there_for_v5e():
    found = [entry for entry in ENTRIES if entry.topology == "tpu_v5e"]
    assert sorted(entry.name for entry in found) == sorted(PROGRAMS)
    assert sum(entry.peak_bytes > entry.fast_bytes for entry in found) > len(found) / 2


def test_no_program_is_listed_twice():
    counts = collections.Counter((entry.name, entry.topology) for entry in ENTRIES)
    assert set(counts.values()) == {1}


def test_the_manifest_is_of_the_programs_as_they_are():
    for entry in ENTRIES:
        program = PROGRAMS[entry.name]
        assert (entry.family, entry.split) == (program.family, program.split)
        assert entry.setting == program.setting, entry.name


def test_the_files_are_those_of_the_manifest():
    listed = {entry.path for entry in ENTRIES}
    assert listed == set((corpus.DIRECTORY / "programs").glob("*/*.json.gz"))
    for entry in ENTRIES:
        data = entry.path.read_bytes()
        assert len(data) == entry.file_bytes
        assert hashlib.sha256(data).hexdigest() == entry.sha256
    assert sum(entry.file_bytes for entry in ENTRIES) < 10e6


@pytest.mark.parametrize("entry", ENTRIES[::12], ids=lambda e: f"{e.name}-{e.topology}")
def test_programs_have_the_sizes_that_the_manifest_says(entry):
    program = entry.load()
    assert program.name == entry.name
    assert program.source == "tpu"
    assert program.compiler_mapping is not None
    assert len(program.ops) == entry.ops
    assert sum(1 for _ in program.accesses()) == entry.accesses
    assert corpus.peak_bytes(program) == entry.peak_bytes


def test_the_manifest_has_a_line_per_entry():
    lines = (corpus.DIRECTORY / "manifest.json").read_text().splitlines()
    assert len(lines) == len(ENTRIES) + 2
    assert json.loads(lines[1].removesuffix(","))["name"] == ENTRIES[0].name
