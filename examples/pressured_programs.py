"""Ten programs whose tensors compete for the fast memory of a TPU.

    function, arguments = PRESSURED["convnext"]()
    program = frontends.tpu.compile(function, *arguments, topology="v5e")

Each touches far more than 128 MiB per call, the fast memory of a TPU v5e. The list of
models was drawn up before any of them was compiled: the kinds that people run on TPUs,
in training and inference. Widths, batches and image sizes are usual ones, mostly of the
published model that a docstring names. Depths, the length of Llama's sequences, the
algorithm of the matrix product and the U-Net's backward pass were then cut until a
compile took tens of seconds and no more: what competes for fast memory is in one layer
or in neighbours. None was dropped or changed for its latency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

import block_matmul
import factorization_files
import model_zoo
from language_networks import T5, Llama
from model_zoo import Case
from networks import MlpMixer
from vision_networks import ConvNeXt, DenseNet, DiffusionUNet, EfficientNet


def convnext(
    *, batch: int = 64, image: int = 224, blocks: tuple[int, ...] = (1, 1, 1, 1)
) -> Case:
    """ConvNeXt-T, inference on a batch of images."""
    return model_zoo.forward(ConvNeXt(blocks), _images(batch, image))


def efficientnet(
    *,
    batch: int = 64,
    image: int = 224,
    blocks: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1),
) -> Case:
    """EfficientNet-B0, inference on a batch of images."""
    return model_zoo.forward(EfficientNet(blocks), _images(batch, image))


def densenet(
    *, batch: int = 64, image: int = 224, blocks: tuple[int, ...] = (2, 2, 2, 2)
) -> Case:
    """DenseNet-121, inference on a batch of images."""
    return model_zoo.forward(DenseNet(blocks), _images(batch, image))


def diffusion_unet(
    *, batch: int = 128, image: int = 32, multipliers: tuple[int, ...] = (1, 2)
) -> Case:
    """DDPM's U-Net for CIFAR-10, one block per resolution, as in a sampling step."""
    model = DiffusionUNet(multipliers=multipliers, blocks=1)
    level = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return model_zoo.forward(model, _images(batch, image), level)


def llama_training(
    *, batch: int = 4, sequence: int = 1024, layers: int = 1, width: int = 1024
) -> Case:
    """A training step of a small Llama on 4,096 tokens, in sequences of 1,024."""
    model = Llama(layers, width, width // 128, width // 512, 11 * width // 4)
    tokens = jax.ShapeDtypeStruct((batch, sequence), jnp.int32)
    return model_zoo.in_place(model_zoo.training_step(model, tokens, target=tokens))


def mixture_of_experts(
    *, batch: int = 4, sequence: int = 1024, layers: int = 1, width: int = 1024
) -> Case:
    """A training step of a Mixtral-like model with eight experts per layer."""
    model = Llama(layers, width, width // 128, width // 512, 7 * width // 2, experts=8)
    tokens = jax.ShapeDtypeStruct((batch, sequence), jnp.int32)
    return model_zoo.in_place(model_zoo.training_step(model, tokens, target=tokens))


def cached_decoding(
    *, batch: int = 32, context: int = 2048, layers: int = 4, width: int = 2048
) -> Case:
    """One decoding step of a Llama with long caches, updated in place."""
    model = Llama(layers, width, width // 128, width // 512, 11 * width // 4)
    token = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    shape = (batch, context, model.kv_heads, width // model.heads)
    half = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    position = jax.ShapeDtypeStruct((), jnp.int32)
    apply, arguments = model_zoo.forward(
        model, token, ((half, half),) * layers, position
    )
    return jax.jit(apply, donate_argnums=2), arguments


def mixer(*, batch: int = 256, layers: int = 4, width: int = 512) -> Case:
    """The layers of Mixer-S/16, inference on the patches of a batch of images."""
    x = jax.ShapeDtypeStruct((batch, 196, width), jnp.bfloat16)
    return model_zoo.forward(MlpMixer(layers), x)


def t5_training(
    *, batch: int = 8, source: int = 512, target: int = 128, layers: int = 1
) -> Case:
    """A training step of T5 1.1 Base, with one layer in each of its two stacks."""
    x = jax.ShapeDtypeStruct((batch, source), jnp.int32)
    y = jax.ShapeDtypeStruct((batch, target), jnp.int32)
    return model_zoo.in_place(model_zoo.training_step(T5(layers), x, y, target=y))


def alphatensor_matmul(*, size: int = 6144, factorization: str = "laderman") -> Case:
    """A product of square matrices in 23 block products, for 3 x 3 blocks."""
    multiply = functools.partial(
        block_matmul.multiply, factorization_files.get(factorization)
    )
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16)
    return multiply, (x, x)


PRESSURED: Mapping[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        convnext,
        efficientnet,
        densenet,
        diffusion_unet,
        llama_training,
        mixture_of_experts,
        cached_decoding,
        mixer,
        t5_training,
        alphatensor_matmul,
    )
}


def _images(batch: int, image: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, image, image, 3), jnp.bfloat16)
