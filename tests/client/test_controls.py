"""Pauses, approvals and the daemon's word, as files."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client.controls import (
    MOST_REASON,
    MOST_WAITING,
    Status,
    approve,
    approved,
    forget_waiting,
    note_waiting,
    pause,
    paused,
    read_status,
    resume,
    waiting,
    write_status,
)
from fedlora.client.home import SiteHome
from fedlora.errors import PrivacyError, StoreError, UnknownRunError

SUMMARY = {"task": "text_classification", "epsilon": 3.0, "rounds": 20, "labels": ("a", "b")}
STATUS = Status(
    pid=7,
    since="2031-05-01T10:00:00+00:00",
    server="fl.example.org:8443",
    connected=True,
    work="",
    last_error="",
    updated_at="2031-05-01T10:00:05+00:00",
)


def test_a_pause_has_a_reason_and_an_end(home: SiteHome) -> None:
    assert paused(home) is None
    assert not resume(home)
    pause(home, "backup until noon")
    assert paused(home) == "backup until noon"
    pause(home)
    assert paused(home) == "paused by the owner"
    assert resume(home)
    assert paused(home) is None


@given(st.text(max_size=2 * MOST_REASON))
def test_a_reason_is_one_short_line(tmp_path_factory: pytest.TempPathFactory, reason: str) -> None:
    home = SiteHome(tmp_path_factory.getbasetemp() / "paused")
    home.controls.mkdir(parents=True, exist_ok=True)
    pause(home, reason)
    found = paused(home)
    assert found
    assert found.isprintable()
    assert len(found) <= MOST_REASON


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"', "\x00"])
def test_a_pause_that_cannot_be_read_is_a_pause(home: SiteHome, content: str) -> None:
    (home.controls / "paused.json").write_text(content)
    assert paused(home)


def test_a_run_waits_is_approved_and_stays_so(home: SiteHome) -> None:
    assert waiting(home) == []
    assert not approved(home, "run-1")
    note_waiting(home, "run-1", SUMMARY)
    (found,) = waiting(home)
    assert (found.run, found.summary["epsilon"], found.summary["labels"]) == ("run-1", 3.0, ["a", "b"])
    assert not approved(home, "run-1", SUMMARY)
    assert approve(home, "run-1") == found
    assert waiting(home) == []
    assert approved(home, "run-1")
    assert approved(home, "run-1", SUMMARY)
    assert not approved(home, "run-2")


def test_an_approval_is_for_what_was_shown(home: SiteHome) -> None:
    note_waiting(home, "run-1", SUMMARY)
    approve(home, "run-1")
    changed = {**SUMMARY, "rounds": 2000}
    assert not approved(home, "run-1", changed)
    note_waiting(home, "run-1", changed)
    assert not approved(home, "run-1", changed)
    approve(home, "run-1")
    assert approved(home, "run-1", changed)
    assert not approved(home, "run-1", SUMMARY)


def test_only_a_run_that_waits_can_be_approved(home: SiteHome) -> None:
    note_waiting(home, "run-1", SUMMARY)
    for run in ("run-2", "run", "../run-1", ""):
        with pytest.raises(UnknownRunError, match="waiting: run-1"):
            approve(home, run)
    assert not approved(home, "run-2")


def test_what_waits_already_is_not_noted_again(home: SiteHome) -> None:
    note_waiting(home, "run-1", SUMMARY)
    path = home.controls / "waiting" / "run-1.json"
    old = {**json.loads(path.read_text()), "since": "2001-01-01T00:00:00+00:00"}
    path.write_text(json.dumps(old))
    note_waiting(home, "run-1", SUMMARY)
    assert waiting(home)[0].since.startswith("2001")
    note_waiting(home, "run-1", {})
    assert not waiting(home)[0].since.startswith("2001")


def test_a_server_cannot_fill_the_disk_with_runs(home: SiteHome) -> None:
    for number in range(MOST_WAITING + 3):
        note_waiting(home, f"run-{number:04}", {})
    assert [each.run for each in waiting(home)] == [f"run-{number:04}" for number in range(3, MOST_WAITING + 3)]
    with pytest.raises(StoreError, match="at most"):
        note_waiting(home, "large", {"text": "x" * 100_000})
    forget_waiting(home, "run-0003")
    forget_waiting(home, "run-0003")
    assert len(waiting(home)) == MOST_WAITING - 1


@pytest.mark.parametrize("run", ["../x", "a/b", "", "..", "x" * 101, "a\x00", "é"])
def test_an_id_that_would_be_another_file(home: SiteHome, run: str) -> None:
    before = sorted(home.folder.rglob("*"))
    for act in (lambda: note_waiting(home, run, {}), lambda: approved(home, run), lambda: forget_waiting(home, run)):
        with pytest.raises(PrivacyError, match="cannot be the id of a run"):
            act()
    assert sorted(home.folder.rglob("*")) == before


def test_the_daemons_word(home: SiteHome) -> None:
    assert read_status(home) is None
    write_status(home, STATUS)
    assert read_status(home) == STATUS
    for content in ("{", "[]", "{}", '{"pid": 7}'):
        home.status.write_text(content)
        with pytest.raises(StoreError, match="delete it"):
            read_status(home)


def test_only_the_owner_may_read_the_notes(home: SiteHome) -> None:
    pause(home)
    write_status(home, STATUS)
    for run in ("run-1", "run-2"):
        note_waiting(home, run, SUMMARY)
    approve(home, "run-1")
    written = [home.status, *home.controls.rglob("*")]
    assert len(written) == 6
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_an_approval_that_was_damaged_is_not_one(home: SiteHome) -> None:
    note_waiting(home, "run-1", SUMMARY)
    approve(home, "run-1")
    (home.controls / "approved" / "run-1.json").write_text("{}")
    assert not approved(home, "run-1", SUMMARY)
    (home.controls / "approved" / "run-1.json").write_text("{")
    with pytest.raises(StoreError, match="no JSON"):
        approved(home, "run-1", SUMMARY)


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "controls").touch()
    with pytest.raises(StoreError, match="cannot write"):
        pause(SiteHome(tmp_path), "x")
