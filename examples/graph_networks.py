"""Flax modules on graphs: features of nodes and edges, and who is joined to whom.

Parameters are float32 and activations of `dtype`, as in mixed-precision training.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from networks import Mlp


class MessagePassing(nn.Module):
    """Edges hear from their two nodes, nodes from all edges that end in them."""

    hidden: int
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self, nodes: jax.Array, edges: jax.Array, senders: jax.Array, receivers: Any
    ) -> tuple[jax.Array, jax.Array]:
        ends = [edges, nodes[senders], nodes[receivers]]
        message = self._update(jnp.concatenate(ends, -1))
        heard = jax.ops.segment_sum(message, receivers, num_segments=len(nodes))
        change = self._update(jnp.concatenate([nodes, heard], -1))
        return nodes + change, edges + message

    def _update(self, x: jax.Array) -> jax.Array:
        x = Mlp(self.hidden, 3, self.hidden, self.dtype, nn.relu)(x)
        return nn.LayerNorm(dtype=self.dtype)(x)


class GraphNetwork(nn.Module):
    """Encodes a graph, passes messages along its edges, decodes its nodes.

    nodes: `[nodes, features]`; edges: `[edges, features]`; senders, receivers:
    `[edges]` int32, the nodes that an edge goes from and to. Returns `[nodes, out]`.
    The defaults are those of the simulator of particles in the paper.
    Source: Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph
    Networks", arXiv 2002.09405.
    """

    rounds: int = 10
    hidden: int = 128
    out: int = 3
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        nodes: jax.Array,
        edges: jax.Array,
        senders: jax.Array,
        receivers: jax.Array,
    ) -> jax.Array:
        nodes, edges = (
            nn.LayerNorm(dtype=self.dtype)(
                Mlp(self.hidden, 3, self.hidden, self.dtype, nn.relu)(x)
            )
            for x in (nodes, edges)
        )
        for _ in range(self.rounds):
            layer = MessagePassing(self.hidden, self.dtype)
            nodes, edges = layer(nodes, edges, senders, receivers)
        return Mlp(self.hidden, 3, self.out, self.dtype, nn.relu)(nodes)
