import importlib.util
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner, Result

from fedlora.cli import runs
from fedlora.errors import StoreError, UnknownRunError
from fedlora.server.checkpoint import commit
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo, RunStatus
from fedlora.server.store import RunStore
from tests.postgres import BOTH
from tests.postgres import postgres as postgres
from tests.postgres import store_url as store_url


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    path = Path(__file__).parents[1] / "server" / "samples.py"
    spec = importlib.util.spec_from_file_location("samples", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def finished(store: RunStore, samples: ModuleType) -> RunInfo:
    run = store.create(samples.config(), name="first", run_id="20260101-000000-fed_sb-aaaa")
    for number in range(3):
        commit(store, run, samples.checkpoint(number))
    return store.finish(run, RunStatus.FINISHED, {"test_accuracy": 0.91234, "test_loss": 0.3})


def ask(store: RunStore | Path, *arguments: str) -> Result:
    app = typer.Typer()
    runs.register(app)

    @app.command()
    def other() -> None:
        """Typer needs a second command to keep `runs` a group."""

    folder = store if isinstance(store, Path) else store.folder
    return CliRunner().invoke(app, ["runs", *arguments, "--store", str(folder)])


def output(result: Result) -> str:
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_ls_shows_each_run_on_a_line(store: RunStore, finished: RunInfo, samples: ModuleType) -> None:
    second = store.create(samples.config(strategy={"name": "fedavg"}), name="second")
    with store.lock(second):
        lines = output(ask(store, "ls")).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:5] == [second.id, "second", "fedavg", "running", "0/5"]
    assert lines[2].split()[:6] == [finished.id, "first", "fed_sb", "finished", "2/5", "0.9123"]
    assert "400 B" in lines[2]
    assert "800 B" in lines[2]


def test_a_run_whose_process_died_is_interrupted(store: RunStore, samples: ModuleType) -> None:
    run = store.create(samples.config(), name="n")
    with store.lock(run):
        assert "interrupted" not in output(ask(store, "ls"))
    text = output(ask(store, "ls"))
    assert f"{run.id}: its process died after round 0; `fedlora simulate --resume {run.id}`" in text
    assert "interrupted" in output(ask(store, "show", "latest"))
    assert json.loads(output(ask(store, "ls", "--json")))[0]["status"] == "interrupted"


def test_ls_json_is_the_record_without_its_configuration(store: RunStore, finished: RunInfo) -> None:
    (row,) = json.loads(output(ask(store, "ls", "--json")))
    assert row["id"] == finished.id
    assert row["summary"] == {"test_accuracy": 0.91234, "test_loss": 0.3}
    assert (row["rounds_done"], row["bytes_up"], row["bytes_down"], row["bytes_once"]) == (2, 400, 800, 14)
    assert row["folder"] == str(finished.folder)
    assert "config" not in row


def test_an_empty_store_says_what_to_do(store: RunStore) -> None:
    assert "fedlora simulate" in output(ask(store, "ls"))
    assert json.loads(output(ask(store, "ls", "--json"))) == []


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    result = ask(tmp_path / "typo", "ls")
    assert isinstance(result.exception, StoreError)
    assert not (tmp_path / "typo").exists()


# A server's database.

VARIABLE = "FEDLORA_DATABASE"


@pytest.fixture
def elsewhere(tmp_path: Path, store_url: str | None, samples: ModuleType) -> tuple[Path, str]:
    """A server's run store whose database is not in its folder, with one run; and the database's URL."""
    url = store_url or f"sqlite:///{tmp_path}/elsewhere.db"
    folder = tmp_path / "server" / "runs"
    folder.mkdir(parents=True)
    with RunStore.open(folder, url=url) as opened:
        opened.create(samples.config(), name="of the server", run_id="20260101-000000-fed_sb-bbbb")
    return folder, url


