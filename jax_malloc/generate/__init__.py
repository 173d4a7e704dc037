"""Random programs built like real ones: for training the agent, and for tests.

A network is drawn layer by layer onto a tape; a training program then walks the tape
backwards, so that activations and weights are read again in reverse order. Sizes are
scaled until the working set is the asked-for multiple of the fast memory.

    forward    x -> [dot w1] -> h1 -> [dot w2] -> h2 -> ... -> loss
    backward   g1 <- [dot w1, h1] <- g2 <- [dot w2, h2] <- ...
    update     w1, m1 <- dw1      w2, m2 <- dw2
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from frontends.program import CycleEstimate, Op, Program
from jax_malloc.generate import architectures
from jax_malloc.generate.network import Layer, Network

_MIB = 2**20
_PRESSURE_RANGE = (0.5, 6.0)
_MAX_REDRAWS = 12

# Cycle estimates are drawn around a machine like tpu_v5e at 1.5 GHz.
_FLOPS_PER_CYCLE = 131_000.0
_FAST_BYTES_PER_CYCLE = 1000.0
_SLOW_BYTES_PER_CYCLE = 490.0


def random_program(
    seed: int,
    *,
    num_ops: int = 120,
    family: str | None = None,
    training: bool | None = None,
    loops: bool | None = None,
    pressure: float | None = None,
    fast_bytes: int = 112 * _MIB,
    estimated_share: float | None = None,
) -> Program:
    """A random program; the same arguments give the same one.

    Args:
      seed: of all draws, including those for the arguments that are None.
      num_ops: about how many ops it has; the last layer is finished.
      family: a name in `architectures.FAMILIES`; None draws one.
      training: whether a backward pass and an optimizer update follow.
      loops: whether it has while loops.
      pressure: most bytes between first and last access at one time, as a multiple of
        `fast_bytes`; met as far as buffers of 0.1 to 60 MiB allow, most of them between
        the two. None draws one in 0.5 to 6.
      fast_bytes: of the machine that it will be planned for.
      estimated_share: of ops with a compiler's cycle estimates, most of them two; None
        draws none at all or most ops.
    Raises:
      ValueError: an argument is out of range, or no family has the asked-for mix of
        loops and training.
    """
    rng = np.random.default_rng([seed, 0x6A6D])
    _check(num_ops, pressure, fast_bytes, estimated_share)
    families = _families(family, training, loops)
    if training is None:
        trainable = [f for f in families if f in architectures.TRAINABLE]
        training = bool(trainable) and rng.random() < 0.5
        families = trainable if training else families
    family = families[rng.integers(len(families))]
    if pressure is None:
        pressure = math.exp(rng.uniform(*np.log(_PRESSURE_RANGE)))
    if estimated_share is None:
        estimated_share = 0.9 * float(rng.random() < 0.5)
    shape_seed, cost_seed = rng.integers(2**63, size=2)

    # Draw it again with other sizes and lengths until both targets are met: clipping
    # sizes and finishing layers make neither proportional.
    unit_bytes, length = float(_MIB), num_ops / (3.5 if training else 1.0)
    for _ in range(_MAX_REDRAWS):
        net = Network(
            np.random.default_rng(shape_seed),
            f"{family}_{'train_' if training else ''}{seed}",
            unit_bytes=unit_bytes,
            fast_bytes=fast_bytes,
        )
        program = _draw(net, family, max(1, round(length)), training)
        found = working_set_bytes(program) / fast_bytes
        if abs(found / pressure - 1) < 0.05:
            break
        smallest, largest = net.unit_bytes_range()
        unit_bytes = min(max(unit_bytes * pressure / found, smallest), largest)
        length *= min(max(num_ops / len(program.ops), 0.8), 1.25)
    cost_rng = np.random.default_rng(cost_seed)
    ops = tuple(_with_estimates(op, cost_rng, estimated_share) for op in program.ops)
    return dataclasses.replace(program, ops=ops)


def working_set_bytes(program: Program) -> int:
    """Most bytes of buffers between their first and last access at one time."""
    first, last = {}, {}
    for t, b, *_ in program.accesses():
        first.setdefault(b, t)
        last[b] = t
    change = np.zeros(len(program.ops) + 1, np.int64)
    for b in first:
        change[first[b]] += program.buffers[b].size_bytes
        change[last[b] + 1] -= program.buffers[b].size_bytes
    return int(np.cumsum(change).max(initial=0))


def _draw(net: Network, family: str, num_ops: int, training: bool) -> Program:
    y = architectures.FAMILIES[family](net, num_ops)
    outputs = [*net.results]
    outputs += _train(net, y) if training else [y]
    return net.draft.build(outputs)


def _train(net: Network, y: int) -> list[int]:
    """Appends loss, backward pass and optimizer; the buffers that the caller sees."""
    rng = net.rng
    deferred = rng.random() < 0.3  # all updates at the end, as after gradient clipping
    donated = rng.random() < 0.5  # new weights take the old ones' place, or in place
    moments = int(rng.integers(0, 3))  # plain SGD, momentum, Adam
    net.scope = "loss"
    loss, gradient = net.op("fusion", [y], [0.0, net.units(y)])
    gradients = {y: gradient}
    needed = {b for layer in net.tape for b in layer.outputs}
    outputs, updates = [loss], []
    for layer in reversed(net.tape):
        updates += _backward(net, layer, gradients, needed)
        if not deferred:
            outputs += _update(net, updates, moments, donated)
            updates = []
    return outputs + _update(net, updates, moments, donated)


def _backward(
    net: Network, layer: Layer, gradients: dict[int, int], needed: set[int]
) -> list[tuple[int, int]]:
    """Adds to `gradients` those of a layer's inputs; `(weight, gradient)` pairs."""
    net.scope = f"transpose({layer.scope})"
    arriving = [gradients[b] for b in layer.outputs if b in gradients]
    if not arriving:
        return []
    pairs = []
    for w in layer.weights:
        (dw,) = net.op(
            "fusion", [*arriving, *layer.inputs], [net.units(w)], is_matmul=True
        )
        pairs.append((w, dw))
    for x in layer.inputs:
        if x not in needed:
            continue
        others = [b for b in layer.inputs if b != x]
        # A product needs its other operands, the rest what it was applied to.
        saved = [*layer.weights, *others] if layer.is_matmul else [x]
        earlier = [gradients[x]] if x in gradients else []
        reads = dict.fromkeys([*arriving, *saved, *earlier])
        (gradients[x],) = net.op(
            "fusion", reads, [net.units(x)], is_matmul=layer.is_matmul
        )
    return pairs


