"""Which layouts operations ask for, as far as sizes and fusion depend on it.

A compiler is free to choose the order of an array's dimensions in memory. Mostly it
takes one that pads least; but convolutions want batch and features minor, whatever
those pad to, and so does what is computed from them element by element. A transposed
matrix product is the product in another order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jax.extend.mlir.dialects import stablehlo

from frontends.stablehlo_costs import Role
from frontends.stablehlo_graph import Graph, Node, Source
from frontends.stablehlo_types import Shape, shape_of
from frontends.tiling import Tiling

FEW_IMAGES_NOTE = (
    "Convolutions are over fewer images than a tile has rows: TPU compilers move space "
    "to batch around them, of which only the usual cost is known here."
)
_FLOAT32_BYTES = 4


def lay_out(graph: Graph, tiling: Tiling, index: int) -> None:
    """Gives the values of a new node the layouts that it asks for."""
    node = graph.nodes[index]
    if node.opcode == "stablehlo.convolution":
        _lay_out_convolution(graph, tiling, node)
    elif node.cost.role is Role.POINTWISE:
        (result,) = node.results
        for v in node.operands:
            if graph.values[v].minor is not None:
                _set_minor(
                    graph, tiling, result, graph.values[v].shape, graph.values[v].minor
                )


def transposed_products(
    graph: Graph, outputs: Sequence[int], resolve: Callable[[int], int]
) -> Mapping[int, int]:
    """`{transposed value: product}` of products that are only read transposed.

    Compilers exchange the operands of such a product; its value then has the transposed
    shape, which it is given here.

    Args:
      graph: with all of its nodes.
      outputs: the values that it returns.
      resolve: the value itself of one that turned out to be another.
    """
    uses = Counter(map(resolve, outputs))
    for node in graph.nodes:
        uses.update(map(resolve, node.operands))
        uses.update(resolve(v) for branch in node.branches for v in branch)
        for carry in node.carries:
            uses.update((resolve(carry.init), resolve(carry.next)))
    found = {}
    for node in graph.nodes:
        if node.opcode != "stablehlo.transpose":
            continue
        product, (result,) = resolve(node.operands[0]), node.results
        value = graph.values[product]
        if (
            value.source is Source.NODE
            and graph.nodes[value.node].opcode == "stablehlo.dot_general"
            and value.region == node.region
            and uses[product] == 1
        ):
            value.shape = graph.values[result].shape
            found[result] = product
    return found


def _lay_out_convolution(graph: Graph, tiling: Tiling, node: Node) -> None:
    (op,) = node.mlir
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    # Not the values' shapes, which may have been reshaped since.
    image, kernel = (shape_of(operand.type) for operand in op.operands)
    out = shape_of(op.results[0].type)
    before = numbers.input_batch_dimension, numbers.input_feature_dimension
    after = numbers.output_batch_dimension, numbers.output_feature_dimension
    _set_minor(graph, tiling, node.operands[0], image, before)
    _set_minor(graph, tiling, node.results[0], out, after)
    window = math.prod(kernel.dims[d] for d in numbers.kernel_spatial_dimensions)
    positions = math.prod(out.dims[d] for d in numbers.output_spatial_dimensions)
    if window < positions:
        images, arrays = image.dims[before[0]], (image, out)
    else:  # the gradient of a kernel: two batches of images, contracted
        images = kernel.dims[numbers.kernel_input_feature_dimension]
        arrays = (image, kernel)
    if images < tiling.rows and min(window, positions) > 1:
        graph.note(FEW_IMAGES_NOTE)
        elements = sum(array.elements for array in arrays)
        node.extra_bytes = int(tiling.image_passes * _FLOAT32_BYTES * elements)


def _set_minor(
    graph: Graph, tiling: Tiling, value: int, shape: Shape, minor: tuple[int, int]
) -> None:
    """Gives a value a layout, if it has the dimensions that this is a layout of."""
    v = graph.values[value]
    if v.shape.dims == shape.dims:
        v.minor = minor
        v.size_bytes = tiling.size_bytes(shape.dims, v.shape.bits, minor)
