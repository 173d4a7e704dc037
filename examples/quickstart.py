"""jax_malloc in one screen: decorate a function, call it, look at its plan.

python examples/quickstart.py --out=plan.json
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

import jax_malloc
from accelerator_flag import AcceleratorParser, NameSerializer
from jax_malloc.solvers import SOLVERS

_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "Machine to plan for.",
    serializer=NameSerializer(),
)
_SOLVER = flags.DEFINE_enum("solver", "hybrid", list(SOLVERS), "Makes the plan.")
_TOKENS = flags.DEFINE_integer("tokens", 4096, "Length of the sequence.", 1)
_WIDTH = flags.DEFINE_integer("width", 256, "Features of each token.", 1)
_OUT = flags.DEFINE_string("out", None, "File to save the plan to, as JSON.")


def attention_block(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Self-attention with one head and a two-layer MLP on `[tokens, width]`."""
    q, k, v = jnp.split(x @ params["qkv"], 3, axis=-1)
    weights = jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5)
    x = x + weights @ v @ params["out"]
    return x + jax.nn.gelu(x @ params["up"]) @ params["down"]


def param_shapes(width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters of `attention_block`."""
    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    return {name: jax.ShapeDtypeStruct(s, jnp.bfloat16) for name, s in shapes.items()}


def random_arrays(shapes, seed: int):
    """A small random array for every leaf of `shapes`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(0.02 * rng.standard_normal(s.shape), s.dtype), shapes
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # not a line per backend that JAX lacks
    block = jax_malloc.optimize(
        attention_block, accelerator=_ACCELERATOR.value, solver=_SOLVER.value
    )

    # Calling it computes what jax.jit computes, here at a size that suits a CPU.
    small = random_arrays(param_shapes(64), seed=0)
    x = random_arrays(jax.ShapeDtypeStruct((128, 64), jnp.bfloat16), seed=1)
    same = bool((block(small, x) == jax.jit(attention_block)(small, x)).all())
    print(f"same values as jax.jit: {same}")

    # Planning needs shapes only.
    width = _WIDTH.value
    batch = jax.ShapeDtypeStruct((_TOKENS.value, width), jnp.bfloat16)
    plan = block.plan(param_shapes(width), batch)
    print(plan)
    print(f"predicted speedup over all in slow memory: {plan.speedup:.2f}x")
    if _OUT.value:
        plan.save(_OUT.value)
        print(f"saved to {_OUT.value}; read it with jax_malloc.load_plan")


if __name__ == "__main__":
    app.run(main)
