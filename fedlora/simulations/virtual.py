"""A Flower Grid of virtual clients: nodes that exist only as their number and what they keep between rounds."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, runtime_checkable

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.client.kept import common_state
from fedlora.flower_internals import SERVER_NODE_ID, Run, empty_run, identify, stamp
from fedlora.simulations.splits import Split, singly
from fedlora.simulations.splits import groups_of as groups_of

log = logging.getLogger(__name__)

CLIENT_RAISED = 2
"""Flower's error code for a client app that raised."""

WORKER_DIED = (
    "a worker process ended before it answered, probably killed for lack of memory: lower engine.workers or"
    " train.batch, or set engine=sequential"
)


@dataclass(frozen=True)
class Called:
    """What calling the client app gave: its reply, and what the client keeps from now on."""

    reply: Message
    state: RecordDict


Together = Callable[[Sequence[Message], Sequence[Context]], Sequence[RecordDict | Exception]]
"""Answers several training messages in one pass: each client's answer, or what it would have raised alone."""


class Caller(Protocol):
    """Calls the client app, here and now or somewhere else and later."""

    def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
        """The outcomes of a group of messages, each to the client of its context. An app that raises is a reply with an
        error.

        The future raises BrokenExecutor if the place where the app was called is gone.
        """
        ...


Group = tuple[Sequence[Message], Sequence[Context]]
"""Messages that are answered together, and their clients' contexts."""


@runtime_checkable
class Sharing(Protocol):
    """A `Caller` that takes many groups at once, and hands them on in shards: one call for several groups."""

    def call_all(self, groups: Sequence[Group]) -> Sequence[Future[Sequence[Called]]]:
        """The outcomes of each group, as `Caller.call` gives them."""
        ...


