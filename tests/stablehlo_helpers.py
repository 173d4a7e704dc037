"""What the tests of the StableHLO frontend ask of a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from frontends.program import Buffer, Op, Program

F32 = 4
BF16 = 2


def arg(*dims: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def touched(program: Program, op: Op) -> tuple[dict[str, int], dict[str, int]]:
    """`{label: bytes}` of what an op reads and writes."""
    return tuple(
        {program.buffers[a.buffer_id].label: a.touched_bytes for a in accesses}
        for accesses in (op.reads, op.writes)
    )


def buffer(program: Program, name: str, *index: int) -> Buffer:
    return program.buffers[program.buffer_index[name, index]]


def opcodes(program: Program) -> list[str]:
    return [op.opcode.removeprefix("stablehlo.") for op in program.ops]


def matmul_flops(program: Program) -> float:
    """Of one call of the program."""
    return sum(op.matmul_flops * op.count for op in program.ops)


def cache_update(cache, new, position):
    return lax.dynamic_update_slice(cache, new, (position, 0))


CACHE_ARGS = (arg(512, 64), arg(1, 64), arg(dtype=jnp.int32))


def rnn(h, w, xs):
    def step(h, x):
        h = jnp.tanh(h @ w + x)
        return h, h

    return lax.scan(step, h, xs)
