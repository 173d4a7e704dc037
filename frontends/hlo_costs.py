"""What an HLO instruction costs: the bytes it really touches, and its FLOPs.

A gather reads less than its operand, and an update in place writes less than its
result. A fusion is followed inside: through bitcasts and nested fusions to the
instructions that use its parameters.
"""

from __future__ import annotations

import dataclasses
import math
import re

from frontends import hlo_opcodes, hlo_types
from frontends.hlo_module import Computation, Instruction, Module

_SLICING = ("gather", "dynamic-slice", "slice")
_DIM_LABELS = re.compile(r"(\w+)_(\w+)->(\w+)")
_ALIASING = re.compile(r"\{([\d,\s]*)\}:\s*\((\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Arithmetic of one execution; the fields are those of `program.Op`."""

    matmul_flops: float = 0.0
    matmul_dtype: str = ""
    vector_flops: float = 0.0
    transcendentals: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both; of two element types, that of the larger matrix product."""
        larger = max(self, other, key=lambda work: work.matmul_flops)
        return Work(
            self.matmul_flops + other.matmul_flops,
            larger.matmul_dtype,
            self.vector_flops + other.vector_flops,
            self.transcendentals + other.transcendentals,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How an instruction writes one array of its result.

    written_bytes: what it really writes.
    in_place_of: number of the operand whose place it takes over; None if it has a
      place of its own.
    hands_on: whether it is that operand, unchanged.
    """

    written_bytes: int
    in_place_of: int | None = None
    hands_on: bool = False


class Costs:
    """The costs of the instructions of one module."""

    def __init__(self, module: Module):
        self.module = module
        self._work: dict[str, Work] = {}

    def read_bytes(self, inst: Instruction, operand: int, full: int) -> int:
        """Bytes that `inst` reads of operand `operand`, which holds `full` bytes."""
        if operand == 0 and inst.opcode in _SLICING:
            return min(full, hlo_types.size_bytes(inst.type))
        if operand == 0 and inst.opcode == "dynamic-update-slice":
            return 0
        body = self._fused(inst)
        if body is None or operand >= len(body.parameters):
            return full
        if body.root.attributes.get("custom_call_target") == "AsyncCollectiveDone":
            return 0
        total, todo = 0, [body.parameters[operand]]
        while todo:
            value = todo.pop()
            if value is body.root:
                return full
            for user, number in body.users.get(value.name, ()):
                if user.opcode in ("bitcast", "get-tuple-element"):
                    todo.append(user)
                elif _reads_part(body, user, number):
                    total += self.read_bytes(user, number, full)
                elif user is not body.root or not self._hands_on(inst, number, operand):
                    return full
        return min(full, total)

    def result(
        self, computation: Computation, inst: Instruction, number: int, full: int
    ) -> Result:
        """How `inst` writes array `number` of its result, of `full` bytes.

        Args:
          computation: the one that holds `inst`.
          number: counts the arrays of a (nested) tuple result in order.
        """
        if inst.opcode == "dynamic-update-slice" and len(inst.operands) > 1:
            update = computation.operand(inst, 1)
            return Result(min(full, hlo_types.size_bytes(update.type)), 0)
        if inst.opcode == "scatter" and number < len(inst.operands):
            return Result(full, number)
        if "output_to_operand_aliasing" in inst.attributes:
            operand = _aliased_operand(inst, number)
            return Result(full, operand, self._hands_on(inst, number, operand))
        body = self._fused(inst)
        if body is None:
            return Result(full)
        root = body.root
        if root.opcode == "tuple":
            if number >= len(root.operands):
                return Result(full)
            root, number = body.operand(root, number), 0
        root = _through_bitcasts(body, root)
        if root.opcode not in ("fusion", "dynamic-update-slice", "scatter"):
            return Result(full)
        inner = self.result(body, root, number, full)
        if inner.in_place_of is None:
            return Result(full)
        source = _through_bitcasts(body, body.operand(root, inner.in_place_of))
        if source.opcode != "parameter":
            return Result(full)
        return Result(inner.written_bytes, body.parameters.index(source))

    def work(self, computation: Computation, inst: Instruction) -> Work:
        """FLOPs of one execution of `inst`, those of a computation it fuses included.

        Loops, branches and calls count nothing: their bodies are scheduled.
        """
        elements = hlo_types.num_elements(inst.type)
        opcode = inst.opcode
        if opcode in ("convolution", "dot"):
            return self._matmul(computation, inst)
        if opcode in hlo_opcodes.TRANSCENDENTAL:
            return Work(transcendentals=float(elements))
        if opcode in hlo_opcodes.ELEMENTWISE:
            return Work(vector_flops=float(elements))
        operand = computation.operand(inst, hlo_opcodes.REDUCING.get(opcode, 0))
        if opcode == "reduce-window":
            window = re.search(r"\bsize=([\dx]+)", inst.attributes.get("window", ""))
            sizes = _numbers(window.group(1)) if window else ()
            return Work(vector_flops=float(elements * math.prod(sizes)))
        if opcode in hlo_opcodes.REDUCING and operand is not None:
            return Work(vector_flops=float(hlo_types.num_elements(operand.type)))
        if opcode == "custom-call":
            return _kernel_work(computation, inst)
        if opcode == "fusion" or opcode.endswith("-start"):
            bodies = [self.module.computations[name] for name in inst.called[:1]]
            return sum((self._body_work(body) for body in bodies), Work())
        return Work()

    def _hands_on(self, inst: Instruction, number: int, operand: int | None) -> bool:
        """Whether result `number` of a fusion is operand `operand`, unchanged.

        As in the fusions that start, go along with and end a collective.
        """
        body = self._fused(inst)
        if body is None or operand is None or operand >= len(body.parameters):
            return False
        if _aliased_operand(inst, number) != operand:
            return False
        if body.root.opcode != "tuple":
            target = body.root.attributes.get("custom_call_target", "")
            return target.startswith("AsyncCollective")
        part = body.operand(body.root, number)
        return part is not None and (
            _through_bitcasts(body, part) is body.parameters[operand]
        )

    def _body_work(self, body: Computation) -> Work:
        if body.name not in self._work:
            parts = (self.work(body, inst) for inst in body.instructions)
            self._work[body.name] = sum(parts, Work())
        return self._work[body.name]

    def _fused(self, inst: Instruction) -> Computation | None:
        if inst.opcode != "fusion" or not inst.called:
            return None
        return self.module.computations[inst.called[0]]

    def _matmul(self, computation: Computation, inst: Instruction) -> Work:
        lhs, rhs = computation.operand(inst, 0), computation.operand(inst, 1)
        for array in (inst, lhs, rhs):
            if array is None or not isinstance(array.type, hlo_types.ArrayType):
                self.module.fail(
                    inst.line,
                    f"{inst.opcode} {inst.name!r} needs two arrays and gives one.",
                )
        if inst.opcode == "dot":
            contracted = [
                lhs.type.dims[d]
                for d in _numbers(inst.attributes.get("lhs_contracting_dims", ""))
                if d < len(lhs.type.dims)
            ]
            multiplied = float(inst.type.num_elements * math.prod(contracted))
        else:
            multiplied = _convolution_products(lhs.type, rhs.type, inst)
        bits = {t.dtype: hlo_types.element_bits(t.dtype) for t in (lhs.type, rhs.type)}
        return Work(2 * multiplied, min(bits, key=bits.get))


def _kernel_work(computation: Computation, inst: Instruction) -> Work:
    """What the author of a Pallas kernel said that it costs."""
    kernel = inst.backend_config().get("custom_call_config")
    estimate = kernel.get("cost_estimate") if isinstance(kernel, dict) else None
    if not isinstance(estimate, dict):
        return Work()
    flops, transcendentals = (
        float(number) if (number := str(estimate.get(key, ""))).isdecimal() else 0.0
        for key in ("flops", "transcendentals")
    )
    operand = computation.operand(inst, 0)
    array = None if operand is None else operand.type
    dtype = array.dtype if isinstance(array, hlo_types.ArrayType) else ""
    return Work(flops, dtype if flops else "", transcendentals=transcendentals)


def _convolution_products(
    lhs: hlo_types.ArrayType, rhs: hlo_types.ArrayType, inst: Instruction
) -> float:
    """Multiplications of a convolution.

    A window that hangs over the edge by less than its size counts in full: a matrix
    unit multiplies the padding too. A wider one, and a dilated operand, is how a
    batched product is written, and counts only where it meets elements.
    """
    labels = _DIM_LABELS.search(inst.attributes.get("dim_labels", ""))
    if labels is None:
        return 0.0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    ranks = (len(lhs.dims), len(rhs.dims), len(inst.type.dims))
    if ranks != tuple(map(len, labels.groups())) or "i" not in rhs_labels:
        return 0.0
    products = float(inst.type.num_elements * rhs.dims[rhs_labels.index("i")])
    for d in range(ranks[0] - 2):
        places = [text.find(str(d)) for text in (lhs_labels, rhs_labels, out_labels)]
        if -1 in places:
            return 0.0
        in_size, size, out_size = (
            t.dims[p] for t, p in zip((lhs, rhs, inst.type), places, strict=True)
        )
        low, high = _window(inst, "pad", d, (0, 0))
        strides = tuple(
            max(1, *_window(inst, key, d, (1,)))
            for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        if strides[1] == 1 and (size == 1 or low + high < size):
            products *= size
            continue
        met = _meetings(in_size, size, out_size, low, strides)
        products *= met / max(out_size, 1)
    return products


def _meetings(
    in_size: int, size: int, out_size: int, low: int, strides: tuple[int, int, int]
) -> int:
    """Pairs of an output and a window position that meet an element of the input.

    Output `o` and window position `w` look at place `o * stride + w * window_dilation -
    low` of an input with `dilation - 1` holes between its elements.
    """
    stride, dilation, window_dilation = strides
    common = math.gcd(stride, dilation)
    period = dilation // common
    inverse = pow(stride // common, -1, period) if period > 1 else 0
    met = 0
    for position in range(size):
        shift = position * window_dilation - low
        if shift % common:
            continue
        # Outputs first, first + period, ... fall on an element rather than a hole.
        first = -shift // common * inverse % period
        begin = max(0, -(shift // stride))
        end = min(out_size, ((in_size - 1) * dilation - shift) // stride + 1)
        met += max(0, (end - 1 - first) // period - (begin - 1 - first) // period)
    return met


def _window(
    inst: Instruction, key: str, dimension: int, default: tuple[int, ...]
) -> tuple[int, ...]:
    """Numbers of one field of `window={size=3x3 pad=1_1x1_1}` for one dimension."""
    match = re.search(rf"\b{key}=(\S+)", inst.attributes.get("window", ""))
    fields = match.group(1).rstrip("}").split("x") if match else []
    numbers = _numbers(fields[dimension]) if dimension < len(fields) else ()
    return numbers if len(numbers) == len(default) else default


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"-?\d+", text))


def _through_bitcasts(computation: Computation, inst: Instruction) -> Instruction:
    """The instruction whose value `inst` only looks at in another shape."""
    while inst.opcode == "bitcast" and inst.operands:
        inst = computation.operand(inst, 0)
    return inst


def _reads_part(body: Computation, inst: Instruction, operand: int) -> bool:
    """Whether an instruction of a fusion may read less than all of an operand."""
    if inst.opcode == "fusion":
        return True
    if inst.opcode == "dynamic-update-slice":
        return operand == 0 and _is_result(body, inst)
    return operand == 0 and inst.opcode in _SLICING


def _is_result(body: Computation, inst: Instruction) -> bool:
    """Whether nothing in the computation reads it again: it only gets returned."""
    return all(
        (user is body.root and user.opcode == "tuple")
        or (user.opcode == "bitcast" and _is_result(body, user))
        for user, _ in body.users.get(inst.name, ())
    )


def _aliased_operand(inst: Instruction, number: int) -> int | None:
    """The operand whose place `output_to_operand_aliasing` gives to a result."""
    aliasing = inst.attributes.get("output_to_operand_aliasing", "")
    for output, operand in _ALIASING.findall(aliasing):
        if (_numbers(output) or (0,))[0] == number and int(operand) < len(
            inst.operands
        ):
            return int(operand)
    return None
