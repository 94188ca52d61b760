"""A client that has a certificate and no manners: it says what a test wants, byte for byte, and does not hide."""

import hashlib
import queue
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import grpc
import numpy as np

from fedlora.identity.keys import new_key, signing_request, write_private
from fedlora.link import content, limits
from fedlora.link.host import LinkHost
from fedlora.link.inbox import Inbox
from fedlora.link.service import Doors, LinkService
from fedlora.link.v1.link_pb2 import (
    Accept,
    Chunk,
    Decline,
    Failed,
    Fetch,
    FromClient,
    FromServer,
    Heartbeat,
    Hello,
    IsOpen,
    Offer,
    Upload,
)
from fedlora.wire import Answer, write_answer
from tests.link.world import World, refuse

METHOD = "/fedlora.v1.Link/Connect"


def hello(**changes: Any) -> FromClient:
    """A hello, right but for the changes."""
    return FromClient(
        hello=Hello(**{"protocol": limits.PROTOCOL, "version": "raw", "instance": "raw", **changes}),
    )


def pair(world: World, site: str) -> tuple[bytes, bytes]:
    """A key and a certificate of the world's authority for it."""
    key = new_key()
    return key, world.authority.sign_client(signing_request(key, site), site)


class Trusted(Protocol):
    """What signed the server's certificate."""

    @property
    def certificate(self) -> bytes:
        """Its own, PEM."""
        ...


class Place(Protocol):
    """Where a server is: on localhost, at a port, known by its authority."""

    @property
    def port(self) -> int:
        """Of the link."""
        ...

    @property
    def authority(self) -> Trusted:
        """Which the server's certificate comes from."""
        ...


class Raw:
    """One connection. What the server says is kept; `hear` takes it out.

    shown: key and certificate, instead of new ones for `site`. reads: False: never, so that the server's frames pile
    up. answers: whether it says that it is alive when it is asked. compression: of what it sends.
    """

    def __init__(
        self,
        world: Place,
        site: str = "site-1",
        *,
        shown: tuple[bytes, bytes] | None = None,
        reads: bool = True,
        answers: bool = False,
        compression: Any = None,
    ) -> None:
        key, certificate = shown or pair(cast(World, world), site)
        credentials = grpc.ssl_channel_credentials(world.authority.certificate, key, certificate)
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(f"localhost:{world.port}", credentials, options=options)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[FromServer | grpc.RpcError | None] = queue.SimpleQueue()
        self._answers = answers
        connect = self._channel.stream_stream(
            METHOD, request_serializer=lambda data: data, response_deserializer=FromServer.FromString
        )
        self._call = connect(iter(self._outgoing.get, None), compression=compression)
        self._reader = threading.Thread(target=self._read, daemon=True)
        if reads:
            self._reader.start()

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *error: object) -> None:
        self.hang_up()

    def _read(self) -> None:
        try:
            for frame in self._call:
                if self._answers and frame.HasField("heartbeat") and not frame.heartbeat.number:
                    self.say(FromClient(heartbeat=Heartbeat()))
                self._heard.put(frame)
        except grpc.RpcError as error:
            self._heard.put(error)
        self._heard.put(None)

    def say(self, *frames: FromClient | bytes) -> None:
        """Sends frames, or bytes where frames should be."""
        for frame in frames:
            self._outgoing.put(frame if isinstance(frame, bytes) else frame.SerializeToString())

    def hear(self, kind: str, timeout: float = 10.0) -> Any:
        """The next frame of that kind; those before it are dropped. Fails if the stream ends first."""
        end = time.monotonic() + timeout
        while True:
            try:
                said = self._heard.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind} came in {timeout} s") from None
            assert isinstance(said, FromServer), f"the stream ended before a {kind} came: {self.why(said)}"
            if said.HasField(cast(Any, kind)):
                return getattr(said, kind)

    def ended(self, timeout: float = 10.0) -> str:
        """Waits for the end of the stream. What the server said last: its goodbye, or a status."""
        last = ""
        end = time.monotonic() + timeout
        while True:
            try:
                said = self._heard.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the stream did not end in {timeout} s") from None
            if said is None:
                return last
            if not isinstance(said, FromServer):
                last = last or self.why(said)
            elif said.HasField("goodbye"):
                last = said.goodbye.reason

    def why(self, error: Any) -> str:
        """What gRPC says of an error."""
        return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else repr(error)

    def connected(self) -> "Raw":
        """Says hello and waits until the server has taken it in."""
        self.say(hello())
        self.hear("welcome")
        return self

    def close(self) -> None:
        """Ends its own side of the stream in order."""
        self._outgoing.put(None)

    def hang_up(self) -> None:
        """Drops the connection without a word."""
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()
        if self._reader.ident is not None:
            self._reader.join(10.0)


