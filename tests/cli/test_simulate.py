"""The shell around `fedlora simulate`: what it composes, prints and refuses before anything runs."""

import json
from pathlib import Path

import pytest
import yaml

from fedlora.cli.__main__ import run
from fedlora.config.compose import compose
from fedlora.errors import ExitCode


def test_cfg_job_prints_the_composed_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--cfg", "job", "strategy=fed_sb", "seed=3"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert compose([], file=file) == compose(["strategy=fed_sb", "seed=3"])


def test_cfg_job_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "-m", "--cfg", "job", "seed=0,1"]) == 0
    assert [config["seed"] for config in yaml.safe_load_all(capsys.readouterr().out)] == [0, 1]
    assert run(["simulate", "-m", "--cfg", "job", "seed=0,1", "--json"]) == 0
    assert [config["seed"] for config in json.loads(capsys.readouterr().out)] == [0, 1]


def test_a_file_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: fed_sb\nseed: 5\n", encoding="utf-8")
    assert run(["simulate", "--config", str(file), "--cfg", "job", "--json", "seed=6"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["strategy"]["name"], told["seed"]) == ("fed_sb", 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+adapter.r=3"], "to set a key write 'adapter.r=…' without '+'"),
        (["~model"], "keys cannot be deleted"),
        (["seed=0,1"], "add --multirun"),
        (["fast"], "this is no override: write KEY=VALUE"),
        (["--jobs", "2"], "--jobs is for --multirun"),
        (["--resume", "latest", "train.lr=1"], "train.lr with --resume: only federation.rounds"),
        (["--resume", "latest", "--multirun"], "--multirun with --resume"),
        (["--resume", "latest", "federation.rounds=none"], "federation.rounds = 'none': must be a valid integer"),
        (["--multirun", "seed=0,1", "output=x"], "several runs cannot share a folder"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_no_run_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--resume", "nothing", f"store={tmp_path}", "--json"]) == ExitCode.STORE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == ExitCode.STORE
    assert str(tmp_path) in error["message"]
