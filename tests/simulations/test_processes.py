"""Worker processes give the bits of the sequential engine, die without harm, and leave nobody behind."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedlora.client import app as client_app
from fedlora.client.worker import worker_for
from fedlora.config.rules import contradictions
from fedlora.config.schema import EngineConfig, RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.errors import RunError
from fedlora.server.checkpoint import load
from fedlora.server.records import Outcome, RunHistory, RunStatus
from fedlora.simulations import engines
from fedlora.simulations.engines import settle
from fedlora.simulations.measure import measure_state
from fedlora.simulations.processes import WorkerPool
from fedlora.simulations.simulate import Watch, resolve, run
from fedlora.simulations.virtual import Clients, VirtualGrid
from tests.tiny import tiny_config

Make = Callable[..., RunConfig]


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    def config(workers: int, strategy: str = "fedavg", **updates: object) -> RunConfig:
        engine = {"name": "processes", "workers": workers} if workers else {"name": "sequential"}
        settings = {"federation.cohort": 3, "engine": engine, "store": tmp_path / f"{strategy}-{workers}", **updates}
        return tiny_config(tiny_bert, tiny_text_csv, strategy={"name": strategy}, **settings)

    return config


@pytest.fixture(autouse=True)
def nobody_left_behind() -> Iterator[None]:
    before = set(active_children())
    yield
    assert set(active_children()) <= before


def traces(history: RunHistory) -> list[tuple[object, ...]]:
    """What a run did, without times."""
    timed = ("seconds",)
    return [
        (
            record.round,
            dict(record.metrics),
            record.bytes_up,
            record.bytes_once,
            [(r.client, r.outcome, {k: v for k, v in r.metrics.items() if k not in timed}) for r in record.roster],
        )
        for record in history.rounds
    ]


@pytest.mark.parametrize(("strategy", "workers"), [("lora_fair", 2), ("fed_sb", 3), ("ffa_lora", 1)])
def test_any_number_of_workers_gives_the_sequential_bits(make: Make, strategy: str, workers: int) -> None:
    alone, together = run(make(0, strategy), Watch()), run(make(workers, strategy), Watch())
    assert traces(together) == traces(alone)
    assert together.run.summary["test_accuracy"] == alone.run.summary["test_accuracy"]
    ours, theirs = load(together.run.folder, 2).state, load(alone.run.folder, 2).state
    for name, values in theirs.shared.items():
        np.testing.assert_array_equal(ours.shared[name], values)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_model_measured_in_parts_gives_the_same_bits(make: Make, parts: int) -> None:
    config = resolve(make(2, **{"eval.batch": 4}))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    with WorkerPool(Clients(client_app.app), worker, 2) as pool:
        found = pool.measure(state, "validation", parts)()
    assert found == measure_state(worker, state, "validation")
    assert "validation_loss" in found


def test_more_parts_than_batches_leave_some_empty(make: Make) -> None:
    config = resolve(make(2, **{"eval.batch": 1000}))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    with WorkerPool(Clients(client_app.app), worker, 2) as pool:
        assert pool.measure(state, "test", 4)() == measure_state(worker, state, "test")


def meddled(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Message], None]) -> None:
    """The real client app, after `meddle(message)`, in worker processes."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        meddle(message)
        reply: Message = client_app.app(message=message, context=context)
        return reply

    monkeypatch.setattr("fedlora.simulations.simulate.app", app)


def test_a_worker_that_is_killed_costs_its_calls_and_not_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(message: Message) -> None:
        task = message.content["task"]
        if (task["round"], task["client"]) == (2, max(asked)):
            os.kill(os.getpid(), signal.SIGKILL)

    config = make(2, **{"federation.rounds": 3, "federation.cohort": 4, "eval.every": 3})
    asked = range(4)
    meddled(monkeypatch, die)
    history = run(config, Watch())
    assert history.run.status is RunStatus.FINISHED
    lost = history.rounds[2].roster[3]
    assert lost.outcome is Outcome.FAILED
    assert "killed for lack of memory" in lost.reason
    assert [row.outcome for row in history.rounds[3].roster] == [Outcome.REPORTED] * 4


