"""Long programs: games of the agent in overlapping windows, with state carried over.

    window 1   |-- decided --|-- seen --|
    window 2                 |-- decided --|-- seen --|
    window 3                               |-- decided --| ...

A window is a board of its own, of a fixed length, so the network and the game cost the
same per access however long the program is, and compile once. The agent decides the
first half of a window; the compiled game plays these actions on the whole board and
hands its state to the next window. So copies that reach out of a window and loops
longer than one are right in the result, though the agent does not see all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jax_malloc.agent import rollout
from jax_malloc.agent.checkpoint import Agent
from jax_malloc.board import NEVER, Board
from jax_malloc.compiled import kernels
from jax_malloc.compiled.kernels import State
from jax_malloc.compiled.tables import COLUMNS, Tables, tables
from jax_malloc.fast_memory import Stays
from jax_malloc.game import NUM_ACTIONS, GameState
from jax_malloc.observation import Outlook

LENGTH = 512  # rows of a window
_DECIDED = 2  # one row in so many is decided, the others are only seen
_BACK = 8  # one op in so many lies before the window, for prefetches to begin in
_ELSEWHERE = 2**20  # added to buffers that a window has no access of


class Played(NamedTuple):
    """`[G]` games: moves `[G, N, 10]`, policy `[G, N, 3]`, saved `[G]` units."""

    moves: np.ndarray
    policy: np.ndarray
    saved: np.ndarray


class Window(NamedTuple):
    """Accesses `[begin, end)` of a board, and ops `[first_op, last_op)` around them.

    buffers: `[b]` the board's buffers that are accessed in it, sorted.
    """

    begin: int
    end: int
    first_op: int
    last_op: int
    buffers: np.ndarray


def play(
    agent: Agent,
    board: Board,
    outlook: Outlook,
    slots: int,
    temperature: np.ndarray,
    *,
    seed: int,
    length: int = LENGTH,
) -> Played:
    """Plays one game per temperature on a board of any length, policy alone.

    Args:
      agent: plays.
      board, outlook: of the whole program, on the host, with or without padding.
      slots: rows of the table of stays.
      temperature: `[G]`, as for `rollout.play`.
      seed: of the choices.
      length: rows of a window.
    """
    t = tables(board, slots)
    n, games = len(t.op), len(temperature)
    states = [kernels.init(t) for _ in range(games)]
    moves = np.zeros((games, n, len(COLUMNS)), np.int32)
    policy = np.zeros((games, n, NUM_ACTIONS), np.float32)
    limited = board.max_in_flight is not None
    begin = 0
    while begin < n:
        window = choose(t, begin, length)
        decided = window.end if window.end == n else begin + length // _DECIDED
        decided = min(decided, window.end)
        seen = rollout.play(
            agent.network,
            agent.params,
            jax.random.fold_in(jax.random.key(seed), begin),
            cut_board(board, window, length),
            cut_outlook(outlook, window, length),
            temperature,
            state=jax.tree.map(
                lambda *x: np.stack(x),
                *[cut_state(s, window, length, limited=limited) for s in states],
            ),
            steps=np.int32(decided - begin),
            slots=slots,
            num_simulations=0,
        )
        chosen = np.asarray(seen.moves.action)[:, : decided - begin]
        policy[:, begin:decided] = np.asarray(seen.policy)[:, : decided - begin]
        for g in range(games):
            actions = np.zeros(n, np.int32)
            actions[begin:decided] = chosen[g]
            kernels.play(t, states[g], actions, moves[g], begin, decided)
        begin = decided
    saved = np.array([kernels.saving(t, m) for m in moves])
    return Played(moves, policy, saved)


def choose(t: Tables, begin: int, length: int) -> Window:
    """The widest window from access `begin` on that fits into `length` rows and ops."""
    first_op = max(0, int(t.op[begin]) - length // _BACK)
    end = min(len(t.op), begin + length)
    # An op's accesses stay together, as long as one op alone fits.
    end = min(end, int(np.searchsorted(t.op, first_op + length)))
    if end < len(t.op):
        whole = int(np.searchsorted(t.op, t.op[end]))
        end = whole if whole > begin + length // _DECIDED else end
    end = max(end, begin + 1)
    last_op = min(len(t.floor), first_op + length)
    return Window(begin, end, first_op, last_op, np.unique(t.buffer[begin:end]))


def cut_board(board: Board, window: Window, length: int) -> Board:
    """The window's board, padded to `length` rows; boundaries count from its first."""
    rows = slice(window.begin, window.end)
    ops = slice(window.first_op, window.last_op)
    num_ops = window.last_op - window.first_op

    def padded(x, size=length):
        x = np.asarray(x)
        return np.pad(x, ((0, size - len(x)), *[(0, 0)] * (x.ndim - 1)))

    access = {k: np.asarray(v)[rows] for k, v in board.access._asdict().items()}
    access["buffer"] = np.searchsorted(window.buffers, access["buffer"])
    access["over"] = _known(window, access["over"], -1)
    for name in ("op", "ready_by", "hold_until", "next_ready", "next_op"):
        access[name] = _shifted(access[name], window)
    cut = {
        name: padded(np.asarray(getattr(board, name))[ops])
        for name in ("floor", "base", "slow_time", "slow_traffic", "careful_spare")
    }
    boundaries = slice(window.first_op, window.last_op + 1)
    fields: dict[str, Any] = dict(
        access=board.access._replace(
            **{
                k: padded(v.astype(board.access._asdict()[k].dtype))
                for k, v in access.items()
            }
        ),
        num_accesses=np.int32(window.end - window.begin),
        num_ops=np.int32(num_ops),
        boundary_depth=padded(np.asarray(board.boundary_depth)[boundaries], length + 1),
        slow_ready=padded(np.asarray(board.slow_ready)[window.buffers]),
        **cut,
    )
    return board._replace(**fields)


