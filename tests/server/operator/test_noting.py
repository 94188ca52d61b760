"""What comes through the operator API is in the audit log: who, what, of which run, from where, and how it went."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from fedlora.errors import StoreError
from fedlora.server.dashboard.audit import AuditLog, Entry
from fedlora.server.operator import noting
from fedlora.server.operator.noting import ACTIONS, PREFIX
from tests.server.operator.living import SHORT, Living, living
from tests.server.operator.test_api import RUNS, ended, started


@pytest.fixture
def http(alive: Living) -> Iterator[httpx.Client]:
    with alive.http() as client:
        yield client


def entries(alive: Living) -> list[Entry]:
    """The audit log, oldest first."""
    return list(reversed(AuditLog(alive.store.database).entries()))


def told(alive: Living) -> list[tuple[str, str, str, str]]:
    return [(one.action, one.object, one.outcome, one.reason) for one in entries(alive)]


def test_every_action_is_noted_with_its_run(http: httpx.Client, alive: Living) -> None:
    run_id = started(http)
    assert http.post(f"{RUNS}/{run_id}/stop").status_code == 200
    ended(http, run_id, "stopped")
    assert http.post(f"{RUNS}/{run_id}/resume", json={"rounds": 4}).status_code == 200
    alive.player.free()
    ended(http, run_id)
    assert http.get(f"{RUNS}/{run_id}/adapter").status_code == 200
    run = f"run {run_id}"
    assert told(alive) == [
        ("submit run", run, "done", ""),
        ("stop run", run, "done", ""),
        ("resume run", run, "done", "4 rounds"),
        ("download adapter", run, "done", ""),
    ]
    assert {(one.person, one.role, one.address) for one in entries(alive)} == {("operator.token", "admin", "127.0.0.1")}
    assert alive.token not in str(entries(alive))


def test_a_restart_names_both_runs_and_who_is_left_out(
    http: httpx.Client, alive: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = started(http)
    again = alive.store.create(alive.player.samples.config(), name="again")
    monkeypatch.setattr("fedlora.server.operator.api.restart_without", lambda *given: again)
    answer = http.post(f"{RUNS}/{run_id}/restart", json={"without": ["north", "south"]})
    assert answer.status_code == 201, answer.text
    assert told(alive)[-1] == ("restart run", f"run {run_id}", "done", f"run {again.id}, without north, south")


def test_what_could_not_be_done_is_noted_too(http: httpx.Client, alive: Living) -> None:
    """What was sent is not repeated: somebody could have put a secret into the wrong place."""
    assert http.post(RUNS, json={"overrides": ["train.lr=-1", "password=geheim"]}).status_code == 422
    assert http.post(RUNS, json={"password": "geheim"}).status_code == 422
    assert http.post(f"{RUNS}/nothing/stop").status_code == 404
    run_id = started(http)
    assert http.get(f"{RUNS}/{run_id}/adapter").status_code == 409
    found = told(alive)
    assert [one[:3] for one in found] == [
        ("submit run", "", "failed"),
        ("submit run", "", "failed"),
        ("stop run", "run nothing", "failed"),
        ("submit run", f"run {run_id}", "done"),
        ("download adapter", f"run {run_id}", "failed"),
    ]
    assert found[0][3] == "what was sent has 2 mistakes"
    assert "no run 'nothing'" in found[2][3]
    assert "has no adapter" in found[4][3]
    assert "geheim" not in str(found)


def test_a_bug_is_noted_by_its_name_alone(
    http: httpx.Client, alive: Living, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any) -> None:
        raise ZeroDivisionError("geheim")

    monkeypatch.setattr(alive.queue, "stop", fails)
    assert http.post(f"{RUNS}/some-run/stop").status_code == 500
    assert told(alive) == [("stop run", "run some-run", "failed", "ZeroDivisionError")]
    assert "ZeroDivisionError" in caplog.text


def test_looking_is_not_noted(http: httpx.Client, alive: Living) -> None:
    for path in ("health", "runs", "clients", "nothing"):
        http.get(f"{PREFIX}/{path}")
    http.delete(RUNS)
    assert told(alive) == []


def test_an_entry_that_cannot_be_written_stops_nobody(
    http: httpx.Client, alive: Living, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(AuditLog, "write", fails)
    run_id = started(http)
    assert "the audit log lacks an entry (the disk is full)" in caplog.text
    assert run_id in caplog.text


def test_wrong_tokens_are_noted_within_the_limit(alive: Living) -> None:
    with alive.http("y" * 43) as stranger:
        for _ in range(13):
            stranger.get(RUNS)
        stranger.post(f"{RUNS}/some-run/stop")
    refused = ("use the operator's API", f"GET {RUNS}", "refused", "401: the operator's token is missing or wrong")
    assert told(alive) == [refused] * 10
    assert {(one.person, one.role, one.address) for one in entries(alive)} == {("", "", "127.0.0.1")}
    assert "yyyy" not in str(entries(alive))


def test_no_token_is_noted_where_something_was_to_change(alive: Living) -> None:
    with alive.http("") as stranger:
        stranger.get(RUNS)
        stranger.post(RUNS, json={"overrides": SHORT})
    assert [one[:3] for one in told(alive)] == [("use the operator's API", f"POST {RUNS}", "refused")]


def test_all_addresses_together_fill_no_disk(alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "address_of", lambda scope: "203.0.113.7")
    monkeypatch.setattr("fedlora.server.operator.guard.address_of", lambda scope: str(id(scope)))
    with alive.http("y" * 43) as stranger:
        codes = {stranger.get(RUNS).status_code for _ in range(105)}
    assert codes == {401}
    assert len(told(alive)) == 100


def test_every_route_that_changes_something_is_an_action(tmp_path: Path, authority: Path) -> None:
    with living(tmp_path / "home", authority, drive=False) as alive:
        routes = [route for route in alive.server._app.routes if isinstance(route, Route)]
    changing = {(method, route.path) for route in routes for method in route.methods or () if method != "GET"}
    assert changing == {(method, PREFIX + path) for method, path in ACTIONS if method != "GET"}
