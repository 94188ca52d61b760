"""A run that turns slow or stalls is told of in the server's log, once for each turn."""

import logging
import time
from dataclasses import dataclass, field, replace

import pytest

from fedlora.errors import StoreError
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.views.model import RunRow
from fedlora.server.watch import StallWatch, watching
from tests.server.views.making import committed, configured, quiet_views, row


@dataclass
class Shown:
    """Views whose rows tests set."""

    rows: list[RunRow] = field(default_factory=list)
    looks: int = 0

    def running(self) -> list[RunRow]:
        self.looks += 1
        if self.looks == 1 and not self.rows:
            raise StoreError("the database is away")
        return self.rows


@pytest.fixture
def plain(store: RunStore) -> RunRow:
    run: RunInfo = committed(store, store.create(configured(), name="n"), [[row(0)]])
    return quiet_views(store).run_row(store.finish(run, RunStatus.STOPPED).id)


def test_each_turn_for_the_worse_and_the_recovery_once(plain: RunRow, caplog: pytest.LogCaptureFixture) -> None:
    told = []
    views = Shown()
    watch = StallWatch(views)  # type: ignore[arg-type]
    for health in ("ok", "slow", "slow", "stalled", "stalled", "slow", "ok", "ok", "slow"):
        reason = f"Round 2 is {health}: waiting for south\nforged line"
        views.rows = [replace(plain, status="running", health=health, health_reason=reason)]
        caplog.clear()
        watch.look()
        told.append([record.message for record in caplog.records])
    slow = f"run {plain.id} is slow. Round 2 is slow: waiting for south forged line"
    assert told == [
        [],
        [slow],
        [],
        [slow.replace("slow", "stalled")],
        [],
        [],
        [f"run {plain.id} goes on: round 1 of 5 is committed"],
        [],
        [slow],
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_run_that_ended_is_forgotten(plain: RunRow, caplog: pytest.LogCaptureFixture) -> None:
    views = Shown([replace(plain, status="running", health="stalled", health_reason="x")])
    watch = StallWatch(views)  # type: ignore[arg-type]
    watch.look()
    views.rows = []
    watch.look()
    assert len(caplog.records) == 1
    views.rows = [replace(plain, status="running", health="ok")]
    watch.look()
    assert len(caplog.records) == 1


def test_what_waits_for_the_queue_is_not_told_of(plain: RunRow, caplog: pytest.LogCaptureFixture) -> None:
    watch = StallWatch(Shown([replace(plain, status="interrupted", health="stalled")]))  # type: ignore[arg-type]
    watch.look()
    assert caplog.records == []


def test_the_thread_goes_on_after_an_error_and_ends_with_the_block(caplog: pytest.LogCaptureFixture) -> None:
    views = Shown()
    with watching(views, every=0.01):  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while views.looks < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
    looks = views.looks
    time.sleep(0.05)
    assert views.looks == looks
    assert caplog.text.count("the database is away") == 1
