"""The gRPC services of a server: who may connect, and what becomes of a connection that misbehaves."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

import fedlora
from fedlora.errors import FedloraError, IdentityError, StoreError
from fedlora.identity.enrolment import Issued
from fedlora.link import limits
from fedlora.link.enrolment import as_reply
from fedlora.link.hub import Hub
from fedlora.link.inbox import Inbox, UploadError
from fedlora.link.session import ProtocolError, Session, failed
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
        self._refusals = limits.Recent(limits.REFUSALS, limits.REFUSAL_WINDOW)
        self._requests = limits.Recent(limits.REQUESTS, limits.REQUEST_WINDOW)
        self._greeting: Counter[str] = Counter()
        self._stuck: Counter[str] = Counter()

    async def Connect(self, request_iterator: AsyncIterator[FromClient], context: Any) -> None:  # noqa: N802 - gRPC's
        """One client's stream, from its hello to its end."""
        name, certificate = shown(context)
        if self._stuck[name] >= limits.STUCK:  # a status, unlike a frame, goes out whether it is read or not
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "read or close your other connections first")
        try:
            await self._admitted(name, certificate)
            hello = await self._greeted(name, request_iterator)
        except IdentityError as error:
            await self._turned_away(name, context, Goodbye(reason=str(error), retry=False))
        except ProtocolError as error:
            await self._turned_away(name, context, Goodbye(reason=str(error), retry=error.retry))
        except FedloraError as error:
            log.error("client %r cannot be let in now: %s", name, error)
            await self._turned_away(name, context, Goodbye(reason="the server cannot let clients in now", retry=True))
        else:
            await self._serve(Session(name, hello, self.hub), request_iterator, context)

    async def Renew(self, request: RenewRequest, context: Any) -> Certificate:  # noqa: N802 - gRPC's name
        """A new certificate for the client that asks."""
        name, certificate = await self._asking(context)
        return as_reply(await self._done(context, self.doors.renew, name, certificate, request.signing_request))

    async def Erase(self, request: EraseRequest, context: Any) -> EraseReply:  # noqa: N802 - gRPC's name
        """Deletes what is stored of the client that asks."""
        name, certificate = await self._asking(context)
        await self._done(context, self.doors.admit, name, certificate)
        reply: EraseReply = await self._done(context, self.doors.erase, name, request.leave, request.keep)
        if request.leave:
            self.hub.dismiss(name, "the client has left")
        return reply

    async def _asking(self, context: Any) -> tuple[str, bytes]:
        """Who asks, with its certificate; one that asks too often is refused."""
        name, certificate = shown(context)
        if self._requests.too_many(name):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests: wait five minutes")
        self._requests.note(name)
        return name, certificate

    async def _done(self, context: Any, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` gives in a thread; its errors end the RPC."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except IdentityError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except Exception:  # nothing of what is wrong inside is told outside
            log.exception("what a client asked for could not be done")
            await context.abort(grpc.StatusCode.INTERNAL, "the server cannot do this now; its log says why")

    async def _admitted(self, name: str, certificate: bytes) -> None:
        """Raises IdentityError if the client may not connect, ProtocolError if it has to wait."""
        await asyncio.to_thread(self.doors.admit, name, certificate)
        if self._refusals.too_many(name):
            raise ProtocolError(
                f"client {name!r} broke the protocol {limits.REFUSALS} times in {limits.REFUSAL_WINDOW:.0f} s and is"
                " turned away for a while"
            )
        if self._greeting[name] >= limits.GREETINGS:
            raise ProtocolError(f"{limits.GREETINGS} other connections of client {name!r} have not said hello yet")

    async def _greeted(self, name: str, frames: AsyncIterator[FromClient]) -> Hello:
        self._greeting[name] += 1
        try:
            first = await asyncio.wait_for(anext(aiter(frames)), limits.HELLO)
        except (TimeoutError, StopAsyncIteration):
            raise ProtocolError(f"no hello came within {limits.HELLO:.0f} s") from None
        except DecodeError:
            raise ProtocolError("the first frame cannot be read: it is not of fedlora.v1", retry=False) from None
        finally:
            _less(self._greeting, name)
        hello = first.hello
        if first.WhichOneof("said") != "hello" or not hello.instance or _says_too_much(hello):
            raise ProtocolError("a connection must begin with a hello", retry=False)
        if hello.protocol != limits.PROTOCOL:
            raise ProtocolError(
                f"this server (fedlora {fedlora.__version__}) speaks protocol {limits.PROTOCOL}, the client (fedlora"
                f" {limits.shown(hello.version, 40)}) {hello.protocol}: install the same version on both sides",
                retry=False,
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
        tasks = {writing}
        try:
            refusal = await self.hub.join(session)
            if refusal is None:
                await self._note(session)
                rest = (self._read(session, frames), session.watch(), session.over(), _minutes(session))
                tasks |= {asyncio.create_task(part) for part in rest}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            else:
                session.end(Goodbye(reason=refusal, retry=False))
            await asyncio.wait({writing}, timeout=limits.LAST_WORD)
        finally:
            for task in tasks:
                task.cancel()
            session.closed()
            self.hub.leave(session)
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._written(session.site, session.sending, 0.0)

    async def _note(self, session: Session) -> None:
        try:
            await asyncio.to_thread(self.doors.seen, session.site, limits.shown(session.hello.version))
        except StoreError as error:
            log.error("client %s: %s", session.site, error)

    async def _read(self, session: Session, frames: AsyncIterator[FromClient]) -> None:
        try:
            await session.read(frames)
            session.end(Goodbye(reason="the client has closed the stream", retry=True))
        except (ProtocolError, UploadError, DecodeError) as error:
            log.warning("client %s: %s", session.site, error)
            self._refusals.note(session.site)
            kind = "" if isinstance(error, UploadError) else "protocol error: "
            session.end(Goodbye(reason=f"{kind}{error}", retry=True))
        except StoreError as error:
            log.error("client %s: %s", session.site, error)
            session.end(Goodbye(reason="the server cannot store the update now", retry=True))
        except Exception:
            log.exception("client %s: what it said could not be handled", session.site)
            session.end(Goodbye(reason="the server could not handle what was said; its log says why", retry=True))

    async def _turned_away(self, name: str, context: Any, goodbye: Goodbye) -> None:
        log.warning("client %r is turned away: %s", name[: limits.NAME], goodbye.reason)
        goodbye.reason = goodbye.reason[: limits.TEXT]
        sending = asyncio.ensure_future(context.write(FromServer(goodbye=goodbye)))
        await self._written(name, sending, limits.LAST_WORD)

    async def _written(self, name: str, sending: "asyncio.Future[None] | None", patience: float) -> None:
        """Waits until a last frame is written, or its client hangs up: gRPC cannot take it back.

        After `patience` seconds the connection counts as stuck.
        """
        if sending is None:
            return
        sending.add_done_callback(failed)  # else asyncio complains if this call is cut off here
        await asyncio.wait({sending}, timeout=patience)
        if not sending.done():
            self._stuck[name] += 1
            try:
                await asyncio.wait({sending})
            finally:
                _less(self._stuck, name)
        if failed(sending):  # the client is gone: gRPC ends this call itself, as soon as it has noticed
            await asyncio.sleep(limits.LAST_WORD)


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _says_too_much(hello: Hello) -> bool:
    return len(hello.data) > limits.DATA_SETS or len(hello.policy) > limits.POLICY_LINES


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
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small frame must not become a large one
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_concurrent_streams", 8),
)


def link_server(service: LinkService, credentials: Any, address: str) -> tuple[Any, int]:
    """A gRPC server for `service` at `address`, not started yet; and its port (for an address that ends in :0)."""
    server = grpc.aio.server(options=OPTIONS)
    link_pb2_grpc.add_LinkServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return server, server.add_secure_port(address, credentials)
