"""Reads a StableHLO module into a flat graph, operation by operation."""

from __future__ import annotations

from jax.extend.mlir import ir

from frontends.stablehlo_costs import OpCost, Role, op_cost
from frontends.stablehlo_graph import (
    Carry,
    Graph,
    GraphRegion,
    Node,
    Source,
    Value,
    joined_path,
    location_name,
    needed,
)
from frontends.stablehlo_layouts import lay_out, transposed_products
from frontends.stablehlo_trip_counts import trip_count
from frontends.stablehlo_types import TOKEN, Shape, shape_of
from frontends.tiling import Tiling

# Executions assumed of a loop whose trip count the module does not say; XLA's own
# assumption for such loops.
ASSUMED_TRIPS = 5.0

_SIZES_NOTE = "Sizes are logical bytes; a tiled layout may pad them."

# Constants up to this size are part of the op that reads them.
_FOLDED_CONSTANT_BYTES = 512

_CALLS = frozenset({"func.call", "stablehlo.composite"})
_RETURNS = frozenset({"func.return", "stablehlo.return", "sdy.return"})
# Custom calls that only say something about their operand.
_ANNOTATIONS = frozenset(
    {
        "LayoutConstraint",
        "MoveToDevice",
        "MoveToHost",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "Sharding",
        "annotate_device_placement",
    }
)
_SAME_VALUE = frozenset(
    {
        "sdy.propagation_barrier",
        "sdy.reshard",
        "sdy.sharding_constraint",
        "stablehlo.get_tuple_element",
        "stablehlo.reshape",
    }
)


def build_graph(module: ir.Module, tiling: Tiling | None = None) -> Graph:
    """The flat graph of a module with a public function `main`.

    Args:
      module: as JAX lowers it.
      tiling: how the accelerator pads; None, not at all.
    Raises:
      ValueError: the module has no `main`, or a tensor without a static shape.
    """
    return _Builder(module, tiling).graph


