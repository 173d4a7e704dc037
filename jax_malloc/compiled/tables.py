"""A board, and the moves of a game, as the compiled loops hold them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jax_malloc.board import NEVER, Board
from jax_malloc.game import Move

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

# Columns of a table of moves, the fields of `game.Move` but the reward.
COLUMNS = (
    "action",
    "fast",
    "offset",
    "begin",
    "end",
    "prefetch",
    "evict",
    "evicted",
    "store",
    "stored",
)


class Tables(NamedTuple):
    """A board in the dtypes that the loops want, without padding; see `board.Board`."""

    op: Ints
    buffer: Ints
    size: Ints
    copy_time: Floats
    slow_time: Floats
    slow_traffic: Floats
    defines: NDArray[np.bool_]
    writes: NDArray[np.bool_]
    first_of_op: NDArray[np.bool_]
    last_of_op: NDArray[np.bool_]
    ready_by: Ints
    hold_until: Ints
    follows: NDArray[np.bool_]
    next_ready: Ints
    next_op: Ints
    next_follows: NDArray[np.bool_]
    ends_slow: NDArray[np.bool_]
    depth: Ints
    over: Ints
    floor: Floats
    base: Floats
    op_slow_time: Floats
    op_slow_traffic: Floats
    careful_spare: Floats
    boundary_depth: Ints
    slow_ready: Ints
    capacity: int
    full_duplex: bool
    max_in_flight: int
    slots: int


def tables(board: Board, slots: int) -> Tables:
    """The tables of a board for games with `slots` rows of stays."""
    n, num_ops = int(board.num_accesses), int(board.num_ops)
    access: dict[str, Any] = {}
    for name, column in board.access._asdict().items():
        column = np.asarray(column)[:n]
        wider = {"f": np.float64, "b": np.bool_, "i": np.int32}[column.dtype.kind]
        access[name] = np.ascontiguousarray(column, wider)
    buffers = int(access["buffer"].max(initial=-1)) + 1

    def per_op(x: Any) -> Floats:
        return np.ascontiguousarray(np.asarray(x)[:num_ops], np.float64)

    limit = board.max_in_flight
    return Tables(
        **access,
        floor=per_op(board.floor),
        base=per_op(board.base),
        op_slow_time=per_op(board.slow_time),
        op_slow_traffic=per_op(board.slow_traffic),
        careful_spare=per_op(board.careful_spare),
        boundary_depth=np.ascontiguousarray(
            np.asarray(board.boundary_depth)[: num_ops + 1], np.int32
        ),
        slow_ready=np.ascontiguousarray(
            np.asarray(board.slow_ready)[:buffers], np.int32
        ),
        capacity=int(board.capacity),
        full_duplex=bool(board.full_duplex),
        max_in_flight=NEVER if limit is None else int(limit),
        slots=slots,
    )


def neighbours(t: Tables) -> tuple[Ints, Ints]:
    """`[N]` index of the same buffer's next access, and of its previous one; or -1."""
    n = len(t.op)
    following, before = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
    last: dict[int, int] = {}
    for i, b in enumerate(t.buffer.tolist()):
        if b in last:
            before[i], following[last[b]] = last[b], i
        last[b] = i
    return following, before


def as_moves(moves: Ints) -> Move:
    """A table of moves as the game's, with rewards left at 0."""
    fields: dict[str, Any] = dict(zip(COLUMNS, moves.T, strict=True))
    return Move(**fields, reward=0.0 * fields["action"])
