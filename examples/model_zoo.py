"""Small models of many kinds, as functions and the shapes of their arguments.

    function, arguments = FAMILIES["mlp"](layers=4, width=512, training=True)
    program = frontends.stablehlo.from_jax(function, *arguments)

No array is made: parameters and inputs are `jax.ShapeDtypeStruct`s. `ZOO` names some
forty programs of these families, "mlp/wide" for one, and makes them without arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import networks

# A function and the shapes of its arguments.
Case = tuple[Callable[..., Any], tuple[Any, ...]]


def forward(model: nn.Module, *inputs: jax.ShapeDtypeStruct) -> Case:
    """`model.apply` with parameters in the model's dtype, and its arguments' shapes."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda x: _shape(x.shape, model.dtype), variables)
    return model.apply, (variables, *inputs)


def training_step(
    model: nn.Module,
    *inputs: jax.ShapeDtypeStruct,
    target: jax.ShapeDtypeStruct,
    optimizer: optax.GradientTransformation | None = None,
    loss_of: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    **apply_kwargs: Any,
) -> Case:
    """One optimizer step with float32 parameters, and the shapes of its arguments.

    The function takes `(params, state, optimizer_state, *inputs, target)` and returns
    the first three, updated, and the loss.

    Args:
      inputs: of the model.
      target: of the loss.
      optimizer: Adam, if None.
      loss_of: of output and target; if None, cross-entropy where the target holds class
        indices, mean squared error otherwise.
      apply_kwargs: of the model, such as `training=True`.
    """
    optimizer = optimizer or optax.adam(1e-3)
    loss_of = loss_of or _loss
    state = dict(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    params = state.pop("params")
    optimizer_state = jax.eval_shape(optimizer.init, params)

    def step(params, state, optimizer_state, *batch):
        *inputs, target = batch

        def loss_and_state(params):
            out, new_state = model.apply(
                {"params": params, **state},
                *inputs,
                mutable=list(state),
                **apply_kwargs,
            )
            return loss_of(out.astype(jnp.float32), target), new_state

        grad = jax.value_and_grad(loss_and_state, has_aux=True)
        (loss, new_state), grads = grad(params)
        updates, new_optimizer_state = optimizer.update(grads, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return params, new_state, new_optimizer_state, loss

    return step, (params, state, optimizer_state, *inputs, target)


def in_place(case: Case) -> Case:
    """A training step that may overwrite parameters and state, as training loops do."""
    step, arguments = case
    return jax.jit(step, donate_argnums=(0, 1, 2)), arguments


def mlp(
    *,
    batch: int = 1024,
    width: int = 2048,
    layers: int = 6,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A multilayer perceptron on `[batch, width]`."""
    x = _shape((batch, width), dtype)
    return _case(
        networks.Mlp(width, layers, width, dtype), x, target=x, training=training
    )


def resnet(
    *,
    batch: int = 16,
    image: int = 224,
    channels: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    classes: int = 1000,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A ResNet with bottlenecks; the defaults are ResNet-50's."""
    model = networks.ResNet(blocks, channels, classes, dtype)
    x, labels = _shape((batch, image, image, 3), dtype), _shape((batch,), jnp.int32)
    if training:
        return training_step(model, x, target=labels, training=True)
    return forward(model, x)


def unet(
    *,
    batch: int = 4,
    image: int = 128,
    channels: int = 64,
    depth: int = 3,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A U-Net on `[batch, image, image, 4]`, as in diffusion models."""
    x = _shape((batch, image, image, 4), dtype)
    return _case(networks.UNet(channels, depth, dtype), x, target=x, training=training)


def autoencoder(
    *,
    batch: int = 32,
    image: int = 128,
    channels: int = 64,
    depth: int = 4,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A convolutional autoencoder on `[batch, image, image, 3]`."""
    x = _shape((batch, image, image, 3), dtype)
    return _case(
        networks.Autoencoder(channels, depth, dtype), x, target=x, training=training
    )


def transformer(
    *,
    causal: bool,
    batch: int = 8,
    sequence: int = 256,
    layers: int = 4,
    width: int = 512,
    heads: int = 8,
    vocabulary: int = 16384,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A transformer from tokens to logits: GPT-like if `causal`, else BERT-like."""
    model = networks.Transformer(layers, width, heads, vocabulary, causal, dtype)
    tokens = _shape((batch, sequence), jnp.int32)
    return _case(model, tokens, target=tokens, training=training)


def encoder_decoder(
    *,
    batch: int = 8,
    source: int = 256,
    target: int = 128,
    layers: int = 3,
    width: int = 512,
    heads: int = 8,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """A transformer encoder-decoder on features, embeddings left out."""
    model = networks.EncoderDecoder(layers, heads, dtype)
    x = _shape((batch, source, width), dtype)
    y = _shape((batch, target, width), dtype)
    return _case(model, x, y, target=y, training=training)


def mixer(
    *,
    batch: int = 32,
    patches: int = 196,
    layers: int = 6,
    width: int = 512,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """An MLP-Mixer on patches `[batch, patches, width]`."""
    x = _shape((batch, patches, width), dtype)
    return _case(networks.MlpMixer(layers, dtype), x, target=x, training=training)


def lstm_scan(
    *,
    batch: int = 128,
    sequence: int = 64,
    layers: int = 2,
    width: int = 1024,
    training: bool = False,
    dtype: Any = jnp.bfloat16,
) -> Case:
    """Stacked LSTMs over `[batch, sequence, width]`."""
    x = _shape((batch, sequence, width), dtype)
    return _case(networks.Lstm(layers, dtype), x, target=x, training=training)


FAMILIES: Mapping[str, Callable[..., Case]] = {
    "autoencoder": autoencoder,
    "encoder_decoder": encoder_decoder,
    "lstm_scan": lstm_scan,
    "mixer": mixer,
    "mlp": mlp,
    "resnet": resnet,
    "transformer_decoder": functools.partial(transformer, causal=True),
    "transformer_encoder": functools.partial(transformer, causal=False),
    "unet": unet,
}

# By family and name of the setting. Working sets are from 8 to 500 MiB.
_SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "autoencoder": {
        "small": {"batch": 16},
        "large": {"batch": 128, "channels": 48},
        "train": {"batch": 32, "training": True},
        "train_large": {"batch": 16, "image": 256, "training": True},
    },
    "encoder_decoder": {
        "small": {},
        "large": {"batch": 16, "source": 512, "target": 512, "layers": 6},
        "train_small": {"batch": 4, "layers": 2, "training": True},
        "train": {"batch": 4, "source": 512, "layers": 2, "training": True},
    },
    "lstm_scan": {
        "small": {},
        "deep": {"layers": 6, "sequence": 128},
        "wide": {"layers": 1, "width": 2048, "sequence": 96},
        "train": {"batch": 64, "sequence": 48, "training": True},
    },
    "mixer": {
        "small": {"batch": 16},
        "large": {"batch": 64, "width": 768, "layers": 8},
        "train": {"batch": 16, "training": True},
        "train_wide": {"batch": 8, "width": 1024, "layers": 4, "training": True},
    },
    "mlp": {
        "small": {"layers": 8, "width": 1536},
        "wide": {"layers": 4, "width": 4096},
        "deep": {"layers": 24, "width": 2048, "batch": 2048},
        "train": {"layers": 8, "width": 1024, "batch": 4096, "training": True},
        "train_wide": {"layers": 3, "width": 2560, "batch": 6144, "training": True},
    },
    "resnet": {
        "small": {"batch": 4, "blocks": (2, 2, 2, 2)},
        "resnet50": {},
        "large": {"batch": 64, "blocks": (2, 3, 4, 2)},
        "train": {"batch": 4, "training": True},
        "train_small": {"batch": 12, "blocks": (1, 2, 2, 1), "training": True},
    },
    "transformer_decoder": {
        "small": {"layers": 3},
        "long": {"batch": 1, "sequence": 2048, "layers": 6},
        "large": {"layers": 6, "width": 1024, "heads": 16, "batch": 16},
        "train_small": {"layers": 2, "vocabulary": 4096, "training": True},
        "train": {"vocabulary": 8192, "training": True},
    },
    "transformer_encoder": {
        "small": {"layers": 3, "vocabulary": 4096},
        "base": {"layers": 6, "width": 768, "heads": 12},
        "large": {"layers": 4, "width": 1024, "heads": 16, "batch": 24},
        "train_small": {"layers": 2, "vocabulary": 4096, "training": True},
        "train": {"layers": 3, "width": 768, "heads": 12, "batch": 4, "training": True},
    },
    "unet": {
        "small": {},
        "large": {"batch": 8, "image": 256},
        "deep": {"batch": 16, "depth": 4, "channels": 32},
        "train": {"training": True},
        "train_large": {"batch": 4, "channels": 32, "image": 256, "training": True},
    },
}

ZOO: Mapping[str, Callable[..., Case]] = {
    f"{family}/{name}": functools.partial(FAMILIES[family], **setting)
    for family, settings in _SETTINGS.items()
    for name, setting in settings.items()
}


# Families that agents are evaluated on and never trained on.
HELD_OUT = ("unet", "transformer_encoder", "lstm_scan")


def family(name: str) -> str:
    """The family of a program of the zoo: `"unet"` of `"unet/train"`."""
    return name.partition("/")[0]


def _case(
    model: nn.Module,
    *inputs: jax.ShapeDtypeStruct,
    target: jax.ShapeDtypeStruct,
    training: bool,
) -> Case:
    if training:
        return training_step(model, *inputs, target=target)
    return forward(model, *inputs)


def _loss(out: jax.Array, target: jax.Array) -> jax.Array:
    if jnp.issubdtype(target.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(out, target).mean()
    return ((out - target) ** 2).mean()


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
