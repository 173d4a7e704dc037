"""Which values of a schedule share one place in memory.

Loop state, branch results and updates in place should: a compiled module holds the
copies that make it possible. Whether it is, is checked by walking the schedule: whoever
reads a value must find it, not a later one, in its place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from frontends import hlo_layout
from frontends.hlo_module import Module
from frontends.hlo_schedule import Join, Schedule

_ALIAS = re.compile(r"\{([\d,\s]*)\}:\s*\((\d{1,9}),\s*\{([\d,\s]*)\}")
CONFLICT = "shares a place with a value that is needed at the same time"


@dataclasses.dataclass(frozen=True)
class Places:
    """A schedule and the places of its values.

    place_of: for every value, the number of one of the values in its place.
    conflicts: places in which one value overwrites another that is still needed, or
      that would be one place if that did not happen.
    """

    schedule: Schedule
    place_of: list[int]
    conflicts: frozenset[int]


def find_places(module: Module, fast_space: int) -> Places:
    """Lays the module out and finds the places of all values.

    A copy of the compiler's between memories becomes an op where its source lives on
    beside it. A value that would overwrite loop state too early keeps a place of its
    own; both places are then among the conflicts.

    Args:
      fast_space: the memory space that takes tensors beside slow memory.
    """
    split: set[str] = set()
    dropped: dict[str, None] = {}
    immutable = _immutable(module)
    while True:
        schedule = hlo_layout.lay_out(module, fast_space, frozenset(split))
        joins = [join for join in schedule.joins if join.key not in dropped]
        place_of = _union(len(schedule.values), joins)
        conflicts, altered = _conflicts(schedule, place_of, immutable)
        progress = False
        for place in sorted(conflicts | altered):
            joined = [join for join in joins if place_of[join.first] == place]
            progress |= _split_copy(joined, split) or (
                place in conflicts and _drop_join(joined, dropped)
            )
        if not progress:
            break
    for join in schedule.joins:
        if join.key in dropped:
            conflicts |= {place_of[join.first], place_of[join.second]}
    return Places(schedule, place_of, frozenset(conflicts))


def donated(module: Module) -> dict[tuple[int, tuple[int, ...]], tuple[int, ...]]:
    """Parameter number and tuple index of donated inputs, with the output's index."""
    text = module.attributes.get("input_output_alias", "")
    return {
        (int(number), _index(path)): _index(output)
        for output, number, path in _ALIAS.findall(text)
    }


def _index(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _immutable(module: Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Names of the parameters that the caller wants back as they were."""
    given = donated(module)
    return frozenset(
        (inst.name, index)
        for number, inst in enumerate(module.entry.parameters)
        for index, _ in hlo_layout.leaves(inst.type)
        if (number, index) not in given
    )


def _union(size: int, joins: Iterable[Join]) -> list[int]:
    parent = list(range(size))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for join in joins:
        parent[find(join.second)] = find(join.first)
    return [find(i) for i in range(size)]


def _conflicts(
    schedule: Schedule,
    place_of: list[int],
    immutable: frozenset[tuple[str, tuple[int, ...]]],
) -> tuple[set[int], set[int]]:
    """Places in which a value is overwritten that is still needed, or a constant.

    And the places in which the caller's own parameter is, for lack of a copy.
    """

    def version(value: int) -> int:
        while value in schedule.same:
            value = schedule.same[value]
        return value

    conflicts: set[int] = set()
    altered: set[int] = set()
    holds: dict[int, int | None] = {}
    constants, parameters = {}, {}
    for i, value in enumerate(schedule.values):
        if value.origin == "constant":
            constants[place_of[i]] = i
        elif (value.name, value.index) in immutable:
            parameters[place_of[i]] = i
    forks: list[tuple[dict[int, int | None], list[dict[int, int | None]]]] = []
    for event in schedule.events:
        if event.kind == "reads":
            for value in event.values:
                if holds.get(place_of[value], version(value)) != version(value):
                    conflicts.add(place_of[value])
        elif event.kind == "writes":
            for value in event.values:
                place, new = place_of[value], version(value)
                holds[place] = new
                if constants.get(place, new) != new:
                    conflicts.add(place)
                if parameters.get(place, new) != new:
                    altered.add(place)
        elif event.kind == "fork":
            forks.append((dict(holds), []))
        elif event.kind == "branch":
            before, ends = forks[-1]
            ends.append(holds)
            holds = dict(before)
        elif event.kind == "merge":
            _, ends = forks.pop()
            for end in ends[1:]:
                for place, value in end.items():
                    if holds.setdefault(place, value) != value:
                        holds[place] = None
    return conflicts, altered


def _split_copy(joins: list[Join], split: set[str]) -> bool:
    """Lets one copy of the compiler's be an op, if one brought a joined value."""
    for join in joins:
        if join.via and join.reason in ("init", "in place") and join.via not in split:
            split.add(join.via)
            return True
    return False


def _drop_join(joins: list[Join], dropped: dict[str, None]) -> bool:
    """Gives what a loop goes on with a place of its own, if that was joined."""
    for join in joins:
        if join.reason == "next" and join.key not in dropped:
            dropped[join.key] = None
            return True
    return False
