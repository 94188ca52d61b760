"""A server's side of one client's stream: what comes in is checked and put in its place, what goes out is queued."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fedlora.errors import StoreError
from fedlora.link import limits
from fedlora.link.hub import Hub
from fedlora.link.inbox import Announced, Receiving
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
    """A client said what it must not say; the text tells what. retry: whether it may come back as it is."""

    def __init__(self, text: str, *, retry: bool = True) -> None:
        super().__init__(text)
        self.retry = retry


class Session:
    """One connected client.

    hub: where works and clients are.
    """

    def __init__(self, site: str, hello: Hello, hub: Hub) -> None:
        self.site, self.hello = site, hello
        self._hub = hub
        self._outgoing: asyncio.Queue[FromServer | None] = asyncio.Queue()
        self._waiting = 0  # what is in it, bytes
        self._over = asyncio.Event()
        self.sending: asyncio.Future[None] | None = None
        """The frame that is being written, or was last. gRPC cannot take one back that its client does not read."""
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
        """Queues a frame. If the client leaves too much unread, the session is over."""
        if self._over.is_set():
            return
        self._waiting += _weight(frame)
        if self._waiting > limits.OUTGOING:
            log.warning("client %s does not read what it is sent: its connection is closed", self.site)
            self._over.set()
            return
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
        """Queues the last frame; the stream ends behind it, and soon. Nothing that comes from now on counts."""
        self.say(FromServer(goodbye=goodbye))
        self._outgoing.put_nowait(None)
        self._over.set()

    async def over(self) -> None:
        """Returns when the session is to end."""
        await self._over.wait()

    # The stream.

    async def write(self, send: Send) -> None:
        """Sends what is queued, until the end of the session, or until the client has read nothing for too long."""
        while (frame := await self._outgoing.get()) is not None:
            self.sending = asyncio.ensure_future(send(frame))
            self.sending.add_done_callback(failed)
            await asyncio.wait({self.sending}, timeout=limits.HEARTBEAT * limits.SILENCE)
            if not self.sending.done():
                log.warning("client %s has read nothing for too long: its connection is closed", self.site)
                return
            self.sending.result()
            self._waiting -= _weight(frame)
            if self._outgoing.qsize() < 4:
                self._room.set()

    async def read(self, frames: AsyncIterator[FromClient]) -> None:
        """Handles what the client says, until it stops. Raises ProtocolError if it says what it must not."""
        async for frame in frames:
            if self._over.is_set():
                return
            self._last = time.monotonic()
            self._heard.set()
            kind = frame.WhichOneof("said")
            handler = self._handlers.get(kind or "")
            if handler is None:
                raise ProtocolError(f"a frame of kind {kind!r} is not expected here")
            self._pay(frame)
            await handler(getattr(frame, str(kind)))

    async def watch(self) -> None:
        """Ends the session when nothing has come for too long."""
        patience = limits.HEARTBEAT * limits.SILENCE
        while (left := self._last + patience - time.monotonic()) > 0:
            await asyncio.sleep(left)
        self.end(Goodbye(reason=f"nothing came from the client for {patience:.0f} s", retry=True))

    def closed(self) -> None:
        """The stream is gone: what was begun stops; the part of an upload that is there stays."""
        for task in self._sending.values():
            task.cancel()
        if self._receiving is not None:
            self._receiving.close()

    def _pay(self, frame: FromClient) -> None:
        """Frames are limited; of those that an upload needs, its announced size is the limit."""
        receiving = self._receiving
        if frame.HasField("chunk") and receiving is not None and receiving.needs(frame.chunk):
            return
        self._budget -= 1
        if self._budget < 0:
            raise ProtocolError(f"more than {limits.FRAMES_A_MINUTE} frames in a minute")

    def refill(self) -> None:
        """A minute has passed."""
        self._budget = float(limits.FRAMES_A_MINUTE)

    # What a client says.

    async def _on_heartbeat(self, said: Heartbeat) -> None:
        self._hub.note(self, said.state)
        if said.number:  # an answer to ours has none
            self.say(FromServer(heartbeat=Heartbeat(number=said.number)))

    async def _on_accept(self, said: Accept) -> None:
        self._send_arrays(said.work, said.offset)

    async def _on_fetch(self, said: Fetch) -> None:
        self._send_arrays(said.work, said.offset)

    async def _on_decline(self, said: Decline) -> None:
        work = self._work(said.work)
        if work is not None:
            work.end(Ending.DECLINED, reason=limits.shown(said.reason) or "the client gave no reason")

    async def _on_failed(self, said: Failed) -> None:
        work = self._work(said.work)
        if work is not None:
            work.end(Ending.FAILED, reason=limits.shown(said.reason) or "the client gave no reason")

    async def _on_is_open(self, said: IsOpen) -> None:
        work = self._work(said.work)
        is_open = work is not None and not work.ended.done()
        if not is_open and self._hub.counted(self.site, said.work):
            self._acknowledge(said.work)  # it asks because it was not told
        self.say(FromServer(openness=Openness(work=said.work, open=is_open)))

    async def _on_upload(self, said: Upload) -> None:
        work = self._work(said.work)
        if work is None or work.ended.done():
            self._acknowledge(said.work)
            return
        if not 0 < said.size <= work.largest or len(said.sha256) != 32:
            raise ProtocolError(
                f"an answer of {said.size} bytes was announced; at most {work.largest} are taken, with a SHA-256"
            )
        announced = Announced(said.work, said.size, said.sha256)
        if self._receiving is None or self._receiving.announced != announced:  # else all of it would be hashed again
            if self._receiving is not None:
                self._receiving.close()
            self._receiving = await asyncio.to_thread(work.inbox.receive, announced)
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
        await self._kept(work, receiving)
        self._acknowledge(work.id)

    async def _kept(self, work: Work, receiving: Receiving) -> None:
        """Ends the work with a whole answer, unless its round was closed while the disk wrote."""
        try:
            file = await asyncio.to_thread(work.inbox.keep, receiving.path, work.id)
        except StoreError:
            if work.ended.done():  # it was deleted with its round
                return
            raise
        work.end(Ending.ANSWERED, file=file)
        late = work.ended.result().how is not Ending.ANSWERED
        if late and self._hub.of(self.site, work.id) in (None, work):  # and it was not asked for anew
            work.inbox.forget([work.id])

    def _acknowledge(self, work_id: str) -> None:
        """An answer is taken once; that it came before is no fault."""
        counted = self._hub.counted(self.site, work_id)
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


def failed(sending: "asyncio.Future[None]") -> bool:
    """Whether a frame could not be written."""
    return sending.cancelled() or sending.exception() is not None


def _weight(frame: FromServer) -> int:
    return frame.ByteSize() + limits.FRAME_OVERHEAD
