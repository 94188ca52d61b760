"""Many groups of clients go to a worker in one call, and clients that keep the same are one state."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client.kept import FIXED, KEPT, LOCAL, common_state
from fedlora.client.worker import Worker
from fedlora.simulations.placement import SHARD, shards
from fedlora.simulations.processes import WorkerPool
from fedlora.simulations.virtual import WORKER_DIED, Clients, InProcess, VirtualGrid
from fedlora.wire import to_record
from tests.tiny import tiny_config


def keeping(own: Sequence[int] = (), deadly: int = -1) -> ClientApp:
    """An app whose clients keep the same tensors, those in `own` also some of theirs. deadly: kills its process."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(str(context.node_config["partition-id"]))
        if client == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        times = context.state[LOCAL]["t"].numpy()[0] + 1 if context.state.get(LOCAL) else 1
        context.state[KEPT] = ConfigRecord({"run": "r", "digest": "d"})
        context.state[FIXED] = to_record({"f": np.ones(1000, np.float32)})
        context.state[LOCAL] = to_record({"t": np.array([times])} if client in own else {})
        return Message(RecordDict({"a": to_record({"x": np.array([client, times])})}), reply_to=message)

    return app


@pytest.fixture
def worker(tiny_bert: Path, tiny_text_csv: Path) -> Worker:
    return Worker(tiny_config(tiny_bert, tiny_text_csv))


def asked(grid: VirtualGrid, clients: int) -> list[Message]:
    messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in list(grid.get_node_ids())[:clients]]
    return list(grid.send_and_receive(messages))


def answers(replies: Sequence[Message]) -> list[list[int]]:
    return [reply.content["a"]["x"].numpy().tolist() for reply in replies]


@given(groups=st.integers(0, 3000), workers=st.integers(1, 64))
def test_shards_cover_all_groups_and_end_small(groups: int, workers: int) -> None:
    sizes = shards(groups, workers)
    assert sum(sizes) == groups
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 < size <= SHARD for size in sizes)
    assert sizes[-min(groups, workers) :] == [1] * min(groups, workers)


def test_a_thousand_messages_are_few_calls(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerPool(Clients(keeping()), worker, 2) as pool:
        grid, calls = VirtualGrid(pool, 300), []
        real = pool._submit
        monkeypatch.setattr(pool, "_submit", lambda *given: calls.append(given) or real(*given))
        replies = asked(grid, 300)
    assert answers(replies) == [[client, 1] for client in range(300)]
    assert len(calls) < 30


def test_what_clients_keep_lasts_in_shards_too(worker: Worker) -> None:
    with WorkerPool(Clients(keeping(own=range(40))), worker, 2) as pool:
        grid = VirtualGrid(pool, 40)
        asked(grid, 40)
        assert answers(asked(grid, 40)) == [[client, 2] for client in range(40)]
        assert len({id(grid.state_of(client)[FIXED]) for client in range(40)}) == 1


def test_a_worker_that_dies_costs_its_shard_and_each_client_of_it_says_why(worker: Worker) -> None:
    with WorkerPool(Clients(keeping(deadly=1)), worker, 1) as pool:
        replies = asked(VirtualGrid(pool, 6), 6)
        assert all(reply.has_error() and reply.error.reason == WORKER_DIED for reply in replies)


def test_with_a_deadline_clients_are_called_one_by_one(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerPool(Clients(keeping()), worker, 1) as pool:
        monkeypatch.setattr(pool, "call_all", lambda groups: pytest.fail("a shard would be late as a whole"))
        grid = VirtualGrid(pool, 3)
        messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in grid.get_node_ids()]
        assert answers(list(grid.send_and_receive(messages, timeout=60))) == [[0, 1], [1, 1], [2, 1]]


def test_clients_that_keep_the_same_are_one_state_and_nobody_elses() -> None:
    grid = VirtualGrid(InProcess(Clients(keeping(own=[2]))), 100_000)
    asked(grid, 5)
    assert len({id(state) for state in grid._alike.values()}) == 1
    assert set(grid._states) == {4}  # client 2
    assert set(grid.kept(LOCAL)) == {2}
    grid.state_of(0)["mine"] = ArrayRecord()
    assert "mine" not in grid.state_of(1)
    assert set(grid.kept("mine")) == {0}


def test_a_state_of_another_run_is_not_taken_for_this_ones() -> None:
    known: dict[str, RecordDict] = {}

    def state(run: str, digest: str) -> RecordDict:
        kept = ConfigRecord({"run": run, "digest": digest})
        return RecordDict({KEPT: kept, FIXED: to_record({"f": np.ones(2)}), LOCAL: ArrayRecord()})

    first = state("a", "1")
    assert common_state(first, known) is first
    assert common_state(state("a", "1"), known) is first
    for other in (state("b", "1"), state("a", "2")):
        assert common_state(other, known) is other
    assert common_state(RecordDict(), known) is None
