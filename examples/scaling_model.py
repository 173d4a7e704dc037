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


def ring_all_reduce_s(size_bytes: float, hosts: int, link: Link) -> float:
    """Seconds to sum an array over hosts in a ring.

    Each host sends `(hosts - 1) / hosts` of the bytes twice, in `2 (hosts - 1)` steps
    that each take the link's latency.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
      workstations", JPDC 69(2), 2009.
    """
    steps = 2 * (hosts - 1)
    step_s = size_bytes / hosts / link.bandwidth_bytes_per_s + link.latency_s
    return steps * step_s


def slowest_s(lengths: Sequence[Length], hosts: int) -> float:
    """Expected `own_s` of the slowest host, if each draws its length by itself."""
    expected_s = below = 0.0
    for length in sorted(lengths, key=lambda x: x.own_s):
        up_to = min(below + length.share, 1.0)
        expected_s += length.own_s * (up_to**hosts - below**hosts)
        below = up_to
    return expected_s
