"""Says in the server's log when a run turns slow or stalls, and for whom it waits; and again when it goes on."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fedlora.errors import StoreError
from fedlora.identity.registry import Registry
from fedlora.link import limits
from fedlora.link.hub import Hub
from fedlora.server.queue import RunQueue
from fedlora.server.store import RunStore
from fedlora.server.views import Link, Views
from fedlora.server.views.model import Health, RunRow

log = logging.getLogger(__name__)

_LOOK = 5.0  # seconds between looks
_LONGEST = 2000  # characters of a line
_LEVEL: Mapping[Health, int] = {"slow": 1, "stalled": 2}


def views_of(store: RunStore, registry: Registry, hub: Hub, queue: RunQueue) -> Views:
    """The views of a running server: they know who is away since when, and whose answers are missing."""

    def waiting(run: str) -> Sequence[str]:
        return [work.site for work in tuple(hub.works.values()) if work.run == run and not work.ended.done()]

    return Views(store, registry, link=Link(lambda: dict(hub.presences), waiting, lambda: queue.driven))


class StallWatch:
    """Tells each turn for the worse once, and the recovery from it."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._told: dict[str, int] = {}

    def look(self) -> None:
        """Looks at the runs under way. Raises StoreError if the store cannot be read."""
        rows = [row for row in self._views.running() if row.status != "interrupted"]  # the queue takes those up
        for row in rows:
            self._note(row, _LEVEL.get(row.health, 0), self._told.get(row.id, 0))
        self._told = {row.id: self._told[row.id] for row in rows if row.id in self._told}

    def _note(self, row: RunRow, level: int, told: int) -> None:
        if level > told:
            log.warning("run %s is %s. %s", row.id, row.health, limits.shown(row.health_reason, _LONGEST))
        elif told and not level:
            log.warning("run %s goes on: round %d of %d is committed", row.id, row.round, row.rounds)
        self._told[row.id] = max(level, told) if level else 0


@contextmanager
def watching(views: Views, every: float = _LOOK) -> Iterator[None]:
    """Looks every `every` seconds, in a thread of its own, for the block."""
    ended = threading.Event()
    watch = StallWatch(views)

    def look() -> None:
        while not ended.wait(every):
            try:
                watch.look()
            except StoreError as error:
                log.warning("whether runs have stalled cannot be looked up now: %s", error)

    thread = threading.Thread(target=look, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
