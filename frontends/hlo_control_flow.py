"""Lays out loops, branches and calls: their computations, then the free op they end in.

What goes into a computation, on to the next iteration, and out, is joined: it should be
one place in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frontends import hlo_trip_counts
from frontends.hlo_module import Computation, Instruction
from frontends.hlo_schedule import Leaf, Touch
from frontends.hlo_types import ArrayType, leaves, map_leaves

if TYPE_CHECKING:
    from frontends.hlo_layout import Walk

# What XLA itself assumes of a loop when it weighs its ops.
ASSUMED_TRIP_COUNT = 5.0
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast")


def loop(walk: Walk, inst: Instruction) -> Any:
    """Lays out a while loop; the tree of its result."""
    schedule, state = walk.schedule, walk.operand(inst, 0)
    body, condition = walk.called(inst, "body"), walk.called(inst, "condition")
    trips = hlo_trip_counts.trip_count(schedule.module, walk.computation, inst)
    if trips is None:
        trips = ASSUMED_TRIP_COUNT
        schedule.notes.setdefault(
            f"Loop {inst.name!r} has no known trip count: {trips:g} is assumed."
        )
    region = schedule.open_region(inst.name, walk.region, trips)
    schedule.loops.append(region)
    if len(body.parameters) != 1:
        walk.fail(inst, f"the body of {inst.name!r} does not have one parameter")
    parameter = body.parameters[0]
    walk.same_shape(inst, state, parameter.type, inst.type)
    inits, entered = dict(leaves(state)), {}

    def enter(index: tuple[int, ...], array: ArrayType) -> Leaf:
        leaf = schedule.define(parameter, index, array, walk.depth + 1)
        schedule.join(inits[index], leaf, "init")
        entered[index] = leaf
        return leaf

    schedule.happen("reads", inits.values())
    tree = map_leaves(enter, parameter.type)
    schedule.happen("writes", entered.values())
    if _costs_anything(condition):
        walk.body(condition.name, [tree], region)
    root = walk.body(body.name, [tree], region)
    schedule.close_region(region)
    walk.same_shape(inst, root, inst.type)
    nexts, reads, writes = dict(leaves(root)), [], []

    def leave(index: tuple[int, ...], array: ArrayType) -> Leaf:
        init, old, new = inits[index], entered[index], nexts[index]
        if new.value == old.value:  # the loop only reads it
            schedule.same[old.value] = init.value
            reads.append(Touch(init.value, 0, array.space))
            return Leaf(init.value, array.space)
        leaf = schedule.define(inst, index, array, walk.depth)
        schedule.join(new, old, "next")
        schedule.join(old, leaf, "exit")
        reads.append(Touch(new.value, 0, new.space))
        writes.append(Touch(leaf.value, 0, leaf.space))
        return leaf

    result = map_leaves(leave, inst.type)
    walk.append(inst, reads, writes)
    return result


def conditional(walk: Walk, inst: Instruction) -> Any:
    """Lays out the branches one after another; the tree of the result."""
    schedule, branches = walk.schedule, inst.called
    if not branches or len(inst.operands) != len(branches) + 1:
        walk.fail(
            inst,
            f"{inst.name!r} has {len(branches)} branches and {len(inst.operands)} "
            "operands",
        )
    schedule.notes.setdefault(
        f"The {len(branches)} branches of {inst.name!r} are scheduled one after "
        f"another, each with {1 / len(branches):.3g} of its cost."
    )
    schedule.happen("fork")
    roots = []
    for name, argument in zip(branches, inst.operands[1:], strict=True):
        schedule.happen("branch")
        region = schedule.open_region(inst.name, walk.region, 1 / len(branches))
        root = walk.body(name, [walk.trees[argument]], region)
        schedule.close_region(region)
        schedule.happen("reads", [leaf for _, leaf in leaves(root)])
        roots.append(root)
    schedule.happen("merge")
    walk.same_shape(inst, inst.type, *roots)
    sources = [dict(leaves(root)) for root in roots]

    def leave(index: tuple[int, ...], array: ArrayType) -> Leaf:
        leaf = schedule.define(inst, index, array, walk.depth)
        for source in sources:
            schedule.join(source[index], leaf, "exit")
        return leaf

    return _leave(walk, inst, map_leaves(leave, inst.type))


def call(walk: Walk, inst: Instruction) -> Any:
    """Lays out a called computation; the tree of its result."""
    schedule = walk.schedule
    region = schedule.open_region(inst.name, walk.region, 1.0)
    arguments = [walk.trees[name] for name in inst.operands]
    root = walk.body(walk.called(inst, "to_apply").name, arguments, region)
    schedule.close_region(region)
    walk.same_shape(inst, root, inst.type)
    sources = dict(leaves(root))

    def leave(index: tuple[int, ...], array: ArrayType) -> Leaf:
        leaf = schedule.define(inst, index, array, walk.depth)
        schedule.join(sources[index], leaf, "exit")
        schedule.same[leaf.value] = sources[index].value
        return leaf

    return _leave(walk, inst, map_leaves(leave, inst.type))


def _leave(walk: Walk, inst: Instruction, tree: Any) -> Any:
    """The free op at the end of branches or of a call; it looks at its results."""
    results = [leaf for _, leaf in leaves(tree)]
    walk.schedule.happen("writes", results)
    looked_at = list(results)
    if inst.opcode == "conditional":
        looked_at += [leaf for _, leaf in leaves(walk.operand(inst, 0))]
    walk.append(inst, [Touch(leaf.value, 0, leaf.space) for leaf in looked_at], [])
    return tree


def _costs_anything(condition: Computation) -> bool:
    """Whether evaluating a loop's condition does more than look at scalars."""
    return any(
        inst.opcode not in _FREE
        and (
            inst.estimated_cycles is not None
            or any(array.num_elements > 1 for _, array in leaves(inst.type))
        )
        for inst in condition.instructions
    )
