"""`fedlora client`, as a data owner would call it."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fedlora.cli.__main__ import run
from fedlora.cli.client_daemon import _print_dry_run
from fedlora.client.controls import Status, note_waiting, paused, write_status
from fedlora.client.dry_run import Shown
from fedlora.client.home import SiteHome, locked, note_joined
from fedlora.client.sent import SentRecord
from fedlora.errors import ExitCode

RUN = "20310501-120000-fedavg-1a2b"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDLORA_SITE", raising=False)
    assert run(["client", "init"]) == 0
    return SiteHome.open(Path("site"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run(["client", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(["client", *arguments]) == 0
    return capsys.readouterr().out


def allow(home: SiteHome) -> None:
    (home.folder / "notes.csv").write_text("report,code\nx,y\n")
    data = {"source": "local", "path": "notes.csv", "columns": {"text": "report", "label": "code"}}
    policy = {"data": {"notes": data}, "models": {"minilm": {"source": "asset"}}, "privacy": {"epsilon_run": 3}}
    home.policy.write_text(yaml.safe_dump(policy))


def test_init_makes_a_home_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(capsys, "init", "clinic")
    assert "fedlora client policy --home clinic" in text
    assert SiteHome.open(tmp_path / "clinic")
    assert run(["client", "init", "clinic"]) == ExitCode.STORE
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "pause", "resume", "waiting", "sent", "policy"])
def test_a_home_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "nowhere")
    assert run(["client", command, "--home", place]) == ExitCode.STORE
    assert f"fedlora client init {place}" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_the_environment_names_the_home(
    home: SiteHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SiteHome.create(tmp_path / "other")
    monkeypatch.setenv("FEDLORA_SITE", str(other.folder))
    said(capsys, "pause")
    assert (paused(home), paused(other)) == (None, "paused by the owner")
    said(capsys, "pause", "--home", "site", "--reason", "x")
    assert paused(home) == "x"


def test_pause_and_resume(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert "paused: backup until noon" in said(capsys, "pause", "--reason", "backup until noon")
    assert told(capsys, "status")["paused"] == "backup until noon"
    assert "resumed" in said(capsys, "resume")
    assert told(capsys, "status")["paused"] is None
    assert "there was no pause" in said(capsys, "resume")


def test_approving_a_run_that_waits(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run waits" in said(capsys, "waiting")
    note_waiting(home, RUN, {"task": "causal_lm", "epsilon": 2.5, "evil": "\x1b[31mred [bold]"})
    text = said(capsys, "waiting")
    for word in (RUN, "causal_lm", "2.5", "red [bold]"):
        assert word in text
    assert "\x1b" not in text
    assert told(capsys, "waiting")[0]["summary"]["task"] == "causal_lm"
    assert told(capsys, "status")["waiting_for_approval"] == [RUN]
    assert run(["client", "approve", "another"]) == ExitCode.UNKNOWN_RUN
    assert f"waiting: {RUN}" in capsys.readouterr().err
    assert "causal_lm" in said(capsys, "approve", RUN)
    assert told(capsys, "waiting") == []


def test_the_status_of_a_daemon_that_runs(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    note_joined(home, "fl.example.org:8443")
    write_status(home, Status(7, "then", "fl.example.org:8443", True, "round 3", "it failed", "now"))
    gone = told(capsys, "status")
    assert (gone["daemon"], gone["connected"], gone["work"], gone["last_error"]) == (None, False, None, "it failed")
    with locked(home):
        found = told(capsys, "status")
        text = said(capsys, "status")
    assert f"process {os.getpid()} on " in found["daemon"]
    assert (found["joined"], found["connected"], found["work"]) == ("fl.example.org:8443", True, "round 3")
    assert (found["within_hours"], found["policy"]) == (True, "no mistakes")
    for word in ("fl.example.org:8443", "round 3", "it failed"):
        assert word in text


def test_the_owner_sees_what_the_server_was_told_and_would_be_told_now(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(home)
    before = {"version": "0", "data": [], "policy": ["models: older"], "device": None}
    write_status(home, Status(7, "then", "fl.example.org:8443", True, "", "", "now", before))
    assert told(capsys, "status")["told"] is None  # no daemon runs
    with locked(home):
        found = told(capsys, "status")
        assert "models: older" in said(capsys, "status")
    assert found["told"] == before
    assert "models: minilm" in found["tells"]["policy"]
    assert found["tells"]["device"] is None
    with home.policy.open("a") as file:
        file.write("\ntells: []\n")
    found = told(capsys, "status")["tells"]
    assert (found["data"], found["policy"], found["device"]) == ([], [], None)
    assert "none of data, policy and device" in said(capsys, "policy")


def test_a_dry_run_shows_what_is_told_too() -> None:
    told = {"version": "0.1.0", "data": [], "policy": ["models: minilm", "tasks: any"], "device": None}
    shown = Shown([], [], {}, {}, 10, "ab" * 32, None, told)
    out = io.StringIO()
    _print_dry_run(shown, Console(file=out, width=60))
    for line in ("version  0.1.0", "data     nothing", "policy   models: minilm; tasks: any", "device   nothing"):
        assert f"told when it connects: {line}" in out.getvalue()


def test_what_keeps_a_site_from_working_is_in_its_status(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.policy.write_text("limits: {memory_mb_free_least: 1.0e+12}")
    assert "memory_mb_free_least" in told(capsys, "status")["lacking"][0]
    home.policy.write_text("hours: 3\nx: 4")
    assert told(capsys, "status")["policy"].startswith("2 mistakes")


def test_the_policy_in_words(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert "data names nothing: every run is declined" in said(capsys, "policy")
    allow(home)
    text = said(capsys, "policy")
    for word in ("has no mistakes", "text from 'report'", "at most ε = 3", "model minilm", "none yet"):
        assert word in text
    found = told(capsys, "policy")
    assert found["notes"] == []
    assert found["policy"]["data"]["notes"]["columns"]["label"] == "code"


def test_the_policys_mistakes(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    allow(home)
    (home.folder / "notes.csv").unlink()
    assert run(["client", "policy"]) == ExitCode.POLICY
    assert "data.notes.path = site/notes.csv: there is no such file" in capsys.readouterr().err
    home.policy.write_text("privcy: {}\nrounds_max: 0\n")
    assert run(["client", "policy"]) == ExitCode.POLICY
    text = capsys.readouterr().err
    assert "has 2 mistakes" in text
    assert "did you mean 'privacy'?" in text


def test_what_left(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 messages left" in said(capsys, "sent")
    record = SentRecord(home)
    facts: dict[str, Any] = {"server": "h:1", "kind": "train", "work": "w", "manifest": "m", "tensors": 4, "run": RUN}
    for number, epsilon in ((1, 1.25), (2, None)):
        record.append(**facts, round_number=number, sha256="ab" * 32, size=2_000_000, epsilon=epsilon)
    text = said(capsys, "sent")
    for word in (RUN, "1.25", "no DP", "2 MB", "abababababab…", "2 messages left, 4 MB in all"):
        assert word in text
    assert [row["epsilon"] for row in told(capsys, "sent")] == [1.25, None]
    assert said(capsys, "sent", "--csv").splitlines()[1].split(",")[1:4] == ["h:1", RUN, "1"]
    assert run(["client", "sent", "--json", "--csv"]) == 2


def test_a_record_that_was_edited_is_not_shown(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.sent.write_text('{"before":"x"}\n')
    assert run(["client", "sent"]) == ExitCode.STORE
    assert "sent.jsonl:1 is no record of a message" in capsys.readouterr().err


def test_a_bundle_for_whoever_helps(home: SiteHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(home)
    assert "policy.yaml" in said(capsys, "bundle", "--out", "help.zip")
    with zipfile.ZipFile(tmp_path / "help.zip") as archive:
        assert b"notes.csv" not in archive.read("policy.yaml")
    assert run(["client", "bundle", "--out", "help.zip"]) == ExitCode.STORE
