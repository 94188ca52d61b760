"""`fedlora ls`."""

import json

import pytest

from fedlora.cli.__main__ import run
from fedlora.config.keys import keys
from fedlora.data.catalog import datasets, models
from fedlora.strategies.registry import strategies

EXPECTED = {
    "strategies": set(strategies()),
    "models": set(models()),
    "data": set(datasets()),
    "experiments": {"causal_lm", "image", "private"},
    "keys": set(keys()),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_lists_for_people_and_scripts(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {next(iter(row.values())) for row in rows} == EXPECTED[what]

    assert run(["ls", what]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in EXPECTED[what])


def test_strategies_say_whether_they_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    run(["ls", "strategies", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fed_sb"]["exact"] is True
    assert rows["fedavg"]["exact"] is False
    assert "arXiv:2502.15436" in rows["fed_sb"]["paper"]
