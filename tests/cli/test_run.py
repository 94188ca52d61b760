"""`fedlora run` against a whole server: over TLS, with a driver that plays rounds."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from fedlora.cli.__main__ import run
from fedlora.cli.run_printing import clients_table
from fedlora.errors import ExitCode, LinkError
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunStatus
from tests.server.operator.living import SHORT, Living, living, make_authority

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "ca"
    make_authority(folder)
    return folder


@pytest.fixture
def alive(tmp_path: Path, authority: Path) -> Iterator[Living]:
    with living(tmp_path / "home", authority) as found:
        yield found


@pytest.fixture
def ask(alive: Living, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs `fedlora run …` with the server's home; the exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["run", *arguments, "--home", str(alive.home)])
        told = capsys.readouterr()
        return int(code), told.out, told.err

    return call


def read(answer: tuple[int, str, str], code: int = 0) -> Any:
    assert answer[0] == code, answer
    return json.loads(answer[1])


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)


def test_starting_and_listing(ask: Ask, alive: Living) -> None:
    assert ask("ls")[1] == "the server has no runs yet: `fedlora run start` makes one\n"
    assert read(ask("ls", "--json")) == []
    code, out, _ = ask("start", *SHORT, "name=first", "strategy=fed_sb")
    (found,) = alive.store.list()
    assert (code, out) == (0, f"run {found.id} (first) is queued\n")
    assert read(ask("start", *SHORT, "--json"))["status"] == "queued"
    lines = ask("ls")[1].splitlines()
    assert len(lines) == 3
    assert lines[2].split()[:3] == [found.id, "first", "fed_sb"]
    assert [row["name"] for row in read(ask("ls", "--json"))] == ["fedavg-trec", "first"]


def test_the_same_key_starts_one_run(ask: Ask, alive: Living) -> None:
    first = read(ask("start", *SHORT, "--key", "night 1", "--json"))
    assert read(ask("start", *SHORT, "--key", "night 1", "--json"))["id"] == first["id"]
    assert read(ask("start", *SHORT, "--json"))["id"] != first["id"]
    assert len(alive.store.list()) == 2


def test_a_file_is_read_here(ask: Ask, alive: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words may look things up; the server gets what they say."""
    monkeypatch.setenv("SEED", "41")
    (tmp_path / "mine.yaml").write_text("seed: ${oc.decode:${oc.env:SEED}}\nstrategy: fed_sb\nname: a\n")
    assert ask("start", "name=b", "--config", str(tmp_path / "mine.yaml"))[0] == 0
    (found,) = alive.store.list()
    assert (found.seed, found.strategy, found.name) == (41, "fed_sb", "b")
    (tmp_path / "mine.yaml").write_text("store: elsewhere\n")
    code, _, err = ask("start", "--config", str(tmp_path / "mine.yaml"))
    assert code == ExitCode.CONFIG
    assert "store: where results go" in err


def test_all_mistakes_are_told(ask: Ask) -> None:
    error = read(ask("start", "train.lr=-1", "stor=/x", "output=/y", "--json"), ExitCode.CONFIG)["error"]
    assert len(error["problems"]) == 3
    assert error["type"] == "ConfigError"


def test_watching_a_run(ask: Ask, alive: Living) -> None:
    alive.player.free()
    code, out, _ = ask("start", *SHORT, "--watch")
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines() if re.match(r" +\d+/3 ", line)]
    assert rows == ["0/3", "1/3", "2/3", "3/3"]
    assert "finished" in out
    assert "3 of 3 committed" in out
    code, out, err = ask("watch", "latest", "--json")
    assert code == 0
    assert json.loads(out)["run"]["status"] == "finished"
    assert "3/3" in err


def test_watching_ends_as_the_run_does(ask: Ask, alive: Living) -> None:
    alive.player.fail_at = 1
    alive.player.free()
    code, out, _ = ask("start", *SHORT, "--watch")
    assert code == ExitCode.RUN_FAILED
    assert "only 0 of 2 clients reported" in out


def test_watching_a_run_that_is_stopped_meanwhile(ask: Ask, alive: Living) -> None:
    alive.player.free(2)

    def stop() -> None:
        until(lambda: any(found.rounds_done == 1 for found in alive.store.list()))
        alive.queue.stop(alive.store.list()[0].id)

    threading.Thread(target=stop).start()
    code, out, _ = ask("start", *SHORT, "--watch", "--json")
    assert code == ExitCode.INTERRUPTED
    assert json.loads(out)["run"]["reason"] == "stopped on request after round 1"


