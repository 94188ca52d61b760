"""Help: complete, and for the first page nothing heavy is loaded."""

import subprocess
import sys

import pytest

import fedlora
from fedlora.cli.__main__ import run
from fedlora.config.groups import shipped
from fedlora.strategies.registry import strategies

HEAVY = ("torch", "transformers", "peft", "datasets", "flwr", "hydra", "omegaconf", "matplotlib", "sqlalchemy")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ls", "--help"], ["validate", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from fedlora.cli.__main__ import run; code = run(sys.argv[1:]);"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_first_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("simulate", "validate", "plan", "doctor", "ls", "runs", "export", "merge", "report"):
        assert f"\n  {command} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"fedlora {fedlora.__version__}\n"


def test_the_help_of_simulate_is_its_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    for group in ("model", "task", "data", "data/partition", "strategy", "experiment"):
        assert f"\n  {group} " in text
    for option in [path.rsplit("/", 1)[1] for path in shipped()] + list(strategies()):
        assert option in text
    for word in ("fedavg*", "minilm*", "adapter.r ", "learning rate in round 1", "--multirun", "--config-dir", "--cfg"):
        assert word in text


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Usage: fedlora" in capsys.readouterr().err
