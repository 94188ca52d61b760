"""The gRPC services of a server: who may connect, and what becomes of a connection that misbehaves."""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

import fedlora
from fedlora.errors import FedloraError, IdentityError, StoreError
from fedlora.identity.enrolment import Issued
from fedlora.link import limits
from fedlora.link.enrolment import as_reply
from fedlora.link.hub import Hub
from fedlora.link.inbox import Inbox, UploadError
from fedlora.link.session import ProtocolError, Session
from fedlora.link.v1 import link_pb2_grpc
from fedlora.link.v1.link_pb2 import (
    Certificate,
    EraseReply,
    EraseRequest,
    FromClient,
    FromServer,
    Goodbye,
    Hello,
    RenewRequest,
    Welcome,
)

log = logging.getLogger(__name__)

Admit = Callable[[str, bytes], None]
"""Takes a client's name and its certificate (PEM); raises IdentityError if that may not connect."""


@dataclass(frozen=True)
class Doors:
    """What a link needs of the server around it.

    admit: see `Admit`. seen: told of each connection, with the client's version. inbox: for a run's id. renew: takes a
    client's name, its certificate and a signing request (PEM), and issues a certificate. erase: takes a client's name,
    whether it leaves for good, and whether what is stored of it is kept; tells which runs' models contain it.
    """

    admit: Admit
    seen: Callable[[str, str], None]
    inbox: Callable[[str], Inbox]
    renew: Callable[[str, bytes, bytes], Issued]
    erase: Callable[[str, bool, bool], EraseReply]


class LinkService(link_pb2_grpc.LinkServicer):
    """`fedlora.v1.Link`."""

    def __init__(self, hub: Hub, doors: Doors) -> None:
        self.hub, self.doors = hub, doors
        self._refusals: dict[str, deque[float]] = defaultdict(deque)

    async def Connect(self, request_iterator: AsyncIterator[FromClient], context: Any) -> None:  # noqa: N802 - gRPC's
        """One client's stream, from its hello to its end."""
        try:
            site = await self._identity(context)
            hello = await self._greeted(request_iterator)
        except (IdentityError, ProtocolError) as error:
            await self._farewell(context, str(error), retry=False)
            return
        session = Session(site, hello, self.hub, self.doors.inbox)
        await self._serve(session, request_iterator, context)

    async def Renew(self, request: RenewRequest, context: Any) -> Certificate:  # noqa: N802 - gRPC's name
        """A new certificate for the client that asks."""
        name, certificate = shown(context)
        return as_reply(await self._done(context, self.doors.renew, name, certificate, request.signing_request))

    async def Erase(self, request: EraseRequest, context: Any) -> EraseReply:  # noqa: N802 - gRPC's name
        """Deletes what is stored of the client that asks."""
        name, certificate = shown(context)
        await self._done(context, self.doors.admit, name, certificate)
        reply: EraseReply = await self._done(context, self.doors.erase, name, request.leave, request.keep)
        if request.leave:
            self.hub.dismiss(name, "the client has left")
        return reply

    async def _done(self, context: Any, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` gives in a thread; its errors end the RPC."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except IdentityError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except FedloraError as error:
            log.error("%s", error)
            await context.abort(grpc.StatusCode.INTERNAL, "the server cannot do this now; its log says why")

    async def _identity(self, context: Any) -> str:
        """The client's name, from its certificate. Raises IdentityError if it may not connect."""
        name, certificate = shown(context)
        await asyncio.to_thread(self.doors.admit, name, certificate)
        recent = self._refusals[name]
        while recent and time.monotonic() - recent[0] > limits.REFUSAL_WINDOW:
            recent.popleft()
        if len(recent) >= limits.REFUSALS:
            raise IdentityError(
                f"client {name!r} broke the protocol {len(recent)} times in {limits.REFUSAL_WINDOW:.0f} s and is"
                " turned away for a while"
            )
        return name

    async def _greeted(self, frames: AsyncIterator[FromClient]) -> Hello:
        try:
            first = await asyncio.wait_for(anext(aiter(frames)), limits.HELLO)
        except (TimeoutError, StopAsyncIteration):
            raise ProtocolError(f"no hello came within {limits.HELLO:.0f} s") from None
        hello = first.hello
        if first.WhichOneof("said") != "hello" or not hello.instance or len(hello.data) > limits.DATA_SETS:
            raise ProtocolError("a connection must begin with a hello")
        if hello.protocol != limits.PROTOCOL:
            raise ProtocolError(
                f"this server (fedlora {fedlora.__version__}) speaks protocol {limits.PROTOCOL}, the client (fedlora"
                f" {hello.version[:40]}) {hello.protocol}: install the same version on both sides"
            )
        return hello

    async def _serve(self, session: Session, frames: AsyncIterator[FromClient], context: Any) -> None:
        session.say(
            FromServer(
                welcome=Welcome(
                    protocol=limits.PROTOCOL,
                    version=fedlora.__version__,
                    name=session.site,
                    heartbeat_seconds=limits.HEARTBEAT,
                )
            )
        )
        writing = asyncio.create_task(session.write(context.write))
        refusal = await self.hub.join(session)
        if refusal is not None:
            session.end(Goodbye(reason=refusal, retry=False))
            await writing
            return
        await asyncio.to_thread(self.doors.seen, session.site, session.hello.version[: limits.TEXT])
        reading = asyncio.create_task(self._read(session, frames))
        tasks = {writing, reading, asyncio.create_task(session.watch()), asyncio.create_task(_minutes(session))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not writing.done():
                await asyncio.wait({writing}, timeout=1.0)  # the last word
        finally:
            for task in tasks:
                task.cancel()
            session.closed()
            self.hub.leave(session)

    async def _read(self, session: Session, frames: AsyncIterator[FromClient]) -> None:
        try:
            await session.read(frames)
            session.end(Goodbye(reason="the client has closed the stream", retry=True))
        except ProtocolError as error:
            log.warning("client %s: %s", session.site, error)
            self._refusals[session.site].append(time.monotonic())
            session.end(Goodbye(reason=f"protocol error: {error}", retry=True))
        except UploadError as error:
            log.warning("client %s: %s", session.site, error)
            session.end(Goodbye(reason=str(error), retry=True))
        except StoreError as error:
            log.error("client %s: %s", session.site, error)
            session.end(Goodbye(reason="the server cannot store the update now", retry=True))

    async def _farewell(self, context: Any, reason: str, *, retry: bool) -> None:
        await context.write(FromServer(goodbye=Goodbye(reason=reason[: limits.TEXT], retry=retry)))


def shown(context: Any) -> tuple[str, bytes]:
    """The name and the certificate (PEM) that TLS has verified."""
    found = context.auth_context()
    name = b"".join(found.get("x509_common_name", ())).decode("ascii", "replace")
    return name, b"".join(found.get("x509_pem_cert", ()))


async def _minutes(session: Session) -> None:
    while True:
        await asyncio.sleep(60.0)
        session.refill()


OPTIONS = (
    ("grpc.max_receive_message_length", limits.CLIENT_FRAME),
    ("grpc.max_send_message_length", limits.FRAME),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


def link_server(service: LinkService, credentials: Any, address: str) -> tuple[Any, int]:
    """A gRPC server for `service` at `address`, not started yet; and its port (for an address that ends in :0)."""
    server = grpc.aio.server(options=OPTIONS)
    link_pb2_grpc.add_LinkServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return server, server.add_secure_port(address, credentials)
