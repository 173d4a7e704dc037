"""How often a while loop of an HLO module runs.

The compiler's own count if the text holds it, else that of a loop that counts up or
down by a constant to a constant bound: what `lax.scan` and `lax.fori_loop` become.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from frontends.hlo_module import Computation, Instruction, Module

# Values pass through these unchanged, as far as a loop counter is concerned.
_TRANSPARENT = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape")
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


class _Scalar(NamedTuple):
    """What a scalar is: a constant, or an element of the computation's parameter."""

    constant: int | None = None
    element: int | None = None


def trip_count(
    module: Module, computation: Computation, loop: Instruction
) -> float | None:
    """Iterations of the while instruction `loop` of `computation`; None if unknown."""
    known = loop.backend_config().get("known_trip_count")
    count = known.get("n") if isinstance(known, dict) else known
    if str(count).isdigit():
        return float(count)
    condition = module.computations.get(_called(loop, "condition"))
    body = module.computations.get(_called(loop, "body"))
    if condition is None or body is None:
        return None
    return _counted(module, computation, loop, condition, body)


def _called(loop: Instruction, key: str) -> str:
    return loop.attributes.get(key, "").lstrip("%")


def _counted(
    module: Module,
    computation: Computation,
    loop: Instruction,
    condition: Computation,
    body: Computation,
) -> float | None:
    compare, sides = _outer_operation(module, condition, condition.root)
    if compare.opcode != "compare" or len(sides) != 2:
        return None
    direction = compare.attributes.get("direction", "")
    counter, bound = sides
    if counter.element is None:
        counter, bound = bound, counter
        direction = _MIRRORED.get(direction, "")
    if counter.element is None:
        return None
    last = bound.constant
    if bound.element is not None and _next(body, bound.element) == bound:
        last = _initial(computation, loop, bound.element)
    first = _initial(computation, loop, counter.element)
    step = _step(module, body, counter.element)
    if first is None or last is None or not step:
        return None
    steps = (last - first) / step
    if direction in ("LE", "GE"):
        steps = math.floor(steps) + 1
    forward = {"LT": step > 0, "LE": step > 0, "GT": step < 0, "GE": step < 0}
    if not forward.get(direction, direction == "NE" and steps == int(steps) >= 0):
        return None
    return float(max(0, math.ceil(steps)))


def _initial(computation: Computation, loop: Instruction, element: int) -> int | None:
    """The constant that an element of the loop's state begins with."""
    state = computation.operand(loop, 0)
    if state is None or state.opcode != "tuple" or element >= len(state.operands):
        return None
    return _scalar(computation, computation.operand(state, element)).constant


def _next(body: Computation, element: int) -> _Scalar:
    """What an element of the loop's state becomes."""
    if body.root.opcode != "tuple" or element >= len(body.root.operands):
        return _Scalar()
    return _scalar(body, body.operand(body.root, element))


def _step(module: Module, body: Computation, element: int) -> int | None:
    """The constant by which an iteration changes an element of the state."""
    if body.root.opcode != "tuple" or element >= len(body.root.operands):
        return None
    source = _source(body, body.operand(body.root, element))
    operation, sides = _outer_operation(module, body, source)
    if operation.opcode not in ("add", "subtract") or len(sides) != 2:
        return None
    left, right = sides
    if operation.opcode == "add" and left.constant is not None:
        left, right = right, left
    if left.element != element or right.constant is None:
        return None
    return right.constant if operation.opcode == "add" else -right.constant


def _outer_operation(
    module: Module, computation: Computation, inst: Instruction
) -> tuple[Instruction, list[_Scalar]]:
    """The instruction, or the root of the fusion it is, and its operands."""
    if inst.opcode != "fusion" or not inst.called:
        operands = [computation.by_name[name] for name in inst.operands]
        return inst, [_scalar(computation, operand) for operand in operands]
    fused = module.computations[inst.called[0]]
    scalars = []
    for name in fused.root.operands:
        operand = _source(fused, fused.by_name[name])
        if operand.opcode == "parameter":
            outer = computation.operand(inst, fused.parameters.index(operand))
            scalars.append(_scalar(computation, outer) if outer else _Scalar())
        else:
            scalars.append(_scalar(fused, operand))
    return fused.root, scalars


def _source(computation: Computation, inst: Instruction) -> Instruction:
    while inst.opcode in _TRANSPARENT and inst.operands:
        inst = computation.operand(inst, 0)
    return inst


def _scalar(computation: Computation, inst: Instruction) -> _Scalar:
    inst = _source(computation, inst)
    literal = inst.literal.strip()
    if inst.opcode == "constant" and re.fullmatch(r"-?\d{1,19}", literal):
        return _Scalar(constant=int(literal))
    if inst.opcode == "get-tuple-element":
        source = computation.operand(inst, 0)
        index = inst.attributes.get("index", "")
        if source is not None and source.opcode == "parameter" and index.isdecimal():
            return _Scalar(element=int(index))
    return _Scalar()
