"""The link as a Flower Grid: its nodes are the sites of one run, wherever their daemons are."""

import functools
import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedlora.flower_internals import SERVER_NODE_ID, Run, empty_run, identify, stamp
from fedlora.link import content, limits
from fedlora.link.host import LinkHost
from fedlora.link.inbox import Inbox
from fedlora.link.v1.link_pb2 import Content
from fedlora.link.works import Ended, Ending, Payload, Work
from fedlora.server.admission import LATE_CODE, LOST_CODE, UNREADABLE_CODE
from fedlora.wire import WireError, read_manifest, write_declined

CLIENT_FAILED = 2
"""Flower's error code for a client app that raised."""

RECORDS = ("task", "sketch")
"""Where a message of fedlora's has its facts."""


@dataclass
class LinkGrid(Grid):
    """A `flwr.serverapp.Grid` over a running link.

    sites: the run's, in the order of their numbers; site i is node i + 2. inbox: where answers are kept until
    `committed` is called. absence: seconds that a client may be away before it is lost to a round. enough: answers
    after which a round waits for no more; None: for all.
    """

    host: LinkHost
    name: str
    sites: Sequence[str]
    inbox: Inbox
    absence: float
    enough: int | None = None
    keeps_ledgers: bool = True
    _run: Run = field(default_factory=lambda: empty_run(1))
    _asked: dict[str, tuple[Message, Work]] = field(default_factory=dict)
    _rounds: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        identify(1)

    def set_run(self, run: Run) -> None:
        """Takes over Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node (Flower has deprecated this in favour of `Message(...)`)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites, connected or not: who is away is asked when it comes back."""
        return range(SERVER_NODE_ID + 1, SERVER_NODE_ID + 1 + len(self.sites))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Asks each message's site; returns ids with which the replies can be pulled."""
        asked = self._open(messages, None)
        self._asked |= {stamp(message): (message, work) for message, work in asked}
        self.host.begin(self.host.hub.wait([work for _, work in asked], self.absence))
        return [message.metadata.message_id for message, _ in asked]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there and were not pulled yet.

        A site that is away for longer than `absence` is lost; one that works takes the time that it needs.
        """
        ready = [i for i in message_ids if i in self._asked and self._asked[i][1].ended.done()]
        done = [self._asked.pop(i) for i in ready]
        if done:
            self.host.call(self._close([work for _, work in done]))
        return [self._reply(message, work.ended.result()) for message, work in done]

    def withdraw(self, message_ids: Iterable[str], reason: str) -> None:
        """Ends the works of pushed messages: their sites are told, and nobody pulls their replies."""
        works = [self._asked.pop(i)[1] for i in message_ids if i in self._asked]
        self.host.call(self._close(works, reason))

    def present(self) -> Collection[int]:
        """The nodes of the sites that are connected."""
        names = self.host.call(self._connected())
        return [SERVER_NODE_ID + 1 + number for number, site in enumerate(self.sites) if site in names]

    async def _connected(self) -> Collection[str]:
        return set(self.host.hub.connected())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """A reply to each message, in their order; it is an error where a site failed or is lost."""
        return self.ask(messages, timeout)()

    def ask(self, messages: Iterable[Message], timeout: float | None = None) -> Callable[[], Iterable[Message]]:
        """Offers each message to its site. What it returns, called, waits for the replies, in the messages' order.

        A site without an answer within `timeout` seconds, or away for longer than `absence`, is lost.
        """
        asked = self._open(messages, timeout)
        works = [work for _, work in asked]
        waiting = self.host.begin(self.host.hub.wait(works, self.absence, self.enough))

        def collect() -> Iterable[Message]:
            try:
                ends = waiting.result()
            except CancelledError as error:
                raise KeyboardInterrupt from error
            finally:
                self.host.call(self._close(works))
            return [self._reply(message, end) for (message, _), end in zip(asked, ends, strict=True)]

        return collect

    def committed(self, number: int) -> None:
        """Round `number` is durable: no single update of it, or of one before, is needed any more.

        But those that were pushed and not pulled yet: they count in a later round than they were asked in.
        """
        waiting = self._waiting()
        over = [work for work, its_round in self._rounds.items() if its_round <= number and work not in waiting]
        self.inbox.forget(over)
        for work in over:
            del self._rounds[work]

    def tidy(self) -> None:
        """Deletes what is there of works that were not pushed, or were pulled: an earlier server has left it."""
        self.inbox.keep_only(self._waiting())

    def _waiting(self) -> Collection[str]:
        return {work.id for _, work in self._asked.values()}

    async def _close(self, works: Sequence[Work], reason: str = "the server has given the round up") -> None:
        for work in works:  # who stops waiting, for a signal say, leaves no work without an end
            work.end(Ending.LOST, reason=reason)
        self.host.hub.close(works, "the round is over")

    def _open(self, messages: Iterable[Message], timeout: float | None) -> list[tuple[Message, Work]]:
        shared: _Shared = {}
        pending = [(message, self._drafted(message, shared)) for message in messages]
        return self.host.call(self._opened(pending, timeout))

    async def _opened(
        self, pending: "list[tuple[Message, _Draft]]", timeout: float | None
    ) -> list[tuple[Message, Work]]:

        deadline = None if timeout is None else time.monotonic() + timeout
        asked = [(message, draft.work(self.name, self.inbox, deadline)) for message, draft in pending]
        for _, work in asked:
            file = self.inbox.answer(work.id)
            if file is not None:  # from before this server was started
                work.end(Ending.ANSWERED, file=file)
        self.host.hub.open(work for _, work in asked)
        self._rounds |= {work.id: work.round for _, work in asked}
        return asked

    def _drafted(self, message: Message, shared: "_Shared") -> "_Draft":
        """What goes to one site. A cohort's arrays are serialised and hashed once."""
        arrays = message.content.array_records
        key = (id(arrays.get("arrays")), id(arrays.get("once")))
        if key not in shared:
            rounds = RecordDict({name: _ordered(record) for name, record in arrays.items() if name != "once"})
            payload = Payload.of(content.serialised(content.arrays(message.content)))
            shared[key] = (payload, hashlib.sha256(content.serialised(content.arrays(rounds))).digest())
        payload, of_round = shared[key]
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        facts = content.facts(message.content)
        return _Draft(
            site=self.sites[node - SERVER_NODE_ID - 1],
            round=int(message.metadata.group_id or 0),
            kind=kind,
            facts=facts,
            payload=payload,
            id=content.work_id(kind, facts, of_round),
            largest=largest_answer(message.content),
        )

    def _reply(self, message: Message, end: Ended) -> Message:
        reply = REPLIES[end.how](message, end)
        stamp(reply)
        return reply