@BOTH
def test_a_servers_runs_are_read_from_the_database_that_the_environment_names(
    elsewhere: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = elsewhere
    monkeypatch.delenv(VARIABLE, raising=False)
    assert isinstance(ask(folder, "ls").exception, StoreError)
    monkeypatch.setenv(VARIABLE, url)
    assert "of the server" in output(ask(folder, "ls"))
    assert str(folder / "20260101-000000-fed_sb-bbbb") in output(ask(folder, "show", "latest"))


def test_a_servers_runs_are_read_from_the_database_that_its_settings_name(
    elsewhere: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even if one from before it was moved still lies there; the environment wins over the settings."""
    folder, url = elsewhere
    monkeypatch.delenv(VARIABLE, raising=False)
    (folder.parent / "ca").mkdir()
    (folder.parent / "server.yaml").write_text(f"database: {url}\n")
    RunStore.open(folder).close()
    assert "of the server" in output(ask(folder, "ls"))
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path}/third.db")
    assert json.loads(output(ask(folder, "ls", "--json"))) == []


def test_a_simulations_runs_are_its_own_whatever_the_environment_says(
    store: RunStore, finished: RunInfo, elsewhere: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, elsewhere[1])
    assert [row["id"] for row in json.loads(output(ask(store, "ls", "--json")))] == [finished.id]
    result = ask(store.folder.parent / "typo", "ls")
    assert isinstance(result.exception, StoreError)
    assert not (store.folder.parent / "typo").exists()


def test_show_has_rounds_roster_reasons_paths_and_configuration(store: RunStore, finished: RunInfo) -> None:
    text = output(ask(store, "show", "first"))
    lines = text.splitlines()
    for expected in (
        "finished",
        "2 of 5 committed",
        "0.9123",
        "validation_accuracy",
        "0.5200",
        "checkpoints/round-0002",
    ):
        assert expected in text
    refused = [line for line in lines if "its norm 1e9 is over the bound 10" in line]
    assert [line.split()[:3] for line in refused] == [["1", "1", "rejected"], ["2", "1", "rejected"]]
    assert "  federation.clients=3" in lines
    assert "  strategy.name=fed_sb" in lines
    configured = lines[lines.index("Configuration") + 1 :]
    assert configured == sorted(configured)


def test_show_of_a_large_run_is_cut_and_says_so(store: RunStore, samples: ModuleType) -> None:
    run = store.create(samples.config(), name="n")
    late = tuple(RosterRow(client, Outcome.LOST, f"client {client} was late") for client in range(150))
    store.commit_round(run, RoundRecord(0, {}, late))
    text = output(ask(store, "show", "n"))
    assert "Clients (100 of 150; --json has all)" in text
    assert "Who did not count, and why (100 of 150; --json has all)" in text
    assert text.count(" was late") == 100
    assert "client 149 was late" in text
    assert len(json.loads(output(ask(store, "show", "n", "--json")))["rounds"][0]["roster"]) == 150


def test_show_json_holds_everything(store: RunStore, finished: RunInfo, samples: ModuleType) -> None:
    shown = json.loads(output(ask(store, "show", finished.id[:10], "--json")))
    assert shown["run"]["id"] == finished.id
    assert [record["round"] for record in shown["rounds"]] == [0, 1, 2]
    assert shown["rounds"][1]["roster"][1]["reason"] == "its norm 1e9 is over the bound 10"
    assert shown["config"] == json.loads(samples.config().model_dump_json())
    assert Path(shown["paths"]["config"]).is_file()
    assert Path(shown["paths"]["checkpoint"]).is_dir()


def test_show_of_a_diverged_run_is_strict_json(store: RunStore, samples: ModuleType) -> None:
    run = store.create(samples.config(), name="n")
    store.commit_round(run, RoundRecord(0, {"train_loss": float("nan")}, ()))
    store.finish(run, RunStatus.FAILED, {"test_accuracy": float("nan")}, "diverged")
    assert json.loads(output(ask(store, "show", "n", "--json")))["rounds"][0]["metrics"] == {"train_loss": "nan"}
    assert "diverged" in output(ask(store, "show", "n"))


def test_show_of_a_run_without_rounds(store: RunStore, samples: ModuleType) -> None:
    store.create(samples.config(), name="n")
    assert "nothing yet" in output(ask(store, "show", "n"))


def test_an_unknown_run(store: RunStore, finished: RunInfo) -> None:
    result = ask(store, "show", "frist")
    assert isinstance(result.exception, UnknownRunError)
    assert "did you mean 'first'" in str(result.exception)


def test_text_from_clients_cannot_drive_the_terminal(store: RunStore, samples: ModuleType) -> None:
    run = store.create(samples.config(), name="[red]n[/red]")
    row = RosterRow(1, Outcome.DECLINED, reason="\x1b]0;owned\x07[bold]no[/bold]\nnext")
    store.commit_round(run, RoundRecord(0, {}, (row,)))
    text = output(ask(store, "show", "latest"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]no[/bold]�next" in text
    assert "[red]n[/red]" in text


def test_where_nobody_has_run_anything_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(runs.runs_app, ["ls"])
    assert "no runs in runs yet" in output(result)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (2e5, "2 d")])
def test_ages(seconds: float, text: str) -> None:
    assert runs.age_text(timedelta(seconds=seconds)) == text


def test_the_accuracy_of_any_task() -> None:
    assert runs.accuracy_of({"test_loss": 1.0, "test_token_accuracy": 0.5}) == 0.5
    assert runs.accuracy_of({"validation_accuracy": 0.5}) is None
