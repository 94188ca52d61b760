"""Clients for `benchmarks.rounds` that answer at once: one, or many in one event loop.

The input is an order (a line of JSON), then "go"; they stay connected until the input ends.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.rounds_processes import allow_connections, hear, say
from fedlora.link import content
from fedlora.link.answers import AnswerBox
from fedlora.link.assignment import Task
from fedlora.link.client import OPTIONS, LinkClient
from fedlora.link.limits import PROTOCOL
from fedlora.link.v1.link_pb2 import Hello, Offer, State
from fedlora.wire import Answer, write_answer


@dataclass(frozen=True)
class AtOnce:
    """A client that sends the tensor back as it is."""

    number: int

    def hello(self) -> Hello:
        """Who it is."""
        return Hello(protocol=PROTOCOL, version="benchmark", instance=str(self.number), state=self.state())

    def state(self) -> State:
        """Nothing to say."""
        return State()

    def decide(self, offer: Offer) -> str | None:
        """Yes."""
        del offer
        return None

    def work(self, task: Task) -> bytes:
        """The answer."""
        values = task.content.array_records["arrays"]["head"].numpy()
        answer = Answer(task.offer.run, task.offer.round, self.number, {"head": values}, 1, {})
        return content.serialised(content.whole(write_answer(answer)))

    def sending(self, offer: Offer, answer: bytes, offset: int) -> None:
        """Not noted."""

    def ended(self, offer: Offer, counted: bool, reason: str) -> None:
        """Not noted."""


class InMemory(AnswerBox):
    """Answers that are not put on a disk: the disks of a thousand hosts are not what is measured on one."""

    def __init__(self) -> None:
        self._last: tuple[str, bytes] = ("", b"")

    def read(self, work: str) -> bytes | None:
        """The last answer, if it is that one's."""
        return self._last[1] if self._last[0] == work else None

    def store(self, work: str, data: bytes) -> None:
        """Forgets the one before."""
        self._last = (work, data)


def dialler(order: dict[str, Any], client: dict[str, Any]) -> Callable[[], Any]:
    """A maker of channels with the client's certificate."""
    parts = (order["authority"].encode(), client["key"].encode(), client["certificate"].encode())
    credentials = grpc.ssl_channel_credentials(*parts)
    return lambda: grpc.aio.secure_channel(order["link"], credentials, options=OPTIONS)


def link(order: dict[str, Any], client: dict[str, Any]) -> LinkClient:
    """One client; its answers go to `order["answers"]`, or nowhere."""
    folder = order["answers"]
    box = AnswerBox(Path(folder) / client["name"]) if folder else InMemory()
    return LinkClient(dialler(order, client), AtOnce(client["number"]), box)


async def serve(order: dict[str, Any]) -> None:
    """From "go" to the end of the input."""
    links = [link(order, client) for client in order["clients"]]
    await asyncio.to_thread(_ready)
    threading.Thread(target=_stop_at_end, args=(asyncio.get_running_loop(), links), daemon=True).start()
    await asyncio.gather(*(each.run() for each in links))


def _ready() -> None:
    say("ready")
    hear()


def _stop_at_end(loop: asyncio.AbstractEventLoop, links: list[LinkClient]) -> None:
    sys.stdin.read()
    for each in links:
        loop.call_soon_threadsafe(each.stop)


def main() -> None:
    """The process."""
    order = hear()
    allow_connections(len(order["clients"]))
    asyncio.run(serve(order))


if __name__ == "__main__":
    main()
