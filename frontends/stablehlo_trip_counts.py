"""How often a loop runs: JAX's scans and counted loops, as the module spells them out.

while(i = 0, ...)  cond: i < 10  body: i + 1, ...          10 executions
"""

from __future__ import annotations

from jax.extend.mlir.dialects import stablehlo

from frontends.stablehlo_graph import Graph, Node, Source


def trip_count(
    graph: Graph,
    predicate: int,
    arguments: list[int],
    inits: list[int],
    following: list[int],
) -> float | None:
    """Executions of a loop that counts up by a constant to a constant.

    Args:
      predicate: value of the condition, computed from `arguments`.
      arguments, inits, following: what the loop carries inside, before it, and at the
        end of its body.
    Returns:
      The number, or None if the loop is of another kind.
    """
    test = _producer(graph, predicate, "stablehlo.compare")
    if test is None:
        return None
    counter, limit = test.operands
    direction = stablehlo.ComparisonDirectionAttr(
        test.mlir[0].attributes["comparison_direction"]
    ).value
    if counter not in arguments or direction not in ("LT", "LE"):
        return None
    k = arguments.index(counter)
    step = _producer(graph, following[k], "stablehlo.add")
    if step is None or counter not in step.operands:
        return None
    added = step.operands[1 - step.operands.index(counter)]
    start, stop, stride = (graph.values[v].number for v in (inits[k], limit, added))
    if start is None or stop is None or stride is None or stride <= 0:
        return None
    stop += direction == "LE"
    return float(max(0, -(-(stop - start) // stride)))


def _producer(graph: Graph, value: int, opcode: str) -> Node | None:
    """The node that computes a value, if it is of this kind."""
    if graph.values[value].source is not Source.NODE:
        return None
    node = graph.nodes[graph.values[value].node]
    return node if node.opcode == opcode else None
