"""The tree of an HLO text: module, computations, instructions."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from frontends import hlo_types

_OP_NAME = re.compile(r'op_name=("(?:[^"\\]|\\.)*")', re.DOTALL)
_CYCLES = re.compile(r'"estimated_cycles":"?(\d{1,18})"')
_CALL = re.compile(r"%?([\w.\-]+)")
_CALLING = (
    "calls",
    "to_apply",
    "condition",
    "body",
    "branch_computations",
    "true_computation",
    "false_computation",
    "select",
    "scatter",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation.

    operands: names of the instructions that it reads.
    literal: what stands between the brackets of a constant or parameter.
    attributes: the text of each attribute, without the quotes of a string.
    line: line number in the text, from 1.
    operands_end: position in the text right after the operands' closing bracket.
    frontend_attributes_at: position right after the opening brace of that attribute,
      -1 without one.
    """

    name: str
    opcode: str
    type: hlo_types.Type
    operands: tuple[str, ...]
    literal: str
    attributes: Mapping[str, str]
    is_root: bool
    line: int
    operands_end: int
    frontend_attributes_at: int

    @property
    def op_name(self) -> str:
        """The user's own name for it, from the metadata."""
        match = _OP_NAME.search(self.attributes.get("metadata", ""))
        return unquote(match.group(1)) if match else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, in the order they are written."""
        return tuple(
            name
            for key in _CALLING
            if key in self.attributes
            for name in _CALL.findall(self.attributes[key])
        )

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's own estimate of one execution."""
        match = _CYCLES.search(self.attributes.get("backend_config", ""))
        return int(match.group(1)) if match else None

    @property
    def reused_operands(self) -> dict[int, int]:
        """Operand that the compiler lets each array of the result be written over.

        By number of the array; an operand is given to one array only.
        """
        lists = self.backend_config().get("aliasing_operands")
        groups = lists.get("lists") if isinstance(lists, dict) else None
        found: dict[int, int] = {}
        for group in groups if isinstance(groups, list) else ():
            indices = group.get("indices") if isinstance(group, dict) else None
            texts = map(str, indices if isinstance(indices, list) else ())
            numbers = [int(text) for text in texts if text.isdecimal()]
            # Numbers past the operands are those of the result's arrays.
            operands = [k for k in numbers if k < len(self.operands)]
            results = [k for k in numbers if k >= len(self.operands)]
            if operands and results and operands[0] not in found.values():
                found.setdefault(results[0] - len(self.operands), operands[0])
        return found

    def backend_config(self) -> dict[str, Any]:
        """The compiler's own notes on it; empty if there are none in JSON."""
        try:
            config = json.loads(self.attributes.get("backend_config", "{}"))
        except (ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in schedule order.

    parameters: its parameter instructions by number.
    """

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction
    parameters: tuple[Instruction, ...]
    line: int

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {inst.name: inst for inst in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """`(instruction, operand number)` of every use of each instruction."""
        users: dict[str, list[tuple[Instruction, int]]] = {}
        for inst in self.instructions:
            for number, operand in enumerate(inst.operands):
                users.setdefault(operand, []).append((inst, number))
        return users

    def operand(self, inst: Instruction, number: int) -> Instruction | None:
        """The instruction that operand `number` names; None if there are fewer."""
        if number >= len(inst.operands):
            return None
        return self.by_name[inst.operands[number]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole HLO text.

    computations: by name, each after those that it calls.
    where: what to call the text in messages.
    """

    name: str
    attributes: Mapping[str, str]
    computations: Mapping[str, Computation]
    entry: Computation
    where: str

    def fail(self, line: int, message: str) -> NoReturn:
        """Raises the ValueError that says `message` about a line of the text."""
        raise ValueError(f"{self.where}, line {line}: {message}")


def unquote(text: str) -> str:
    """The contents of a quoted string, without the escapes."""
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
