"""Commands say which run is slow or stalled, and why."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer
from typer.testing import CliRunner

from fedlora.cli import runs
from fedlora.cli.health import alarm, alarm_of
from fedlora.server.operator.api import plain_run
from fedlora.server.operator.client import info_of
from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.store import RunStore
from fedlora.server.views import Views
from tests.server.samples import config


def stalled(store: RunStore) -> RunInfo:
    """A run whose rounds took 2 s, and whose last commit is two minutes old."""
    run = store.create(config(), name="n")
    for number in range(2):
        then = datetime.now(UTC) - timedelta(seconds=122 - 2 * number)
        store.commit_round(run, RoundRecord(number, {}, (), seconds=2.0, committed_at=then))
    return store.get(run.id)


def ask(store: RunStore, *arguments: str) -> str:
    app = typer.Typer()
    runs.register(app)
    app.command()(lambda: None)
    result = CliRunner().invoke(app, ["runs", *arguments, "--store", str(store.folder)])
    assert result.exit_code == 0, result.exception
    return result.stdout


def since(run: RunInfo) -> None:
    """Its process took it up long ago."""
    path = run.folder / ".holder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"since": "2020-01-01T00:00:00+00:00"}))


def test_ls_and_show_say_that_a_run_has_stalled(tmp_path: Path) -> None:
    with RunStore.open(tmp_path) as store:
        run = stalled(store)
        with store.lock(run):
            since(run)
            expected = f"{run.id}: Round 2 has taken 2 min 0 s, about 2 s is usual: its clients are simulated"
            assert expected in ask(store, "ls")
            assert expected in ask(store, "show", "n")
            (row,) = json.loads(ask(store, "ls", "--json"))
            assert (row["status"], row["health"]) == ("running", "stalled")
            assert row["health_reason"].startswith("Round 2 has taken")


def test_a_server_lists_how_its_runs_fare(tmp_path: Path) -> None:
    with RunStore.open(tmp_path) as store:
        run = stalled(store)
        with store.lock(run):
            since(run)
            found = plain_run(run, Views(store, work=None).run_row(run.id))
    assert found["health"] == "stalled"
    assert json.loads(json.dumps(found)) == found
    assert info_of(found).id == run.id
    (line,) = alarm_of(found)
    assert line.plain.startswith(f"{run.id}: Round 2 has taken")
    (line,) = alarm_of(found, "  health     ")
    assert line.plain.startswith("  health     stalled: Round 2")


def test_what_is_well_has_no_line() -> None:
    assert [list(alarm("n", health, "why")) for health in ("ok", "waiting", "")] == [[], [], []]
    assert list(alarm_of({"id": "n"})) == []  # of an older server


def test_names_in_the_reason_cannot_drive_the_terminal() -> None:
    (line,) = alarm("n", "stalled", "waiting for \x1b]0;owned\x07[bold]x[/bold]\nnext")
    assert line.plain == "n: waiting for �]0;owned�[bold]x[/bold]�next"
