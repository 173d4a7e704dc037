"""Tiny named programs on a toy machine, small enough to work by hand; and random ones.

The toy machine moves 1 KiB between slow memory and an op, or by DMA, in 1 s; fast
memory holds 16 KiB, in granules of 1 KiB, and takes no time; one FLOP takes 1 s. In the
drawings `=` marks an op that touches the buffer, W one that writes it, and the line of
`-` is the rest of its live range.
"""

from __future__ import annotations

from collections.abc import Callable

from frontends.program import Program
from hwmodel.accelerator import Accelerator, Dma, Memory
from jax_malloc import generate
from jax_malloc import problem as problem_lib
from jax_malloc.generate.draft import Draft
from jax_malloc.problem import Problem

KIB = 1024


def toy(*, fast_kib: int = 16, max_in_flight: int | None = None) -> Accelerator:
    """The machine of the drawings: 1 s per KiB moved to or from slow memory."""
    return Accelerator(
        name="toy",
        fast=Memory(
            capacity_bytes=fast_kib * KIB,
            bandwidth_bytes_per_s=1e9 * KIB,  # no time
            alignment_bytes=KIB,
        ),
        slow=Memory(
            capacity_bytes=2**30, bandwidth_bytes_per_s=KIB, alignment_bytes=KIB
        ),
        dma=Dma(bandwidth_share=1.0, max_in_flight=max_in_flight),
        peak_flops_per_s={"f32": 1.0},
        vector_flops_per_s=1.0,
        transcendentals_per_s=1.0,
        clock_hz=1.0,
        slow_read_share=1.0,
    )


def single_op() -> Program:
    """One op.

    op     0
           neg
    x      =         4 KiB, parameter
    y      W         4 KiB, output
    """
    draft = Draft("single_op")
    x = draft.parameter(4 * KIB, "x")
    (y,) = draft.op("neg", [x], [4 * KIB], name="y")
    return draft.build([y])


def chain() -> Program:
    """Each op reads what the one before it wrote.

    op     0    1    2
           a    b    y
    x      =                 4 KiB, parameter
    a      W----=            4 KiB
    b           W----=       4 KiB
    y                W       4 KiB, output
    """
    draft = Draft("chain")
    x = draft.parameter(4 * KIB, "x")
    (a,) = draft.op("fusion", [x], [4 * KIB], name="a")
    (b,) = draft.op("fusion", [a], [4 * KIB], name="b")
    (y,) = draft.op("fusion", [b], [4 * KIB], name="y")
    return draft.build([y])


def diamond() -> Program:
    """Two branches that join: a waits for the second of its readers.

    op     0    1    2    3
           a    b    c    y
    x      =                      2 KiB, parameter
    a      W----=----=            8 KiB
    b           W---------=       4 KiB
    c                W----=       4 KiB
    y                     W       2 KiB, output
    """
    draft = Draft("diamond")
    x = draft.parameter(2 * KIB, "x")
    (a,) = draft.op("fusion", [x], [8 * KIB], name="a")
    (b,) = draft.op("fusion", [a], [4 * KIB], name="b")
    (c,) = draft.op("fusion", [a], [4 * KIB], name="c")
    (y,) = draft.op("fusion", [b, c], [2 * KIB], name="y")
    return draft.build([y])


def weight_reused() -> Program:
    """A weight that is read twice, with 10 s of compute before either: a prefetch pays.

    op     0    1    2    3
           a    b    c    y
    x      =                      1 KiB, parameter
    w           =---------=       8 KiB, parameter
    a      W----=                 1 KiB
    b           W----=            1 KiB
    c                W----=       1 KiB
    y                     W       1 KiB, output
    FLOPs  10        10
    """
    draft = Draft("weight_reused")
    x, w = draft.parameter(KIB, "x"), draft.parameter(8 * KIB, "w")
    compute = {"matmul_flops": 10.0, "matmul_dtype": "f32"}
    (a,) = draft.op("fusion", [x], [KIB], name="a", **compute)
    (b,) = draft.op("dot", [a, w], [KIB], name="b")
    (c,) = draft.op("fusion", [b], [KIB], name="c", **compute)
    (y,) = draft.op("dot", [c, w], [KIB], name="y")
    return draft.build([y])


