"""A server and clients on loopback with real certificates, whose answers the test decides."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec
from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.keys import new_key, signing_request
from fedlora.link import content
from fedlora.link.answers import AnswerBox
from fedlora.link.assignment import Task
from fedlora.link.client import OPTIONS, LinkClient
from fedlora.link.grid import LinkGrid
from fedlora.link.host import LinkHost
from fedlora.link.inbox import Inbox
from fedlora.link.limits import PROTOCOL
from fedlora.link.service import Doors, LinkService, link_server
from fedlora.link.v1.link_pb2 import Hello, Offer, State
from fedlora.wire import Answer, read_tensors, to_record, write_answer

SHAPE = (4, 8)


def manifest(numbers: int = 32) -> Manifest:
    """One tensor of `numbers` values."""
    spec = TensorSpec((numbers,), Role.HEAD, "", True, Delivery.ROUND)
    return Manifest(Form.LORA, 2, 1.0, 0, {"head": spec})


def message(client: int, round_number: int, *, numbers: int = 32, run: str = "run-1") -> Message:
    """A task whose answer the test's clients make from its tensor."""
    fields = ConfigRecord(
        {"run": run, "round": round_number, "client": client, "manifest": manifest(numbers).to_json()}
    )
    values = np.full(numbers, float(round_number), np.float32)
    record = RecordDict({"arrays": to_record({"head": values}), "task": fields})
    return Message(record, client + 2, MessageType.TRAIN, group_id=str(round_number))


@dataclass
class Scripted:
    """A client whose work a test decides. It adds its number to the tensor."""

    number: int
    instance: str = "first"
    before_work: Callable[[Task], None] = lambda task: None
    refusal: Callable[[Offer], str | None] = lambda offer: None
    worked: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    acknowledged: list[bool] = field(default_factory=list)

    def hello(self) -> Hello:
        return Hello(protocol=PROTOCOL, version="test", instance=self.instance, state=self.state())

    def state(self) -> State:
        return State()

    def decide(self, offer: Offer) -> str | None:
        return self.refusal(offer)

    def work(self, task: Task) -> bytes:
        self.worked.append(task.offer.work)
        self.before_work(task)
        tensor = decoded(task.content)
        answer = Answer(task.offer.run, task.offer.round, self.number, {"head": tensor + self.number}, 1, {})
        return content.serialised(content.whole(write_answer(answer)))

    def sending(self, offer: Offer, answer: bytes, offset: int) -> None:
        self.sent.append(offset)

    def ended(self, offer: Offer, counted: bool, reason: str) -> None:
        self.acknowledged.append(counted)


@dataclass
class World:
    """Certificates, folders, and the address of a server that may come and go."""

    folder: Path
    authority: Authority
    port: int = 0
    doors: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def server(self) -> Iterator[LinkHost]:
        """A running link server, at the same port each time."""
        with LinkHost() as host:
            doors = Doors(
                admit=self.doors.get("admit", lambda name, certificate: None),
                seen=lambda name, version: None,
                inbox=lambda run: Inbox(self.folder / run),
                renew=self.doors.get("renew", refuse),
                erase=self.doors.get("erase", refuse),
            )
            service = LinkService(host.hub, doors)
            server = host.call(self._start(service))
            try:
                yield host
            finally:
                host.call(server.stop(None))

    async def _start(self, service: LinkService) -> Any:
        server, self.port = link_server(service, self._credentials(), f"localhost:{self.port}")
        await server.start()
        return server

    def _credentials(self) -> Any:
        key = new_key()
        certificate = self.authority.sign_server(signing_request(key, "server"), ["localhost"])
        return grpc.ssl_server_credentials([(key, certificate)], self.authority.certificate, True)

    def dial(self, site: str) -> Callable[[], Any]:
        """A maker of channels with the site's certificate."""
        key = new_key()
        certificate = self.authority.sign_client(signing_request(key, site), site)
        credentials = grpc.ssl_channel_credentials(self.authority.certificate, key, certificate)
        return lambda: grpc.aio.secure_channel(f"localhost:{self.port}", credentials, options=OPTIONS)

    def grid(self, host: LinkHost, sites: list[str], *, run: str = "run-1", absence: float = 20.0) -> LinkGrid:
        """The Grid of a run."""
        return LinkGrid(host, run, sites, Inbox(self.folder / run), absence)


def refuse(*arguments: Any) -> Any:
    """What a test's server does not offer."""
    raise IdentityError("not here")


class Daemon:
    """A client in a thread with its own event loop."""

    def __init__(self, dial: Callable[[], Any], handler: Scripted, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self.error: BaseException | None = None
        self.client = self._made(dial, handler, folder)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _made(self, dial: Callable[[], Any], handler: Scripted, folder: Path) -> LinkClient:
        async def make() -> LinkClient:
            return LinkClient(dial, handler, AnswerBox(folder))

        return self._loop.run_until_complete(make())

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self.client.run())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self._loop.close()

    def stop(self, timeout: float = 10.0) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has ended just now
                self._loop.call_soon_threadsafe(self.client.stop)
        self.join(timeout)

    def join(self, timeout: float = 10.0) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive()


def make_world(folder: Path) -> World:
    """A new authority in `folder`."""
    return World(folder, create_authority(folder / "ca", "test"))


def values(replies: list[Message]) -> Mapping[int, float]:
    """The first number of each answer, by node."""
    return {reply.metadata.src_node_id: float(decoded(reply.content)[0]) for reply in replies}


def decoded(found: RecordDict, numbers: int | None = None) -> NDArray[Any]:
    """The tensor of a message. numbers: how many values it must have; None: as many as it says.

    Read by fedlora: NumPy's reader parses headers as Python, which 3.11 cannot do in many threads at once.
    """
    record = found.array_records["arrays"]
    specs = manifest(record["head"].shape[0] if numbers is None else numbers).tensors
    return read_tensors(record, specs)["head"]


def eventually(holds: Callable[[], bool], timeout: float = 10.0) -> None:
    """Waits until `holds`."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
