"""What is known of the clients of a server now: from the link, and from the registry where the link knows nothing."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fedlora.identity.records import ClientRecord
from fedlora.server.views.health import Whereabouts

if TYPE_CHECKING:
    from fedlora.link.hub import Presence

Presences = Callable[[], "Mapping[str, Presence]"]
Waiting = Callable[[str], Iterable[str] | None]
"""Run → the sites whose answers to the round under way are missing; None: not known."""


_MOMENTS = 10_000  # that are remembered


def nothing_known(run: str) -> None:
    """A `Waiting` where there is no link."""
    del run


class Moments:
    """When things happened, by their times of `time.monotonic`: the same one is the same moment whenever one asks."""

    def __init__(self) -> None:
        self._known: dict[float, datetime] = {}

    def of(self, monotonic: float, now: datetime) -> datetime:
        """To the second. now: what the clock says."""
        if len(self._known) > _MOMENTS:
            self._known.clear()
        moment = now - timedelta(seconds=time.monotonic() - monotonic) + timedelta(seconds=0.5)
        return self._known.setdefault(monotonic, moment.replace(microsecond=0))


class Whereabout:
    """Of all clients at one moment. records: of the registry, by name. presences: if known, with those who left."""

    def __init__(
        self,
        records: Mapping[str, ClientRecord],
        presences: "Mapping[str, Presence]",
        now: datetime,
        moments: Moments,
    ) -> None:
        self._records, self._presences = records, presences
        self._now, self._moments = now, moments

    def of(self, name: str) -> Whereabouts:
        """Of one client."""
        there = self._presences.get(name)
        if there is None or there.connection is None:
            return Whereabouts(name, False, self._left(name))
        state = there.state
        paused = (state.reason or "paused") if state.paused else None
        return Whereabouts(name, True, self._moments.of(there.since, self._now), bool(state.work), paused)

    def _left(self, name: str) -> datetime | None:
        """The link knows it to the second, of those who were there; the registry to the minute."""
        there, record = self._presences.get(name), self._records.get(name)
        if there is not None and there.version:
            return self._moments.of(there.since, self._now)
        return None if record is None else record.last_seen