class _Builder:
    """Walks the module once; `env` maps MLIR values to indices of graph values."""

    def __init__(self, module: ir.Module, tiling: Tiling | None) -> None:
        self.graph = Graph()
        self._tiling = tiling
        self._shapes: dict[ir.Type, Shape] = {}
        self._equal: dict[tuple, int] = {}
        self._alias: dict[int, int] = {}
        self._immediates: dict[object, int] = {}
        self._functions = {
            ir.StringAttr(op.operation.attributes["sym_name"]).value: op.operation
            for op in module.body.operations
            if op.operation.name == "func.func"
        }
        if "main" not in self._functions:
            raise ValueError(
                f"the module has functions {sorted(self._functions)} and no 'main'. "
                "Pass the module of a lowered JAX function."
            )
        partitions = module.operation.attributes
        if "mhlo.num_partitions" in partitions:
            n = ir.IntegerAttr(partitions["mhlo.num_partitions"]).value
            if n > 1:
                self.graph.note(
                    f"The function is partitioned over {n} devices; sizes are those "
                    "of whole arrays outside of shard_map."
                )
        main = self._functions["main"]
        block = main.regions[0].blocks[0]
        env = {arg: self._parameter(i, arg) for i, arg in enumerate(block.arguments)}
        self.graph.inputs = [env[arg] for arg in block.arguments]
        outputs = self._walk(block, env, 0, "")
        self._donations(main)
        self._finish(outputs)

    # Values -------------------------------------------------------------------------

    def _shape(self, mlir_type: ir.Type) -> Shape:
        """The shape of a type, read once."""
        if mlir_type not in self._shapes:
            self._shapes[mlir_type] = shape_of(mlir_type)
        return self._shapes[mlir_type]

    def _new(self, shape: Shape, source: Source, **fields) -> int:
        """The index of a new value."""
        size_bytes = shape.size_bytes
        if self._tiling is not None:
            size_bytes = self._tiling.size_bytes(shape.dims, shape.bits)
        self.graph.values.append(Value(shape, source, size_bytes, **fields))
        return len(self.graph.values) - 1

    def _resolve(self, value: int) -> int:
        """The value itself of one that turned out to be another."""
        while value in self._alias:
            value = self._alias[value]
        return value

    def _parameter(self, position: int, arg: ir.Value) -> int:
        name = location_name(arg.location) or f"arg{position}"
        shape = self._shape(arg.type)
        source = Source.IMMEDIATE if shape is TOKEN else Source.PARAMETER
        return self._new(shape, source, name=name)

    def _constant(self, op: ir.Operation) -> int:
        mlir_type = op.results[0].type
        shape = self._shape(mlir_type)
        try:
            attribute = op.attributes["value"]
        except TypeError:  # the bindings cannot read complex numbers
            attribute = None
        splat = getattr(attribute, "is_splat", False)
        if not splat and shape.size_bytes > _FOLDED_CONSTANT_BYTES:
            return self._new(shape, Source.CONSTANT)
        # Equal immediates are one value, so that what is computed from them can be.
        key = op if attribute is None else (attribute, mlir_type)
        if key not in self._immediates:
            number = None
            if shape.elements == 1 and isinstance(attribute, ir.DenseIntElementsAttr):
                number = int(attribute[0])
            self._immediates[key] = self._new(shape, Source.IMMEDIATE, number=number)
        return self._immediates[key]

    # The walk -----------------------------------------------------------------------

    def _walk(
        self, block: ir.Block, env: dict[ir.Value, int], region: int, path: str
    ) -> list[int]:
        """Adds the operations of a block; returns the values that it returns."""
        for view in block.operations:
            op = view.operation
            name = op.name
            if name in _RETURNS:
                return [env[v] for v in op.operands]
            if name == "stablehlo.constant":
                env[op.results[0]] = self._constant(op)
                continue
            operands = [env[v] for v in op.operands]
            if name in _CALLS:
                results = self._call(op, operands, region, path)
            elif name == "stablehlo.while":
                results = self._while(op, operands, env, region, path)
            elif name in ("stablehlo.case", "stablehlo.if"):
                results = self._branch(op, operands, env, region, path)
            elif name == "sdy.manual_computation":
                body = op.regions[0].blocks[0]
                inner = dict(zip(body.arguments, operands, strict=True))
                results = self._walk(body, inner, region, path)
            elif self._is_same_value(op, operands):
                results = operands[:1]
            else:
                results = self._add(op, operands, region, path)
            env.update(zip(op.results, results, strict=True))
        return []

    def _is_same_value(self, op: ir.Operation, operands: list[int]) -> bool:
        """Whether the operation leaves every element where it is."""
        if op.name == "stablehlo.reduce" and len(operands) == 2:
            return self._is_reshape(op)
        if len(op.results) != 1 or len(operands) != 1:
            return False
        if op.name in _SAME_VALUE:
            return True
        if op.name == "stablehlo.custom_call":
            return _target(op) in _ANNOTATIONS
        before = self._shape(op.operands[0].type)
        after = self._shape(op.results[0].type)
        if before.elements != after.elements or before.bits != after.bits:
            return False
        if op.name == "stablehlo.convert":
            return before.dtype == after.dtype
        if op.name == "stablehlo.broadcast_in_dim":
            dims = list(op.attributes["broadcast_dimensions"])
            return dims == sorted(dims)
        if op.name == "stablehlo.transpose":
            order = [d for d in op.attributes["permutation"] if before.dims[d] > 1]
            return order == sorted(order)
        return op.name in ("stablehlo.bitcast_convert", "stablehlo.concatenate")

    def _is_reshape(self, op: ir.Operation) -> bool:
        """Whether a reduction is over dimensions of size 1, by a plain operation."""
        before, after = (self._shape(v.type) for v in (op.operands[0], op.results[0]))
        plain = len(op.regions[0].blocks[0].operations) == 2
        return plain and before.elements == after.elements

    def _call(self, op, operands, region, path) -> list[int]:
        """The results of the function that is called, its operations added here."""
        key = "decomposition" if op.name == "stablehlo.composite" else "callee"
        callee = self._functions[ir.FlatSymbolRefAttr(op.attributes[key]).value]
        block = callee.regions[0].blocks[0]
        env = dict(zip(block.arguments, operands, strict=True))
        below = joined_path(path, location_name(op.location))
        return self._walk(block, env, region, below)

    def _add(self, op, operands, region, path) -> list[int]:
        """One node, or the results of an equal one that is already there.

        What is computed from constants alone stays apart, where it is needed.
        """
        values = self.graph.values
        shapes = [self._shape(result.type) for result in op.results]
        if op.name == "stablehlo.optimization_barrier":
            cost = OpCost(role=Role.VIEW)
        else:
            # Not the values' shapes, which may have been reshaped since.
            types = (operand.type for operand in op.operands)
            types = [self._shape(t) for t in types]
            cost = op_cost(op, types, shapes, self._tiling)
        if not cost.known:
            what = op.name
            if what == "stablehlo.custom_call":
                what = f"{what} @{_target(op)}"
            self.graph.note(
                f"{what}: unknown here, taken to touch all of its operands and "
                "results and to need no arithmetic."
            )
        key = None
        is_fill = all(values[v].source is Source.IMMEDIATE for v in operands)
        if cost.role not in (Role.OPAQUE, Role.VIEW) and not is_fill:
            key = self._key(op, operands, region)
            if key in self._equal:
                node = self.graph.nodes[self._equal[key]]
                node.mlir.append(op)
                return list(node.results)
        index = self._node(op, cost, operands, shapes, region, path)
        if key is not None:
            self._equal[key] = index
        if self._tiling is not None:
            lay_out(self.graph, self._tiling, index)
        return list(self.graph.nodes[index].results)

    def _key(self, op, operands, region) -> tuple:
        """Equal for operations of one region that compute the same."""
        attributes = tuple(
            (name, op.attributes[name]) for name in map(_name_of, op.attributes)
        )
        bodies = tuple(r.blocks[0].operations[0].operation.name for r in op.regions)
        if any(len(r.blocks[0].operations) != 2 for r in op.regions):
            bodies = (len(self.graph.nodes),)  # equal to nothing
        types = tuple(result.type for result in op.results)
        return (op.name, tuple(operands), region, attributes, bodies, types)

    def _node(self, op, cost, operands, shapes, region, path) -> int:
        index = len(self.graph.nodes)
        results = [
            self._new(shape, Source.NODE, node=index, region=region) for shape in shapes
        ]
        self.graph.nodes.append(
            Node(op.name, cost, list(operands), results, region, [op], path)
        )
        return index

    # Loops and branches -------------------------------------------------------------

    def _region(self, **fields) -> int:
        self.graph.regions.append(GraphRegion(**fields))
        return len(self.graph.regions) - 1

    def _while(self, op, operands, env, region, path) -> list[int]:
        """The loop's results: its body in a region of its own, then its node."""
        values = self.graph.values
        body = self._region(parent=region, is_loop=True, trip_count=ASSUMED_TRIPS)
        condition, block = (r.blocks[0] for r in op.regions)
        returned = list(list(block.operations)[-1].operation.operands)
        # A value that the body hands on unchanged is the one from before the loop.
        same = [returned[k] == arg for k, arg in enumerate(block.arguments)]
        arguments = [
            init
            if same[k]
            else self._new(values[init].shape, Source.CARRIED, region=body)
            for k, init in enumerate(operands)
        ]
        bound = dict(zip(condition.arguments, arguments, strict=True))
        (predicate,) = self._walk(condition, {**env, **bound}, body, path)
        bound = dict(zip(block.arguments, arguments, strict=True))
        following = self._walk(block, {**env, **bound}, body, path)
        following = [self._resolve(v) for v in following]
        trips = trip_count(self.graph, predicate, arguments, operands, following)
        if trips is None:
            self.graph.note(
                f"{ASSUMED_TRIPS:g} executions assumed of loops that do not count up "
                "to a constant."
            )
        else:
            self.graph.regions[body].trip_count = trips
        index = self._node(op, OpCost(role=Role.LOOP), [], [], region, path)
        node = self.graph.nodes[index]
        node.regions = [body]
        results = []
        for init, argument, after in zip(operands, arguments, following, strict=True):
            if argument in (init, after):
                if argument != init:
                    self._alias[argument] = init
                results.append(init)
                continue
            values[argument].node = index
            result = self._new(
                values[init].shape, Source.NODE, node=index, region=region
            )
            node.carries.append(Carry(init, argument, after, result))
            results.append(result)
        # The condition of a counted loop is arithmetic on its counter only.
        node.operands = [] if trips is not None else [predicate]
        return results

    def _branch(self, op, operands, env, region, path) -> list[int]:
        """The conditional's results: each branch in a region of its own, its node."""
        count = len(op.regions)
        if count > 1:
            self.graph.note(
                "Each of the n branches of a conditional is taken to run in one of n "
                "executions."
            )
        bodies = [
            self._region(parent=region, trip_count=1.0 / count) for _ in op.regions
        ]
        branches = [
            self._walk(r.blocks[0], dict(env), body, path)
            for r, body in zip(op.regions, bodies, strict=True)
        ]
        shapes = [self._shape(result.type) for result in op.results]
        index = self._node(op, OpCost(role=Role.BRANCH), operands, shapes, region, path)
        self.graph.nodes[index].regions = bodies
        self.graph.nodes[index].branches = branches
        return list(self.graph.nodes[index].results)

    # The end ------------------------------------------------------------------------

    def _donations(self, main: ir.Operation) -> None:
        """Notes which arguments JAX marked as given away."""
        if "arg_attrs" not in main.attributes:
            return
        for position, given in enumerate(ir.ArrayAttr(main.attributes["arg_attrs"])):
            given = ir.DictAttr(given)
            if "tf.aliasing_output" in given:
                output = ir.IntegerAttr(given["tf.aliasing_output"]).value
                self.graph.donated[position] = output
            elif "jax.buffer_donor" in given:
                self.graph.donated[position] = -1

    def _finish(self, outputs: list[int]) -> None:
        """Puts final names on all values and drops what nobody needs."""
        graph, resolve = self.graph, self._resolve
        self._alias.update(transposed_products(graph, outputs, resolve))
        graph.outputs = [resolve(v) for v in outputs]
        for node in graph.nodes:
            node.operands = [resolve(v) for v in node.operands]
            node.branches = [[resolve(v) for v in branch] for branch in node.branches]
            for carry in node.carries:
                carry.init, carry.next = resolve(carry.init), resolve(carry.next)
        live, kept = needed(graph)
        graph.note(_SIZES_NOTE if self._tiling is None else self._tiling.note)
        for index, node in enumerate(graph.nodes):
            if node.cost.role is Role.LOOP:
                node.carries = [c for c in node.carries if c.argument in live]
                node.results = [c.result for c in node.carries]
            elif node.cost.role is Role.BRANCH:
                left = [k for k, v in enumerate(node.results) if v in live]
                node.results = [node.results[k] for k in left]
                node.branches = [[b[k] for k in left] for b in node.branches]
            if index in kept or not live.isdisjoint(node.results):
                graph.order.append(index)


def _target(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["call_target_name"]).value


def _name_of(attribute: str | ir.NamedAttribute) -> str:
    return attribute if isinstance(attribute, str) else attribute.name
