"""A client's link: it dials out, says hello, works on what it is offered, and dials again when the line breaks."""

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from fedlora.errors import IdentityError, LinkError, PolicyError, StoreError
from fedlora.link import limits
from fedlora.link.answers import AnswerBox
from fedlora.link.assignment import Handler
from fedlora.link.v1 import link_pb2_grpc
from fedlora.link.v1.link_pb2 import FromClient, FromServer, Goodbye, Heartbeat, Welcome
from fedlora.link.workbench import Workbench

log = logging.getLogger(__name__)

OPTIONS = (
    ("grpc.max_receive_message_length", limits.FRAME),
    ("grpc.max_send_message_length", limits.CLIENT_FRAME),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),
)


class TurnedAwayError(IdentityError):
    """The server does not want this client as it is: coming back is of no use before something is changed."""


class LinkClient:
    """Keeps a client connected to its server, and its works going.

    dial: makes a channel, anew for each connection (keys may have been rotated). Use `run` in an event loop.
    """

    def __init__(self, dial: Callable[[], Any], handler: Handler, answers: AnswerBox) -> None:
        self._dial, self._handler = dial, handler
        self._bench = Workbench(handler, answers)
        self._stopping = asyncio.Event()
        self._last = 0.0
        self._welcomed_at = math.inf
        self.connected_since: float | None = None
        self.server_version = ""
        self.last_error = ""

    def stop(self) -> None:
        """Ends `run` when the work in hand is done and sent, or the connection is gone."""
        self._stopping.set()

    async def run(self) -> None:
        """Stays connected until `stop`. Raises TurnedAwayError if the server says that it is of no use."""
        working = asyncio.create_task(self._bench.run())
        wait = limits.BACKOFF[0]
        try:
            while not self._stopping.is_set():
                if await self._connection() > limits.SETTLED:
                    wait = limits.BACKOFF[0]
                await self._pause(random.uniform(wait / 2, wait))  # noqa: S311 - so that not all come back at once
                wait = min(2 * wait, limits.BACKOFF[1])
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _connection(self) -> float:
        """One connection, from dialling to its end, whatever ends it; returns the seconds from its welcome on."""
        channel = self._dial()
        self._welcomed_at = math.inf
        try:
            stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
            await self._talk(stub.Connect(wait_for_ready=False))
        except grpc.aio.AioRpcError as error:
            self.last_error = f"{error.code().name}: {limits.shown(str(error.details()))}"
            log.warning("the connection to the server ended: %s", self.last_error)
        except (PolicyError, StoreError) as error:  # an owner at work on the policy: nothing is done until it is whole
            self.last_error = str(error)
            log.error("not connected while the site policy cannot be read: %s", error)
        except (LinkError, asyncio.InvalidStateError) as error:  # the latter: written to when it had just ended
            self.last_error = str(error)
            log.warning("the connection to the server ended: %s", error)
        finally:
            self.connected_since = None
            self._bench.disconnected()
            await channel.close()
        return time.monotonic() - self._welcomed_at

    async def _talk(self, stream: Any) -> None:
        await stream.write(FromClient(hello=self._handler.hello()))
        welcome = await self._welcomed(stream)
        self.connected_since, self.server_version = time.time(), limits.shown(welcome.version)
        self.last_error = ""
        log.info("connected as %s to a server of version %s", limits.shown(welcome.name), self.server_version)
        outgoing = self._bench.connected()
        self._last = self._welcomed_at = time.monotonic()
        tasks = {
            asyncio.create_task(_write(stream, outgoing)),
            asyncio.create_task(self._read(_frames(stream))),
            asyncio.create_task(self._beat(welcome.heartbeat_seconds or limits.HEARTBEAT)),
            asyncio.create_task(self._until_stopped()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _welcomed(self, stream: Any) -> Welcome:
        try:
            first: Any = await asyncio.wait_for(stream.read(), limits.HELLO)
        except TimeoutError:
            raise LinkError(f"the server did not answer the hello within {limits.HELLO:.0f} s") from None
        if not isinstance(first, FromServer):
            raise LinkError("the server closed the connection before it said welcome")
        kind = first.WhichOneof("said")
        if kind == "goodbye":
            self._goodbye(first.goodbye)
        if kind != "welcome":
            raise LinkError(f"the server's first word is {kind!r}, not welcome")
        return first.welcome

    async def _read(self, frames: AsyncIterator[FromServer]) -> None:
        async for frame in frames:
            self._last = time.monotonic()
            kind = frame.WhichOneof("said") or ""
            if kind == "goodbye":
                self._goodbye(frame.goodbye)
            elif kind == "heartbeat":
                if not frame.heartbeat.number:  # the server asks
                    self._bench.say(FromClient(heartbeat=Heartbeat(state=self._handler.state())))
            else:
                await self._bench.hear(kind, getattr(frame, kind))

    def _goodbye(self, said: Goodbye) -> None:
        reason = limits.shown(said.reason)
        if said.retry:
            raise LinkError(f"the server ended the connection: {reason}")
        raise TurnedAwayError(f"the server turns this client away: {reason}")

    async def _beat(self, seconds: float) -> None:
        number = 0
        while time.monotonic() - self._last < seconds * limits.SILENCE:
            number += 1
            self._bench.say(FromClient(heartbeat=Heartbeat(number=number, state=self._handler.state())))
            await asyncio.sleep(seconds)
        raise LinkError(f"nothing came from the server for {seconds * limits.SILENCE:.0f} s")

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        await self._bench.idle()


async def _write(stream: Any, outgoing: "asyncio.Queue[FromClient]") -> None:
    while True:
        await stream.write(await outgoing.get())
        outgoing.task_done()


async def _frames(stream: Any) -> AsyncIterator[FromServer]:
    while (frame := await stream.read()) is not grpc.aio.EOF:
        yield frame
