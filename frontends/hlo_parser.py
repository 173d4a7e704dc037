"""Scheduled HLO text to a tree: module, computations, instructions.

A tokenizer, one compiled expression applied at the current position, and a recursive
parser above it. What later stages may not need (literals, sharding, backend_config) is
skipped over by matching brackets and kept as text.

    module       HloModule NAME {, ATTRIBUTE}  {TABLE}  {computation}
    computation  [ENTRY] NAME [(PARAMETERS) -> TYPE] { {instruction} }
    instruction  [ROOT] NAME = TYPE OPCODE(OPERANDS) {, ATTRIBUTE}
    attribute    KEY=VALUE, with VALUE a {...}, a "string" or a word, or a word and a
                 {...} after it, as in replica_groups=mesh['x'=4] {'x'}
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from typing import NoReturn

from frontends import hlo_types
from frontends.hlo_module import Computation, Instruction, Module, unquote

# Possessive (++, *+) where backtracking could only waste time.
_SPACE = r"(?:\s++|/\*.*?\*/|//[^\n]*+)*+"
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_SPACES = re.compile(_SPACE, re.DOTALL)
_TOKEN = re.compile(
    rf"""{_SPACE}(?:
      (?P<array>[a-z]\w*\[[^\]\n]*\](?:\{{[^{{}}\n]*\}})?)
    | (?P<name>%[\w.\-]+|[A-Za-z_][\w.\-]*)
    | (?P<arrow>->)
    | (?P<mark>[(){{}}=,])
    | (?P<end>\Z))""",
    re.VERBOSE | re.DOTALL,
)
_ATTRIBUTE = re.compile(
    rf"""{_SPACE},{_SPACE}([\w.\-]+)=(?:
      (?P<brace>\{{)
    | (?P<string>{_STRING})
    | (?P<word>(?:\[[^\]\n]*\]|\([^()\n]*\)|[^\s,{{}}()\[\]"])++)
      (?P<tail>[\ ]*\{{)?)""",
    re.VERBOSE | re.DOTALL,
)
_BRACKETS = {
    "{": re.compile(rf'[^"{{}}]*+(?:{_STRING}[^"{{}}]*+)*+([{{}}])', re.DOTALL),
    "(": re.compile(rf'[^"()]*+(?:{_STRING}[^"()]*+)*+([()])', re.DOTALL),
}
# Where the printer lists file names and stack frames, one numbered line each.
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_TABLE_LINES = re.compile(r"(?:\s*+\d[^\n]*+)*+")
_LITERALS = ("constant", "parameter")
_MAX_DEPTH = 50


def parse(text: str, *, where: str = "HLO text") -> Module:
    """The tree of a scheduled HLO text.

    Args:
      text: what `--xla_dump_to` writes after scheduling, or `compiled.as_text()`.
      where: what to call the text in messages, a path say.
    Raises:
      ValueError: with `where` and a line number, if the text is empty, cut off, not
        HLO, or not scheduled.
    """
    return _Parser(text, where).module()


class _Parser:
    """Position in the text, and one method per rule of the grammar."""

    def __init__(self, text: str, where: str):
        self.text, self.where, self.at = text, where, 0
        self.line_ends = [match.start() for match in re.finditer("\n", text)]
        self.computations: dict[str, Computation] = {}

    def line(self, position: int) -> int:
        return bisect.bisect_left(self.line_ends, position) + 1

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        position = self.at if position is None else position
        raise ValueError(f"{self.where}, line {self.line(position)}: {message}")

    def token(self, *wanted: str, what: str) -> str:
        """The next token, which must be one of `wanted`, a kind or a mark."""
        match = _TOKEN.match(self.text, self.at)
        if match is not None:
            kind = match.lastgroup
            token = match.group(kind)
            if kind in wanted or token in wanted:
                self.at = match.end()
                return token
            self.at = match.start(kind)
        self.unexpected(what)

    def peek(self) -> tuple[str, str]:
        """Kind and text of the next token, without taking it."""
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            return "", ""
        return match.lastgroup, match.group(match.lastgroup)

    def unexpected(self, what: str) -> NoReturn:
        self.at = _SPACES.match(self.text, self.at).end()
        found = self.text[self.at : self.at + 200].strip()
        if not found:
            self.fail(
                f"the text ends where {what} should follow. It looks truncated: copy "
                "or dump it again."
            )
        found = found.split("\n")[0][:40]
        self.fail(
            f"found {found!r} where {what} should stand. The text looks damaged: dump "
            "it again."
        )

    def skip(self, bracket: str, opened_at: int) -> int:
        """Position after the bracket that closes the one before `self.at`."""
        find = _BRACKETS[bracket].match
        depth, at = 1, self.at
        while depth:
            match = find(self.text, at)
            if match is None:
                self.fail(
                    f"the {bracket!r} here is never closed. The text looks truncated: "
                    "copy or dump it again.",
                    opened_at,
                )
            at = match.end()
            depth += 1 if match.group(1) == bracket else -1
        return at

    def module(self) -> Module:
        if not self.text.strip():
            self.fail(
                "the text is empty, expected 'HloModule ...'. Was the dump written to "
                "another file?"
            )
        kind, word = self.peek()
        if (kind, word) != ("name", "HloModule"):
            self.fail(
                f"not HLO text: it begins with {self.text.strip()[:24]!r}, expected "
                "'HloModule'. Pass a dump of --xla_dump_to or compiled.as_text(); "
                "StableHLO goes to the stablehlo frontend."
            )
        self.token("name", what="'HloModule'")
        name = self.token("name", what="the module's name").lstrip("%")
        attributes, _ = self.attributes()
        if attributes.get("is_scheduled") != "true":
            self.fail(
                f"module {name!r} is not scheduled (no is_scheduled=true), so its ops "
                "have no order. Dump it after scheduling (*after_optimizations.txt), "
                "or use compiled.as_text().",
                0,
            )
        entry = None
        while (token := self.peek())[0] != "end":
            if token[1] in _TABLES:
                self.token("name", what="a table")
                self.at = _TABLE_LINES.match(self.text, self.at).end()
                continue
            is_entry = token[1] == "ENTRY"
            computation = self.computation()
            if is_entry:
                entry = computation
        if entry is None:
            self.fail(
                f"module {name!r} has {len(self.computations)} computations but no "
                "ENTRY. The text looks truncated: copy or dump it again."
            )
        return Module(name, attributes, self.computations, entry, self.where)

    def computation(self) -> Computation:
        start = self.at
        if self.peek()[1] == "ENTRY":
            self.token("name", what="ENTRY")
        name = self.token("name", what="a computation").lstrip("%")
        start = self.at
        if name in self.computations:
            self.fail(f"a second computation is named {name!r}; names must be unique.")
        if self.peek()[1] == "(":
            self.token("(", what="'('")
            self.at = self.skip("(", start)
            self.token("arrow", what="'->'")
            self.type()
        self.token("{", what=f"the body of computation {name!r}")
        instructions: dict[str, Instruction] = {}
        while self.peek()[1] != "}":
            inst = self.instruction(instructions, name)
            instructions[inst.name] = inst
        self.token("}", what="'}'")
        self.attributes()  # execution_thread
        computation = self.checked(name, tuple(instructions.values()), start)
        self.computations[name] = computation
        return computation

    def checked(
        self, name: str, instructions: tuple[Instruction, ...], start: int
    ) -> Computation:
        """The computation, with its root and its parameters by number."""
        roots = [inst for inst in instructions if inst.is_root] or instructions[-1:]
        if len(roots) != 1:
            self.fail(
                f"computation {name!r} has {len(roots)} roots, expected one. The text "
                "looks damaged: dump it again.",
                start,
            )
        parameters: dict[str, Instruction] = {}
        for inst in instructions:
            if inst.opcode == "parameter":
                parameters[inst.literal.strip()] = inst
        ordered = tuple(parameters.get(str(i)) for i in range(len(parameters)))
        count = sum(inst.opcode == "parameter" for inst in instructions)
        if None in ordered or count != len(ordered):
            self.fail(
                f"the {count} parameters of computation {name!r} are numbered "
                f"{', '.join(parameters)}, expected 0 to {count - 1} once each. "
                "The text looks damaged: dump it again.",
                start,
            )
        return Computation(name, instructions, roots[0], ordered, self.line(start))

    def instruction(
        self, earlier: Mapping[str, Instruction], computation: str
    ) -> Instruction:
        name = self.token("name", what=f"an instruction of {computation!r}")
        is_root = name == "ROOT"
        if is_root:
            name = self.token("name", what="the root's name")
        start, name = self.at, name.lstrip("%")
        if name in earlier:
            self.fail(f"a second instruction is named {name!r}; names must be unique.")
        self.token("=", what=f"'=' after {name!r}")
        type_ = self.type()
        opcode = self.token("name", what=f"the opcode of {name!r}")
        self.token("(", what=f"'(' after {opcode!r}")
        literal, operands = "", ()
        if opcode in _LITERALS:
            begin = self.at
            self.at = self.skip("(", start)
            literal = self.text[begin : self.at - 1]
        else:
            operands = self.operands(name, earlier)
        operands_end = self.at
        attributes, positions = self.attributes()
        inst = Instruction(
            name,
            opcode,
            type_,
            operands,
            literal,
            attributes,
            is_root,
            self.line(start),
            operands_end,
            positions.get("frontend_attributes", -2) + 1,
        )
        for called in inst.called:
            if called not in self.computations:
                self.fail(
                    f"{name!r} calls {called!r}, which no computation before it is "
                    "named. The text looks truncated: copy or dump it again.",
                    start,
                )
        return inst

    def operands(
        self, name: str, earlier: Mapping[str, Instruction]
    ) -> tuple[str, ...]:
        operands: list[str] = []
        while self.peek()[1] != ")":
            if operands:
                self.token(",", what=f"',' between the operands of {name!r}")
            if self.peek()[0] == "array" or self.peek()[1] == "(":
                self.type()  # a printer option repeats the operand's type
            operand = self.token("name", what=f"an operand of {name!r}").lstrip("%")
            if operand not in earlier:
                self.fail(
                    f"{name!r} reads {operand!r}, which no line before it defines. The "
                    "module looks unscheduled or cut; dump it again after scheduling."
                )
            operands.append(operand)
        self.token(")", what="')'")
        return tuple(operands)

    def type(self, depth: int = 0) -> hlo_types.Type:
        start = self.at
        token = self.token("array", "(", what="a type")
        if token != "(":
            array = hlo_types.parse_array_type(token)
            if array is None:
                self.fail(
                    f"{token!r} is not an array type with a known element type and "
                    "bounded dimensions.",
                    start,
                )
            return array
        if depth == _MAX_DEPTH:
            self.fail(f"a tuple type is nested more than {_MAX_DEPTH} deep.")
        parts: list[hlo_types.Type] = []
        while self.peek()[1] != ")":
            if parts:
                self.token(",", what="',' in a tuple type")
            parts.append(self.type(depth + 1))
        self.token(")", what="')'")
        return tuple(parts)

    def attributes(self) -> tuple[dict[str, str], dict[str, int]]:
        """The attributes that follow, and where the text of each begins."""
        attributes: dict[str, str] = {}
        positions: dict[str, int] = {}
        while match := _ATTRIBUTE.match(self.text, self.at):
            key, opened_at = match.group(1), match.start(1)
            begin = match.end(1) + 1
            self.at = match.end()
            if match.group("brace") or match.group("tail"):
                self.at = self.skip("{", opened_at)
            value = self.text[begin : self.at]
            attributes[key] = unquote(value) if match.group("string") else value
            positions[key] = begin
        if self.peek()[1] == ",":
            self.token(",", what="','")
            self.unexpected("an attribute")
        return attributes, positions
