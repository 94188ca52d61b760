"""Whole runs in virtual time on a tiny model: bits, engines, real time, resuming, ledgers, and what is told."""

import json
import re
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlora.client.site import SimulatedSite
from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.privacy.account import read_account
from fedlora.server.events import RoundCommitted, read_events
from fedlora.server.records import Outcome, RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.command import as_json, show_summary
from fedlora.simulations.progress import LiveProgress
from fedlora.simulations.simulate import Watch, resume, run
from tests.simulations.test_retry import Moody
from tests.simulations.test_simulate import adapter_of, stopping_after
from tests.tiny import tiny_config

Make = Callable[..., RunConfig]

CAPRICIOUS = {"sample_seconds": 0.1, "speed_spread": 0.7, "availability": 0.7, "stay": 10.0, "dropout": 0.1}
BUFFERED = {"clients": 6, "cohort": 4, "rounds": 4, "buffered": True, "buffer": 2, "absence": 5.0}
SYNCHRONOUS = {"clients": 6, "cohort": 4, "rounds": 3, "over_selection": 1.5, "timeout": 6.0, "absence": 5.0}


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Make:
    def config(store: str, federation: dict[str, Any], virtual: dict[str, Any], **updates: Any) -> RunConfig:
        settings = {"engine": {"name": "sequential"}, **updates}
        return tiny_config(
            tiny_bert, tiny_text_csv, store=tmp_path / store, federation=federation, virtual=virtual, **settings
        )

    return config


def rosters(history: RunHistory) -> list[list[tuple[int, str, str]]]:
    return [[(row.client, str(row.outcome), row.reason) for row in record.roster] for record in history.rounds]


def same(one: RunHistory, two: RunHistory) -> None:
    assert rosters(one) == rosters(two)
    assert [r.metrics["virtual_seconds"] for r in one.rounds] == [r.metrics["virtual_seconds"] for r in two.rounds]
    assert adapter_of(one) == adapter_of(two)


@pytest.mark.parametrize("strategy", ["fedavg", "fed_sb"])
def test_a_cohort_in_time_gives_the_bits_of_a_run_without_virtual_time(make: Make, strategy: str) -> None:
    federation = {"clients": 4, "cohort": 2, "rounds": 2, "timeout": 1000.0}
    timed = {"sample_seconds": 0.1, "speed_spread": 1.0, "up": 1.0}
    with_time = run(make("timed", federation, timed, strategy={"name": strategy}), Watch())
    without = run(make("plain", {**federation, "timeout": None}, {}, strategy={"name": strategy}), Watch())
    assert adapter_of(with_time) == adapter_of(without)
    assert "virtual_seconds" not in without.rounds[-1].metrics
    assert all("virtual_seconds" not in row.metrics for row in without.rounds[-1].roster)


@pytest.mark.parametrize("federation", [BUFFERED, SYNCHRONOUS], ids=["buffered", "synchronous"])
def test_the_engine_changes_nothing_and_neither_does_a_stop(make: Make, federation: dict[str, Any]) -> None:
    whole = run(make("whole", federation, CAPRICIOUS), Watch())
    outcomes = {row.outcome for record in whole.rounds for row in record.roster}
    assert {Outcome.REPORTED, Outcome.LATE} <= outcomes or {Outcome.REPORTED, Outcome.LOST} <= outcomes
    processes = {"name": "processes", "workers": 2}
    same(run(make("forked", federation, CAPRICIOUS, engine=processes), Watch()), whole)
    for rounds in (1, 2):
        config = make(f"stopped-{rounds}", federation, CAPRICIOUS)
        assert run(config, stopping_after(rounds)).run.status is RunStatus.STOPPED
        with RunStore.open(config.store) as store:
            same(resume(store, store.find("latest"), Watch()), whole)


