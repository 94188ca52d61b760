"""Runs whose clients train in groups: the same as one at a time, up to rounding; and what becomes of one that fails."""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client import group as client_group
from fedlora.client import private, private_group
from fedlora.client.holdout import ClientRows
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import RunError
from fedlora.privacy.ledger import open_ledger
from fedlora.server.checkpoint import load
from fedlora.server.records import Outcome, RunHistory
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resolve, resume, run
from fedlora.simulations.virtual import groups_of
from fedlora.strategies import registry
from fedlora.wire import TrainTask
from tests.tiny import tiny_config

Make = Callable[..., RunConfig]
EXAMPLE = Path(__file__).parents[2] / "examples" / "fedlora-fedsa" / "src"


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    def config(group: int, strategy: str = "fedavg", **updates: object) -> RunConfig:
        engine = {"name": "sequential", "group": group}
        settings = {
            "federation": {"clients": 6, "cohort": 5, "rounds": 2},
            "train": {"optimizer": "sgd", "lr": 0.05},
            "eval": {"holdout": 0.2, "where": "both"},
            "engine": engine,
            "store": tmp_path / f"{strategy}-{group}",
            **updates,
        }
        return tiny_config(tiny_bert, tiny_text_csv, strategy={"name": strategy}, **settings)

    return config


def assert_same(found: RunHistory, wanted: RunHistory) -> None:
    mine, one = (load(history.run.folder, history.run.rounds).state for history in (found, wanted))
    for name, values in one.shared.items():
        apart = np.linalg.norm(mine.shared[name].astype(float) - values) / np.linalg.norm(values)
        assert apart < 1e-5, f"{name}: {apart:.1e}"
    for ours, theirs in zip(found.rounds, wanted.rounds, strict=True):
        assert ours.metrics == pytest.approx(dict(theirs.metrics), rel=1e-3, abs=1e-6)
        assert (ours.bytes_up, ours.bytes_down, ours.bytes_once) == (
            theirs.bytes_up,
            theirs.bytes_down,
            theirs.bytes_once,
        )
        for row, other in zip(ours.roster, theirs.roster, strict=True):
            assert (row.client, row.outcome, row.samples) == (other.client, other.outcome, other.samples)
            assert set(row.metrics) == set(other.metrics)


@pytest.mark.parametrize("strategy", ["fedavg", "ffa_lora", "lora_fair", "fed_sb"])
def test_a_run_in_groups_is_the_run_one_at_a_time(make: Make, strategy: str) -> None:
    assert_same(run(make(3, strategy), Watch()), run(make(1, strategy), Watch()))


def test_clients_keep_what_is_their_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """FedSA-LoRA: each client has a B and a head of its own, which differ when a group begins its second round."""
    monkeypatch.syspath_prepend(EXAMPLE)
    entry = EntryPoint("fedsa_lora", "fedlora_fedsa:FedSaLora", registry.GROUP)
    monkeypatch.setattr(registry, "_plugins", lambda: {"fedsa_lora": entry})
    together, alone = (run(make(group, "fedsa_lora"), Watch()) for group in (3, 1))
    assert_same(together, alone)
    mine, one = (load(history.run.folder, 2).clients for history in (together, alone))
    assert set(mine) == set(one) == {client for record in alone.rounds for client in [r.client for r in record.roster]}
    for client, tensors in one.items():
        for name, values in tensors.items():
            assert np.linalg.norm(mine[client][name].astype(float) - values) / np.linalg.norm(values) < 1e-5


def test_groups_in_worker_processes(make: Make) -> None:
    grouped = make(2, engine={"name": "processes", "workers": 2, "group": 2})
    assert_same(run(grouped, Watch()), run(make(1), Watch()))


def test_a_resumed_run_in_groups_has_the_same_bits(make: Make, tmp_path: Path) -> None:
    whole = run(make(3), Watch())
    rounds = 0

    def after_one() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds > 1

    config = make(3, store=tmp_path / "again")
    stopped = run(config, Watch(stop=after_one))
    assert stopped.run.rounds_done == 1
    ended = resume(RunStore.open(tmp_path / "again"), stopped.run, Watch())
    mine, one = (load(history.run.folder, 2).state for history in (ended, whole))
    assert all(np.array_equal(mine.shared[name], one.shared[name]) for name in one.shared)


def test_a_client_that_diverges_fails_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    received = client_group._received

    def spoiled(tasks: Sequence[TrainTask], *others: Any) -> Any:
        starts = received(tasks, *others)
        broken = [task.client == 2 for task in tasks]
        return [
            {name: values * np.nan for name, values in start.items()} if bad else start
            for start, bad in zip(starts, broken, strict=True)
        ]

    monkeypatch.setattr(client_group, "_received", spoiled)
    history = run(make(6, **{"federation.cohort": 6}), Watch())
    outcomes = {row.client: row for row in history.rounds[1].roster}
    assert outcomes.pop(2).outcome is Outcome.FAILED
    assert {row.outcome for row in outcomes.values()} == {Outcome.REPORTED}


