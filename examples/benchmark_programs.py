"""The programs of the benchmark, from a word on the command line to a Program.

word                  programs
resnet/*              of the corpus, by name
zoo:unet/*            of the model zoo, lowered through StableHLO
generated:7:120       a random one, of seed 7 and about 120 ops
dump.hlo.gz           scheduled HLO text, or a file of Program.save
step.slow.hlo.gz      HLO text; step.xla.hlo.gz beside it has XLA's own mapping
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import corpus
import jax_malloc
import model_zoo
from frontends import stablehlo
from frontends.program import Program
from hwmodel.accelerator import Accelerator
from jax_malloc import generate
from jax_malloc import problem as problem_lib

DEFAULT_TOPOLOGY = "tpu_v5e"  # of programs that were compiled for none
_ZOO, _GENERATED = "zoo:", "generated:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where one program comes from.

    name: as tables show it. topology: that it was compiled for.
    digest: of its file, or what else says that it is the same program.
    entry: in the corpus. path: of a file.
    """

    name: str
    topology: str = DEFAULT_TOPOLOGY
    digest: str = ""
    entry: corpus.Entry | None = dataclasses.field(default=None, compare=False)
    path: str = ""

    def load(self, accelerator: Accelerator) -> Program:
        """The program, named after the source.

        Args:
          accelerator: that it is planned for; StableHLO is padded as that one does.
        """
        return dataclasses.replace(self._load(accelerator), name=self.name)

    def _load(self, accelerator: Accelerator) -> Program:
        if self.entry is not None:
            return self.entry.load()
        if self.path:
            other = _compiled_with_placement(self.path)
            return jax_malloc.load_program(self.path, xla=other)
        if self.name.startswith(_ZOO):
            f, args = model_zoo.ZOO[self.name.removeprefix(_ZOO)]()
            tiling = problem_lib.tiling_of(accelerator)
            return stablehlo.from_jax(f, *args, name=self.name, tiling=tiling)
        seed, num_ops = _seed_and_ops(self.name)
        return generate.random_program(seed, num_ops=num_ops)


def find(
    words: Sequence[str],
    *,
    split: str | None = None,
    topologies: Sequence[str] = (),
    directory: str | os.PathLike[str] = corpus.DIRECTORY,
) -> list[Source]:
    """The programs that words stand for, each once.

    Args:
      words: see the module's description.
      split, topologies: of the corpus to choose from; all if not given.
      directory: of the corpus.
    Raises:
      ValueError: a word stands for no program.
    """
    found: dict[Source, None] = {}
    for word in words:
        matching = list(_sources(word, split, topologies, directory))
        if not matching:
            raise ValueError(
                f"no program is called {word!r}: no file, no name in "
                f"{os.fspath(directory)} (split {split or 'any'}, topologies "
                f"{', '.join(topologies) or 'any'}). Programs of the zoo are zoo:NAME, "
                "random ones generated:SEED:NUM_OPS; examples/build_corpus.py makes "
                "the corpus."
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _sources(
    word: str,
    split: str | None,
    topologies: Sequence[str],
    directory: str | os.PathLike[str],
) -> Iterable[Source]:
    """The programs that one word stands for."""
    if word.startswith(_GENERATED):
        _seed_and_ops(word)
        return [Source(name=word, digest=word)]
    if word.startswith(_ZOO):
        names = fnmatch.filter(model_zoo.ZOO, word.removeprefix(_ZOO))
        return [Source(name=_ZOO + name, digest=_ZOO + name) for name in names]
    if os.path.isfile(word):
        name = Path(word).name.split(".")[0]
        return [Source(name=name, digest=_file_digest(word), path=word)]
    return [
        Source(
            name=entry.name, topology=entry.topology, digest=entry.sha256, entry=entry
        )
        for entry in corpus.read(directory)
        if split in (None, entry.split)
        and (not topologies or entry.topology in topologies)
        and fnmatch.fnmatchcase(entry.name, word)
    ]


def _seed_and_ops(word: str) -> tuple[int, int]:
    try:
        _, seed, num_ops = word.split(":")
        return int(seed), int(num_ops)
    except ValueError:
        raise ValueError(
            f"{word!r} is no random program; expected generated:SEED:NUM_OPS, as in "
            "generated:7:120."
        ) from None


def _compiled_with_placement(path: str) -> str | None:
    """The HLO text beside this one that has XLA's own mapping, if there is one."""
    other = path.replace(".slow.", ".xla.")
    return other if other != path and os.path.isfile(other) else None


def _file_digest(path: str) -> str:
    data = Path(path).read_bytes()
    other = _compiled_with_placement(path)
    if other is not None:
        data += Path(other).read_bytes()
    return hashlib.sha256(data).hexdigest()
