"""What becomes of a work in virtual time. It is known as soon as a client is asked, before anything is trained."""

import math
from dataclasses import dataclass

from fedlora.simulations.devices import Device, Presence


@dataclass(frozen=True)
class Work:
    """What is asked of a client. down, up: bytes that it is sent and sends. records: that it trains on."""

    down: int
    up: int
    records: int


@dataclass(frozen=True)
class Rules:
    """sample_seconds: what a record takes at speed 1. latency: seconds, each way."""

    sample_seconds: float
    latency: float


@dataclass(frozen=True)
class Course:
    """A work that was asked for at `asked`: at `ends` its answer is there, or it is given up.

    busy: seconds of the client's that all of it takes. lost: why there is no answer; "" if there is one.
    """

    asked: float
    ends: float
    busy: float
    lost: str = ""


def busy_seconds(device: Device, work: Work, rules: Rules) -> float:
    """What a work takes a client that stays: the task on its way, training, the answer on its way."""
    sending = 8 * work.down / device.down + 8 * work.up / device.up
    return 2 * rules.latency + sending + work.records * rules.sample_seconds / device.speed


def course_of(busy: float, drops: float | None, presence: Presence, absence: float, asked: float) -> Course:
    """What becomes of a work of `busy` seconds that is asked for at `asked`.

    drops: the part of it after which the client drops out; None: it does not. absence: seconds that it may be away.

    While the client is away the work rests. Away for longer than `absence`, counted from when it left, it is
    given up, at once if that was so when it was asked. A client that drops out is away for good from then on.
    """
    needed = busy if drops is None else drops * busy
    at, left = _through(presence, asked, needed, absence)
    if left is not None:
        return Course(asked, at, busy, f"{left}: nobody waits longer than {absence:g} s (federation.absence)")
    if drops is not None:
        lost = f"dropped out after {_seconds(needed)} of {_seconds(busy)} s of work"
        return Course(asked, at + absence, busy, lost)
    return Course(asked, at, busy)


def _through(presence: Presence, time: float, left: float, absence: float) -> tuple[float, str | None]:
    """When a client that begins at `time` has been there for `left` seconds; or when it is given up, and why."""
    asked = time
    while True:
        stay = presence.at(time)
        if stay.there and time + left <= stay.until:
            return time + left, None
        if stay.there:
            left -= stay.until - time
        elif stay.until > (limit := max(asked, stay.since + absence)):
            return limit, _away(stay.until)
        time = stay.until


def _away(until: float) -> str:
    return "away for good" if math.isinf(until) else f"away until {_seconds(until)} s of virtual time"


def _seconds(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