def test_what_cannot_be_answered_together_is_answered_one_by_one_and_logged(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise RunError("no two at once here")

    monkeypatch.setattr(client_group, "loaded", refused)
    assert_same(run(make(3), Watch()), run(make(1), Watch()))
    assert "3 clients cannot train together, so each trains alone: no two at once here" in caplog.text


PRIVATE = {"name": "dp", "noise_multiplier": 0.8, "rate": 0.3, "noise": "seeded"}


@pytest.mark.parametrize("strategy", ["fedavg", "fed_sb"])
def test_private_runs_in_groups(make: Make, strategy: str) -> None:
    together, alone = (run(make(group, strategy, privacy=PRIVATE), Watch()) for group in (3, 1))
    assert_same(together, alone)
    assert ledgers_of(together) == ledgers_of(alone)


def ledgers_of(history: RunHistory) -> dict[str, Any]:
    """Per client, what its run has spent and how it ended, by its ledger."""
    found = {}
    for folder in sorted((history.run.folder / "ledgers").iterdir()):
        with open_ledger(folder) as ledger:
            (spent,) = ledger.runs.values()
            found[folder.name] = (ledger.spent(), spent.closed)
    return found


def test_a_private_client_that_raises_spoils_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    units = private.client_units

    def broken(worker: Worker, client: int, source: Any) -> Any:
        if client == 2:
            raise ZeroDivisionError("by a private row")
        return units(worker, client, source)

    monkeypatch.setattr(private, "client_units", broken)
    history = run(make(6, **{"federation.cohort": 6, "privacy": PRIVATE}), Watch())
    outcomes = {row.client: row for row in history.rounds[1].roster}
    assert "row" not in outcomes[2].reason
    assert outcomes.pop(2).outcome is Outcome.FAILED
    assert {row.outcome for row in outcomes.values()} == {Outcome.REPORTED}


def test_a_private_client_at_its_ceiling_declines_alone(make: Make, tmp_path: Path) -> None:
    private_run = {**PRIVATE, "ledgers": tmp_path / "ledgers"}
    run(make(6, **{"federation.cohort": 6, "privacy": private_run}), Watch())
    for place, folder in enumerate(sorted((tmp_path / "ledgers").iterdir())):
        with open_ledger(folder) as ledger:
            ledger.set_limits(ledger.spent() * (1.01 if place == 2 else 3), run_epsilon=None, month_epsilon=None)
    again = run(make(6, **{"federation.cohort": 6, "privacy": private_run, "store": tmp_path / "again"}), Watch())
    outcomes = [row.outcome for row in again.rounds[1].roster]
    assert (outcomes.count(Outcome.DECLINED), outcomes.count(Outcome.REPORTED)) == (1, 5)


def test_private_clients_that_cannot_train_together_train_alone_and_spend_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise RunError("no two at once here")

    alone = run(make(1, privacy=PRIVATE), Watch())
    monkeypatch.setattr(private_group.PrivateGroup, "_stepped", refused)
    together = run(make(3, privacy=PRIVATE), Watch())
    assert_same(together, alone)
    assert ledgers_of(together) == ledgers_of(alone)


def test_one_client_that_raises_spoils_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Worker.rows

    def broken(worker: Worker, client: int) -> ClientRows:
        if client == 2:
            raise ZeroDivisionError("by no row")
        return rows(worker, client)

    monkeypatch.setattr(Worker, "rows", broken)
    history = run(make(6, **{"federation.cohort": 6}), Watch())
    outcomes = {row.client: row for row in history.rounds[1].roster}
    assert "ZeroDivisionError: by no row" in outcomes.pop(2).reason
    assert {row.outcome for row in outcomes.values()} == {Outcome.REPORTED}


@pytest.mark.parametrize(
    ("updates", "named"),
    [
        ({"adapter.dropout": 0.1}, r"adapter\.dropout"),
        ({"model.dropout": True}, r"model\.dropout"),
    ],
)
def test_groups_are_refused_where_they_would_not_be_the_same(make: Make, updates: dict[str, Any], named: str) -> None:
    with pytest.raises(RunError, match=named):
        resolve(make(2, **updates))
    resolve(make(1, **updates))


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 8))
def test_groups_are_whole_small_enough_and_even(messages: int, size: int, places: int) -> None:
    sizes = groups_of(size, places)(messages)
    assert sum(sizes) == messages
    assert all(1 <= one <= size for one in sizes)
    if sizes:
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) % places == 0 or len(sizes) == messages
