"""Whole runs under client-level central DP on a tiny model: bits, resumes, empty cohorts, what a record may hold."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedlora.config.schema import RunConfig
from fedlora.errors import FedloraError
from fedlora.privacy.central import central_mechanism, flat_delta
from fedlora.server.checkpoint import load
from fedlora.server.events import Event, RoundCommitted, RoundStarted, read_events
from fedlora.server.flower_strategy import FlowerStrategy
from fedlora.server.records import Outcome, RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run
from tests.simulations.test_simulate import adapter_of, interfering, stopping_after
from tests.tiny import tiny_config

METHODS = ("fedavg", "ffa_lora", "fed_sb")
ADAPTIVE = {"clip": 0.05, "clip_quantile": 0.5, "count_noise": 2.0}


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Six clients, three expected a round, three rounds; noise from the seed."""

    def config(strategy: str = "fedavg", store: str = "runs", **updates: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "strategy": {"name": strategy},
            "store": tmp_path / store,
            "federation": {"clients": 6, "cohort": 3, "rounds": 3},
            "privacy": {"name": "central", "noise_multiplier": 1.0, "noise": "seeded", "clip": 0.1},
        }
        return tiny_config(tiny_bert, tiny_text_csv, **(settings | updates))

    return config


def cohorts(history: RunHistory) -> list[tuple[int, ...]]:
    return [e.cohort for e in read_events(history.run.folder / "events.jsonl") if isinstance(e, RoundStarted)]


def moves(history: RunHistory) -> list[np.ndarray]:
    """Each round's step of all that travels."""
    states = [load(history.run.folder, record.round).state for record in history.rounds]
    names = states[0].manifest.uploaded()
    return [flat_delta(old.shared, new.shared, names) for old, new in pairwise(states)]


@pytest.mark.parametrize("strategy", METHODS)
def test_same_seed_same_bits_and_a_resumed_run_too(make: Callable[..., RunConfig], strategy: str) -> None:
    whole, again = (run(make(strategy, name), Watch()) for name in ("one", "two"))
    assert whole.run.status is RunStatus.FINISHED
    assert adapter_of(whole) == adapter_of(again)
    assert cohorts(whole) == cohorts(again)
    config = make(strategy, "stopped")
    assert run(config, stopping_after(1)).run.rounds_done == 1
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    assert adapter_of(resumed) == adapter_of(whole)
    assert cohorts(resumed) == cohorts(whole)


def test_an_adapted_bound_survives_a_resume(make: Callable[..., RunConfig]) -> None:
    adapted = {f"privacy.{name}": value for name, value in ADAPTIVE.items()}
    whole = run(make(store="whole", **adapted), Watch())
    bounds = [record.metrics["clip_bound"] for record in whole.rounds[1:]]
    assert len({0.05, *bounds}) == 4
    config = make(store="stopped", **adapted)
    run(config, stopping_after(2))
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    assert [record.metrics["clip_bound"] for record in resumed.rounds[1:]] == bounds
    assert adapter_of(resumed) == adapter_of(whole)


def test_a_rounds_figures_are_only_what_is_released(make: Callable[..., RunConfig]) -> None:
    history = run(make(), Watch())
    for record in history.rounds[1:]:
        own = {name for name in record.metrics if not name.startswith("validation_")}
        assert own == {"clip_bound", "noise_std"}
        assert record.metrics["noise_std"] == pytest.approx(1.0 * 0.1 / 3, rel=1e-5)


def test_the_systems_noise_does_not_repeat(make: Callable[..., RunConfig]) -> None:
    first, second = (run(make(store=name, **{"privacy.noise": "system"}), Watch()) for name in ("one", "two"))
    assert adapter_of(first) != adapter_of(second)


def test_an_empty_cohort_is_a_round_of_noise(make: Callable[..., RunConfig]) -> None:
    """One of 100 clients is expected a round; with this seed there are rounds in which nobody is asked."""
    lonely = {"clients": 100, "cohort": 1, "rounds": 4, "min_reports": 1}
    history = run(make(federation=lonely), Watch())
    assert history.run.status is RunStatus.FINISHED
    empty = [number for number, cohort in enumerate(cohorts(history)) if not cohort]
    assert empty
    for number in empty:
        record, moved = history.rounds[number + 1], moves(history)[number]
        assert list(record.roster) == []
        assert moved.std() == pytest.approx(record.metrics["noise_std"], rel=0.1)


def test_clients_that_fail_add_nothing_and_the_divisor_stays(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client is asked and all but one fail or lie: what is left is that one's clipped delta over six."""

    def meddle(task: Message, answer: Message) -> Message:
        client = task.content["task"]["client"]
        if client in (1, 2, 3):
            raise ValueError("out of memory")
        if client in (4, 5):
            record = answer.content["arrays"]
            for name in record:
                record[name] = type(record[name])(np.full(record[name].shape, np.nan, np.float32))
        return answer

    everyone = {"clients": 6, "cohort": 6, "rounds": 1}
    interfering(monkeypatch, meddle)
    quiet = {"privacy.noise_multiplier": 1e-6, "privacy.clip": 0.05, "privacy.accountant": "rdp"}
    history = run(make(federation=everyone, **quiet), Watch())
    outcomes = [row.outcome for row in history.rounds[1].roster]
    assert outcomes == [Outcome.REPORTED, *[Outcome.FAILED] * 3, *[Outcome.REJECTED] * 2]
    assert np.linalg.norm(moves(history)[0]) == pytest.approx(0.05 / 6, rel=1e-3)


def test_nothing_is_sent_of_a_round_that_is_not_committed(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This engine measures in the background: without central DP a round is begun before the last one is committed."""
    order: list[tuple[str, int]] = []
    configure = FlowerStrategy.configure_train

    def asked(self: FlowerStrategy, server_round: int, *rest: Any) -> Iterable[Message]:
        order.append(("asked", server_round))
        return configure(self, server_round, *rest)

    def listen(event: Event) -> None:
        if isinstance(event, RoundCommitted):
            order.append(("committed", event.round))

    monkeypatch.setattr(FlowerStrategy, "configure_train", asked)
    run(make(engine={"name": "processes", "workers": 2}), Watch(listeners=(listen,)))
    assert order == [("committed", 0)] + [(what, number) for number in (1, 2, 3) for what in ("asked", "committed")]


def test_a_method_that_compares_updates_is_refused(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(FedloraError, match=r"compares (the )?clients' single updates"):
        run(make("lora_fair"), Watch())


def test_the_runs_price_is_the_mechanisms(make: Callable[..., RunConfig]) -> None:
    mechanism = central_mechanism(make())
    assert (mechanism.rate, mechanism.release(3).steps) == (0.5, 3)
    assert mechanism.spent(3) < mechanism.spent_seen(3)
