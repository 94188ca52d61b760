"""A client's side of one work: from the offer to the acknowledgement, over as many connections as it takes."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from flwr.app import RecordDict

from fedlora.errors import LinkError
from fedlora.link import content
from fedlora.link.v1.link_pb2 import Hello, Offer, State
from fedlora.wire import WireError


@dataclass(frozen=True)
class Task:
    """What a client is to do. still_open: asks the server whether the round is; may wait for a connection."""

    offer: Offer
    content: RecordDict
    still_open: Callable[[], bool]


class Handler(Protocol):
    """What a link needs of the client around it. All but `hello` and `state` are called in threads, one at a time."""

    def hello(self) -> Hello:
        """How the client introduces itself."""
        ...

    def state(self) -> State:
        """What it says of itself now."""
        ...

    def decide(self, offer: Offer) -> str | None:
        """Why it declines; None: it accepts."""
        ...

    def work(self, task: Task) -> bytes:
        """The serialised answer. A DeclinedError declines; of other errors only FedloraError's text travels."""
        ...

    def sending(self, offer: Offer, answer: bytes, offset: int) -> None:
        """The bytes of `answer` from `offset` on are about to leave."""
        ...

    def ended(self, offer: Offer, counted: bool, reason: str) -> None:
        """The server has the answer, or does not want it any more."""
        ...


class Stage(Enum):
    """How far a work is."""

    DECIDING = auto()
    FETCHING = auto()
    WORKING = auto()  # or waiting for its turn
    ANSWERED = auto()
    OVER = auto()


@dataclass
class Assignment:
    """One work of this client."""

    offer: Offer
    stage: Stage = Stage.DECIDING
    arrays: bytearray = field(default_factory=bytearray)
    answer: bytes = b""
    sending: "asyncio.Task[None] | None" = None

    @property
    def work(self) -> str:
        """Its id."""
        return self.offer.work

    def take(self, offset: int, data: bytes) -> None:
        """The next chunk of the arrays. Raises LinkError if it is not the next, or too much."""
        if offset != len(self.arrays) or len(self.arrays) + len(data) > self.offer.size:
            raise LinkError(
                f"the server sent {len(data)} bytes from {offset} on, where {len(self.arrays)} of"
                f" {self.offer.size} bytes were there"
            )
        self.arrays += data

    @property
    def whole(self) -> bool:
        """Whether all arrays are there."""
        return len(self.arrays) >= self.offer.size

    def task(self, still_open: Callable[[], bool]) -> Task:
        """The task. Raises LinkError if the arrays are not those of the offer, WireError if they cannot be read."""
        if hashlib.sha256(self.arrays).digest() != self.offer.sha256:
            raise LinkError("the arrays do not have the SHA-256 of the offer: they were changed on the way")
        return Task(self.offer, content.records(self.offer.facts, content.parse(bytes(self.arrays))), still_open)


def told_outside(error: Exception) -> str:
    """What may be told of an error: the link's own texts; of others, which may name rows or files, the kind alone."""
    if isinstance(error, LinkError | WireError):
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__} (its text stays in this client's own log)"
