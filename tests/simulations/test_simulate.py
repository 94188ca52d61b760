"""Whole runs on a tiny model: bytes, bits, stops, failures."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.client import app as client_app
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.server.checkpoint import load
from fedlora.server.events import Event, RoundCommitted, RunFailed, RunFinished, RunStopped, read_events
from fedlora.server.records import Outcome, RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations import engines, simulate
from fedlora.simulations.simulate import Watch, resume, run
from fedlora.simulations.virtual import Clients, InProcess, VirtualGrid
from fedlora.wire import FRAME_BYTES
from tests.tiny import tiny_config

STRATEGIES = ("fedavg", "ffa_lora", "lora_fair", "fed_sb")
WIDTH, RANK, MODULES = 32, 2, 4
"""tiny_bert: two layers, query and value, each 32 × 32."""


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def config(strategy: str = "fedavg", store: str = "runs", **updates: object) -> RunConfig:
        return tiny_config(tiny_bert, tiny_text_csv, strategy={"name": strategy}, store=tmp_path / store, **updates)

    return config


def adapter_of(history: RunHistory) -> bytes:
    return (history.run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_ends_with_its_results(make: Callable[..., RunConfig], strategy: str) -> None:
    history = run(make(strategy, **{"eval.holdout": 0.1}), Watch())
    assert history.run.status is RunStatus.FINISHED
    assert [record.round for record in history.rounds] == [0, 1, 2]
    assert 0 <= history.run.summary["test_accuracy"] <= 1
    for name in ("adapter/adapter_config.json", "report.html", "summary.json", "events.jsonl"):
        assert (history.run.folder / name).is_file(), name
    for record in history.rounds[1:]:
        assert [row.outcome for row in record.roster] == [Outcome.REPORTED] * 2
        assert {"loss", "first_loss", "holdout_accuracy"} <= set(record.roster[0].metrics)


@pytest.mark.parametrize(
    ("strategy", "numbers", "tensors", "once"),
    [
        ("fedavg", 2 * WIDTH * RANK, 2, 0),
        ("lora_fair", 2 * WIDTH * RANK, 2, 0),
        ("ffa_lora", WIDTH * RANK, 1, 0),  # half of FedIT's, as d = k
        ("fed_sb", RANK**2, 1, 2 * WIDTH * RANK),
    ],
)
def test_serialised_bytes_are_the_strategys_own(
    make: Callable[..., RunConfig], strategy: str, numbers: int, tensors: int, once: int
) -> None:
    history = run(make(strategy, **{"federation.cohort": 4}), Watch())
    expected = MODULES * (4 * numbers + FRAME_BYTES * tensors)
    for record in history.rounds[1:]:
        assert record.bytes_up - record.bytes_up_head == 4 * expected
        assert record.bytes_down - record.bytes_down_head == 4 * expected
    head = 4 * (3 * WIDTH + 3) + 2 * FRAME_BYTES
    assert history.rounds[1].bytes_up_head == 4 * head
    # A and B of Fed-SB go to each client once, and are counted apart.
    assert history.rounds[1].bytes_once == (4 * MODULES * (4 * once + 2 * FRAME_BYTES) if once else 0)
    assert history.rounds[2].bytes_once == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_seed_same_bits_and_another_seed_other_bits(make: Callable[..., RunConfig], strategy: str) -> None:
    first, second = (adapter_of(run(make(strategy, store=name), Watch())) for name in ("one", "two"))
    assert first == second
    assert adapter_of(run(make(strategy, store="three", seed=1), Watch())) != first


@pytest.mark.parametrize("strategy", ["ffa_lora", "fed_sb"])
def test_an_exact_strategy_has_no_aggregation_error(make: Callable[..., RunConfig], strategy: str) -> None:
    for record in run(make(strategy), Watch()).rounds[1:]:
        assert record.metrics["aggregation_error"] < 1e-6


def test_averaging_both_factors_has_one(make: Callable[..., RunConfig]) -> None:
    history = run(make("fedavg"), Watch())
    assert history.rounds[-1].metrics["aggregation_error"] > 1e-4


def stopping_after(rounds: int) -> Watch:
    committed: list[Event] = []

    def listen(event: Event) -> None:
        if isinstance(event, RoundCommitted) and event.round:
            committed.append(event)

    return Watch(listeners=(listen,), stop=lambda: len(committed) >= rounds)


def test_a_stopped_run_goes_on_to_the_bits_of_an_unbroken_one(make: Callable[..., RunConfig]) -> None:
    whole = run(make(store="whole", **{"federation.rounds": 3}), Watch())
    config = make(store="stopped", **{"federation.rounds": 3})
    stopped = run(config, stopping_after(1))
    assert (stopped.run.status, stopped.run.rounds_done) == (RunStatus.STOPPED, 1)
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    assert resumed.run.status is RunStatus.FINISHED
    assert adapter_of(resumed) == adapter_of(whole)
    events = list(read_events(resumed.run.folder / "events.jsonl"))
    assert isinstance(events[-1], RunFinished)
    assert any(isinstance(event, RunStopped) for event in events)


def test_a_finished_run_can_be_given_more_rounds(make: Callable[..., RunConfig]) -> None:
    config = make(**{"train.schedule": "constant"})
    run(config, Watch())
    with RunStore.open(config.store) as store:
        longer = resume(store, store.find("latest"), Watch(), rounds=3)
    whole = run(make(store="whole", **{"federation.rounds": 3, "train.schedule": "constant"}), Watch())
    assert longer.run.rounds_done == 3
    assert adapter_of(longer) == adapter_of(whole)


def interfering(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Message, Message], Message]) -> None:
    """The real client app, with `meddle(task, answer)` between it and the server."""
    mods = [lambda message, context, call: meddle(message, call(message, context))]
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply: Message = client_app.app(message=message, context=context)
        return reply

    monkeypatch.setitem(
        engines.ENGINES,  # type: ignore[arg-type]
        "sequential",
        lambda config, _, worker: nullcontext(
            engines.around(VirtualGrid(InProcess(Clients(app)), config.federation.clients), worker)
        ),
    )
    assert simulate.ENGINES is engines.ENGINES


def test_a_poisoned_update_costs_its_sender_and_not_the_run(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(task: Message, answer: Message) -> Message:
        if task.content["task"]["client"] == 2:
            record = answer.content["arrays"]
            name = next(iter(record))
            record[name] = type(record[name])(np.full(record[name].shape, np.nan, np.float32))
        return answer

    interfering(monkeypatch, poison)
    history = run(make(**{"federation.cohort": 4}), Watch())
    assert history.run.status is RunStatus.FINISHED
    for record in history.rounds[1:]:
        outcomes = {row.client: row.outcome for row in record.roster}
        assert outcomes == {c: Outcome.REJECTED if c == 2 else Outcome.REPORTED for c in range(4)}
        assert "NaN" in record.roster[2].reason


def test_too_few_answers_fail_the_run_with_names_and_keep_what_was_committed(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_later(task: Message, answer: Message) -> Message:
        if task.content["task"]["round"] == 2:
            raise ValueError("out of memory")
        return answer

    interfering(monkeypatch, fail_later)
    config = make(**{"federation.cohort": 4})
    with pytest.raises(RunError, match=r"client 0: the client raised an error.*out of memory"):
        run(config, Watch())
    with RunStore.open(config.store) as store:
        info = store.find("latest")
        assert (info.status, info.rounds_done) == (RunStatus.FAILED, 1)
        assert "min_reports" in info.reason
        assert load(info.folder, 1).round == 1
        *_, last = read_events(info.folder / "events.jsonl")
        assert isinstance(last, RunFailed)
        monkeypatch.undo()
        assert resume(store, info, Watch()).run.status is RunStatus.FINISHED


def test_a_client_that_lost_its_fixed_tensors_gets_them_again(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[int] = []

    class Forgetful(VirtualGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            if len(forgotten) == 1:
                self.state_of(0).clear()
            forgotten.append(1)
            return super().send_and_receive(messages, timeout=timeout)

    monkeypatch.setitem(
        engines.ENGINES,  # type: ignore[arg-type]
        "sequential",
        lambda config, app, worker: nullcontext(
            engines.around(Forgetful(InProcess(Clients(app)), config.federation.clients), worker)
        ),
    )
    history = run(make("fed_sb", **{"federation.cohort": 4, "federation.rounds": 3}), Watch())
    second, third = history.rounds[2], history.rounds[3]
    assert second.roster[0].outcome is Outcome.FAILED
    assert "send them again" in second.roster[0].reason
    assert third.roster[0].outcome is Outcome.REPORTED
    assert third.bytes_once > 0


def test_a_different_weighting_gives_a_different_average(make: Callable[..., RunConfig]) -> None:
    skewed = {"data.partition": {"name": "size_skew"}}
    by_samples = run(make(store="samples", **skewed), Watch())
    uniform = run(make(store="uniform", **skewed, **{"federation.weighting": "uniform"}), Watch())
    assert adapter_of(by_samples) != adapter_of(uniform)


def test_the_resolved_threads_are_kept_for_a_resume(make: Callable[..., RunConfig]) -> None:
    config = simulate.resolve(make(**{"train.threads": None}))
    assert config.train.threads is not None
    assert config.name == "fedavg-texts"


def test_what_a_run_reads_of_the_test_split(make: Callable[..., RunConfig]) -> None:
    history = run(make(**{"eval.test": False}), Watch())
    assert not [name for name in history.run.summary if name.startswith("test_")]
    for record in history.rounds:
        assert not [name for name in replace(record).metrics if name.startswith("test_")]