def test_a_worker_that_dies_while_measuring_fails_the_run_and_says_why(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(make(1))
    worker, method = worker_for(config), make_strategy(config.strategy)
    state = method.start(worker.setup(method))
    parent = os.getpid()

    def die(*_: object, **__: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(worker, "values", die)
    with WorkerPool(Clients(client_app.app), worker, 1) as pool:
        metrics = pool.measure(state, "validation", 1)
        with pytest.raises(RunError, match=r"lower engine\.workers"):
            metrics()


def test_a_late_client_keeps_what_it_had(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def dawdle(message: Message) -> None:
        task = message.content["task"]
        if (task["round"], task["client"]) == (1, 0):
            time.sleep(3)

    meddled(monkeypatch, dawdle)
    config = make(2, "fed_sb", **{"federation.cohort": 4, "federation.timeout": 2.0})
    history = run(config, Watch())
    first, second = history.rounds[1], history.rounds[2]
    assert first.roster[0].outcome is Outcome.LOST
    assert second.roster[0].outcome is Outcome.REPORTED
    assert second.bytes_once > 0  # its answer was forgotten, and with it that it has the fixed tensors


def test_an_error_ends_the_workers_at_once(make: Make) -> None:
    worker = worker_for(resolve(make(2)))

    def interrupted() -> None:
        with WorkerPool(Clients(_sleeper()), worker, 2) as pool:
            grid = VirtualGrid(pool, 2)
            grid.ask(_messages(grid))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 30


def test_calls_that_were_lost_are_answered_by_the_next_workers(make: Make) -> None:
    worker = worker_for(resolve(make(2)))
    with WorkerPool(Clients(_suicide()), worker, 1) as pool:
        grid = VirtualGrid(pool, 1)
        (node,) = grid.get_node_ids()
        first = pool.call([_message(node)], [_context()])
        with pytest.raises(BrokenExecutor):
            first.result()
        (reply,) = grid.send_and_receive([_message(node)])
    assert reply.has_error()
    assert "killed for lack of memory" in reply.error.reason


@pytest.mark.parametrize(
    ("cores", "asked", "threads", "expected"),
    [
        (4, {}, None, ("processes", 3, 1)),  # no more workers than clients in a round
        (2, {}, None, ("processes", 2, 1)),
        (2, {}, 1, ("processes", 2, 1)),
        (4, {}, 4, ("sequential", None, 4)),
        (1, {}, None, ("sequential", None, 1)),
        (4, {"name": "sequential"}, None, ("sequential", None, 4)),
        (4, {"name": "processes"}, None, ("processes", 3, 1)),
        (4, {"workers": 2}, None, ("processes", 2, 1)),
        (1, {"name": "processes", "workers": 2}, None, ("processes", 2, 1)),
    ],
)
def test_auto_chooses_by_cores_and_threads(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    asked: dict[str, object],
    threads: int | None,
    expected: tuple[str, int | None, int],
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    config = make(0, **{"engine": {"name": "auto"}, "train.threads": threads})
    config = config.model_copy(update={"engine": EngineConfig(**asked)})
    settled = settle(config)
    assert (settled.engine.name, settled.engine.workers, settled.train.threads) == expected
    assert settle(settled) == settled


def test_auto_stays_in_one_process_where_it_cannot_fork(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(engines, "can_fork", lambda: False)
    config = make(0).model_copy(update={"engine": EngineConfig()})
    assert settle(config).engine.name == "sequential"
    with pytest.raises(RunError, match=r"engine=sequential"):
        settle(config.model_copy(update={"engine": EngineConfig(name="processes")}))


@pytest.mark.parametrize(
    ("updates", "key"),
    [
        ({"engine": {"name": "sequential", "workers": 2}}, "engine.workers"),
        ({"engine": {"name": "processes"}, "train.threads": 2}, "train.threads"),
        ({"engine": {"name": "processes"}, "train.device": "cuda"}, "train.device"),
    ],
)
def test_settings_that_contradict_the_engine(make: Make, updates: dict[str, object], key: str) -> None:
    (found,) = contradictions(make(2, **updates))
    assert key in found.keys


def _sleeper() -> ClientApp:
    return _doing(lambda: time.sleep(60))


def _suicide() -> ClientApp:
    return _doing(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _doing(what: Callable[[], None]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del message, context
        what()
        raise AssertionError("this is not reached")

    return app


def _context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def _message(node: int) -> Message:
    return Message(RecordDict(), node, MessageType.TRAIN)


def _messages(grid: VirtualGrid) -> list[Message]:
    return [_message(node) for node in grid.get_node_ids()]
