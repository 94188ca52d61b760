"""Server and clients as processes with real certificates: the bits of a simulation, whatever dies."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.federation import Federation

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path, tiny_bert, tiny_text_csv)
    found.prepare()
    yield found
    found.stop()


def test_sites_train_to_the_bits_of_a_simulation_and_leave_no_update_behind(federation: Federation) -> None:
    federation.start()
    run = federation.submit("strategy=fed_sb")
    shown = federation.wait(run)
    assert federation.adapter(run) == federation.simulated("strategy=fed_sb")
    assert [row["outcome"] for row in federation.roster(run, 3).values()] == ["reported"] * 3
    assert shown["rounds_done"] == 3
    assert not list((federation.home / "runs" / run / "incoming").iterdir())
    sent = federation.run("client", "sent", "--home", str(federation.site(1)), "--json")
    assert sent.stdout.count('"kind": "train"') == 3


def test_a_killed_server_goes_on_with_its_run_and_its_clients_come_back(federation: Federation) -> None:
    federation.start()
    run = federation.submit("federation.rounds=6")
    federation.until(lambda: federation.shown(run)["rounds_done"] >= 2)
    federation.kill("server")
    federation.start_server()
    federation.wait(run)
    assert federation.adapter(run) == federation.simulated("federation.rounds=6")


def test_a_killed_client_comes_back_into_its_round(federation: Federation) -> None:
    federation.start()
    run = federation.submit("federation.rounds=6")
    federation.until(lambda: federation.shown(run)["rounds_done"] >= 1)
    federation.kill("client-1")
    federation.start_client(1)
    federation.wait(run)
    assert federation.adapter(run) == federation.simulated("federation.rounds=6")


def test_a_site_that_is_away_is_named_and_the_others_go_on(federation: Federation) -> None:
    federation.start(clients=[0, 1])
    federation.join(2)
    run = federation.submit("federation.absence=1", "federation.rounds=2", "federation.release_few=true")
    federation.wait(run)
    row = federation.roster(run, 2)[2]
    assert row["outcome"] == "lost"
    assert "not been connected" in row["reason"]


def test_a_graceful_end_has_exit_code_0_on_both_sides(federation: Federation) -> None:
    federation.start()
    assert federation.kill("client-0", signal.SIGTERM) == 0
    assert federation.kill("server", signal.SIGTERM) == 0


def test_a_run_under_local_dp_spends_from_the_sites_ledgers(federation: Federation) -> None:
    for number in range(3):
        ledger = federation.site(number) / "ledgers" / "site"
        federation.run("ledger", "create", str(ledger), "--data", "everything", "--epsilon", "12")
        federation.write_policy(number, privacy={"require": "dp", "epsilon_run": 8.0})
    federation.start()
    run = federation.submit("privacy=dp", "privacy.epsilon=8", "privacy.rate=0.3")
    federation.wait(run)
    shown = federation.run("ledger", "show", str(federation.site(0) / "ledgers" / "site"), "--json")
    assert run in shown.stdout
    second = federation.submit("privacy=dp", "privacy.epsilon=8", "privacy.rate=0.3")
    refused = federation.wait(second, "failed")
    assert "0 of 3 updates were admitted" in refused["reason"]
    assert refused["reason"].count("more than the data's owner lets all runs together spend") == 3