@dataclass(frozen=True)
class Clients:
    """What virtual clients run: `app` one at a time, `together` several in one pass where that is possible."""

    app: ClientApp
    together: Together | None = None

    def answer(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Sequence[Called]:
        """The outcomes of a group of messages. What cannot be answered together is answered one by one, and logged."""
        if self.together is None or len(messages) == 1:
            return self._one_by_one(messages, contexts)
        try:
            answers = self.together(messages, contexts)
        except Exception as error:  # noqa: BLE001 - whose failure it is, shows when each is alone
            log.warning("%d clients cannot train together, so each trains alone: %s", len(messages), error)
            return self._one_by_one(messages, contexts)
        return [
            Called(_reply_of(message, answer), context.state)
            for message, context, answer in zip(messages, contexts, answers, strict=True)
        ]

    def _one_by_one(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Sequence[Called]:
        return [call_app(self.app, message, context) for message, context in zip(messages, contexts, strict=True)]


class InProcess:
    """Calls the clients in this process, at once."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def call(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Future[Sequence[Called]]:
        """See `Caller`; the future is done."""
        future: Future[Sequence[Called]] = Future()
        future.set_result(self._clients.answer(messages, contexts))
        return future

    def call_all(self, groups: Sequence[Group]) -> Sequence[Future[Sequence[Called]]]:
        """See `Sharing`. Each group is called when its outcome is asked for: what came before can be let go then."""
        return [_Later(partial(self._clients.answer, *group)) for group in groups]


class _Later(Future[Sequence[Called]]):
    """A future whose outcome is worked out by whoever asks for it first, in that thread."""

    def __init__(self, work: Callable[[], Sequence[Called]]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Sequence[Called]:
        """The outcome."""
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


def call_app(app: ClientApp, message: Message, context: Context) -> Called:
    """Calls `app`; if it raises, the reply says so, as on Flower's SuperNode."""
    try:
        reply = app(message=message, context=context)
    except Exception as error:  # noqa: BLE001 - a client's failure is an answer
        reply = _reply_of(message, error)
    return Called(reply, context.state)


def _reply_of(message: Message, answer: RecordDict | Exception) -> Message:
    if isinstance(answer, RecordDict):
        return Message(answer, reply_to=message)
    return error_reply(message, f"{type(answer).__name__}: {answer}")


def error_reply(message: Message, reason: str) -> Message:
    """The reply of a client that failed for `reason`."""
    return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)


class VirtualGrid(Grid):
    """A `flwr.serverapp.Grid` whose nodes are virtual clients, called through a `Caller`.

    Client i is node i + 2. Each node has a Flower `Context`, made for each call, whose state lasts as long as the grid:
    what a client keeps between rounds lives there. Clients that keep the same have one state together.
    """

    def __init__(self, caller: Caller, clients: int, run_id: int = 1, split: Split = singly) -> None:
        """split: how many clients are called together, for a number of messages."""
        identify(run_id)
        self._caller = caller
        self._clients = clients
        self._split = split
        self._run = empty_run(run_id)
        self._states: dict[int, RecordDict] = {}
        self._alike: dict[int, RecordDict] = {}
        self._known: dict[str, RecordDict] = {}
        self._calls: dict[str, tuple[Message, Future[Sequence[Called]], int]] = {}

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
        """All nodes, in the order of the clients."""
        return range(SERVER_NODE_ID + 1, SERVER_NODE_ID + 1 + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hands each message to its client; returns ids with which the replies can be pulled."""
        return [message_id for message in messages for message_id in self._push([message])]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there and were not pulled yet."""
        done = [i for i in message_ids if i in self._calls and self._calls[i][1].done()]
        return [self.wait_for(message_id) for message_id in done]

    def wait_for(self, message_id: str) -> Message:
        """The reply to one message that was not pulled yet, when it is there."""
        return self._reply(*self._calls.pop(message_id))

    def forget(self, message_ids: Iterable[str]) -> None:
        """Nobody pulls the replies to these: the calls are cancelled, or their outcomes let go."""
        for message_id in message_ids:
            self._calls.pop(message_id)[1].cancel()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies, in the order of the messages. What is not answered within `timeout` seconds gets none."""
        return self.ask(messages, timeout)()

    def ask(self, messages: Iterable[Message], timeout: float | None = None) -> Callable[[], Iterable[Message]]:
        """Hands each message to its client. What it returns, called, waits for the replies, in the messages' order.

        What is not answered within `timeout` seconds from now gets no reply: such a client keeps what it had, its call
        is cancelled, or its outcome forgotten.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = iter(messages := list(messages))
        groups = [list(islice(waiting, size)) for size in self._split(len(messages))]
        if deadline is None and isinstance(self._caller, Sharing):
            ids = self._push_all(groups, self._caller)
            return lambda: (self.wait_for(message_id) for message_id in ids)
        ids = []
        for group in groups:  # in shards, those that are in time would wait for those that are not
            if deadline is not None and time.monotonic() >= deadline:
                break
            ids += self._push(group)
        return lambda: self._collect(ids, deadline)

    def _collect(self, ids: Sequence[str], deadline: float | None) -> Iterable[Message]:
        wait([self._calls[i][1] for i in ids], None if deadline is None else max(0.0, deadline - time.monotonic()))
        replies = self.pull_messages(ids)
        self.forget([message_id for message_id in ids if message_id in self._calls])
        return replies

    def _push_all(self, groups: Sequence[Sequence[Message]], caller: Sharing) -> list[str]:
        ids = [[stamp(message) for message in group] for group in groups]
        futures = caller.call_all([(group, self._contexts_of(group)) for group in groups])
        for part, group, future in zip(ids, groups, futures, strict=True):
            self._note(part, group, future)
        return [message_id for part in ids for message_id in part]

    def _push(self, messages: Sequence[Message]) -> list[str]:
        ids = [stamp(message) for message in messages]
        self._note(ids, messages, self._caller.call(messages, self._contexts_of(messages)))
        return ids

    def _contexts_of(self, messages: Sequence[Message]) -> list[Context]:
        return [self._context(message.metadata.dst_node_id) for message in messages]

    def _note(self, ids: Sequence[str], messages: Sequence[Message], future: Future[Sequence[Called]]) -> None:
        for place, (message_id, message) in enumerate(zip(ids, messages, strict=True)):
            self._calls[message_id] = (message, future, place)

    def _reply(self, message: Message, future: Future[Sequence[Called]], place: int) -> Message:
        try:
            called = future.result()[place]
        except BrokenExecutor:
            reply = error_reply(message, WORKER_DIED)
        else:
            reply = called.reply
            self._keep(message.metadata.dst_node_id, called.state)
        stamp(reply)
        return reply

    def kept(self, record: str) -> Mapping[int, ArrayRecord]:
        """What each client keeps under the name `record`, by client number.

        Left out are clients without it, and those that keep nothing but what all have.
        """
        found = {
            node - SERVER_NODE_ID - 1: kept
            for node, state in self._states.items()
            if isinstance(kept := state.get(record), ArrayRecord)
        }
        return dict(sorted(found.items()))

    def state_of(self, client: int) -> RecordDict:
        """The state of one client, to restore what a checkpoint kept."""
        return self._state(client + SERVER_NODE_ID + 1)

    def _state(self, node: int) -> RecordDict:
        """The node's own, so that it can be changed."""
        if node not in self._states:
            alike = self._alike.pop(node, None)
            self._states[node] = RecordDict() if alike is None else alike.copy()
        return self._states[node]

    def _keep(self, node: int, state: RecordDict) -> None:
        common = common_state(state, self._known)
        if common is None:
            self._alike.pop(node, None)
            self._states[node] = state
        else:
            self._states.pop(node, None)
            self._alike[node] = common

    def _context(self, node: int) -> Context:
        config: dict[str, bool | float | int | str] = {
            "partition-id": node - SERVER_NODE_ID - 1,
            "num-partitions": self._clients,
        }
        state = self._alike[node].copy() if node in self._alike else self._states.get(node, RecordDict()).copy()
        return Context(run_id=self._run.run_id, node_id=node, node_config=config, state=state, run_config={})
