"""What a group of operations is called, and how much arithmetic it does."""

from __future__ import annotations

from frontends.program import Op
from frontends.stablehlo_costs import Role
from frontends.stablehlo_fusion import Group
from frontends.stablehlo_graph import Graph, Node

# Which operation an op is about: that of the highest of these ranks, and among equals
# the one with most arithmetic.
_RANKS = {
    Role.CONTRACTION: 4,
    Role.UPDATE: 3,
    Role.REDUCTION: 3,
    Role.WINDOW: 2,
    Role.POINTWISE: 1,
}
_FLOPS_PER_TRANSCENDENTAL = 8.0


def base_name(graph: Graph, group: Group) -> str:
    """`dot_general`, or `dot_general_fusion` if it computes more than that."""
    computing = [
        n
        for n in group.nodes
        if graph.nodes[n].cost.role is not Role.MOVEMENT and _is_array(graph, n)
    ]
    suffix = "_fusion" if len(computing) > 1 else ""
    return _main_node(graph, group).opcode.rpartition(".")[2] + suffix


def op_of(graph: Graph, group: Group, name: str, *, region: int, count: float) -> Op:
    """The op of a group, without its accesses."""
    main = _main_node(graph, group)
    flops = vector = transcendentals = 0.0
    for n in group.nodes:
        cost, share = graph.nodes[n].cost, group.shares[n]
        flops += cost.matmul_flops
        vector += cost.vector_flops * share
        transcendentals += cost.transcendentals * share
    return Op(
        name=name,
        opcode=main.opcode,
        op_name=main.op_name,
        matmul_flops=flops,
        matmul_dtype=main.cost.matmul_dtype if flops else "",
        vector_flops=vector,
        transcendentals=transcendentals,
        count=count,
        region=region,
    )


def _main_node(graph: Graph, group: Group) -> Node:
    """The operation that the op is about."""

    def weight(n: int) -> tuple[float, ...]:
        cost = graph.nodes[n].cost
        rank = _RANKS.get(cost.role, 0) if _is_array(graph, n) else -1
        flops = cost.matmul_flops + cost.vector_flops
        return rank, flops + _FLOPS_PER_TRANSCENDENTAL * cost.transcendentals, n

    return graph.nodes[max(group.nodes, key=weight)]


def _is_array(graph: Graph, n: int) -> bool:
    """Whether a node is more than arithmetic on scalars."""
    node = graph.nodes[n]
    touched = (*node.operands, *node.results)
    return any(graph.values[v].shape.elements > 1 for v in touched)
