"""What has changed, found out once for all open pages: a process has one watcher, however many streams it feeds."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from anyio import to_thread

from fedlora.errors import FedloraError
from fedlora.server.dashboard.context import Context
from fedlora.server.events import FILE
from fedlora.server.operator.stream import Line, Tail
from fedlora.server.records import RunInfo
from fedlora.server.store import tables

if TYPE_CHECKING:
    from fedlora.server.views.model import RunRow

log = logging.getLogger(__name__)

LOOK = 0.4
"""Seconds between two looks."""
_REST = 1.0  # seconds between two makings of rows, however fast rounds are
_ANYWAY = 2.0  # seconds after which rows are made again although no round was committed: health depends on the time
_KEPT = 4000  # lines of a log that are kept for streams that are behind


class Feed:
    """The log of one run: its newest lines, read once for all streams."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = Tail(path)
        self._lines: deque[Line] = deque(maxlen=_KEPT)
        self.last = 0
        self.readers = 0

    def look(self) -> bool:
        """Reads what is new; whether there was something."""
        before = self.last
        while lines := self._tail.read():
            self._lines.extend(lines)
            self.last = lines[-1][0]
        return self.last > before

    def known(self, number: int) -> Sequence[Line] | None:
        """Lines after line `number`, oldest first, as far as they were read; None: the oldest of them are not kept."""
        if number >= self.last:
            return ()
        kept = list(self._lines)
        return [line for line in kept if line[0] > number] if kept and kept[0][0] <= number + 1 else None

    def read(self, number: int) -> Sequence[Line]:
        """Lines after line `number` from the file, oldest first; a part of them where they are many."""
        return Tail(self._path, number).read()


class Changes:
    """Values by key, each with the version at which it last changed."""

    def __init__(self) -> None:
        self.version = 0
        self._values: dict[str, tuple[int, Any]] = {}

    def put(self, values: Mapping[str, Any]) -> bool:
        """These are all there are now; whether any of them is new, another or gone (its value is None then)."""
        before = self.version
        gone = {key: None for key, (_, value) in self._values.items() if key not in values and value is not None}
        for key, value in {**values, **gone}.items():
            if key not in self._values or self._values[key][1] != value:
                self._values[key] = (before + 1, value)
                self.version = before + 1
        return self.version > before

    def after(self, version: int) -> Mapping[str, Any]:
        """What has changed after `version`."""
        return {key: value for key, (changed, value) in self._values.items() if changed > version}


class Watcher:
    """Looks at the store while anybody listens. Lives in one event loop; reading is done in threads.

    runs: rows by id; clients: what is known of presence, by name.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.runs, self.clients = Changes(), Changes()
        self._feeds: dict[str, Feed] = {}
        self._listeners = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known: Sequence[Any] = ()
        self._made = float("-inf")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While anybody does, the watcher looks."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            self._listeners -= 1

    @contextlib.asynccontextmanager
    async def reading(self, run: RunInfo | None) -> AsyncIterator[Feed | None]:
        """The log of a run, read up to now, for the block; None for no run. Its last reader takes its lines along."""
        if run is None:
            yield None
            return
        feed = self._feeds.get(run.id)
        if feed is None:
            fresh = Feed(run.folder / FILE)
            await to_thread.run_sync(fresh.look)
            feed = self._feeds.setdefault(run.id, fresh)
        feed.readers += 1
        try:
            yield feed
        finally:
            feed.readers -= 1
            if not feed.readers:
                del self._feeds[run.id]

    async def fresh(self) -> None:
        """Returns when the rows are those of now or later: at once, but for the first listener."""
        while self._made == float("-inf") and not self._context.closing.is_set():
            await self.wait(self.signal(), LOOK)

    def signal(self) -> asyncio.Event:
        """What the next change will set. Take it before you read, so that no change is missed."""
        return self._changed

    async def wait(self, signal: asyncio.Event, longest: float) -> None:
        """Returns at the change, or after `longest` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(signal.wait(), longest)

    async def _watch(self) -> None:
        while self._listeners and not self._context.closing.is_set():
            try:
                changed = await to_thread.run_sync(self._look)
            except FedloraError as error:
                log.warning("the dashboard cannot look at the store: %s", error)
                changed = False
                await asyncio.sleep(1)
            if changed:
                self._wake()
            await asyncio.sleep(LOOK)
        self._made = float("-inf")
        self._wake()

    def _wake(self) -> None:
        """Wakes everybody who waits for this change; who comes later waits for the next."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _look(self) -> bool:
        told = [feed.look() for feed in list(self._feeds.values())]
        changed = self._look_at_rows()
        return any(told) or changed

    def _look_at_rows(self) -> bool:
        known, moment = self._signature(), time.monotonic()
        if moment - self._made < (_ANYWAY if known == self._known else _REST):
            return False
        first = self._made == float("-inf")
        runs = {row.id: _steady(row) for row in self._context.views.runs()}
        changed = self.runs.put(runs) | self.clients.put(self._presences())
        self._known, self._made = known, moment
        return changed or first

    def _signature(self) -> Sequence[Any]:
        """Cheap, and another one whenever a run began, ended or committed a round, or a client came or went."""
        of = tables.runs.c
        with self._context.store.database.reads() as connection:
            runs = [tuple(row) for row in connection.execute(sa.select(of.id, of.status, of.rounds_done))]
        return (sorted(runs), self._presences())

    def _presences(self) -> Mapping[str, Any]:
        """By name: whether it is connected, its version, and what it says of itself."""
        found = self._context.presences()
        return {
            name: {
                "name": name,
                "connected": one.connection is not None,
                "version": one.version,
                "data": list(one.data),
                "paused": one.state.reason if one.state.paused else None,
                "work": one.state.work or None,
            }
            for name, one in list(found.items())
        }


def _steady(row: "RunRow") -> "RunRow":
    """Without what changes by itself as time goes on: a page counts that down."""
    return replace(row, eta_seconds=None)
