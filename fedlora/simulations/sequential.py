"""The sequential engine: virtual clients in this process, one after another. The reference for all other engines."""

import time
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedlora.flower_internals import SERVER_NODE_ID, Run, empty_run, identify, stamp

CLIENT_RAISED = 2
"""Flower's error code for a client app that raised."""


class SequentialGrid(Grid):
    """A `flwr.serverapp.Grid` that answers each message by calling the client app at once.

    Client i is node i + 2. Each node has a Flower `Context` of its own, made on first use, whose state lasts as long as
    the grid: what a client keeps between rounds lives there.
    """

    def __init__(self, client_app: ClientApp, clients: int, run_id: int = 1) -> None:
        identify(run_id)
        self._app = client_app
        self._clients = clients
        self._run = empty_run(run_id)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}

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
        """Carries out each message; returns ids with which the replies can be pulled."""
        ids = []
        for message in messages:
            message_id = stamp(message)
            self._replies[message_id] = self._call(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to `message_ids` that were not pulled yet."""
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies, in the order of the messages. What was not begun within `timeout` seconds gets none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        for message in messages:
            if deadline is not None and time.monotonic() >= deadline:
                break
            replies.extend(self.pull_messages(self.push_messages([message])))
        return replies

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

    def _call(self, message: Message) -> Message:
        try:
            reply = self._app(message=message, context=self._context(message.metadata.dst_node_id))
        except Exception as error:  # noqa: BLE001 - a client's failure is an answer, as on Flower's SuperNode
            reply = Message(Error(code=CLIENT_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        stamp(reply)
        return reply
