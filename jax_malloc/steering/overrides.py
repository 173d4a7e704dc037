"""Hints for the TPU compiler, as the override text protos that it takes as options.

The compiler assigns fast memory buffer by buffer, each to the best that the earlier
ones left over. What can be overridden is that order, and where in its slack a prefetch
starts; nothing can be dictated.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

SORT_ORDER_OPTION = "xla_tpu_msa_sort_order_overrides"
PREFETCH_OPTION = "xla_tpu_preferred_prefetch_overrides"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BufferOrder:
    """When a buffer gets its turn; without one it has value 0 and the compiler's order.

    name, index: of the defining instruction and its tuple index, as in the HLO.
    value: lower is earlier.
    parameter: its number, if it is a parameter of the program. It is matched by that:
      names of parameters come from those of the Python function's arguments, and are
      not the same however the function is wrapped.
    """

    name: str
    index: tuple[int, ...] = ()
    value: int
    parameter: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchStart:
    """Where the compiler first tries to start the prefetch of one operand.

    instruction: that uses the prefetched operand.
    operand: number of the operand.
    eagerness: as the compiler counts it: 0 as early as the data is there, 1 as late as
      still hides the copy.
    """

    instruction: str
    operand: int
    eagerness: float


def compiler_options(
    orders: Iterable[BufferOrder], prefetches: Iterable[PrefetchStart] = ()
) -> dict[str, str]:
    """The options that carry the hints; none for no hints.

    Raises: ValueError if a buffer has two values, or an eagerness is not in [0, 1].
    """
    texts = {
        SORT_ORDER_OPTION: sort_order_text(orders),
        PREFETCH_OPTION: prefetch_text(prefetches),
    }
    return {option: text for option, text in texts.items() if text}


def sort_order_text(orders: Iterable[BufferOrder]) -> str:
    """An `MsaSortOrderOverrides` text proto, one override per buffer.

    Raises: ValueError if a buffer has two values.
    """
    values: dict[str, int] = {}
    for order in orders:
        position = _position(order)
        if values.setdefault(position, order.value) != order.value:
            raise ValueError(
                f"buffer {order.name!r} {list(order.index)} has order values "
                f"{values[position]} and {order.value}; give it one."
            )
    return " ".join(
        f"overrides {{ hlo_position_matcher {{ {position} }} "
        f"override_options {{ assign_value: {value} }} }}"
        for position, value in values.items()
    )


def prefetch_text(prefetches: Iterable[PrefetchStart]) -> str:
    """A `PreferredPrefetchOverrides` text proto, one override per operand.

    Raises: ValueError if an eagerness is not in [0, 1].
    """
    overrides = []
    for start in prefetches:
        if not 0 <= start.eagerness <= 1:
            raise ValueError(
                f"prefetch of operand {start.operand} of {start.instruction!r} has "
                f"eagerness {start.eagerness}; it must be 0 (early) to 1 (late)."
            )
        overrides.append(
            "overrides { hlo_operand_filter { instruction_name_regex: "
            f"{quoted(full_match(start.instruction))} operand_number: {start.operand} "
            f"}} override_options {{ prefetch_eagerness: {start.eagerness:g} }} }}"
        )
    return " ".join(overrides)


def full_match(name: str) -> str:
    """The RE2 pattern that only this name matches in full.

    Source: RE2::QuoteMeta: a backslash before every ASCII character but word
      characters.
    """
    return re.sub(r"([^\w])", r"\\\1", name, flags=re.ASCII)


def quoted(text: str) -> str:
    """A string of a text proto."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _position(order: BufferOrder) -> str:
    if order.parameter is not None:
        # Parameters of loop bodies, with a tuple for a type, have numbers too.
        line = rf"%?[^ ]+ = [^( ][^ ]* parameter\({order.parameter}\).*"
        return f"instruction_regex: {quoted(line)}"
    position = f"instruction_name_regex: {quoted(full_match(order.name))}"
    if order.index:
        numbers = " ".join(f"index: {i}" for i in order.index)
        position += f" tuple_index {{ {numbers} }}"
    return position
