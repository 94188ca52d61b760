"""`fedlora ledger`, as a data owner would call it."""

import json
from pathlib import Path

import pytest

from fedlora.cli.__main__ import run
from fedlora.privacy.accounting import Release
from fedlora.privacy.ledger import Schedule, open_ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ledger"
    asked = ["ledger", "create", str(place), "--data", "patients", "--epsilon", "10", "--month-epsilon", "6"]
    assert run(asked) == 0
    with open_ledger(place) as ledger:
        ledger.reserve(Schedule("trial-7", "hospital", (Release(2.0, 0.1, 10),), 3))
        ledger.begin("trial-7", 1)
    return place


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run(["ledger", "show", str(folder), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_what_is_spent_and_by_whom(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(folder, capsys)
    assert (found["data"], found["epsilon"], found["month_epsilon"], found["run_epsilon"]) == ("patients", 10, 6, None)
    (entry,) = found["runs"]  # type: ignore[misc]
    assert (entry["run"], entry["server"], entry["rounds"], entry["rounds_announced"]) == ("trial-7", "hospital", 1, 3)
    assert entry["open"]
    assert 0 < found["spent"] == entry["epsilon"] == found["spent_this_month"] < 6  # type: ignore[operator]
    assert run(["ledger", "show", str(folder)]) == 0
    text = capsys.readouterr().out
    for said in ("patients", "all hashes right", "trial-7", "hospital", "no limit", "open"):
        assert said in text


def test_the_owner_changes_limits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "limits", str(folder), "--epsilon", "8", "--run-epsilon", "7"]) == 0
    found = told(folder, capsys)
    assert (found["epsilon"], found["run_epsilon"], found["month_epsilon"]) == (8, 7, None)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (["show", "nowhere"], "no ledger"),
        (["create", "{folder}", "--data", "x", "--epsilon", "3"], "exists already"),
        (["create", "new", "--data", "x", "--epsilon", "-3"], "need > 0"),
        (["limits", "{folder}", "--epsilon", "0.001"], "cannot be kept"),
    ],
)
def test_mistakes_are_named_and_nothing_is_lost(
    folder: Path, tmp_path: Path, asked: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "journal.jsonl").read_bytes()
    asked = [str(tmp_path / "new") if word == "new" else word.replace("{folder}", str(folder)) for word in asked]
    assert run(["ledger", *asked]) == 14
    assert text in capsys.readouterr().err
    assert (folder / "journal.jsonl").read_bytes() == before
