"""Simulated clients as devices: how fast each is, how it is connected, and when it is there.

All of it is drawn from the run's seed, the purpose and the client's number, or read from a trace. A device is made
when it is asked for, so clients that are never asked cost nothing.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from statistics import NormalDist

from fedlora.config.schema import RunConfig
from fedlora.config.traces import Interval, Traced, read_trace
from fedlora.config.virtual import VirtualConfig
from fedlora.seeding import portable_uniform

REMEMBERED = 32_768
"""Clients of which is kept what was drawn for them: whoever is looked at again has not to be drawn again."""

_BLOCK = 16
_PURPOSE = "virtual"


@dataclass(frozen=True)
class Stay:
    """An interval of virtual seconds, from `since` until `until`, in which a client is there, or is away."""

    there: bool
    since: float
    until: float


class Presence:
    """When a client is there."""

    def __init__(self, edges: Iterator[float], first: bool) -> None:
        """edges: when it comes or goes, ascending, for ever or to an end. first: whether it is there before them."""
        self._coming, self._first = edges, first
        self._edges: list[float] = []
        self._last = Stay(first, math.inf, math.inf)

    def at(self, time: float) -> Stay:
        """The interval that `time` is in; it belongs to the one that begins with it."""
        if self._last.since <= time < self._last.until:
            return self._last
        while not self._edges or self._edges[-1] <= time:
            self._edges.append(next(self._coming, math.inf))
        place = bisect_right(self._edges, time)
        since = self._edges[place - 1] if place else -math.inf
        self._last = Stay(self._first ^ bool(place % 2), since, self._edges[place])
        return self._last


@dataclass(frozen=True)
class Device:
    """A client. speed: 1 is that of `virtual.sample_seconds`. up, down: bits a second; math.inf: no time at all."""

    speed: float
    up: float
    down: float


class Devices:
    """The devices of a run's clients, by number.

    of, presence: a client's device, and when it is there. digest: SHA-256 of the trace; "" if there is none.
    """

    def __init__(self, config: RunConfig) -> None:
        """Raises ConfigError if the trace cannot be read."""
        virtual, clients = config.virtual, config.federation.clients
        self.digest = ""
        device: Callable[[int], Device] = partial(_drawn, virtual, config.seed)
        presence: Callable[[int], Presence] = partial(_random_presence, virtual, config.seed)
        if virtual.trace is not None:
            self.digest = hashlib.sha256(virtual.trace.read_bytes()).hexdigest()
            trace = read_trace(virtual.trace, clients, virtual.period)
            device, presence = partial(_traced, trace), partial(_traced_presence, trace, virtual.period)
        self.of, self.presence = lru_cache(REMEMBERED)(device), lru_cache(REMEMBERED)(presence)


def unit(seed: int, count: int, *purpose: str | int) -> list[float]:
    """`count` numbers in [0, 1) for a purpose of virtual time, the same on every host."""
    return [float(value) for value in portable_uniform((count,), 0.0, 1.0, seed, _PURPOSE, *purpose)]


def _drawn(virtual: VirtualConfig, seed: int, client: int) -> Device:
    speed = _lognormal(virtual.speed_spread, seed, "speed", client)
    width = _lognormal(virtual.bandwidth_spread, seed, "bandwidth", client)
    up, down = (math.inf if rate is None else rate * 1e6 * width for rate in (virtual.up, virtual.down))
    return Device(speed, up, down)


def _traced(trace: Sequence[Traced], client: int) -> Device:
    found = trace[client]
    up, down = (math.inf if rate is None else rate * 1e6 for rate in (found.up, found.down))
    return Device(found.speed, up, down)


def _traced_presence(trace: Sequence[Traced], period: float | None, client: int) -> Presence:
    return _told_presence(trace[client].available, period)


def _lognormal(spread: float, seed: int, purpose: str, client: int) -> float:
    """exp(σ·z), whose median is 1."""
    if not spread:
        return 1.0
    (drawn,) = unit(seed, 1, purpose, client)
    return math.exp(spread * NormalDist().inv_cdf(max(drawn, 2.0**-53)))


def _random_presence(virtual: VirtualConfig, seed: int, client: int) -> Presence:
    """Comes and goes by chance, as if it had done so for ever: stays and absences are exponential."""
    if virtual.availability == 1:
        return Presence(iter(()), True)
    share, stay = virtual.availability, virtual.stay
    means = {True: stay, False: stay * (1 - share) / share}
    drawn = (value for block in count() for value in unit(seed, _BLOCK, "presence", client, block))
    there = next(drawn) < share

    def edges() -> Iterator[float]:
        at, now = -means[there] * -math.log1p(-next(drawn)), there
        yield at
        at = 0.0  # what is left of an exponential time is distributed as the whole
        while True:
            at += means[now] * -math.log1p(-next(drawn))
            yield at
            now = not now

    return Presence(edges(), not there)


def _told_presence(stays: Sequence[Interval] | None, period: float | None) -> Presence:
    if stays is None or _without_end(stays, period):
        return Presence(iter(()), True)
    again = iter([0.0]) if period is None or not stays else (number * period for number in count(-1))
    return Presence(_joined((start + offset, end + offset) for offset in again for start, end in stays), False)


def _without_end(stays: Sequence[Interval], period: float | None) -> bool:
    """Whether the intervals leave no gap in a period."""
    ends, starts = [0.0, *(end for _, end in stays)], [*(start for start, _ in stays), period]
    return ends == starts


def _joined(stays: Iterator[Interval]) -> Iterator[float]:
    """The beginnings and ends of the intervals; two that touch are one."""
    last: float | None = None
    for start, end in stays:
        if last is None:
            yield start
        elif start > last:
            yield last
            yield start
        last = end
    if last is not None:
        yield last