def test_the_time_of_this_machine_does_not_matter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline of virtual seconds is none of the real ones, for the server or for a client."""
    deadlines = []
    real = SimulatedSite.still_open

    def noted(site: SimulatedSite, work: Any) -> bool:
        deadlines.append(work.deadline)
        return real(site, work)

    monkeypatch.setattr(SimulatedSite, "still_open", noted)
    federation = {"clients": 4, "cohort": 2, "rounds": 2, "timeout": 1e-6}
    private = {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}
    history = run(make("quick", federation, {"sample_seconds": 1e-9}, privacy=private), Watch())
    assert [len(record.roster) for record in history.rounds] == [0, 2, 2]
    assert {row.outcome for record in history.rounds for row in record.roster} == {Outcome.REPORTED}
    assert deadlines
    assert set(deadlines) == {None}


@pytest.mark.parametrize("federation", [BUFFERED, {**SYNCHRONOUS, "over_selection": 1.0}], ids=["buffered", "timeout"])
def test_a_work_that_was_not_trained_spends_nothing(make: Make, federation: dict[str, Any]) -> None:
    private = {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}
    history = run(make("private", federation, CAPRICIOUS, privacy=private), Watch())
    rows = [row for record in history.rounds for row in record.roster]
    released = Counter(row.client for row in rows if row.outcome is Outcome.REPORTED)
    assert any(row.outcome in (Outcome.LOST, Outcome.LATE) for row in rows)
    account = read_account(history.run.folder)
    assert account is not None
    assert {client: site["rounds"] for client, site in account.sites.items()} == released
    assert account.largest is not None
    assert account.largest <= account.promise["figures"]["epsilon"] <= 8.0
    entries = (history.run.folder / "ledgers").glob("client-*")
    assert {int(path.name.removeprefix("client-")) for path in entries} == set(released)


def test_what_a_stopped_private_run_goes_on_to_is_released_once(make: Make) -> None:
    private = {"name": "dp", "epsilon": 8.0, "rate": 0.3, "noise": "seeded"}
    whole = run(make("whole", BUFFERED, CAPRICIOUS, privacy=private), Watch())
    config = make("stopped", BUFFERED, CAPRICIOUS, privacy=private)
    run(config, stopping_after(2))
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    same(resumed, whole)
    accounts = [read_account(history.run.folder) for history in (whole, resumed)]
    assert accounts[0] is not None
    assert accounts[1] is not None
    assert accounts[0].sites == accounts[1].sites


def test_a_private_start_takes_no_time(make: Make) -> None:
    private = {"name": "dp", "noise_multiplier": 0.8, "rate": 0.3, "noise": "seeded"}
    strategy = {"name": "fed_sb", "init": "private"}
    federation = {"clients": 3, "cohort": 2, "rounds": 1}
    history = run(make("start", federation, {"sample_seconds": 1.0}, privacy=private, strategy=strategy), Watch())
    assert [record.metrics["virtual_seconds"] for record in history.rounds] == [0.0, 16.0]


def test_the_virtual_clock_is_told_everywhere(make: Make) -> None:
    console = Console(file=StringIO(), width=200)
    with LiveProgress(console) as progress:
        config = make("told", {"clients": 4, "cohort": 2, "rounds": 2}, {"sample_seconds": 0.5})
        history = run(config, Watch(listeners=(progress,)))
    show_summary(history, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert [line.rsplit("  ", 1)[1] for line in printed.splitlines() if "  virtual " in line][:3] == [
        "virtual 0 s",
        "virtual 8 s",
        "virtual 16 s",
    ]
    assert re.search(r"virtual time +16 s", printed)
    told = [round_["metrics"]["virtual_seconds"] for round_ in as_json(history)["history"]]
    assert told == [0.0, 8.0, 16.0]
    events = [e for e in read_events(history.run.folder / "events.jsonl") if isinstance(e, RoundCommitted)]
    assert [event.metrics["virtual_seconds"] for event in events] == told
    assert [row.metrics["virtual_seconds"] for row in history.rounds[2].roster] == [8.0, 8.0]
    assert history.run.summary["virtual_seconds"] == 16.0
    assert json.loads((history.run.folder / "summary.json").read_text())["virtual_seconds"] == 16.0


def test_buffered_rounds_need_a_time(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"without virtual time.*virtual\.sample_seconds=0\.05"):
        run(make("untimed", BUFFERED, {}), Watch())


def test_an_engine_of_others_has_no_virtual_time(make: Make) -> None:
    config = make("other", {"clients": 4, "cohort": 2, "rounds": 1}, {"sample_seconds": 1.0})
    with pytest.raises(ConfigError, match=r"virtual\.sample_seconds is for fedlora's own engines"):
        run(config, Watch(), grid=Moody(4, silences=0))


def test_groups_are_those_of_who_is_trained(make: Make) -> None:
    """Clients that train in one pass: as each alone, up to rounding, whoever is left out."""
    federation = {**SYNCHRONOUS, "over_selection": 1.0, "timeout": 4.0}
    grouped = run(make("grouped", federation, CAPRICIOUS, engine={"name": "sequential", "group": 3}), Watch())
    alone = run(make("alone", federation, CAPRICIOUS), Watch())
    assert rosters(grouped) == rosters(alone)
    for one, two in zip(grouped.rounds, alone.rounds, strict=True):
        assert one.metrics["validation_loss"] == pytest.approx(two.metrics["validation_loss"], rel=1e-4)
