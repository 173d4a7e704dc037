"""A flag whose value is an `Accelerator`."""

from __future__ import annotations

from absl import flags

from hwmodel import presets
from hwmodel.accelerator import Accelerator


class AcceleratorParser(flags.ArgumentParser):
    """Takes the name of a preset, or a .json or .toml file; refuses anything else.

    ...
    """

    syntactic_help = "preset, or .json or .toml file"

    def parse(self, argument: str | Accelerator) -> Accelerator:
        return presets.get(argument)

    def flag_type(self) -> str:
        return "accelerator"


class NameSerializer(flags.ArgumentSerializer):
    """Shows an accelerator by its name, as in the default of a flag."""

    def serialize(self, value: Accelerator) -> str:
        return value.name