def test_watching_says_when_the_connection_is_lost(ask: Ask, alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(client: object, run_id: str, listener: object, lost: Callable[[LinkError], None]) -> ExitCode:
        lost(LinkError("the connection has [broken] off"))
        return ExitCode.OK

    monkeypatch.setattr("fedlora.server.operator.watch.follow", breaks)
    ask("start", *SHORT)
    assert "the connection has [broken] off" in ask("watch", "latest")[1]


def test_stop_and_resume(ask: Ask, alive: Living) -> None:
    alive.player.free(2)
    ask("start", *SHORT, "name=a")
    ask("start", *SHORT, "name=b")
    until(lambda: alive.store.find("a").rounds_done == 1)
    assert ask("stop", "b")[1].endswith(" is stopped\n")
    assert "stops after its round" in ask("stop", "a")[1]
    assert "stopp" in ask("ls")[1]
    until(lambda: alive.store.find("a").status is RunStatus.STOPPED)
    alive.player.free()
    assert "is queued: it goes on after round 1" in ask("resume", "a", "--rounds", "5")[1]
    until(lambda: alive.store.find("a").status is RunStatus.FINISHED)
    assert alive.store.find("a").rounds_done == 5
    code, _, err = ask("resume", "a")
    assert (code, "is finished: all 5 rounds are done" in err) == (ExitCode.RUN_FAILED, True)


def test_show(ask: Ask, alive: Living) -> None:
    alive.player.free()
    ask("start", *SHORT, "name=a")
    until(lambda: alive.store.find("a").status is RunStatus.FINISHED)
    out = ask("show", "a")[1]
    for words in ("finished", "3 of 3 committed", "test_accuracy 0.75", "validation_accuracy", "0.52", "1/2"):
        assert words in out
    refused = [line.split()[:3] for line in out.splitlines() if "its norm 1e9 is over the bound 10" in line]
    assert refused == [["1", "1", "rejected"], ["2", "1", "rejected"], ["3", "1", "rejected"]]
    shown = read(ask("show", "a", "--json"))
    assert shown["rounds"][3]["roster"][1]["reason"] == "its norm 1e9 is over the bound 10"
    assert shown["config"]["name"] == "a"


def test_text_from_clients_cannot_drive_the_terminal(ask: Ask, alive: Living) -> None:
    found = alive.store.create(alive.player.samples.config(), name="[red]n[/red]", status=RunStatus.QUEUED)
    row = RosterRow(1, Outcome.DECLINED, reason="\x1b]0;owned\x07[bold]no[/bold]")
    alive.store.commit_round(found, RoundRecord(0, {}, (row,)))
    for out in (ask("show", found.id)[1], ask("ls")[1], ask("stop", found.id)[1]):
        assert "\x1b" not in out
        assert "\x07" not in out
    assert "[bold]no[/bold]" in ask("show", found.id)[1]


def test_download(ask: Ask, alive: Living, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ask("start", *SHORT, "name=a")
    code, _, err = ask("download", "a")
    assert (code, "has no adapter" in err) == (ExitCode.RUN_FAILED, True)
    alive.player.free()
    until(lambda: alive.store.find("a").status is RunStatus.FINISHED)
    until(lambda: alive.store.holder(alive.store.find("a")) is None)
    found = alive.store.find("a")
    assert ask("download", "a")[1] == f"Wrote the adapter to {found.id}-adapter\n"
    told = read(ask("download", "a", "--out", "x/y", "--json"))
    assert told["folder"] == str(tmp_path / "x" / "y")
    for folder in (Path(f"{found.id}-adapter"), Path("x/y")):
        assert (folder / "adapter_model.safetensors").read_bytes() == b"weights" * 100_000
        assert (folder / "adapter_config.json").read_text() == "{}"
    code, _, err = ask("download", "a", "--out", "x/y")
    assert (code, "is there already" in err) == (ExitCode.STORE, True)


def test_clients(ask: Ask) -> None:
    assert [line.split() for line in ask("clients")[1].splitlines()] == [["name", "connected"], ["north", "True"]]
    assert read(ask("clients", "--json")) == [{"name": "north", "connected": True}]


def test_the_table_of_clients_has_the_device_and_leaves_the_long_policy_to_json() -> None:
    table = clients_table([{"name": "north", "device": "2 CPU cores", "policy": ["tasks: any"]}])
    assert [column.header.plain for column in table.columns if isinstance(column.header, Text)] == ["name", "device"]


def test_by_environment(alive: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_TOKEN", alive.token)
    monkeypatch.setenv("FEDLORA_CA", str(alive.home / "ca" / "ca.crt"))
    assert run(["run", "ls", "--json", "--server", alive.server.url]) == 0
    monkeypatch.setenv("FEDLORA_SERVER", alive.server.url)
    assert run(["run", "ls", "--json"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("FEDLORA_TOKEN", "x" * 43)
    assert run(["run", "ls", "--json"]) == ExitCode.IDENTITY
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["exit_code"]) == ("IdentityError", ExitCode.IDENTITY)
    assert "does not take the token" in error["message"]


def test_a_server_that_is_not_there(alive: Living, ask: Ask) -> None:
    alive.server.stop()
    code, _, err = ask("ls")
    assert code == ExitCode.LINK
    assert "cannot reach the server at https://127.0.0.1:" in err
    assert "is `fedlora server run` up there" in err


def test_no_server_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEDLORA_SERVER", "FEDLORA_TOKEN", "FEDLORA_CA"):
        monkeypatch.delenv(name, raising=False)
    assert run(["run", "ls"]) == ExitCode.LINK
    assert "no server is named: give --home" in capsys.readouterr().err


def test_an_unknown_run(ask: Ask) -> None:
    code, _, err = ask("show", "nothing")
    assert (code, "`fedlora run ls` lists them" in err) == (ExitCode.UNKNOWN_RUN, True)
