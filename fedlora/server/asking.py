"""The messages of a round: what is the same for all clients is written once, and shared by all of them."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedlora.adapters.flat import flattened
from fedlora.adapters.manifest import Manifest, Role, Tensors, tensors_digest
from fedlora.config.schema import RunConfig
from fedlora.flower_internals import SERVER_NODE_ID, addressed
from fedlora.server.receipts import ReceiptBook
from fedlora.strategies.base import State, Strategy
from fedlora.wire import Common, TrainTask, payload_bytes, readdressed, task_content, to_record, write_task_facts


@dataclass(frozen=True)
class Down:
    """Bytes that one client was sent in a round: in all without those sent once, the head's part of them, once."""

    nbytes: int
    head: int
    once: int


@dataclass(frozen=True)
class _Plan:
    """What clients load, as it is sent. (The tensors are kept, too: their id stands for them.)"""

    tensors: Tensors
    arrays: ArrayRecord
    again: Down
    first: Down


class Asking:
    """Writes the tasks of a run's rounds, and knows what each client was sent.

    state: any of the run's; of it only what never changes is kept. book: where receipts for clients' privacy ledgers
    are. down: what was sent to each client when it was asked last.
    """

    def __init__(
        self, method: Strategy, state: State, config: RunConfig, run: str, common: Common, book: ReceiptBook | None
    ) -> None:
        self._method, self._config, self._run, self._common, self._book = method, config, run, common, book
        self._digest = tensors_digest(state.fixed)
        self._once = to_record({**state.fixed, **state.local})
        self._once_bytes = payload_bytes(self._once, self._once)
        self._provisioned: set[int] = set()
        self.down: dict[int, Down] = {}

    def messages(self, server_round: int, asked: Mapping[int, int], state: State) -> list[Message]:
        """The tasks of a round that begins at `state`, for `asked`: node → client."""
        facts = self._facts(server_round, state.manifest)
        pattern = Message(RecordDict(), SERVER_NODE_ID, MessageType.TRAIN, group_id=str(server_round))
        plans: dict[int, _Plan] = {}
        return [addressed(pattern, node, self._content(facts, client, state, plans)) for node, client in asked.items()]

    def forget(self, clients: Collection[int]) -> None:
        """These did not answer as they should: they are sent again what others are sent once."""
        self._provisioned.difference_update(clients)

    def _content(self, facts: ConfigRecord, client: int, state: State, plans: dict[int, _Plan]) -> RecordDict:
        tensors = self._method.plan(state, client)
        if id(tensors) not in plans:  # a plan that is the same for everyone is serialised once
            plans[id(tensors)] = self._plan(tensors, state.manifest)
        plan, first = plans[id(tensors)], client not in self._provisioned
        self._provisioned.add(client)
        self.down[client] = plan.first if first else plan.again
        receipt = "" if self._book is None else self._book.newest(client)
        return task_content(readdressed(facts, client, receipt), plan.arrays, self._once if first else None)

    def _plan(self, tensors: Tensors, manifest: Manifest) -> _Plan:
        arrays = to_record(flattened(tensors))
        head = payload_bytes(arrays, [name for name in arrays if manifest.tensors[name].role is Role.HEAD])
        again = Down(payload_bytes(arrays, arrays), head, 0)
        return _Plan(tensors, arrays, again, Down(again.nbytes, head, self._once_bytes))

    def _facts(self, server_round: int, manifest: Manifest) -> ConfigRecord:
        """What the round's messages say to everyone, the experiment and the manifest among it."""
        task = TrainTask(
            run=self._run,
            round=server_round,
            client=0,
            config=self._config,
            manifest=manifest,
            tensors={},
            once=None,
            fixed_digest=self._digest,
            labels=self._common.labels,
            tokenizer_digest=self._common.tokenizer_digest,
            base_digest=self._common.base_digest,
            deadline=deadline_of(self._config),
        )
        return write_task_facts(task)


def deadline_of(config: RunConfig) -> float | None:
    """When a round that begins now ends for its clients, in seconds since the epoch; None if it does not.

    A buffered round's end is not that of those at work.
    """
    timeout = config.federation.timeout
    return None if timeout is None or config.federation.buffered else time.time() + timeout
