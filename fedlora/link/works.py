"""What a server asks of a client, from the offer to the answer."""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fedlora.link.inbox import Inbox
from fedlora.link.v1.link_pb2 import Content, Offer

WORK_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Payload:
    """Bytes that travel in chunks, with their SHA-256. Clients of a cohort share one object."""

    data: bytes
    sha256: bytes

    @classmethod
    def of(cls, data: bytes) -> "Payload":
        """With the hash computed."""
        return cls(data, hashlib.sha256(data).digest())


class Ending(StrEnum):
    """How a work ended."""

    ANSWERED = "answered"  # its answer is in `file`
    DECLINED = "declined"
    FAILED = "failed"
    LATE = "late"  # others had given the round what it needed
    LOST = "lost"  # nothing came in time, or the client was away for too long


@dataclass(frozen=True)
class Ended:
    """The end of a work: `file` has the answer's bytes, else `reason` says why there is none."""

    how: Ending
    file: Path | None = None
    reason: str = ""


@dataclass
class Work:
    """One message for one client. largest: bytes that an answer may have. deadline: of `time.monotonic`, or None."""

    id: str
    site: str
    run: str
    round: int
    kind: str
    facts: Content
    payload: Payload
    inbox: Inbox
    largest: int
    deadline: float | None
    ended: "asyncio.Future[Ended]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def offer(self) -> Offer:
        """As it is sent, with the time that is left now."""
        left = -1.0 if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        return Offer(
            work=self.id,
            run=self.run,
            round=self.round,
            kind=self.kind,
            facts=self.facts,
            size=len(self.payload.data),
            sha256=self.payload.sha256,
            seconds_left=left,
        )

    @property
    def answered(self) -> bool:
        """Whether it has ended with an answer."""
        return self.ended.done() and self.ended.result().how is Ending.ANSWERED

    def end(self, how: Ending, *, file: Path | None = None, reason: str = "") -> None:
        """The first end counts."""
        if not self.ended.done():
            self.ended.set_result(Ended(how, file, reason))