def cut_outlook(outlook: Outlook, window: Window, length: int) -> Outlook:
    """What the window's board has of the whole program's outlook."""
    rows = slice(window.begin, window.end)
    boundaries = slice(window.first_op, window.last_op + 1)

    def padded(x, size):
        return np.pad(x, (0, size - len(x)), mode="edge")

    cut = {
        name: padded(column[boundaries], length + 1)
        if name in ("clock", "demand")
        else padded(column[rows], length)
        for name, column in outlook._asdict().items()
        if name != "machine"
    }
    return Outlook(machine=outlook.machine, **cut)


def cut_state(state: State, window: Window, length: int, *, limited: bool) -> GameState:
    """A state of the whole board as one of the window's, before its first access.

    Args:
      limited: whether the board limits the copies that may be open at a time.
    """
    columns = dict(zip(Stays._fields, state.stays.copy(), strict=True))
    for name in ("begin", "end", "kept_until", "lost_at", "written", "copied"):
        columns[name] = _shifted(columns[name], window)
    buffer = columns["buffer"]
    elsewhere = np.where(buffer < 0, -1, buffer + _ELSEWHERE)
    columns["buffer"] = _known(window, buffer, elsewhere)
    for name in ("live", "dirty"):
        columns[name] = columns[name] != 0
    spare = state.spare[window.first_op : window.last_op]
    credit = np.concatenate([[0.0], np.cumsum(spare)])
    in_flight = state.in_flight[window.first_op : window.last_op + 1]
    fields: dict[str, Any] = dict(
        cursor=np.int32(0),
        stays=Stays(**columns),
        credit=np.pad(credit, (0, length + 1 - len(credit)), mode="edge").astype(
            np.float32
        ),
        slow_ready=np.pad(
            _shifted(state.slow_ready[window.buffers], window),
            (0, length - len(window.buffers)),
        ),
        due=np.pad(
            _shifted(state.due[window.first_op : window.last_op + 1], window),
            (0, length + 1 - len(in_flight)),
            constant_values=NEVER,
        ),
        in_flight=np.pad(in_flight, (0, length + 1 - len(in_flight)))
        if limited
        else None,
        op_slow_time=np.float32(state.numbers[0]),
        op_slow_traffic=np.float32(state.numbers[1]),
        horizon=np.int32(max(state.numbers[2] - window.first_op, 0)),
    )
    return GameState(**fields)


def _known(window: Window, buffer: np.ndarray, otherwise) -> np.ndarray:
    """Buffers as the window counts them, `otherwise` if it has no access of them."""
    at = np.minimum(np.searchsorted(window.buffers, buffer), len(window.buffers) - 1)
    known = window.buffers[at] == buffer
    return np.where(known, at, otherwise).astype(np.int32)


def _shifted(boundary: np.ndarray, window: Window) -> np.ndarray:
    """Boundaries and ops as the window counts them; `NEVER` and -1 stay."""
    kept = (boundary >= NEVER) | (boundary < 0)
    return np.where(kept, boundary, boundary - window.first_op).astype(np.int32)