def answer(offer: Offer, number: int, value: float = 7.0, *, numbers: int = 32, **changes: Any) -> bytes:
    """An answer to an offer of `tests.link.world.message`, honest but for the changes of its fields."""
    fields = {
        "run": offer.run,
        "round": offer.round,
        "client": number,
        "tensors": {"head": np.full(numbers, value, np.float32)},
        "samples": 1,
        "metrics": {},
        **changes,
    }
    return content.serialised(content.whole(write_answer(Answer(**cast(Any, fields)))))


def announced(work: str, data: bytes, **changes: Any) -> FromClient:
    """The announcement of `data`."""
    fields = {"work": work, "size": len(data), "sha256": hashlib.sha256(data).digest(), **changes}
    return FromClient(upload=Upload(**fields))


def chunks(work: str, data: bytes, size: int = limits.CHUNK) -> Iterable[FromClient]:
    """`data` in chunks."""
    return [
        FromClient(chunk=Chunk(work=work, offset=start, data=data[start : start + size]))
        for start in range(0, len(data), size)
    ]


ABOUT = {
    "accept": lambda work: FromClient(accept=Accept(work=work)),
    "fetch": lambda work: FromClient(fetch=Fetch(work=work)),
    "decline": lambda work: FromClient(decline=Decline(work=work, reason="no")),
    "failed": lambda work: FromClient(failed=Failed(work=work, reason="no")),
    "upload": lambda work: announced(work, b"abc"),
    "chunk": lambda work: FromClient(chunk=Chunk(work=work, data=b"abc")),
    "is_open": lambda work: FromClient(is_open=IsOpen(work=work)),
}
"""By its kind, a frame about a work."""


def upload(raw: Raw, work: str, data: bytes) -> None:
    """Sends an answer as an honest client does."""
    raw.say(announced(work, data))
    offset = raw.hear("resume").offset
    raw.say(*(frame for frame in chunks(work, data) if frame.chunk.offset >= offset))


@contextmanager
def served(world: World, **doors: Any) -> Iterator[tuple[LinkHost, LinkService]]:
    """A server like `World.server`, each of whose doors a test may change."""
    usual: dict[str, Any] = {
        "admit": lambda name, certificate: None,
        "seen": lambda name, version: None,
        "inbox": lambda run: Inbox(world.folder / run),
        "renew": refuse,
        "erase": refuse,
    }
    with LinkHost() as host:
        service = LinkService(host.hub, Doors(**usual | doors))
        server = host.call(world._start(service))
        try:
            yield host, service
        finally:
            host.call(server.stop(None))


def tls(world: World, folder: Path, site: str | None = "site-1") -> ssl.SSLContext:
    """Python's own TLS, which trusts the world's authority. site: whose certificate it shows; None: none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=world.authority.certificate.decode())
    context.set_alpn_protocols(["h2"])
    if site is not None:
        key, certificate = pair(world, site)
        write_private(folder / "raw.pem", key + certificate)
        context.load_cert_chain(folder / "raw.pem")
    return context
