"""A round's messages: what is the same for all clients is made once, and each client's own is its own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fedlora.client.worker import worker_for
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.flower_internals import identify
from fedlora.server import asking
from fedlora.server.asking import Asking
from fedlora.server.flower_strategy import in_order, measured_in
from fedlora.simulations.simulate import resolve
from fedlora.strategies.base import State, Strategy
from fedlora.wire import Common, read_task
from tests.tiny import tiny_config

ASKED = {12: 0, 13: 1, 14: 3}


@pytest.fixture
def config(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> RunConfig:
    identify(1)
    return resolve(tiny_config(tiny_bert, tiny_text_csv, strategy={"name": "fed_sb"}, store=tmp_path))


def begun(config: RunConfig) -> tuple[Strategy, State]:
    method = make_strategy(config.strategy)
    return method, method.start(worker_for(config).setup(method))


def asked(config: RunConfig, state: State, method: Strategy) -> tuple[Asking, Mapping[int, Message]]:
    made = Asking(method, state, config, "run", Common(), None)
    return made, {m.metadata.dst_node_id: m for m in made.messages(2, ASKED, state)}


def test_all_clients_share_one_record_of_arrays_and_each_is_named(config: RunConfig) -> None:
    method, state = begun(config)
    _, messages = asked(config, state, method)
    first = messages[12].content
    assert all(message.content["arrays"] is first["arrays"] for message in messages.values())
    assert all(message.content["once"] is first["once"] for message in messages.values())
    tasks = {node: read_task(message.content) for node, message in messages.items()}
    assert {node: task.client for node, task in tasks.items()} == ASKED
    assert {task.round for task in tasks.values()} == {2}
    assert all(task.config == config for task in tasks.values())


def test_the_experiment_is_written_once_a_round(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    method, state = begun(config)
    written = []
    real = asking.write_task_facts
    monkeypatch.setattr(asking, "write_task_facts", lambda task: written.append(task) or real(task))
    asked(config, state, method)
    assert len(written) == 1


def test_the_next_rounds_tensors_are_its_own(config: RunConfig) -> None:
    method, state = begun(config)
    made, messages = asked(config, state, method)
    before = read_task(messages[12].content).tensors
    name = next(iter(state.shared))
    moved = State(state.manifest, {**state.shared, name: state.shared[name] + 1}, state.fixed)
    after = read_task(made.messages(3, {12: 0}, moved)[0].content)
    np.testing.assert_array_equal(after.tensors[name], state.shared[name] + 1)
    np.testing.assert_array_equal(before[name], state.shared[name])


def test_what_is_sent_once_comes_again_for_a_client_that_did_not_answer(config: RunConfig) -> None:
    method, state = begun(config)
    made, _ = asked(config, state, method)
    assert made.down[1].once > 0
    made.forget([1])
    again = {m.metadata.dst_node_id: m.content for m in made.messages(3, ASKED, state)}
    assert ["once" in content for content in again.values()] == [False, True, False]
    assert [made.down[client].once > 0 for client in ASKED.values()] == [False, True, False]


def test_a_range_of_nodes_is_not_written_out() -> None:
    nodes = range(2, 2 + 10**9)
    assert in_order(nodes) is nodes
    assert in_order([5, 3]) == [3, 5]
    assert list(in_order(range(4, 2, -1))) == [3, 4]


def test_every_so_many_rounds_are_measured_and_the_last(config: RunConfig) -> None:
    federation = config.federation.model_copy(update={"rounds": 5})
    config = config.model_copy(update={"federation": federation, "eval": config.eval.model_copy(update={"every": 2})})
    assert [number for number in range(1, 6) if measured_in(config, number)] == [2, 4, 5]
