"""What a server knows of its connected clients and of the works that it waits for. Lives in one event loop."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedlora.link import limits
from fedlora.link.v1.link_pb2 import Closed, FromServer, Goodbye, Hello, State
from fedlora.link.works import Ended, Ending, Work

log = logging.getLogger(__name__)


class Connection(Protocol):
    """An open stream to one client."""

    site: str
    hello: Hello

    def offer(self, work: Work) -> None:
        """Sends an offer, in the background."""
        ...

    def say(self, frame: FromServer) -> None:
        """Sends a frame, in the background."""
        ...

    async def alive(self) -> bool:
        """Whether the client answers now."""
        ...

    def end(self, goodbye: Goodbye) -> None:
        """Closes the stream after a last word."""
        ...


@dataclass
class Presence:
    """What is known of a client. since: of `time.monotonic`, when it came, or was last there.

    version, data, device and policy are what it said when it came: to be shown; nobody has checked them.
    """

    connection: Connection | None = None
    since: float = field(default_factory=time.monotonic)
    state: State = field(default_factory=State)
    version: str = ""
    data: Sequence[str] = ()
    device: str = ""
    policy: Sequence[str] = ()


def _introduced(connection: Connection) -> Presence:
    """A client that has come, with what its hello says of it, as it may be shown."""
    hello = connection.hello
    return Presence(
        connection,
        state=_tidied(hello.state),
        version=limits.shown(hello.version),
        data=[limits.shown(found.name) for found in hello.data],
        device=limits.shown(hello.device, limits.DEVICE),
        policy=[limits.shown(line, limits.POLICY_LINE) for line in hello.policy[: limits.POLICY_LINES]],
    )


def _tidied(state: State) -> State:
    """What a client says of itself, as it may be shown."""
    return State(paused=state.paused, reason=limits.shown(state.reason), work=limits.shown(state.work))


class Hub:
    """Clients by name, open works by id.

    A work is offered when it is opened, and again at each new connection of its client, until it has ended.
    """

    def __init__(self) -> None:
        self.presences: dict[str, Presence] = {}
        self.works: dict[str, Work] = {}
        self._counted: OrderedDict[str, str] = OrderedDict()
        self.changed = asyncio.Event()
        """Set whenever a client comes or goes; whoever waits for that clears it."""

    def connected(self) -> Mapping[str, Presence]:
        """The clients that are there."""
        return {name: found for name, found in self.presences.items() if found.connection is not None}

    async def join(self, connection: Connection) -> str | None:
        """Takes a client in and offers what waits for it; or says why not.

        One daemon a name: a second one with the same certificate is turned away as long as the first one answers. The
        same daemon coming back takes its own place.
        """
        site = connection.site
        while (there := self._presence(site).connection) is not None:  # another one may come while it is asked
            same = there.hello.instance == connection.hello.instance
            if not same and await there.alive():
                return (
                    f"client {site!r} is connected already, from another process: stop that one, or enrol this one"
                    " under a name of its own"
                )
            there.end(Goodbye(reason="the same client has connected anew", retry=False))
            self.leave(there)
        self.presences[site] = _introduced(connection)
        self._changed()
        for work in self._open_for(site):
            connection.offer(work)
        return None

    def note(self, connection: Connection, state: State) -> None:
        """Keeps what a connected client says of itself."""
        there = self._presence(connection.site)
        if there.connection is connection:
            there.state = _tidied(state)

    def leave(self, connection: Connection) -> None:
        """A stream has ended."""
        there = self._presence(connection.site)
        if there.connection is connection:
            there.connection, there.since = None, time.monotonic()
            self._changed()

    def dismiss(self, site: str, reason: str) -> None:
        """Ends the connection of a client that may not come back as it is."""
        connection = self._presence(site).connection
        if connection is not None:
            connection.end(Goodbye(reason=reason, retry=False))

    def open(self, works: Iterable[Work]) -> None:
        """Offers works to their clients, now or when they come."""
        for work in works:
            self.works[work.id] = work
            connection = self._presence(work.site).connection
            if connection is not None and not work.ended.done():
                connection.offer(work)

    async def wait(self, works: Sequence[Work], absence: float, enough: int | None = None) -> Sequence[Ended]:
        """The ends of `works`, in their order; each is open until it is answered, its deadline, or its client is gone.

        absence: seconds that a client may be away. enough: answers after which no more are waited for.
        """
        if enough is not None and enough < len(works):
            for work in works:
                work.ended.add_done_callback(lambda _: _end_if_enough(works, enough))
            _end_if_enough(works, enough)
        watch = asyncio.create_task(self._watch(works, absence))
        try:
            return await asyncio.gather(*(work.ended for work in works))
        finally:
            watch.cancel()

    async def _watch(self, works: Sequence[Work], absence: float) -> None:
        told = time.monotonic()
        while True:
            now = time.monotonic()
            for work in works:
                self._end_if_over(work, now, absence)
            if now - told > limits.STALL:
                told = now
                log.warning("%s", self.waited_for(works, now))
            await asyncio.sleep(0.1)

    def waited_for(self, works: Sequence[Work], now: float) -> str:
        """Who keeps a round waiting, and what is known of them: a slow site and a dead one look alike otherwise."""
        pending = [work for work in works if not work.ended.done()]
        told = [f"{work.site} ({self._seen(work.site, now)})" for work in pending]
        where = f"run {pending[0].run}, round {pending[0].round}" if pending else "a round"
        return f"{where} still waits for {', '.join(told) or 'nobody'}"

    def _seen(self, site: str, now: float) -> str:
        there = self._presence(site)
        if there.connection is None:
            return f"away for {now - there.since:.0f} s"
        paused = ", paused" if there.state.paused else ""
        return f"connected, {'at work' if there.state.work else 'idle'}{paused}"

    def _end_if_over(self, work: Work, now: float, absence: float) -> None:
        if work.ended.done():
            return
        if work.deadline is not None and now >= work.deadline:
            work.end(Ending.LOST, reason="no answer came before the round's deadline (federation.timeout)")
            return
        there = self._presence(work.site)
        away = now - there.since
        if there.connection is None and away > absence:
            work.end(
                Ending.LOST,
                reason=f"the client has not been connected for {away:.0f} s (federation.absence={absence:g})",
            )

    def close(self, works: Iterable[Work], reason: str) -> None:
        """Tells clients that their rounds are over: what they still make of these works is not wanted."""
        for work in works:
            self.works.pop(work.id, None)
            if work.answered:
                self._remember(work)
            there = self._presence(work.site).connection
            unwanted = (Ending.LOST, Ending.LATE)
            if there is not None and (not work.ended.done() or work.ended.result().how in unwanted):
                there.say(FromServer(closed=Closed(work=work.id, reason=reason)))

    def _remember(self, work: Work) -> None:
        """An acknowledgement may have been lost on its way: its client will ask again."""
        self._counted[work.id] = work.site
        self._counted.move_to_end(work.id)
        while len(self._counted) > limits.COUNTED:
            self._counted.popitem(last=False)

    def counted(self, site: str, work: str) -> bool:
        """Whether an answer of that client's was taken for its round, as far as this server remembers."""
        found = self.of(site, work)
        return found.answered if found is not None else self._counted.get(work) == site

    def of(self, site: str, work: str) -> Work | None:
        """The open work with that id, if it is that client's."""
        found = self.works.get(work)
        return found if found is not None and found.site == site else None

    def _open_for(self, site: str) -> list[Work]:
        return [work for work in self.works.values() if work.site == site and not work.ended.done()]

    def _presence(self, site: str) -> Presence:
        return self.presences.setdefault(site, Presence())

    def _changed(self) -> None:
        self.changed.set()

    async def until(self, holds: Callable[[], bool], timeout: float | None) -> bool:
        """Waits until `holds`, which is looked at whenever a client comes or goes; False after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not holds():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                return holds()
        return True


def _end_if_enough(works: Sequence[Work], enough: int) -> None:
    answered = sum(work.answered for work in works)
    if answered >= enough:
        for work in works:
            work.end(Ending.LATE, reason="the round had what it needed (federation.over_selection) before this answer")
