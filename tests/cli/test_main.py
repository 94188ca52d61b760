"""Every error becomes a message and its exit code; a traceback only ever goes to a file."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from fedlora.cli import app
from fedlora.cli.__main__ import main, run
from fedlora.cli.output import emit_json
from fedlora.errors import (
    AssetError,
    ConfigError,
    DataError,
    ExitCode,
    FedloraError,
    ModelError,
    RunError,
    StoreError,
    StrategyError,
    UnknownRunError,
)


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    def register(made: typer.Typer) -> None:
        made.command("fail")(fail)

    monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, SimpleNamespace(register=register)))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["a", "b"]), ExitCode.CONFIG),
        (DataError("no [rows]"), ExitCode.DATA),
        (ModelError("no [rows]"), ExitCode.MODEL),
        (AssetError("no [rows]"), ExitCode.ASSET),
        (StrategyError("no [rows]"), ExitCode.STRATEGY),
        (StoreError("no [rows]"), ExitCode.STORE),
        (UnknownRunError("no [rows]"), ExitCode.UNKNOWN_RUN),
        (RunError("no [rows]"), ExitCode.RUN_FAILED),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    ],
)
def test_an_error_gives_its_code(
    error: FedloraError, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that_raises(monkeypatch, error)
    assert run(["fail"]) == code
    told = capsys.readouterr()
    assert str(error) in told.err  # brackets are no markup
    assert told.out == ""
    assert "Traceback" not in told.err


def test_an_error_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command_that_raises(monkeypatch, ConfigError(["a", "b"]))
    assert run(["fail", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    assert (told["type"], told["exit_code"], told["problems"]) == ("ConfigError", 2, ["a", "b"])


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_unexpected_error_leaves_a_crash_log(
    as_json: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    command_that_raises(monkeypatch, ZeroDivisionError("by [zero]"))
    assert run(["fail", *as_json]) == ExitCode.INTERNAL
    told = capsys.readouterr()
    assert "ZeroDivisionError: by [zero]" in told.err + told.out
    assert "Traceback" not in told.err + told.out
    (log,) = tmp_path.rglob("crash-*.log")
    assert str(log) in told.err + told.out
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


def test_a_crash_log_goes_elsewhere_where_the_folder_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command_that_raises(monkeypatch, ZeroDivisionError("x"))
    assert run(["fail"]) == ExitCode.INTERNAL
    (log,) = tmp_path.rglob("crash-*.log")
    assert str(log) in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["nope"], ["validate", "--nope"], ["simulate", "--jobs", "0"]])
def test_a_misused_command_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(wrong) == ExitCode.CONFIG
    assert "Error: " in capsys.readouterr().err


def test_a_misused_command_line_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--nope", "--json"]) == ExitCode.CONFIG
    assert "--nope" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_main_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fedlora", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"loss": float("nan"), "rows": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [None, 1.5]}
