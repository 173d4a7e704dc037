"""The order in which groups run.

Every region is scheduled for itself, a loop being one item of the region around it:

1. An op has the place of its main operation in the program (its product or reduction,
   else its last), but not before what it needs. So a weight gradient that is fused
   with the optimizer's update runs where backpropagation computes it.
2. An op that frees at least as many bytes as its results keep alive runs as soon as
   what it needs is there: updates that only wait for their gradient.
3. An op that reads nothing it could free (zeros, a copy of a parameter in another
   precision) runs just before the first op that needs it.
4. What reads a value comes before what replaces it in place, where that is possible.
"""

from __future__ import annotations

from collections import defaultdict

from frontends.stablehlo_fusion import FUSIBLE, Group
from frontends.stablehlo_graph import Graph, Source


def schedule(graph: Graph, groups: list[Group]) -> dict[int, list[int]]:
    """The indices of the groups of each region of the graph, in running order."""
    writer = {v: i for i, group in enumerate(groups) for v in group.results}
    readers: dict[int, set[int]] = defaultdict(set)
    for i, group in enumerate(groups):
        for value in group.inputs:
            readers[value].add(i)
    needs = _needs(graph, groups, writer)
    _read_before_replacing(graph, groups, writer, readers, needs)
    members: dict[int, list[int]] = {r: [] for r in range(len(graph.regions))}
    for i, group in enumerate(groups):
        members[group.region].append(i)
    eager = [_is_eager(graph, groups, readers, i) for i in range(len(groups))]
    return {
        region: _region_order(graph, groups, inside, needs, eager)
        for region, inside in members.items()
    }


def _needs(graph: Graph, groups: list[Group], writer: dict[int, int]) -> list[set[int]]:
    """For each group those of its own region that must run before it."""
    needs: list[set[int]] = [set() for _ in groups]
    holder: dict[int, int] = {}
    wanted = [(i, value) for i, group in enumerate(groups) for value in group.inputs]
    last_effect: dict[int, int] = {}
    for i, group in enumerate(groups):
        node = graph.nodes[group.nodes[-1]]
        holder.update(dict.fromkeys(node.regions, i))
        wanted += [(i, carry.next) for carry in node.carries]
        wanted += [(i, value) for branch in node.branches for value in branch]
        if node.cost.side_effects:
            if group.region in last_effect:
                needs[i].add(last_effect[group.region])
            last_effect[group.region] = i
    for i, value in wanted:
        j = writer.get(value)
        # A group in a loop needs what is outside through the loop that stands beside.
        while j is not None and groups[i].region != groups[j].region:
            if groups[i].region not in holder:
                break  # a result of the loop's own body
            i = holder[groups[i].region]
        else:
            if j is not None and i != j:
                needs[i].add(j)
    return needs


def _read_before_replacing(
    graph: Graph,
    groups: list[Group],
    writer: dict[int, int],
    readers: dict[int, set[int]],
    needs: list[set[int]],
) -> None:
    """Rule 4: adds to `needs` where no cycle comes of it."""
    before = _all_before(needs)
    for replaced, i in _replacements(graph, groups, writer):
        for reader in sorted(readers[replaced]):
            beside = groups[reader].region == groups[i].region
            if reader == i or not beside or before[reader] >> i & 1:
                continue
            needs[i].add(reader)
            if not before[i] >> reader & 1:
                added = before[reader] | 1 << reader
                before[i] |= added
                for k, mask in enumerate(before):
                    if mask >> i & 1:
                        before[k] = mask | added


def _all_before(needs: list[set[int]]) -> list[int]:
    """For each group the bit set of those that it needs, directly or not."""
    before = [-1] * len(needs)
    for start in range(len(needs)):
        work = [start]
        while work:
            i = work[-1]
            missing = [j for j in needs[i] if before[j] < 0]
            if before[i] < 0 and missing:
                work.extend(missing)
                continue
            work.pop()
            before[i] = 0
            for j in needs[i]:
                before[i] |= before[j] | 1 << j
    return before


def _replacements(
    graph: Graph, groups: list[Group], writer: dict[int, int]
) -> list[tuple[int, int]]:
    """`(value, group)`: the group would like to write where the value is."""
    found = []
    for i, group in enumerate(groups):
        node = graph.nodes[group.nodes[-1]]
        found += [(node.operands[p.operand], i) for p in node.cost.in_place]
        found += [
            (carry.argument, writer[carry.next])
            for carry in node.carries
            if carry.next in writer
        ]
    for position, output in graph.donated.items():
        if 0 <= output < len(graph.outputs) and graph.outputs[output] in writer:
            found.append((graph.inputs[position], writer[graph.outputs[output]]))
    # The large ones first, should two wishes be in each other's way.
    return sorted(found, key=lambda wish: -graph.values[wish[0]].shape.size_bytes)


def _is_eager(
    graph: Graph, groups: list[Group], readers: dict[int, set[int]], i: int
) -> bool:
    """Rule 2: whether group i frees as much as it keeps alive."""
    values, freed, kept = graph.values, 0, 0
    for v in groups[i].reads:
        if values[v].source is Source.NODE and readers[v] == {i}:
            freed += values[v].shape.size_bytes
    for v in groups[i].written:
        # What the caller gets must be written in any case.
        if not values[v].is_register and v not in graph.outputs:
            kept += values[v].shape.size_bytes
    return freed > 0 and freed >= kept


def _region_order(
    graph: Graph,
    groups: list[Group],
    inside: list[int],
    needs: list[set[int]],
    eager: list[bool],
) -> list[int]:
    needed_by: dict[int, list[int]] = defaultdict(list)
    for i in inside:
        for j in needs[i]:
            needed_by[j].append(i)
    # The second part of a place keeps an op behind what it needs if the first is equal.
    place: dict[int, tuple[int, int]] = {}
    waiting = {i: len(needs[i]) for i in inside}
    ready = [i for i in inside if not waiting[i]]
    while ready:
        i = ready.pop()
        after = max((place[j] for j in needs[i]), default=(-1, -1))
        earliest = (after[0], after[1] + 1)
        own = (_main_node(graph, groups[i]), 0)
        place[i] = earliest if eager[i] else max(own, earliest)
        for j in needed_by[i]:
            waiting[j] -= 1
            if not waiting[j]:
                ready.append(j)
    lazy = {i for i in inside if not needs[i] and needed_by[i]}
    order: list[int] = []
    done: set[int] = set()
    for i in sorted(inside, key=lambda i: (place[i], i)):
        if i in lazy:
            continue
        first = sorted(needs[i] & lazy - done, key=lambda j: (place[j], j))
        order += [*first, i]
        done.update(first)
    assert len(order) == len(inside), "the groups of a region need each other"
    return order


def _main_node(graph: Graph, group: Group) -> int:
    heavy = [n for n in group.nodes if graph.nodes[n].cost.role not in FUSIBLE]
    return (heavy or group.nodes)[-1]
