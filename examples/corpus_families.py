"""Families of models in the corpus, as functions that make a `Case` from a setting.

    step, arguments = FAMILIES["mobilenet"](batch=32, training=True)

Those of the model zoo, those of the pressured programs, and more. A training step
overwrites its parameters and optimizer state, as a training loop has it do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import model_zoo
import networks
import pressured_programs
import vision_networks
from flow_networks import Glow, NeuralOde
from graph_networks import GraphNetwork
from language_networks import T5, Llama
from model_zoo import Case
from recommender_networks import Dlrm, WideAndDeep

_BATCH_NORMALISED = (
    vision_networks.DenseNet,
    vision_networks.EfficientNet,
    vision_networks.MobileNet,
)


def classifier(
    network: Callable[..., nn.Module],
    *,
    batch: int = 64,
    image: int = 224,
    training: bool = False,
    **fields: Any,
) -> Case:
    """A network of `fields` from images to the logits of classes."""
    x = _shape((batch, image, image, 3))
    if not training:
        return model_zoo.forward(network(**fields), x)
    labels = _shape((batch,), jnp.int32)
    kwargs = {"training": True} if network in _BATCH_NORMALISED else {}
    return model_zoo.training_step(network(**fields), x, target=labels, **kwargs)


def gru(
    *,
    batch: int = 128,
    sequence: int = 64,
    layers: int = 2,
    width: int = 1024,
    training: bool = False,
) -> Case:
    """Stacked GRUs over `[batch, sequence, width]`."""
    x = _shape((batch, sequence, width))
    return _case(networks.Gru(layers), x, target=x, training=training)


def llama(
    *,
    batch: int = 4,
    sequence: int = 1024,
    layers: int = 1,
    width: int = 1024,
    vocabulary: int = 32000,
    experts: int = 0,
    training: bool = False,
) -> Case:
    """A Llama on whole sequences; with `experts`, as in Mixtral."""
    hidden = 7 * width // 2 if experts else 11 * width // 4
    model = Llama(
        layers, width, width // 128, width // 512, hidden, vocabulary, experts
    )
    tokens = _shape((batch, sequence), jnp.int32)
    return _case(model, tokens, target=tokens, training=training)


def t5(
    *,
    batch: int = 8,
    source: int = 512,
    target: int = 128,
    training: bool = False,
    **fields: Any,
) -> Case:
    """A T5 of `fields` on a source and a target sequence."""
    x, y = _shape((batch, source), jnp.int32), _shape((batch, target), jnp.int32)
    return _case(T5(**fields), x, y, target=y, training=training)


def wide_and_deep(
    *,
    batch: int = 4096,
    fields: int = 26,
    crosses: int = 8,
    training: bool = False,
    **sizes: Any,
) -> Case:
    """A wide and deep model on a batch of clicks, trained by plain gradient descent."""
    x, labels = _shape((batch, 13)), _shape((batch,), jnp.int32)
    ids, crossed = (_shape((batch, n), jnp.int32) for n in (fields, crosses))
    return _case(
        WideAndDeep(**sizes),
        x,
        ids,
        crossed,
        target=labels,
        training=training,
        optimizer=optax.sgd(1e-2),
    )


def dlrm(
    *, batch: int = 2048, fields: int = 26, training: bool = False, **sizes: Any
) -> Case:
    """A DLRM on a batch of clicks, trained by plain gradient descent."""
    x, labels = _shape((batch, 13)), _shape((batch,), jnp.int32)
    ids = _shape((batch, fields), jnp.int32)
    return _case(
        Dlrm(**sizes),
        x,
        ids,
        target=labels,
        training=training,
        optimizer=optax.sgd(1e-2),
    )


def graph_network(
    *,
    nodes: int = 10_000,
    edges: int = 100_000,
    features: int = 16,
    training: bool = False,
    **fields: Any,
) -> Case:
    """A graph network of `fields` on one graph, or on many as one."""
    x, edge = _shape((nodes, features)), _shape((edges, 4))
    ends = _shape((edges,), jnp.int32)
    target = _shape((nodes, 3))
    model = GraphNetwork(**fields)
    return _case(model, x, edge, ends, ends, target=target, training=training)


def neural_ode(
    *,
    batch: int = 4096,
    width: int = 512,
    hidden: int = 1024,
    steps: int = 16,
    training: bool = False,
) -> Case:
    """A neural ODE on states `[batch, width]`, solved in as many steps."""
    x = _shape((batch, width))
    return _case(NeuralOde(steps, hidden), x, target=x, training=training)


def normalising_flow(
    *, batch: int = 64, image: int = 32, training: bool = False, **fields: Any
) -> Case:
    """A Glow of `fields`; trained, on images of different weights."""
    return _case(
        Glow(**fields),
        _shape((batch, image, image, 4)),
        target=_shape((batch,), jnp.float32),
        training=training,
        loss_of=lambda log_likelihood, weight: -(weight * log_likelihood).mean(),
    )


def _in_place(family: Callable[..., Case]) -> Callable[..., Case]:
    """The family with training steps that overwrite what they are given."""

    @functools.wraps(family)
    def make(*, training: bool = False, **setting: Any) -> Case:
        case = family(training=training, **setting)
        return model_zoo.in_place(case) if training else case

    return make


_TRAINABLE: Mapping[str, Callable[..., Case]] = {
    **model_zoo.FAMILIES,
    **{
        name: functools.partial(classifier, network)
        for name, network in (
            ("convnext", vision_networks.ConvNeXt),
            ("densenet", vision_networks.DenseNet),
            ("efficientnet", vision_networks.EfficientNet),
            ("mobilenet", vision_networks.MobileNet),
            ("vit", vision_networks.ViT),
        )
    },
    "dlrm": dlrm,
    "graph_network": graph_network,
    "gru": gru,
    "llama": llama,
    "mixture_of_experts": functools.partial(llama, experts=8),
    "neural_ode": neural_ode,
    "normalising_flow": normalising_flow,
    "t5": t5,
    "wide_and_deep": wide_and_deep,
}

FAMILIES: Mapping[str, Callable[..., Case]] = {
    **{name: _in_place(family) for name, family in _TRAINABLE.items()},
    "alphatensor_matmul": pressured_programs.alphatensor_matmul,
    "cached_decoding": pressured_programs.cached_decoding,
    "diffusion_unet": pressured_programs.diffusion_unet,
}


def _case(
    model: nn.Module,
    *inputs: jax.ShapeDtypeStruct,
    target: jax.ShapeDtypeStruct,
    training: bool,
    **kwargs: Any,
) -> Case:
    if training:
        return model_zoo.training_step(model, *inputs, target=target, **kwargs)
    return model_zoo.forward(model, *inputs)


def _shape(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
