"""A server's side of one client's stream: what comes in is checked and put in its place, what goes out is queued."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fedlora.link import limits
from fedlora.link.hub import Hub
from fedlora.link.inbox import Announced, Inbox, Receiving
from fedlora.link.v1.link_pb2 import (
    Accept,
    Acknowledged,
    Chunk,
    Decline,
    Failed,
    Fetch,
    FromClient,
    FromServer,
    Goodbye,
    Heartbeat,
    Hello,
    IsOpen,
    Openness,
    Resume,
    Upload,
)
from fedlora.link.works import WORK_ID, Ending, Work

log = logging.getLogger(__name__)

Send = Callable[[FromServer], Awaitable[None]]


class ProtocolError(Exception):
    """A client said what it must not say; the text tells what."""


class Session:
    """One connected client.

    hub: where works and clients are. inbox: gives the place for a run's answers.
    """

    def __init__(self, site: str, hello: Hello, hub: Hub, inbox: Callable[[str], Inbox]) -> None:
        self.site, self.hello = site, hello
        self._hub, self._inbox = hub, inbox
        self._outgoing: asyncio.Queue[FromServer | None] = asyncio.Queue()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._receiving: Receiving | None = None
        self._heard = asyncio.Event()
        self._last = time.monotonic()
        self._budget = float(limits.FRAMES_A_MINUTE)
        self._room = asyncio.Event()
        self._room.set()
        self._handlers: Mapping[str, Callable[[Any], Awaitable[None]]] = {
            "heartbeat": self._on_heartbeat,
            "accept": self._on_accept,
            "fetch": self._on_fetch,
            "decline": self._on_decline,
            "failed": self._on_failed,
            "upload": self._on_upload,
            "chunk": self._on_chunk,
            "is_open": self._on_is_open,
        }

    # What the hub does with a connection.

    def offer(self, work: Work) -> None:
        """Sends an offer."""
        self.say(FromServer(offer=work.offer()))

    def say(self, frame: FromServer) -> None:
        """Queues a frame."""
        self._outgoing.put_nowait(frame)

    async def alive(self) -> bool:
        """Asks for a heartbeat and waits for anything at all."""
        self._heard.clear()
        self.say(FromServer(heartbeat=Heartbeat()))
        try:
            await asyncio.wait_for(self._heard.wait(), limits.HEARTBEAT / 2)
        except TimeoutError:
            return False
        return True

    def end(self, goodbye: Goodbye) -> None:
        """Queues the last frame; the stream ends behind it."""
        self.say(FromServer(goodbye=goodbye))
        self._outgoing.put_nowait(None)

    # The stream.

    async def write(self, send: Send) -> None:
        """Sends what is queued, until the end of the session."""
        while (frame := await self._outgoing.get()) is not None:
            await send(frame)
            if self._outgoing.qsize() < 4:
                self._room.set()

    async def read(self, frames: AsyncIterator[FromClient]) -> None:
        """Handles what the client says, until it stops. Raises ProtocolError if it says what it must not."""
        async for frame in frames:
            self._last = time.monotonic()
            self._heard.set()
            kind = frame.WhichOneof("said")
            handler = self._handlers.get(kind or "")
            if handler is None:
                raise ProtocolError(f"a frame of kind {kind!r} is not expected here")
            self._pay(kind == "chunk")
            await handler(getattr(frame, str(kind)))

    async def watch(self) -> None:
        """Returns when nothing has come for too long."""
        patience = limits.HEARTBEAT * limits.SILENCE
        while (left := self._last + patience - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def closed(self) -> None:
        """The stream is gone: what was begun stops; the part of an upload that is there stays."""
        for task in self._sending.values():
            task.cancel()
        if self._receiving is not None:
            self._receiving.close()

    def _pay(self, chunk: bool) -> None:
        """Frames are limited; chunks of an upload are limited by its size."""
        if chunk and self._receiving is not None:
            return
        self._budget -= 1
        if self._budget < 0:
            raise ProtocolError(f"more than {limits.FRAMES_A_MINUTE} frames in a minute")

    def refill(self) -> None:
        """A minute has passed."""
        self._budget = float(limits.FRAMES_A_MINUTE)

    # What a client says.

    async def _on_heartbeat(self, said: Heartbeat) -> None:
        there = self._hub.presences.get(self.site)
        if there is not None:
            there.state = said.state
        if said.number:  # an answer to ours has none
            self.say(FromServer(heartbeat=Heartbeat(number=said.number)))

    async def _on_accept(self, said: Accept) -> None:
        self._send_arrays(said.work, said.offset)

    async def _on_fetch(self, said: Fetch) -> None:
        self._send_arrays(said.work, said.offset)

    async def _on_decline(self, said: Decline) -> None:
        work = self._work(said.work)
        if work is not None:
            work.end(Ending.DECLINED, reason=said.reason[: limits.TEXT] or "the client gave no reason")

    async def _on_failed(self, said: Failed) -> None:
        work = self._work(said.work)
        if work is not None:
            work.end(Ending.FAILED, reason=said.reason[: limits.TEXT] or "the client gave no reason")

    async def _on_is_open(self, said: IsOpen) -> None:
        work = self._work(said.work)
        is_open = work is not None and not work.ended.done()
        self.say(FromServer(openness=Openness(work=said.work, open=is_open)))

    async def _on_upload(self, said: Upload) -> None:
        work = self._work(said.work)
        if work is None or work.ended.done():
            self._acknowledge(said.work, work)
            return
        if not 0 < said.size <= work.largest or len(said.sha256) != 32:
            raise ProtocolError(
                f"an answer of {said.size} bytes was announced; at most {work.largest} are taken, with a SHA-256"
            )
        if self._receiving is not None:
            self._receiving.close()
        announced = Announced(said.work, said.size, said.sha256)
        self._receiving = await asyncio.to_thread(self._inbox(work.run).receive, announced)
        self.say(FromServer(resume=Resume(work=said.work, offset=self._receiving.offset)))
        await self._keep_if_whole(work)

    async def _on_chunk(self, said: Chunk) -> None:
        work, receiving = self._work(said.work), self._receiving
        if work is None or work.ended.done():
            return  # its round was closed while it was on the way
        if receiving is None or receiving.announced.work != said.work:
            raise ProtocolError("a chunk came for an answer that was not announced")
        receiving.add(said.offset, said.data)
        await self._keep_if_whole(work)

    async def _keep_if_whole(self, work: Work) -> None:
        receiving = self._receiving
        if receiving is None or not receiving.whole:
            return
        self._receiving = None
        receiving.check()
        file = await asyncio.to_thread(self._inbox(work.run).keep, receiving.path, work.id)
        work.end(Ending.ANSWERED, file=file)
        self._acknowledge(work.id, work)

    def _acknowledge(self, work_id: str, work: Work | None) -> None:
        """An answer is taken once; that it came before is no fault."""
        counted = work is not None and work.ended.done() and work.ended.result().how is Ending.ANSWERED
        reason = "" if counted else "the round is over: the answer came too late and was not kept"
        self.say(FromServer(acknowledged=Acknowledged(work=work_id, counted=counted, reason=reason)))

    def _work(self, work: str) -> Work | None:
        """The open work of this client. Raises ProtocolError for what cannot be the id of one."""
        if not WORK_ID.fullmatch(work):
            raise ProtocolError(f"{work[:80]!r} is no id of a work")
        return self._hub.of(self.site, work)

    # Arrays on their way to the client.

    def _send_arrays(self, work_id: str, offset: int) -> None:
        work = self._work(work_id)
        if work is None or work.ended.done():
            return
        if offset > len(work.payload.data):
            raise ProtocolError(f"the arrays of a work have {len(work.payload.data)} bytes: none begin at {offset}")
        before = self._sending.get(work_id)
        if before is not None:
            before.cancel()
        self._sending[work_id] = asyncio.create_task(self._stream(work, offset))

    async def _stream(self, work: Work, offset: int) -> None:
        data = work.payload.data
        for start in range(offset, len(data), limits.CHUNK):
            await self._room.wait()
            part = data[start : start + limits.CHUNK]
            self.say(FromServer(chunk=Chunk(work=work.id, offset=start, data=part)))
            if self._outgoing.qsize() >= 8:
                self._room.clear()
        self._sending.pop(work.id, None)
