"""The user's names of ops (`jax.named_scope`, module names) as paths and as a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_malloc.viz.tables import OpRow


@dataclasses.dataclass(kw_only=True)
class Scope:
    """Ops under one path, those of its children included.

    path: from the root, "" for that. ops: directly in it. Seconds are over all of them.
    """

    name: str
    path: str
    ops: list[OpRow] = dataclasses.field(default_factory=list)
    children: dict[str, Scope] = dataclasses.field(default_factory=dict)
    num_ops: int = 0
    fast_s: float = 0.0
    slow_s: float = 0.0
    stall_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.fast_s + self.slow_s + self.stall_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A scope for as long as one op after another is in it.

    depth: 0 for the outermost. first, last: the ops.
    """

    name: str
    path: str
    depth: int
    first: OpRow
    last: OpRow


def scope_of(op_name: str) -> tuple[str, ...]:
    """The scopes of an op, without the primitive at the end; "/" in brackets stays.

    `jit(f)/jvp(Net)/layers/0/dot_general` is in `jit(f)`, `jvp(Net)`, `layers`, `0`.
    """
    parts, depth = [""], 0
    for character in op_name:
        depth += (character in "([{") - (character in ")]}")
        if character == "/" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part for part in parts[:-1] if part)


def tree(ops: Sequence[OpRow]) -> Scope:
    """All ops by scope, in schedule order."""
    root = Scope(name="", path="")
    for row in ops:
        node = root
        path = [root]
        for part in scope_of(row.op.op_name):
            inner = f"{node.path}/{part}" if node.path else part
            node = node.children.setdefault(part, Scope(name=part, path=inner))
            path.append(node)
        node.ops.append(row)
        for scope in path:
            scope.num_ops += 1
            scope.fast_s += row.fast_s
            scope.slow_s += row.slow_s
            scope.stall_s += row.stall_s
    return root


def runs(ops: Sequence[OpRow]) -> list[Run]:
    """Scopes over time, outer before inner; they nest, those of one depth are apart."""
    done: list[Run] = []
    # Of each open run: its place in `done`, so that it can be closed.
    places: list[int] = []
    scope: tuple[str, ...] = ()
    for row in ops:
        now = scope_of(row.op.op_name)
        same = 0
        while same < min(len(now), len(scope)) and now[same] == scope[same]:
            same += 1
        del places[same:]
        for place in places:
            done[place] = dataclasses.replace(done[place], last=row)
        for depth in range(same, len(now)):
            places.append(len(done))
            path = "/".join(now[: depth + 1])
            run = Run(name=now[depth], path=path, depth=depth, first=row, last=row)
            done.append(run)
        scope = now
    return done
