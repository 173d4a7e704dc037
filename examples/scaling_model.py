"""What training on many hosts would take: arithmetic from measured seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """The network between hosts: what each can send, and the time of one message."""

    bandwidth_bytes_per_s: float
    latency_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """One iteration of a host that plays programs of one padded length.

    share: of all iterations that play this length.
    moves: of all games of the iteration.
    own_s: seconds of all that needs no other host: games, demonstrations, reanalysis.
    """

    share: float
    moves: float
    own_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One iteration of `hosts` hosts, and what they play per second together.

    own_s: until the slowest host has played and reanalysed.
    compute_s, all_reduce_s: of all updates of the iteration.
    """

    hosts: int
    own_s: float
    compute_s: float
    all_reduce_s: float
    moves_per_s: float

    @property
    def iteration_s(self) -> float:
        return self.own_s + self.compute_s + self.all_reduce_s


def ring_all_reduce_s(
    size_bytes: float, hosts: int, link: Link, messages: int = 1
) -> float:
    """Seconds to sum arrays over hosts in a ring.

    Each host sends `(hosts - 1) / hosts` of the bytes twice, in `2 (hosts - 1)` steps
    that each take the link's latency.

    Args:
      size_bytes: of all arrays together.
      messages: in how many all-reduces, one after another, they are sent.
    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
      workstations", JPDC 69(2), 2009.
    """
    steps = 2 * (hosts - 1)
    transfer_s = steps / hosts * size_bytes / link.bandwidth_bytes_per_s
    return transfer_s + messages * steps * link.latency_s


def slowest_s(lengths: Sequence[Length], hosts: int) -> float:
    """Expected `own_s` of the slowest host, if each draws its length by itself."""
    expected_s = below = 0.0
    for length in sorted(lengths, key=lambda x: x.own_s):
        up_to = min(below + length.share, 1.0)
        expected_s += length.own_s * (up_to**hosts - below**hosts)
        below = up_to
    return expected_s


def predict(
    lengths: Sequence[Length],
    *,
    hosts: int,
    updates: int,
    update_s: float,
    all_reduce_s: float,
    drawn_together: bool = False,
) -> Prediction:
    """One iteration of `hosts` hosts, each with games of its own.

    Args:
      lengths: with shares that add up to 1.
      updates: per iteration, joint.
      update_s: compute of one update at the rows that one host has of its batch.
      all_reduce_s: of one update.
      drawn_together: all hosts play the same length, so that none waits for another.
    """
    own_s = slowest_s(lengths, 1 if drawn_together else hosts)
    compute_s, summed_s = updates * update_s, updates * all_reduce_s
    moves = hosts * sum(x.share * x.moves for x in lengths)
    return Prediction(
        hosts=hosts,
        own_s=own_s,
        compute_s=compute_s,
        all_reduce_s=summed_s,
        moves_per_s=moves / (own_s + compute_s + summed_s),
    )
