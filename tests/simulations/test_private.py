"""Whole runs under local DP on a tiny model: what travels, what is spent, who declines, what a stop changes."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.cli.__main__ import run as command
from fedlora.client.ledgers import enough_for
from fedlora.client.units import client_units
from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, DataError, RunError
from fedlora.privacy.account import read_account
from fedlora.privacy.accounting import epsilon
from fedlora.privacy.ledger import Schedule, create_ledger, open_ledger
from fedlora.privacy.randomness import seeded_source
from fedlora.privacy.schedule import run_epsilon, run_releases
from fedlora.server.checkpoint import load
from fedlora.server.records import Outcome, RosterRow, RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations import simulate
from fedlora.simulations.compare import privacy_together
from fedlora.simulations.simulate import Watch, resume, run
from fedlora.tasks.text_classification import TextClassification
from tests.simulations.test_simulate import adapter_of, stopping_after
from tests.tiny import tiny_config


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Four clients, two a round, three rounds, ε = 8."""

    def config(method: str = "fedavg", store: str = "runs", **updates: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "strategy": {"name": method},
            "store": tmp_path / store,
            "federation": {"clients": 4, "cohort": 2, "rounds": 3},
            "privacy": {"name": "dp", "epsilon": 8.0, "rate": 0.3},
        }
        return tiny_config(tiny_bert, tiny_text_csv, **(settings | updates))

    return config


def seeded(**more: Any) -> dict[str, Any]:
    return {f"privacy.{name}": value for name, value in {"noise": "seeded", **more}.items()}


def rows_of(history: RunHistory) -> list[RosterRow]:
    return [row for record in history.rounds for row in record.roster]


def ledgers(history: RunHistory) -> Path:
    return history.run.folder / "ledgers"


@pytest.mark.parametrize("strategy", ["fedavg", "ffa_lora", "lora_fair", "fed_sb"])
def test_a_private_run_spends_what_it_promised_and_tells_nothing_else(
    make: Callable[..., RunConfig], strategy: str
) -> None:
    history = run(make(strategy), Watch())
    assert history.run.status is RunStatus.FINISHED
    rows = rows_of(history)
    assert {row.outcome for row in rows} == {Outcome.REPORTED}
    assert all(row.samples == 0 and row.seconds == 0 and not row.metrics for row in rows)
    assert all("train_loss" not in record.metrics for record in history.rounds)
    account = read_account(history.run.folder)
    assert account is not None
    assert account.promise["holds"]
    times = {client: sum(row.client == client for row in rows) for client in {row.client for row in rows}}
    assert {client: site["rounds"] for client, site in account.sites.items()} == times
    assert account.largest is not None
    assert 0 < account.largest <= account.promise["figures"]["epsilon"] <= 8.0
    assert "a person with m records is not covered" in account.sentence()
    assert json.loads((history.run.folder / "adapter" / "privacy.json").read_text())["spent"]["sites"]
    assert "per record" in (history.run.folder / "adapter" / "README.md").read_text()
    report = (history.run.folder / "report.html").read_text()
    assert "No differential privacy" not in report
    assert "simulated ε" in report


def test_each_round_moves_every_factor_and_noise_differs_between_runs(make: Callable[..., RunConfig]) -> None:
    one, two = (run(make(store=name), Watch()) for name in ("one", "two"))
    before, after = (load(one.run.folder, number).state.shared for number in (0, 1))
    assert all(np.abs(after[name] - before[name]).min() > 0 for name in after)
    assert adapter_of(one) != adapter_of(two)


def test_seeded_noise_repeats_itself_also_after_a_stop_and_in_worker_processes(make: Callable[..., RunConfig]) -> None:
    whole = run(make("fed_sb", "whole", **seeded()), Watch())
    forked = run(make("fed_sb", "forked", **seeded(), engine={"name": "processes", "workers": 2}), Watch())
    config = make("fed_sb", "stopped", **seeded())
    run(config, stopping_after(1))
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    assert adapter_of(whole) == adapter_of(forked) == adapter_of(resumed)
    account = read_account(whole.run.folder)
    assert account is not None
    assert not account.promise["holds"]
    assert "seed" in account.sentence()
    report = (whole.run.folder / "report.html").read_text()
    assert "No guarantee:" in report
    assert report.count('id="privacy"') == 1