def cache_update() -> Program:
    """A donated cache of which one row is replaced in place; the caller gets it back.

    op     0     1     2
           row   upd   y
    x      =                   1 KiB, parameter
    row    W-----=             1 KiB
    cache        =W----=       8 KiB, parameter and output; op 1 writes 1 KiB of it
    y                  W       1 KiB, output
    """
    draft = Draft("cache_update")
    x, cache = draft.parameter(KIB, "x"), draft.parameter(8 * KIB, "cache")
    (row,) = draft.op("fusion", [x], [KIB], name="row")
    draft.op("dynamic-update-slice", [row], updates=[(cache, KIB)], name="update")
    (y,) = draft.op("fusion", [cache], [KIB], name="y")
    return draft.build([cache, y])


def loop() -> Program:
    """A loop of 10 iterations that carries a state and reads a weight each time.

    op     0      1    2    3       4
           init   h    new  while   y
                 |---body---|
    x      =                              2 KiB, parameter
    w             =---------              4 KiB, parameter
    state  W------=----W------------=     2 KiB
    h             W----=                  2 KiB
    y                               W     2 KiB, output
    """
    draft = Draft("loop")
    x, w = draft.parameter(2 * KIB, "x"), draft.parameter(4 * KIB, "w")
    (state,) = draft.op("fusion", [x], [2 * KIB], name="init")
    with draft.loop(10, name="while"):
        (h,) = draft.op("dot", [state, w], [2 * KIB], name="h")
        draft.op("copy", [h], overwrites=[state], name="new")
    (y,) = draft.op("fusion", [state], [2 * KIB], name="y")
    return draft.build([y])


def two_outputs() -> Program:
    """One op with two results, one of them returned, as are both of the next op's.

    op     0    1
           a    y
    x      =              4 KiB, parameter
    a{0}   W----=         4 KiB
    a{1}   W-----         2 KiB, output
    y      -    W         2 KiB, output
    """
    draft = Draft("two_outputs")
    x = draft.parameter(4 * KIB, "x")
    a, kept = draft.op("fusion", [x], [4 * KIB, 2 * KIB], name="a")
    (y,) = draft.op("fusion", [a], [2 * KIB], name="y")
    return draft.build([kept, y])


PROGRAMS: dict[str, Callable[[], Program]] = {
    make.__name__: make
    for make in (
        single_op,
        chain,
        diamond,
        weight_reused,
        cache_update,
        loop,
        two_outputs,
    )
}


def problem(program: Program | str, accelerator: Accelerator | None = None) -> Problem:
    """A program, or one of `PROGRAMS` by name, on the toy machine or another."""
    if isinstance(program, str):
        program = PROGRAMS[program]()
    return problem_lib.build(program, accelerator or toy())


def random_program(seed: int, num_ops: int = 20, **style) -> Program:
    """A random program as `generate.random_program` draws it, small by default."""
    return generate.random_program(seed, num_ops=num_ops, **style)


def random_problem(
    seed: int,
    *,
    num_ops: int = 20,
    fast_mib: int = 112,
    max_in_flight: int | None = None,
    **style,
) -> Problem:
    """A random program on a machine like tpu_v5e with `fast_mib` to plan into."""
    fast_bytes = fast_mib * 2**20
    machine = Accelerator(
        name=f"random_{fast_mib}",
        fast=Memory(
            capacity_bytes=fast_bytes + fast_bytes // 8,
            reserved_bytes=fast_bytes // 8,
            bandwidth_bytes_per_s=3e12,
        ),
        slow=Memory(capacity_bytes=2**34, bandwidth_bytes_per_s=8e11),
        dma=Dma(max_in_flight=max_in_flight),
        peak_flops_per_s={"bf16": 2e14, "f32": 5e13},
        vector_flops_per_s=4e12,
        transcendentals_per_s=1e12,
        clock_hz=1.5e9,
    )
    program = random_program(seed, num_ops, fast_bytes=fast_bytes, **style)
    return problem_lib.build(program, machine)
