"""A Flower Grid of virtual clients: nodes that exist only as their number and what they keep between rounds."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.flower_internals import SERVER_NODE_ID, Run, empty_run, identify, stamp

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


class Caller(Protocol):
    """Calls the client app, here and now or somewhere else and later."""

    def call(self, message: Message, context: Context) -> Future[Called]:
        """The outcome of one message to the client of `context`. An app that raises is a reply with an error.

        The future raises BrokenExecutor if the place where the app was called is gone.
        """
        ...


class InProcess:
    """Calls the client app in this process, at once."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app

    def call(self, message: Message, context: Context) -> Future[Called]:
        """See `Caller`; the future is done."""
        future: Future[Called] = Future()
        future.set_result(call_app(self._app, message, context))
        return future


def call_app(app: ClientApp, message: Message, context: Context) -> Called:
    """Calls `app`; if it raises, the reply says so, as on Flower's SuperNode."""
    try:
        reply = app(message=message, context=context)
    except Exception as error:  # noqa: BLE001 - a client's failure is an answer
        reply = error_reply(message, f"{type(error).__name__}: {error}")
    return Called(reply, context.state)


def error_reply(message: Message, reason: str) -> Message:
    """The reply of a client that failed for `reason`."""
    return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)


class VirtualGrid(Grid):
    """A `flwr.serverapp.Grid` whose nodes are virtual clients, called through a `Caller`.

    Client i is node i + 2. Each node has a Flower `Context` of its own, made on first use, whose state lasts as long as
    the grid: what a client keeps between rounds lives there.
    """

    def __init__(self, caller: Caller, clients: int, run_id: int = 1) -> None:
        identify(run_id)
        self._caller = caller
        self._clients = clients
        self._run = empty_run(run_id)
        self._contexts: dict[int, Context] = {}
        self._calls: dict[str, tuple[Message, Future[Called]]] = {}

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
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that are there and were not pulled yet."""
        done = [i for i in message_ids if i in self._calls and self._calls[i][1].done()]
        return [self._reply(*self._calls.pop(message_id)) for message_id in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies, in the order of the messages. What is not answered within `timeout` seconds gets none."""
        return self.ask(messages, timeout)()

    def ask(self, messages: Iterable[Message], timeout: float | None = None) -> Callable[[], Iterable[Message]]:
        """Hands each message to its client. What it returns, called, waits for the replies, in the messages' order.

        What is not answered within `timeout` seconds from now gets no reply: such a client keeps what it had, its call
        is cancelled, or its outcome forgotten.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = []
        for message in messages:
            if deadline is not None and time.monotonic() >= deadline:
                break
            ids.append(self._push(message))
        return lambda: self._collect(ids, deadline)

    def _collect(self, ids: Sequence[str], deadline: float | None) -> Iterable[Message]:
        wait([self._calls[i][1] for i in ids], None if deadline is None else max(0.0, deadline - time.monotonic()))
        replies = self.pull_messages(ids)
        for late in (i for i in ids if i in self._calls):
            self._calls.pop(late)[1].cancel()
        return replies

    def _push(self, message: Message) -> str:
        message_id = stamp(message)
        future = self._caller.call(message, self._context(message.metadata.dst_node_id))
        self._calls[message_id] = (message, future)
        return message_id

    def _reply(self, message: Message, future: Future[Called]) -> Message:
        try:
            called = future.result()
        except BrokenExecutor:
            reply = error_reply(message, WORKER_DIED)
        else:
            reply = called.reply
            self._context(message.metadata.dst_node_id).state = called.state
        stamp(reply)
        return reply

    def kept(self, record: str) -> Mapping[int, ArrayRecord]:
        """What each client keeps under the name `record`, by client number; clients without it are left out."""
        return {
            node - SERVER_NODE_ID - 1: context.state.array_records[record]
            for node, context in sorted(self._contexts.items())
            if record in context.state.array_records
        }

    def state_of(self, client: int) -> RecordDict:
        """The state of one client, to restore what a checkpoint kept."""
        return self._context(client + SERVER_NODE_ID + 1).state

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            config: dict[str, bool | float | int | str] = {
                "partition-id": node - SERVER_NODE_ID - 1,
                "num-partitions": self._clients,
            }
            self._contexts[node] = Context(
                run_id=self._run.run_id, node_id=node, node_config=config, state=RecordDict(), run_config={}
            )
        return self._contexts[node]
