"""Compiles the small programs beside this file with the real TPU compiler.

    python tests/testdata/make_golden.py [NAME ...]

Needs `pip install "jax_malloc[tpu]"` with libtpu 0.0.42.1, and no TPU. Every program is
compiled twice, with memory space assignment off (`NAME.slow.hlo.gz`) and on
(`NAME.xla.hlo.gz`). Other versions give other texts, and give instructions other
numbers; the tests state by hand what these ones hold.
"""

import gzip
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from frontends import tpu

HERE = pathlib.Path(__file__).parent


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def mlp_train():
    """Two dense layers, squared error, one step of gradient descent in place."""

    def loss(weights, x, y):
        w1, w2 = weights
        return jnp.mean((jax.nn.relu(x @ w1) @ w2 - y) ** 2)

    def step(weights, x, y):
        grads = jax.grad(loss)(weights, x, y)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)

    weights = (shape(1024, 2048), shape(2048, 512))
    args = (weights, shape(512, 1024), shape(512, 512))
    return jax.jit(step, donate_argnums=0), args


def conv_net():
    """Two convolutions, a pooling and a dense layer."""

    def forward(kernels, dense, x):
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        return jnp.mean(x, axis=(1, 2)) @ dense

    kernels = (shape(3, 3, 64, 128), shape(3, 3, 128, 128))
    return jax.jit(forward), (kernels, shape(128, 1000), shape(8, 32, 32, 64))


def scan_rnn():
    """A recurrent layer over 24 steps: carried state, inputs and outputs sliced."""

    def run(w, u, h, xs):
        def cell(h, x):
            h = jnp.tanh(h @ w + x @ u)
            return h, h

        return jax.lax.scan(cell, h, xs)

    args = (shape(512, 512), shape(512, 512), shape(128, 512), shape(24, 128, 512))
    return jax.jit(run), args


def while_cond():
    """A power iteration that stops on its own, with a branch inside."""

    def run(a, v):
        def go_on(state):
            i, _, norm = state
            return (i < 100) & (norm < 1e6)

        def body(state):
            i, v, _ = state
            v = jax.lax.cond(i % 2 == 0, lambda v: a @ v, lambda v: jnp.sin(v) * 2, v)
            return i + 1, v, jnp.max(jnp.abs(v))

        return jax.lax.while_loop(go_on, body, (0, v, jnp.float32(0)))[1]

    f32 = jnp.float32
    return jax.jit(run), (shape(512, 512, dtype=f32), shape(512, 256, dtype=f32))


def kv_decode():
    """One decoding step of attention that writes into a donated cache."""

    def step(cache_k, cache_v, wqkv, x, at):
        q, k, v = jnp.split(x @ wqkv, 3, axis=-1)
        cache_k = jax.lax.dynamic_update_slice(cache_k, k[:, None], (0, at, 0))
        cache_v = jax.lax.dynamic_update_slice(cache_v, v[:, None], (0, at, 0))
        scores = jnp.einsum("bd,btd->bt", q, cache_k) / 16
        mask = jnp.arange(cache_k.shape[1]) <= at
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        return cache_k, cache_v, jnp.einsum("bt,btd->bd", weights, cache_v)

    cache = shape(16, 512, 256)
    args = (cache, cache, shape(256, 768), shape(16, 256), shape(dtype=jnp.int32))
    return jax.jit(step, donate_argnums=(0, 1)), args


def embedding():
    """Rows gathered from a table, a dense layer, and the gradient of the table."""

    def loss(table, w, ids):
        return jnp.sum(jnp.tanh(table[ids] @ w) ** 2)

    args = (shape(8192, 256), shape(256, 256), shape(4, 128, dtype=jnp.int32))
    return jax.jit(jax.value_and_grad(loss)), args


def attention():
    """Softmax attention of 8 heads over 1024 tokens."""

    def heads(q, k, v):
        scores = jnp.einsum("hqd,hkd->hqk", q, k) / 11
        return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(scores), v)

    return jax.jit(heads), (shape(8, 1024, 128),) * 3


def two_chips():
    """One step of data-parallel training: gradients are summed over two devices."""

    def step(w, x):
        grad = jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)
        return w - 0.1 * grad

    sharded = (PartitionSpec(), PartitionSpec("data"))
    mesh = {"mesh": {"data": 2}, "in_shardings": sharded, "donate_argnums": 0}
    return step, (shape(1024, 1024), shape(2048, 1024)), mesh


# Name of the texts: the program, and the topology that it is compiled for.
GOLDEN = {
    "mlp_train": (mlp_train, "v5e"),
    "conv_net": (conv_net, "v5e"),
    "scan_rnn": (scan_rnn, "v5e"),
    "while_cond": (while_cond, "v5e"),
    "kv_decode": (kv_decode, "v5e"),
    "embedding": (embedding, "v5e"),
    "tpu/attention_v4": (attention, "v4"),
    "tpu/mlp_train_v5p": (mlp_train, "v5p"),
    "tpu/mlp_train_v6e": (mlp_train, "v6e"),
    "tpu/mlp_train_tpu7x": (mlp_train, "tpu7x"),
    "tpu/two_chips": (two_chips, "v5e"),
}


def without_sources(text):
    """The text without file names, lines and stack frames."""
    tables = r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*"
    text = re.sub(tables, "", text)
    return re.sub(r' (source_file="[^"]*"|source_\w+=\d+|stack_frame_id=\d+)', "", text)


def main(names):
    for name in names or GOLDEN:
        program, topology = GOLDEN[name]
        f, args, *options = program()
        texts = tpu.compile_texts(
            tpu.lower(f, *args, **(options[0] if options else {})),
            topology=topology,
            compiler_options=(tpu.msa_off(topology), {}),
            cache_dir=False,
        )
        for kind, text in zip(("slow", "xla"), texts, strict=True):
            path = HERE / f"{name}.{kind}.hlo.gz"
            path.write_bytes(gzip.compress(without_sources(text).encode(), mtime=0))
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
