"""Plans to draw: one of a real training step, and chains of any length by hand."""

from __future__ import annotations

import functools
import pathlib

import toy_problems

import jax_malloc
from frontends.program import Program
from hwmodel import presets
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib
from jax_malloc.generate.draft import Draft
from jax_malloc.mapping import Copy, Direction, Mapping, Segment
from jax_malloc.plan import Plan

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_KIB = 1024


@functools.cache
def training_step() -> Plan:
    """A compiled training step of an MLP, with XLA's own mapping."""
    slow = _TESTDATA / "mlp_train.slow.hlo.gz"
    program = jax_malloc.load_program(slow, xla=_TESTDATA / "mlp_train.xla.hlo.gz")
    return jax_malloc.solve(program, "tpu_v5e", solver="greedy")


def by_hand(
    program: Program, mapping: Mapping, accelerator: Accelerator | None = None
) -> Plan:
    """A plan with a mapping that no solver made, on the toy machine or another."""
    problem = problem_lib.build(program, accelerator or toy_problems.toy())
    timeline = problem.evaluate(mapping)
    return Plan(
        program=program,
        accelerator=problem.accelerator,
        mapping=mapping,
        solver="by hand",
        seed=0,
        latency_s=timeline.latency_s,
        baselines={"all_slow": problem.all_slow_latency_s},
        timeline=timeline,
    )


def waiting() -> Plan:
    """A weight that arrives too late, on the toy machine (1 s per KiB, 1 s per FLOP).

    op     0    1
           a    y
    x      =         1 KiB, parameter, in slow memory
    w           =    8 KiB, parameter, prefetched from boundary 0 to 1 to 2 KiB
    a      W----=    1 KiB, in fast memory at 0; 5 FLOPs
    y           W    1 KiB, output, in slow memory

    Op 0 takes 5 s, of which its own traffic leaves 4 s for the copy of 8 s; op 1 waits
    for the other half, 4 s, and takes 1 s.
    """
    draft = Draft("waiting")
    x, w = draft.parameter(_KIB, "x"), draft.parameter(8 * _KIB, "p__mlp____kernel__.1")
    (a,) = draft.op(
        "fusion",
        [x],
        [_KIB],
        name="a",
        op_name="jit(f)/jvp(Net)/mlp/dot_general",
        matmul_flops=5.0,
        matmul_dtype="f32",
    )
    (y,) = draft.op(
        "dot", [a, w], [_KIB], name="y", op_name="jit(f)/transpose(jvp(Net))/mlp/dot"
    )
    mapping = Mapping(
        (
            Segment(buffer_id=a, offset_bytes=0, begin=0, first=0, end=2),
            Segment(buffer_id=w, offset_bytes=2 * _KIB, begin=0, first=1, end=2),
        ),
        (
            Copy(
                buffer_id=w,
                direction=Direction.PREFETCH,
                size_bytes=8 * _KIB,
                start=0,
                done=1,
            ),
        ),
    )
    return by_hand(draft.build([y]), mapping)


@functools.cache
def chain(length: int) -> Plan:
    """Ops that each read what the one before wrote, in two places in turn.

    Every tenth reads a weight too, which is prefetched while the one before runs.
    """
    draft, size = Draft(f"chain_{length}"), 512 * _KIB
    last = draft.parameter(size, "x")
    segments, copies = [], []
    for t in range(length):
        reads, layer = [last], t // 10
        if t % 10 == 9:
            weight = draft.parameter(size, f"params['layers']['{layer}']['kernel']")
            reads.append(weight)
            segments.append(
                Segment(
                    buffer_id=weight,
                    offset_bytes=2 * size,
                    begin=t - 1,
                    first=t,
                    end=t + 1,
                )
            )
            copies.append(
                Copy(
                    buffer_id=weight,
                    direction=Direction.PREFETCH,
                    size_bytes=size,
                    start=t - 1,
                    done=t,
                )
            )
        (last,) = draft.op(
            "fusion",
            reads,
            [size],
            name=f"fusion.{t}",
            op_name=f"jit(f)/layers/{layer}/mlp/dot_general",
        )
        if t < length - 1:
            segments.append(
                Segment(
                    buffer_id=last,
                    offset_bytes=t % 2 * size,
                    begin=t,
                    first=t,
                    end=t + 2,
                )
            )
    mapping = Mapping(tuple(segments), tuple(copies))
    return by_hand(draft.build([last]), mapping, presets.get("tpu_v5e"))
