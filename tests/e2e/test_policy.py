"""A site's policy beats its server, its ceiling holds across servers, what it erased is gone: with real processes."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation

pytestmark = pytest.mark.slow
FEW = "federation.release_few=true"


@pytest.fixture
def federation(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path, tiny_bert, tiny_text_csv)
    found.prepare()
    yield found
    found.stop()


def relabelled(path: Path) -> None:
    """The same texts under other names of classes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {label: f"other-{label}" for label in sorted({row["label"] for row in rows})}
    path.write_text("".join(json.dumps({**row, "label": names[row["label"]]}) + "\n" for row in rows))


def test_what_a_policy_does_not_allow_is_declined_on_both_sides(federation: Federation, tmp_path: Path) -> None:
    federation.write_policy(1, rounds_max=1)
    relabelled(tmp_path / "dealt" / "client-00002.jsonl")
    federation.start()
    run = federation.submit("federation.rounds=2", FEW)
    federation.wait(run)
    roster = federation.roster(run, 1)
    assert [row["outcome"] for row in roster.values()] == ["reported", "declined", "declined"]
    assert "rounds_max" in roster[1]["reason"]
    assert "labels" in roster[2]["reason"]
    own_log = (federation.site(1) / "log" / "client.jsonl").read_text()
    assert "rounds_max" in own_log
    shown = federation.operator("show", run)
    assert "Trained without site-1, site-2" in shown.stdout

    # The policy is read anew for each offer: no restart.
    other_model = {"another": {"source": "local", "path": str(federation.model)}}
    federation.write_policy(0, models=other_model)
    federation.write_policy(1, privacy={"require": "dp"})
    federation.write_policy(2, approval="first_run", data={})
    second = federation.wait(federation.submit("federation.rounds=1", FEW), "failed")["reason"]
    assert "0 of 3 updates were admitted" in second
    assert "models" in second
    assert "privacy.require" in second


def test_an_epsilon_that_is_too_large_and_figures_that_are_not_noised_stay_at_the_site(federation: Federation) -> None:
    for number in range(3):
        ledger = federation.site(number) / "ledgers" / "site"
        federation.run("ledger", "create", str(ledger), "--data", "everything", "--epsilon", "30")
        federation.write_policy(number, privacy={"require": "dp", "epsilon_run": 4.0}, metrics=[])
    federation.start()
    private = ["privacy=dp", "privacy.rate=0.3", "federation.rounds=2", "eval.holdout=0.2"]
    refused = federation.wait(federation.submit(*private, "privacy.epsilon=8"), "failed")["reason"]
    assert refused.count("epsilon_run") == 3
    run = federation.submit(*private, "privacy.epsilon=3")
    federation.wait(run)
    for row in federation.roster(run, 2).values():
        assert row["outcome"] == "reported"
        assert (row["metrics"], row["samples"], row["seconds"]) == ({}, 0, 0.0)


def test_the_owner_approves_a_run_before_it_begins(federation: Federation) -> None:
    federation.write_policy(0, approval="first_run")
    federation.start()
    run = federation.submit("federation.rounds=400", FEW, "federation.below_quorum=retry")
    federation.until(lambda: federation.shown(run)["rounds_done"] >= 1)
    waiting = federation.run("client", "waiting", "--home", str(federation.site(0)), "--json")
    assert run in waiting.stdout
    assert "approve" in federation.roster(run, 1)[0]["reason"]
    federation.run("client", "approve", run, "--home", str(federation.site(0)))
    federation.until(lambda: last_row(federation, run)["outcome"] == "reported")
    federation.run("client", "pause", "--home", str(federation.site(0)), "--reason", "maintenance")
    federation.until(lambda: "maintenance" in last_row(federation, run)["reason"])
    federation.operator("stop", run)
    federation.wait(run, "stopped")


def last_row(federation: Federation, run: str) -> dict[str, Any]:
    """The first site's line on the roster of the last round."""
    return next(iter(federation.shown(run)["rounds_list"][-1]["roster"]), {"outcome": "", "reason": ""})


def test_the_ceiling_holds_across_two_servers(federation: Federation, tmp_path: Path) -> None:
    shared = tmp_path / "ledgers"
    federation.run("ledger", "create", str(shared / "site"), "--data", "everything", "--epsilon", "12")
    other = Federation(tmp_path / "other", federation.model, federation.data, sites=1)
    other.folder.mkdir()
    other.prepare()
    try:
        for each in (federation, other):
            rule = {"require": "dp", "epsilon_run": 8.0, "ledgers": str(shared)}
            each.write_policy(0, privacy=rule)
            each.start(clients=[0])
        private = ["privacy=dp", "privacy.epsilon=8", "privacy.rate=0.3", "federation.cohort=1"]
        sites = ["federation.sites=[site-0]", "federation.clients=1"]
        federation.wait(federation.submit(*private, *sites))
        refused = other.wait(other.submit(*private, *sites), "failed")["reason"]
        assert "more than the data's owner lets all runs together spend" in refused
    finally:
        other.stop()


def test_after_an_erasure_nothing_of_the_site_is_found_and_the_others_train_again(federation: Federation) -> None:
    federation.start()
    run = federation.submit("federation.rounds=2", FEW)
    federation.wait(run)
    row = federation.roster(run, 2)[1]
    figures = {repr(value) for value in row["metrics"].values()} | {repr(row["seconds"])}
    assert len(figures) >= 3
    assert figures & found_in(federation.home, figures)
    ledger = json.dumps(federation.run("client", "sent", "--home", str(federation.site(1)), "--json").stdout)
    left = federation.run("client", "leave", "--erase", "--home", str(federation.site(1)), "--json")
    assert json.loads(left.stdout)["contains_this_site"] == [{"run": run, "rounds": [1, 2], "restart_after": 0}]
    assert found_in(federation.home, figures) == set()
    assert ledger == json.dumps(federation.run("client", "sent", "--home", str(federation.site(1)), "--json").stdout)
    federation.until(lambda: federation.processes["client-1"].poll() == 50)  # it was turned away
    federation.processes.pop("client-1")
    again = json.loads(federation.operator("restart", run, "--without", "site-1", "--json").stdout)["id"]
    federation.wait(again)
    assert [row["outcome"] for row in federation.roster(again, 2).values()] == ["reported"] * 2


def found_in(folder: Path, texts: set[str]) -> set[str]:
    """Those of `texts` that any file or database row holds."""
    whole = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    copy = folder.parent / "copy.db"
    shutil.copy(folder / "runs" / "fedlora.db", copy)
    with sqlite3.connect(copy) as database:
        whole += "\n".join(database.iterdump()).encode()
    return {text for text in texts if text.encode() in whole}
