"""`fedlora validate`, as a user and as a script would call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora.cli.__main__ import run

MISTAKES = "train:\n  lr: fast\nfederation:\n  cohort: 50\n  clinets: 20\n"
OVERRIDES = ["daat/partition=iid", "adapter.r=0"]


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    file = tmp_path / "wrong.yaml"
    file.write_text(MISTAKES, encoding="utf-8")
    return str(file)


def test_five_kinds_of_mistake_in_one_call(wrong: str) -> None:
    command = [sys.executable, "-m", "fedlora.cli", "validate", wrong, *OVERRIDES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "the configuration has 5 mistakes" in done.stderr
    for said in (
        "unknown group 'daat/partition'; did you mean 'data/partition'?",
        "unknown key 'federation.clinets'; did you mean 'federation.clients'?",
        f"{wrong}:2: train.lr = 'fast': must be a valid number",
        "override 'adapter.r=0': adapter.r = 0: must be greater than or equal to 1",
        "federation.cohort = 50 asks more clients",
    ):
        assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_five_kinds_of_mistake_as_json(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", wrong, *OVERRIDES, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert len(told["problems"]) == 5


def test_a_right_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "right.yml"
    file.write_text("strategy: fed_sb\nfederation: {clients: 50}\n", encoding="utf-8")
    assert run(["validate", str(file), "seed=3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("valid: fed_sb (r 64")
    assert "50 clients" in text
    assert "seed 3" in text


def test_a_right_configuration_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "strategy=ffa_lora", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is True
    assert told["configs"][0]["strategy"] == {"name": "ffa_lora"}


def test_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-m", "seed=0,1", "strategy=fedavg,fed_sb"]) == 0
    assert capsys.readouterr().out.count("valid: ") == 4


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "none.yaml"]) == 2
    assert "none.yaml: the file cannot be read" in capsys.readouterr().err


def test_options_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    text = "source: local\nname: mine\npath: x.csv\ntext: t\nlabel: l\n"
    (tmp_path / "data" / "mine.yaml").write_text(text, encoding="utf-8")
    assert run(["validate", "data=mine", "--config-dir", str(tmp_path)]) == 0
    assert "learns mine" in capsys.readouterr().out