_Shared = dict[tuple[int, int], tuple[Payload, bytes]]
"""By the identity of a cohort's records: the arrays that travel, and the SHA-256 of the round's part of them."""


@dataclass(frozen=True)
class _Draft:
    """A work before it is opened."""

    site: str
    round: int
    kind: str
    facts: Content
    payload: Payload
    id: str
    largest: int

    def work(self, run: str, inbox: Inbox, deadline: float | None) -> Work:
        """Inside the event loop: a work has a future."""
        fixed = (self.round, self.kind, self.facts, self.payload, inbox, self.largest)
        return Work(self.id, self.site, run, *fixed, deadline)


def _ordered(record: ArrayRecord) -> ArrayRecord:
    """The tensors by name: a state that was read from a checkpoint has them in another order, and is the same work."""
    return ArrayRecord(dict(sorted(record.items())))


def largest_answer(task: RecordDict) -> int:
    """Bytes that an answer to `task` may have: its manifest's tensors, as wide as the task asks for, and some room."""
    fields: ConfigRecord = next(task.config_records[name] for name in RECORDS if name in task.config_records)
    return _largest(str(fields["manifest"]), int(str(fields["width"])) if "width" in fields else None)


@functools.lru_cache(maxsize=64)
def _largest(manifest_text: str, width: int | None) -> int:
    """Kept: a cohort's tasks have one manifest."""
    manifest = read_manifest(manifest_text)
    times = math.ceil((manifest.r if width is None else width) / manifest.r)
    tensors = sum(spec.nbytes + limits.TENSOR_SLACK for spec in manifest.tensors.values())
    return max(1, times) * tensors + limits.ANSWER_SLACK


def _answered(message: Message, end: Ended) -> Message:
    try:
        data = (end.file or Path()).read_bytes()
    except FileNotFoundError:  # its site had it erased meanwhile
        return _error(message, LOST_CODE, "the update was erased before it was counted")
    try:
        return Message(content.records(content.parse(data)), reply_to=message)
    except WireError as error:
        return _error(message, UNREADABLE_CODE, str(error))


def _declined(message: Message, end: Ended) -> Message:
    return Message(write_declined(end.reason), reply_to=message)


def _failed(message: Message, end: Ended) -> Message:
    return _error(message, CLIENT_FAILED, end.reason)


def _lost(message: Message, end: Ended) -> Message:
    return _error(message, LOST_CODE, end.reason)


def _late(message: Message, end: Ended) -> Message:
    return _error(message, LATE_CODE, end.reason)


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code=code, reason=reason), reply_to=message)


REPLIES = {
    Ending.ANSWERED: _answered,
    Ending.DECLINED: _declined,
    Ending.FAILED: _failed,
    Ending.LOST: _lost,
    Ending.LATE: _late,
}
