"""The clock of a simulation: it stands still until the next thing happens, and jumps there."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fedlora.server.clock import KEPT, VIRTUAL_SECONDS
from fedlora.simulations.forecast import Forecast, Timed


class VirtualClock:
    """A `Clock` of virtual seconds since the run's start.

    open: the works that have not ended, by message. What happens is that one of them ends, or that somebody comes or
    goes whom that concerns.
    """

    def __init__(self, forecast: Forecast) -> None:
        self.open: dict[str, Timed] = {}
        self._forecast, self._now = forecast, 0.0

    def now(self) -> float:
        """See `Clock`."""
        return self._now

    def pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        """In no time at all, so there is nothing to stop."""
        del stop
        self._now += seconds

    def jump(self, time: float) -> None:
        """Goes to `time`, which is not before now."""
        self._now = max(self._now, time)

    def look(self, deadline: float | None, idle: Callable[[], Collection[int]]) -> None:
        """See `Clock`. What has happened by now comes first: then no time passes."""
        if any(work.course.ends <= self._now for work in self.open.values()):
            return
        ahead = min(self._events(idle()), default=math.inf)
        self.jump(min(ahead, math.inf if deadline is None else deadline))

    def _events(self, idle: Collection[int]) -> Iterator[float]:
        for work in self.open.values():
            yield work.course.ends
            yield self._change(work.client)
        yield from map(self._change, idle)

    def _change(self, client: int) -> float:
        """When the client comes or goes next."""
        return self._forecast.devices.presence(client).at(self._now).until

    def in_order(self, message_ids: Sequence[str]) -> Sequence[str]:
        """Who was ready first comes first."""
        return sorted(message_ids, key=lambda message_id: self.open[message_id].place)

    def told(self) -> Mapping[str, float]:
        """The time."""
        return {VIRTUAL_SECONDS: self._now}

    def kept(self) -> Mapping[str, Any]:
        """The time, and since when who is at work."""
        return {"now": self._now, **self._forecast.kept(self.open.values())}

    def restore(self, rng: Mapping[str, Any]) -> None:
        """See `Clock`. Raises RunError if the trace has changed since."""
        self._now = rng[KEPT]["now"]
        self._forecast.restore(rng[KEPT])
