"""The programs of the corpus, and how its families are split.

    program = PROGRAMS["mobilenet/train"]
    step, arguments = program.make()

The split was drawn up, by family, before any program of it was measured: an agent is
trained on some families, chosen by others, and reported on the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import pressured_programs
from corpus_families import FAMILIES
from model_zoo import Case

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "mlp",
        "wide_and_deep",
        "resnet",
        "convnext",
        "mixer",
        "transformer_decoder",
        "llama",
        "mixture_of_experts",
        "autoencoder",
        "normalising_flow",
    ),
    "validation": (
        "transformer_encoder",
        "mobilenet",
        "efficientnet",
        "graph_network",
        "dlrm",
    ),
    "test": (
        "unet",
        "diffusion_unet",
        "vit",
        "t5",
        "encoder_decoder",
        "densenet",
        "gru",
        "lstm_scan",
        "cached_decoding",
        "neural_ode",
        "alphatensor_matmul",
    ),
}

# Widths, batches and image sizes are usual ones; depths are cut until a compile takes
# seconds, since what competes for fast memory is in one layer or in neighbours.
_SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mlp": {
        "small": {"layers": 8, "width": 1536},
        "wide": {"layers": 4, "width": 4096, "batch": 4096},
        "deep": {"layers": 16, "width": 2048, "batch": 8192},
        "train": {"layers": 5, "width": 1024, "batch": 8192, "training": True},
        "train_wide": {"layers": 3, "width": 2560, "batch": 6144, "training": True},
    },
    "wide_and_deep": {
        "small": {"batch": 512, "fields": 8},
        "large": {"batch": 32768, "fields": 8},
        "train": {"fields": 6, "batch": 16384, "training": True},
    },
    "resnet": {
        "small": {"batch": 4, "blocks": (1, 1, 1, 1)},
        "large": {"batch": 64, "blocks": (1, 1, 1, 1)},
        "wide": {"batch": 32, "channels": 128, "blocks": (2, 1)},
        "large_images": {"batch": 8, "image": 512, "blocks": (1, 2)},
        "train": {"batch": 32, "blocks": (1, 1), "training": True},
    },
    "convnext": {
        "small": {"batch": 8, "blocks": (1, 1)},
        "train": {"batch": 32, "blocks": (1, 1), "widths": (96, 192), "training": True},
    },
    "mixer": {
        "small": {"batch": 16, "layers": 3},
        "wide": {"batch": 96, "width": 1024, "layers": 2},
        "train": {"batch": 64, "layers": 2, "training": True},
    },
    "transformer_decoder": {
        "small": {"layers": 2, "vocabulary": 8192},
        "long": {"batch": 1, "sequence": 4096, "layers": 2},
        "large": {"layers": 2, "width": 1024, "heads": 16, "batch": 32},
        "train": {"layers": 1, "vocabulary": 8192, "batch": 16, "training": True},
        "train_deep": {
            "layers": 4,
            "batch": 4,
            "vocabulary": 4096,
            "training": True,
        },
        "train_long": {
            "layers": 1,
            "batch": 2,
            "sequence": 2048,
            "vocabulary": 8192,
            "training": True,
        },
    },
    "llama": {
        "small": {"batch": 1, "sequence": 256, "vocabulary": 8192},
        "prefill": {"batch": 2, "sequence": 2048, "vocabulary": 32768},
        "prefill_wide": {
            "batch": 8,
            "sequence": 512,
            "width": 2048,
            "vocabulary": 8192,
        },
        "train_small": {
            "batch": 4,
            "sequence": 512,
            "vocabulary": 8192,
            "training": True,
        },
    },
    "mixture_of_experts": {
        "small": {"batch": 1, "sequence": 256, "vocabulary": 8192},
        "large": {"batch": 8, "sequence": 512, "vocabulary": 32768},
    },
    "autoencoder": {
        "small": {"batch": 16, "depth": 3},
        "large": {"batch": 128, "depth": 3},
        "train": {"batch": 32, "depth": 3, "training": True},
    },
    "normalising_flow": {
        "small": {"batch": 16, "levels": 2, "steps": 2},
        "large": {"batch": 256, "levels": 2, "steps": 3},
        "train": {"batch": 128, "levels": 1, "steps": 2, "training": True},
    },
    "transformer_encoder": {
        "small": {"layers": 2, "vocabulary": 4096},
        "large": {"layers": 2, "width": 1024, "heads": 16, "batch": 32},
        "train": {
            "layers": 1,
            "width": 1024,
            "heads": 16,
            "batch": 16,
            "vocabulary": 8192,
            "training": True,
        },
    },
    "mobilenet": {
        "small": {"batch": 8, "image": 256, "blocks": (1, 1, 1)},
        "large": {"batch": 128, "image": 256, "blocks": (1, 1, 1)},
        "train": {"batch": 32, "image": 256, "blocks": (1, 1), "training": True},
    },
    "efficientnet": {
        "small": {"batch": 16, "image": 256, "blocks": (1, 1, 1)},
        "train": {"batch": 16, "image": 256, "blocks": (1, 1), "training": True},
    },
    "graph_network": {
        "small": {"nodes": 2048, "edges": 16384, "rounds": 2},
        "large": {"nodes": 16384, "edges": 131072, "rounds": 3},
        "train": {"nodes": 16384, "edges": 131072, "rounds": 1, "training": True},
    },
    "dlrm": {
        "small": {"batch": 512, "fields": 8},
        "large": {"batch": 16384, "fields": 16},
        "train": {"batch": 8192, "fields": 8, "training": True},
    },
    "unet": {
        "small": {"channels": 32, "depth": 2},
        "large": {"batch": 8, "image": 256, "depth": 2},
        "train": {"batch": 4, "depth": 1, "image": 256, "training": True},
        "train_deep": {"batch": 4, "depth": 2, "image": 256, "training": True},
    },
    "diffusion_unet": {"small": {"batch": 16, "multipliers": (1,)}},
    "vit": {
        "small": {"batch": 4, "layers": 2},
        "large": {"batch": 128, "layers": 2},
        "train": {"batch": 64, "layers": 1, "training": True},
        "train_deep": {"batch": 32, "layers": 4, "training": True},
        "train_deepest": {"batch": 32, "layers": 16, "training": True},
    },
    "t5": {
        "small": {"layers": 2, "width": 512, "heads": 8},
        "train_deep": {"batch": 16, "layers": 3, "training": True},
        "train_deepest": {"batch": 16, "layers": 8, "training": True},
    },
    "encoder_decoder": {
        "large": {"batch": 32, "source": 512, "target": 512, "layers": 1},
        "train": {"batch": 16, "source": 256, "layers": 1, "training": True},
        "train_deep": {"batch": 16, "source": 256, "layers": 3, "training": True},
        "train_deepest": {"batch": 16, "source": 256, "layers": 9, "training": True},
    },
    "densenet": {
        "train": {"batch": 32, "image": 256, "blocks": (2,), "training": True},
        "train_deep": {
            "batch": 32,
            "image": 256,
            "blocks": (2, 2, 2),
            "training": True,
        },
    },
    "gru": {
        "large": {"batch": 512, "sequence": 128},
        "train": {"batch": 256, "layers": 1, "training": True},
    },
    "lstm_scan": {
        "small": {},
        "train": {"batch": 256, "sequence": 48, "layers": 1, "training": True},
    },
    "cached_decoding": {
        "long": {"batch": 4, "context": 16384, "layers": 2},
        "deep": {"layers": 16},
        "deepest": {"layers": 64},
    },
    "neural_ode": {
        "large": {"batch": 16384, "width": 1024, "hidden": 2048},
        "train": {"batch": 2048, "steps": 8, "training": True},
    },
    "alphatensor_matmul": {"small": {"size": 2048, "factorization": "strassen"}},
}

# The family of each pressured program; there it is called "pressured".
_PRESSURED: Mapping[str, str] = {
    "llama_training": "llama",
    "t5_training": "t5",
    **{name: name for name in pressured_programs.PRESSURED if name in FAMILIES},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusProgram:
    """A program of the corpus that can be lowered.

    name: "family/setting".
    split: "train", "validation" or "test".
    make: gives the function and the shapes of its arguments.
    """

    name: str
    family: str
    split: str
    make: functools.partial[Case]

    @property
    def setting(self) -> dict[str, Any]:
        """What is asked of the family, as JSON has it."""
        return json.loads(json.dumps(self.make.keywords))


def _programs() -> dict[str, CorpusProgram]:
    """All programs by name, split by split, family by family."""
    pressured = {
        _PRESSURED[name]: make for name, make in pressured_programs.PRESSURED.items()
    }
    programs = {}
    for split, families in SPLITS.items():
        for family in families:
            makers = {
                setting_name: functools.partial(FAMILIES[family], **setting)
                for setting_name, setting in _SETTINGS[family].items()
            }
            if family in pressured:
                makers["pressured"] = _with_defaults(pressured[family])
            for setting_name, make in makers.items():
                name = f"{family}/{setting_name}"
                programs[name] = CorpusProgram(
                    name=name, family=family, split=split, make=make
                )
    return programs


def _with_defaults(make: Callable[..., Case]) -> functools.partial[Case]:
    """The function given the defaults of its parameters, so that they can be read."""
    parameters = inspect.signature(make).parameters
    return functools.partial(
        make, **{name: p.default for name, p in parameters.items()}
    )


PROGRAMS: Mapping[str, CorpusProgram] = _programs()