def test_a_client_at_its_ceiling_declines_and_the_run_completes(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    create_ledger(tmp_path / "ledgers" / "client-00001", "patients", 0.5, 1e-5)
    config = make(federation={"clients": 3, "cohort": 3, "rounds": 2}, **{"privacy.ledgers": tmp_path / "ledgers"})
    history = run(config, Watch())
    assert history.run.status is RunStatus.FINISHED
    declined = [row for row in rows_of(history) if row.outcome is Outcome.DECLINED]
    assert [row.client for row in declined] == [1, 1]
    assert "owner" in declined[0].reason
    assert "0.5" not in declined[0].reason
    report = (history.run.folder / "report.html").read_text()
    assert "declined" in report
    with open_ledger(tmp_path / "ledgers" / "client-00001") as ledger:
        assert ledger.spent() == 0


def test_ledgers_that_outlive_a_run_add_up(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    """What the ceiling lets through once, it does not let through twice, whichever store asks."""
    federation = {"clients": 2, "cohort": 2, "rounds": 2}
    releases = run_releases(simulate.resolve(make(federation=federation)))
    ceiling = 1.05 * enough_for(Schedule("run", "server", releases.each, releases.participations), 1e-5)
    shared = {"privacy.ledgers": tmp_path / "ledgers", "privacy.ceiling": ceiling}
    first = run(make(store="one", federation=federation, **shared), Watch())
    assert first.run.status is RunStatus.FINISHED
    with pytest.raises(RunError, match="owner"):
        run(make(store="two", federation=federation, **shared), Watch())


def test_after_its_participations_a_client_declines(make: Callable[..., RunConfig]) -> None:
    federation = {"clients": 4, "cohort": 3, "rounds": 2}
    config = make(federation=federation, seed=4, **{"privacy.participations": 1})
    history = run(config, Watch())
    outcomes: dict[int, list[Outcome]] = {}
    for row in rows_of(history):
        outcomes.setdefault(row.client, []).append(row.outcome)
    twice = [found for found in outcomes.values() if len(found) == 2]
    assert twice
    assert all(found == [Outcome.REPORTED, Outcome.DECLINED] for found in twice)
    settled = simulate.resolve(config)
    assert run_epsilon(settled) <= 8.0 < epsilon(run_releases(settled).after(2), 1e-5)


def test_clients_measure_with_noised_counts_that_are_paid_for(make: Callable[..., RunConfig]) -> None:
    config = make(eval={"where": "clients", "holdout": 0.3}, **{"privacy.eval_noise": 5.0})
    history = run(config, Watch())
    assert all("validation_accuracy" not in record.metrics for record in history.rounds)
    assert all(0 <= record.metrics["clients_accuracy"] <= 1 for record in history.rounds[1:])
    for row in rows_of(history):
        assert set(row.metrics) == {"holdout_correct", "holdout_units"}
        assert row.metrics["holdout_units"] != round(row.metrics["holdout_units"])
    settled = simulate.resolve(config)
    each = run_releases(settled).each
    assert [(release.noise_multiplier, release.rate, release.steps) for release in each[1:]] == [(5.0, 1.0, 1)]
    assert run_epsilon(settled) <= 8.0
    without = simulate.resolve(make())
    assert settled.privacy.noise_multiplier is not None
    assert without.privacy.noise_multiplier is not None
    assert settled.privacy.noise_multiplier > without.privacy.noise_multiplier
    own = (ledgers(history) / f"client-{rows_of(history)[0].client:05d}" / "local-results.jsonl").read_text()
    assert set(json.loads(own.splitlines()[0])) == {"run", "round", "units", "accuracy"}


def test_an_error_at_a_client_says_nothing_of_its_rows(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise ValueError("the text of row 7 is: secret")

    monkeypatch.setattr(TextClassification, "losses", failing)
    with pytest.raises(RunError) as caught:
        run(make(), Watch())
    assert "private training failed" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_comes_too_late_does_not_leave(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(RunError, match=r"no answer came before|closed"):
        run(make(federation={"clients": 4, "cohort": 2, "rounds": 3, "timeout": 1e-4}), Watch())


def test_a_private_start_is_one_more_release(make: Callable[..., RunConfig]) -> None:
    config = make(
        "fed_sb", strategy={"name": "fed_sb", "init": "private"}, **seeded(epsilon=None, noise_multiplier=0.8)
    )
    history = run(config, Watch())
    assert history.run.status is RunStatus.FINISHED
    assert [row.client for row in history.rounds[0].roster] == [0, 1, 2, 3]
    assert history.rounds[0].bytes_up > 0
    fixed = load(history.run.folder, 0).state.fixed
    weights = load(run(make("fed_sb", "other", **seeded()), Watch()).run.folder, 0).state.fixed
    assert any(np.abs(fixed[name] - weights[name]).max() > 0.1 for name in fixed)
    releases = run_releases(simulate.resolve(config))
    assert [release.steps for release in releases.once] == [1]
    assert epsilon(releases.all(), 1e-5) > epsilon(releases.after(3)[1:], 1e-5)
    with open_ledger(ledgers(history) / "client-00000") as ledger:
        assert 0 in ledger.runs[history.run.id].rounds


@pytest.mark.parametrize(
    ("updates", "text"),
    [
        ({"strategy": {"name": "fed_sb", "init": "private"}, "privacy": {"name": "none"}}, "privacy=dp"),
        ({"privacy": {"name": "dp", "noise_multiplier": 0.3, "epsilon": 1.0}}, "spends epsilon"),
        ({"eval": {"where": "both", "holdout": 0.2}, "privacy.eval_noise": 0.3}, "eval_noise"),
    ],
)
def test_what_could_only_pretend_is_refused(make: Callable[..., RunConfig], updates: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception, match=text):
        run(make(**updates), Watch())


def test_more_rounds_than_announced_are_refused(make: Callable[..., RunConfig]) -> None:
    config = make()
    run(config, Watch())
    with RunStore.open(config.store) as store, pytest.raises(ConfigError, match="announced"):
        resume(store, store.find("latest"), Watch(), rounds=5)


def test_a_ledger_that_was_replaced_is_refused_by_the_receipt(make: Callable[..., RunConfig]) -> None:
    """Between two rounds a client's ledger is deleted: the one that is then made is not the one of the receipt."""
    config = make(federation={"clients": 2, "cohort": 2, "rounds": 3})
    stopped = run(config, stopping_after(1))
    shutil.rmtree(ledgers(stopped) / "client-00000")
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    later = [row for record in resumed.rounds[2:] for row in record.roster]
    assert {(row.client, row.outcome) for row in later} == {(0, Outcome.FAILED), (1, Outcome.REPORTED)}


def test_an_older_copy_of_a_ledger_is_refused_by_the_receipt(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make(federation={"clients": 2, "cohort": 2, "rounds": 4})
    first = run(config, stopping_after(1))
    folder = ledgers(first) / "client-00000"
    shutil.copytree(folder, tmp_path / "backup")
    with RunStore.open(config.store) as store:
        resume(store, store.find("latest"), stopping_after(1))
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
        resumed = resume(store, store.find("latest"), Watch())
    last = {row.client: row.outcome for row in resumed.rounds[-1].roster}
    assert last == {0: Outcome.FAILED, 1: Outcome.REPORTED}


def test_what_several_runs_spend_together_is_said(
    make: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(**{"federation.rounds": 1})
    both = [run(config.model_copy(update={"seed": seed}), Watch()) for seed in (0, 1)]
    releases = run_releases(simulate.resolve(config)).all()
    total = epsilon([*releases, *releases], 1e-5)
    assert total > 8.0
    said = privacy_together(both)
    assert said is not None
    assert f"simulated ε = {total:.3g} at δ = 1e-05" in said
    page = tmp_path / "page.html"
    ids = [history.run.id for history in both]
    assert command(["runs", "compare", *ids, "--store", str(config.store), "--output", str(page)]) == 0
    assert said.split(" if ")[0] in " ".join(capsys.readouterr().out.split())
    assert f"{total:.3g}" in page.read_text()
    open_one = run(make(store="open", privacy={"name": "none"}, **{"federation.rounds": 1}), Watch())
    assert "promise nothing" in (privacy_together([*both, open_one]) or "")
    assert privacy_together([open_one]) is None


def worker_with(make: Callable[..., RunConfig], **updates: Any) -> Worker:
    return Worker(make(**updates))


def keys_of(worker: Worker, units: Iterable[np.ndarray]) -> list[set[str]]:
    column = worker.splits.train["source"]
    return [{column[int(row)] for row in rows} for rows in units]


def test_units_by_column_hold_all_rows_of_one_value_capped(make: Callable[..., RunConfig]) -> None:
    worker = worker_with(make, **{"privacy.unit": "source", "privacy.unit_rows": 3})
    units = client_units(worker, 0, seeded_source(1, "x"))
    keys = keys_of(worker, units.train.rows)
    assert all(len(each) == 1 for each in keys)
    assert len({next(iter(each)) for each in keys}) == len(keys) == 5
    assert {len(rows) for rows in units.train.rows} == {3}
    assert not len(units.holdout)


def test_held_out_units_are_whole_and_depend_on_themselves_alone(make: Callable[..., RunConfig]) -> None:
    updates = {"privacy.unit": "source", "privacy.unit_rows": 100, "eval.holdout": 0.4}
    everyone = [client_units(worker_with(make, **updates), client, seeded_source(1, "x")) for client in range(4)]
    worker = worker_with(make, **updates)
    held = [{key for each in keys_of(worker, units.holdout.rows) for key in each} for units in everyone]
    trained = [{key for each in keys_of(worker, units.train.rows) for key in each} for units in everyone]
    assert all(not a & b for a, b in zip(held, trained, strict=True))
    assert held[0] == held[1] == held[2] == held[3]  # the same unit is held out wherever it has rows
    assert 0 < len(held[0]) < 5


def test_a_row_that_is_drawn_twice_is_one_unit(make: Callable[..., RunConfig]) -> None:
    worker = worker_with(make, **{"data.partition": {"name": "bootstrap", "rows": 300}})
    units = client_units(worker, 0, seeded_source(1, "x"))
    rows = worker.partition.rows(0)
    assert len(units.train) == len(np.unique(rows)) < len(rows)


def test_a_unit_that_is_no_column_is_named(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match="patient"):
        client_units(worker_with(make, **{"privacy.unit": "patient"}), 0, seeded_source(1, "x"))
