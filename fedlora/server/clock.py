"""What a round loop takes for the time: the clock on the wall, or the one of a simulation."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

LOOK = 0.05
"""Seconds between looks at what has come."""

KEPT = "clock"
"""In a checkpoint's `rng`: what a clock needs to go on. Simulations with virtual time alone."""

VIRTUAL_SECONDS = "virtual_seconds"
"""Among a round's metrics, in virtual time: seconds since the run's start, at the round's end. Among a client's: what
its work took, from asking to answer."""


class Clock(Protocol):
    """The time of a run, in seconds. Only differences count."""

    def now(self) -> float:
        """The time."""
        ...

    def pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Lets `seconds` pass, but no more of them once `stop` says so."""
        ...

    def look(self, deadline: float | None, idle: Callable[[], Collection[int]]) -> None:
        """Lets time pass until something may have changed, and not beyond `deadline`.

        idle: gives the clients that would be asked if they were there: one that comes is a change, too.
        """
        ...

    def in_order(self, message_ids: Sequence[str]) -> Sequence[str]:
        """The works of these messages in the order in which their answers count, if several are there."""
        ...

    def told(self) -> Mapping[str, float]:
        """What a round's metrics say of the time when it ends."""
        ...

    def kept(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of it, beside the other random streams: JSON."""
        ...

    def restore(self, rng: Mapping[str, Any]) -> None:
        """Goes on from what a checkpoint kept."""
        ...


class WallClock:
    """The real one. Who was asked first comes first; a checkpoint keeps nothing of it."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        """See `Clock`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not stop():
            time.sleep(min(0.5, left))

    def look(self, deadline: float | None, idle: Callable[[], Collection[int]]) -> None:
        """A moment, whatever else there is."""
        del deadline, idle
        time.sleep(LOOK)

    def in_order(self, message_ids: Sequence[str]) -> Sequence[str]:
        """As they are."""
        return message_ids

    def told(self) -> Mapping[str, float]:
        """Nothing: a round's seconds are in its record."""
        return {}

    def kept(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def restore(self, rng: Mapping[str, Any]) -> None:
        """There is nothing."""
