"""What a server forgets by itself: rosters and events, each after its own time."""

import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa

from fedlora.cli.__main__ import run as fedlora
from fedlora.errors import StoreError
from fedlora.identity.home import make_home, open_store
from fedlora.server import retention
from fedlora.server.events import FILE, RoundCommitted, read_events
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.retention import expire_events, forget, forgetting
from fedlora.server.scrub import EXPIRED
from fedlora.server.settings import ServerSettings
from fedlora.server.store import RunStore, tables
from tests.server.traces import LOSS, REFUSED, Small, found_in, is_blank, loads, small_run


@pytest.fixture
def small(store: RunStore, samples: ModuleType) -> Small:
    return partial(small_run, store, samples)


def ended(store: RunStore, info: RunInfo, days: float) -> RunInfo:
    when = datetime.now(UTC) - timedelta(days=days)
    with store.database.writes() as connection:
        connection.execute(sa.update(tables.runs).filter_by(id=info.id).values(finished_at=when))
    return info


def kinds(info: RunInfo) -> set[type]:
    return {type(event) for event in read_events(info.folder / FILE)}


def is_gone(store: RunStore, info: RunInfo) -> bool:
    """Whether its rosters are."""
    return all(is_blank(row, EXPIRED) for record in store.history(info).rounds for row in record.roster)


def test_each_has_its_own_time(store: RunStore, small: Small) -> None:
    old, middle, young, running = small(), small(), small(), small(status=RunStatus.RUNNING)
    for info, days in ((old, 91), (middle, 31), (young, 29)):
        ended(store, info, days)
    before = {info.id: store.history(info).rounds for info in (middle, young, running)}
    assert forget(store, ServerSettings(keep_rosters_days=90, keep_events_days=30)) == [old.id]
    assert is_gone(store, old)
    assert found_in(old.folder, {LOSS, REFUSED}) == set()
    assert {info.id: store.history(info).rounds for info in (middle, young, running)} == before
    assert kinds(old) == kinds(middle) == {RoundCommitted}
    assert {path.parent.name for path in found_in(middle.folder, {LOSS, REFUSED})} == {"round-0001", "round-0002"}
    assert len(kinds(young)) == len(kinds(running)) == 3
    assert loads(middle.folder) == [0, 1, 2]


def test_events_alone_and_again(store: RunStore, small: Small) -> None:
    info = ended(store, small(), 1)
    size = (info.folder / FILE).stat().st_size
    assert forget(store, ServerSettings(keep_events_days=0)) == ()
    once = (info.folder / FILE).read_bytes()
    assert (kinds(info), len(once)) == ({RoundCommitted}, size)  # readers count lines and bytes
    forget(store, ServerSettings(keep_events_days=0))
    assert (info.folder / FILE).read_bytes() == once
    assert not is_gone(store, info)


def test_without_times_nothing_goes(store: RunStore, small: Small) -> None:
    info = ended(store, small(), 9999)
    before = threading.active_count()
    for_ever = ServerSettings(keep_audit_days=None)
    assert forget(store, for_ever) == ()
    with forgetting(store, for_ever):
        assert threading.active_count() == before
    assert (len(kinds(info)), is_gone(store, info)) == (3, False)


def test_one_that_fails_does_not_keep_the_others(store: RunStore, small: Small) -> None:
    bad, good = ended(store, small(), 1), ended(store, small(), 1)
    (bad.folder / "erased.json").write_text("what?")
    with pytest.raises(StoreError, match=f"not all events could be deleted: run {bad.id}: .*erased.json"):
        expire_events(store, days=0)
    assert kinds(good) == {RoundCommitted}
    with pytest.raises(StoreError):
        forget(store, ServerSettings(keep_rosters_days=0, keep_events_days=0))
    assert is_gone(store, good)


def until(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_daemon_forgets_at_its_start_and_every_day(
    store: RunStore, small: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = ended(store, small(), 8), small()
    monkeypatch.setattr(retention, "_DAY", 0.05)
    caplog.set_level("INFO")
    with forgetting(store, ServerSettings(keep_rosters_days=7)):
        until(lambda: is_gone(store, first))
        assert not is_gone(store, second)
        ended(store, second, 8)
        until(lambda: is_gone(store, second))
    assert f"retention time is over: {first.id}" in caplog.text
    assert [thread.name for thread in threading.enumerate() if thread.name == "retention"] == []


def test_a_daemon_tries_again_what_failed(
    store: RunStore, small: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = ended(store, small(), 8)
    note = info.folder / "erased.json"
    note.write_text("what?")
    monkeypatch.setattr(retention, "_AGAIN", 0.05)
    with forgetting(store, ServerSettings(keep_rosters_days=7)):
        until(lambda: "trying again in an hour" in caplog.text)
        note.unlink()
        until(lambda: is_gone(store, info))


def test_the_end_does_not_wait_for_a_day(store: RunStore) -> None:
    began = time.monotonic()
    with forgetting(store, ServerSettings(keep_rosters_days=7)):
        pass
    assert time.monotonic() - began < 5


def test_by_hand(tmp_path: Path, samples: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    make_home(home, "tests", ["localhost"])
    with open_store(home) as store:
        old, young = ended(store, small_run(store, samples), 31), ended(store, small_run(store, samples), 29)
    assert fedlora(["server", "expire", "--home", str(home), "--days", "30"]) == 0
    assert f"deleted from 1 runs: {old.id}\n" in capsys.readouterr().out
    with open_store(home) as store:
        assert (is_gone(store, old), is_gone(store, young)) == (True, False)
    assert fedlora(["server", "expire", "--home", str(home), "--days", "30"]) == 0
    assert "deleted from 0 runs\n" in capsys.readouterr().out
    assert fedlora(["server", "expire", "--home", str(home), "--days", "-1"]) == 2
    assert fedlora(["server", "expire", "--home", str(tmp_path), "--days", "1"]) == 50
