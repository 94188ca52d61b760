"""Which groups of clients a worker is handed when: several at once; at a round's end one by one, the longest first.

How long a client takes is learned from its earlier rounds. Only the order of the work depends on it, never its outcome.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

SHARD = 32
"""The most groups of clients that are handed to a worker in one call."""

LAST = 32
"""Groups at a round's end that are handed out one by one: more updates could be waiting for the first one's."""

WORTH = 0.005
"""Seconds that a group must take for its own call, which costs about a tenth of that, to be worth it."""


@dataclass
class Placement:
    """Learns how long clients take. workers: how many work side by side."""

    workers: int
    _seconds: dict[int, float] = field(default_factory=dict)

    def learn(self, clients: Sequence[int], seconds: float) -> None:
        """Notes that these took that long together."""
        for client in clients:
            self._seconds[client] = seconds / len(clients)

    def calls(self, groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """The places of the groups (of clients) that go in each call, in the order of the calls."""
        known = self._known(groups)
        first = max(0, len(groups) - LAST) if known is not None and known > WORTH else len(groups)
        places = iter(range(first))
        calls = [[next(places) for _ in range(size)] for size in shards(first, self.workers)]
        last = sorted(range(first, len(groups)), key=lambda place: -self._expected(groups[place], known or 0.0))
        return [*calls, *([place] for place in last)]

    def _known(self, groups: Sequence[Sequence[int]]) -> float | None:
        """The mean time of a client whose time is known; None if there is none."""
        found = [self._seconds[client] for group in groups for client in group if client in self._seconds]
        return statistics.fmean(found) if found else None

    def _expected(self, group: Sequence[int], mean: float) -> float:
        return math.fsum(self._seconds.get(client, mean) for client in group)


def shards(groups: int, workers: int) -> list[int]:
    """How many of the groups go in each call: fewer towards the end, so that all workers end together."""
    sizes, left = list[int](), groups
    while left:
        sizes.append(min(SHARD, math.ceil(left / (2 * workers))))
        left -= sizes[-1]
    return sizes