def _update(
    net: Network, pairs: list[tuple[int, int]], moments: int, donated: bool
) -> list[int]:
    """The optimizer's ops, one per weight; what they return to the caller."""
    outputs = []
    for w, dw in pairs:
        net.scope = "optimizer"
        state = [w, *(net.parameter(net.units(w)) for _ in range(moments))]
        if donated:
            new = net.op("fusion", [dw, *state], [net.units(b) for b in state])
            for old, replacement in zip(state, new, strict=True):
                net.draft.share([old, replacement])
            outputs += new
        else:
            net.op("fusion", [dw, *state], updates=state)
            outputs += state
    return outputs


def _with_estimates(op: Op, rng: np.random.Generator, share: float) -> Op:
    """With all in slow memory, and mostly a second under some other placement."""
    draws = rng.random(3)
    overhead, fast, slow = np.exp(rng.normal([6.0, 0.2, 0.0], [0.7, 0.3, 0.5]))
    total = sum(op.touched_bytes().values())
    if total == 0 or draws[0] >= share:
        return op
    base = overhead + max(
        op.matmul_flops / _FLOPS_PER_CYCLE, total / _FAST_BYTES_PER_CYCLE * fast
    )
    extra = total / _SLOW_BYTES_PER_CYCLE * slow
    points = [(1.0, total)]
    if draws[1] < 0.8:
        left = max(0.0, draws[2] * 1.5 - 0.5)  # everything in fast memory: a third
        points.append((left, round(left * total)))
    estimates = tuple(
        CycleEstimate(round(base + extra * left), slow_bytes)
        for left, slow_bytes in points
    )
    return dataclasses.replace(op, estimates=estimates)


def _families(
    family: str | None, training: bool | None, loops: bool | None
) -> list[str]:
    """The families that can give what was asked for."""
    if family is not None and family not in architectures.FAMILIES:
        raise ValueError(
            f"unknown family {family!r}; choose one of "
            f"{', '.join(architectures.FAMILIES)}."
        )
    found = [
        name
        for name in architectures.FAMILIES
        if family in (None, name)
        and not (training and name not in architectures.TRAINABLE)
        and loops in (None, name in architectures.LOOPS)
    ]
    if not found:
        raise ValueError(
            f"no program with family={family!r}, training={training}, loops={loops}: "
            f"loops are in {', '.join(architectures.LOOPS)}, training programs are "
            f"{', '.join(architectures.TRAINABLE)}. Leave one of them out."
        )
    return found


def _check(
    num_ops: int, pressure: float | None, fast_bytes: int, share: float | None
) -> None:
    if num_ops < 1:
        raise ValueError(f"num_ops is {num_ops}; a program needs at least one.")
    if pressure is not None and not 0 < pressure < math.inf:
        raise ValueError(f"pressure is {pressure}; expected a number above 0.")
    if fast_bytes < _MIB:
        raise ValueError(
            f"fast_bytes is {fast_bytes}; buffers have 0.1 MiB and more, so a fast "
            "memory of at least 1 MiB is needed."
        )
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"estimated_share is {share}; expected a share in [0, 1].")
