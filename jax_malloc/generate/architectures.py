"""The families of random networks: each adds layers to a `Network`.

A family takes the network and the number of ops to reach, and returns the last
activation. Sizes are in units, which the generator scales to the memory of the machine;
only their ratios are drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jax_malloc.generate.network import Network

Family = Callable[[Network, int], int]


def wide_mlp(net: Network, num_ops: int) -> int:
    """Dense layers whose weights are larger than their activations."""
    rng = net.rng
    x, layer = net.parameter(rng.uniform(0.3, 4.0)), 0
    while net.num_ops < num_ops:
        net.scope = f"layer_{layer}"
        out = rng.uniform(0.3, 4.0)
        h = net.matmul([x], out, weight=net.units(x) * out * rng.uniform(0.5, 3.0))
        if rng.random() < 0.4:
            h = net.elementwise([h])
        x = net.elementwise([h, x], out) if rng.random() < 0.3 else h
        layer += 1
    return x


def transformer(net: Network, num_ops: int) -> int:
    """Attention and MLP blocks on a residual stream."""
    rng = net.rng
    width = rng.uniform(0.5, 3.0)
    scores = width * math.exp(rng.uniform(-1.0, 1.8))
    weight = math.exp(rng.uniform(-1.5, 1.5))
    one_product, norm_apart = rng.random() < 0.5, rng.random() < 0.5
    x, block = net.parameter(width), 0
    while net.num_ops < num_ops:
        net.scope = f"block_{block}/attention"
        h = net.elementwise([x]) if norm_apart else x
        if one_product:
            q, k, v = net.split(h, [width] * 3, weight=3 * weight)
        else:
            q, k, v = (net.matmul([h], width, weight=weight) for _ in range(3))
        probabilities = net.elementwise([net.matmul([q, k], scores)])
        context = net.matmul([probabilities, v], width)
        x = net.matmul([context, x], width, weight=weight)
        net.scope = f"block_{block}/mlp"
        h = net.elementwise([x]) if norm_apart else x
        up = net.matmul([h], 4 * width, weight=4 * weight)
        x = net.matmul([up, x], width, weight=4 * weight)
        block += 1
    return x


def conv_pyramid(net: Network, num_ops: int) -> int:
    """Residual convolution stages: activations shrink, weights grow."""
    rng = net.rng
    size, weight = rng.uniform(6.0, 30.0), rng.uniform(0.01, 0.3)
    blocks_per_stage = max(1, round(num_ops / (3 * rng.integers(3, 6))))
    x, block = net.parameter(size), 0
    while net.num_ops < num_ops:
        net.scope = f"stage_{block // blocks_per_stage}/block_{block}"
        if block and block % blocks_per_stage == 0:
            size, weight = size / 2, weight * 4
            x = net.matmul([x], size, weight=weight)
        inner = size / rng.choice([1, 2, 4])
        h = net.matmul([x], inner, weight=weight / 2)
        h = net.matmul([h], inner, weight=weight)
        x = net.matmul([h, x], size, weight=weight / 2)
        block += 1
    return x


def unet(net: Network, num_ops: int) -> int:
    """Down and up again: the skips are read in reverse order, long after."""
    rng = net.rng
    size, weight = rng.uniform(8.0, 30.0), rng.uniform(0.02, 0.2)
    depth = int(rng.integers(2, 6))
    convolutions = max(1, round(num_ops / (2 * depth) - 1))
    x, skips = net.parameter(size), []
    for level in range(depth):
        net.scope = f"down_{level}"
        for _ in range(convolutions):
            x = net.matmul([x], size, weight=weight)
        skips.append(x)
        size, weight = size / 2, weight * 3
        x = net.elementwise([x], size)
    for level in reversed(range(depth)):
        net.scope = f"up_{level}"
        size, weight = size * 2, weight / 3
        x = net.matmul([x, skips.pop()], size, weight=weight)
        for _ in range(convolutions):
            x = net.matmul([x], size, weight=weight)
    return x


def dense_blocks(net: Network, num_ops: int) -> int:
    """Every layer reads several earlier ones, as in DenseNet and Inception."""
    rng = net.rng
    size, fan_in = rng.uniform(0.5, 4.0), int(rng.integers(2, 7))
    made = [net.parameter(size * 2)]
    while net.num_ops < num_ops - 1:
        net.scope = f"layer_{len(made)}"
        recent = made[-3 * fan_in :]
        count = min(int(rng.integers(1, fan_in + 1)), len(recent))
        chosen = rng.choice(len(recent), count, replace=False)
        inputs = sorted({made[-1], *(recent[i] for i in chosen)})
        out = size * rng.uniform(0.5, 1.5)
        made.append(net.matmul(inputs, out, weight=rng.uniform(0.05, 1.0)))
    return net.elementwise(made[-fan_in:], size)


def decoder(net: Network, num_ops: int) -> int:
    """One token: every weight is read for little work, caches grow in place."""
    width, weight, cache = _decoder_units(net)
    x, layer = net.parameter(width), 0
    while net.num_ops < num_ops:
        net.scope = f"layer_{layer}"
        kv = net.parameter(cache)
        net.results.append(kv)
        weights = [net.parameter(weight * k) for k in (3, 1, 4, 4)]
        x = _decoder_layer(net, x, kv, weights)
        layer += 1
    return x


def decoder_loop(net: Network, num_ops: int) -> int:
    """Token after token in a loop that carries the state and the caches."""
    width, weight, cache = _decoder_units(net)
    layers = max(1, num_ops // 5)
    (x,) = net.op("fusion", [net.parameter(width)], [width])
    caches = [net.parameter(cache) for _ in range(layers)]
    net.results += caches
    weights = [[net.parameter(weight * k) for k in (3, 1, 4, 4)] for _ in caches]
    with net.draft.loop(int(net.rng.integers(2, 65))):
        h = x
        for layer, (kv, mine) in enumerate(zip(caches, weights, strict=True)):
            net.scope = f"decode/layer_{layer}"
            h = _decoder_layer(net, h, kv, mine)
        net.op("copy", [h], overwrites=[x])
    net.scope = ""
    return net.op("fusion", [x], [width])[0]


def layer_scan(net: Network, num_ops: int) -> int:
    """Several chains of layers, each a loop over stacked weights, sliced in turn."""
    rng = net.rng
    width = rng.uniform(0.5, 3.0)
    (x,) = net.op("fusion", [net.parameter(width)], [width])
    loops = max(1, num_ops // int(rng.integers(8, 20)))
    for k in range(loops):
        net.scope = f"scan_{k}"
        trips = int(rng.integers(2, 17))
        weight = math.exp(rng.uniform(-1.5, 0.5))
        stack = net.parameter(weight * trips)
        (saved,) = net.op("broadcast", [], [width * trips])
        length = max(1, (num_ops - net.num_ops) // (loops - k) - 4)
        with net.draft.loop(trips):
            part = net.bytes_of(stack) // trips
            (w,) = net.op("dynamic-slice", [(stack, part)], [weight])
            part = net.bytes_of(saved) // trips
            net.op("dynamic-update-slice", [(x, part)], updates=[(saved, part)])
            h = x
            for _ in range(length):
                h = net.op(
                    "fusion", [h, w], [width * rng.uniform(0.5, 2)], is_matmul=True
                )[0]
            # In place where the residual is added, by a copy where it is not.
            if rng.random() < 0.5:
                net.op("fusion", [h, x], updates=[x])
            else:
                net.op("copy", [h], overwrites=[x])
        net.op("fusion", [saved, x], updates=[x])
    net.scope = ""
    return net.op("fusion", [x], [width])[0]


def _decoder_units(net: Network) -> tuple[float, float, float]:
    """Sizes of the state, of a square weight, and of one layer's cache."""
    rng = net.rng
    return rng.uniform(0.02, 0.3), rng.uniform(0.3, 4.0), rng.uniform(0.5, 5.0)


def _decoder_layer(net: Network, x: int, kv: int, weights: list[int]) -> int:
    """Five ops: products, a cache row in place, attention over the cache."""
    width = net.units(x)
    query, out, up, down = weights
    (qkv,) = net.op("fusion", [x, query], [3 * width], is_matmul=True)
    row = net.bytes_of(kv) // int(net.rng.integers(16, 256))
    net.op("dynamic-update-slice", [(qkv, row)], updates=[(kv, row)])
    (h,) = net.op("fusion", [qkv, kv, x, out], [width], is_matmul=True)
    (wide,) = net.op("fusion", [h, up], [4 * width], is_matmul=True)
    return net.op("fusion", [wide, h, down], [width], is_matmul=True)[0]


# By name; those in LOOPS have loops and no backward pass.
TRAINABLE: dict[str, Family] = {
    "wide_mlp": wide_mlp,
    "transformer": transformer,
    "conv_pyramid": conv_pyramid,
    "unet": unet,
    "dense_blocks": dense_blocks,
}
LOOPS: dict[str, Family] = {"decoder_loop": decoder_loop, "layer_scan": layer_scan}
FAMILIES: dict[str, Family] = {**TRAINABLE, "decoder": decoder, **LOOPS}
