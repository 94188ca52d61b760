"""What a server deletes by itself."""

from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType

import pytest
import sqlalchemy as sa

from fedlora.errors import ConfigError
from fedlora.identity.registry import Registry
from fedlora.server import checkpoint
from fedlora.server.erase import erase_client, expire
from fedlora.server.events import (
    FILE,
    RoundCommitted,
    read_events,
)
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.scrub import ERASED, EXPIRED, erasures
from fedlora.server.store import RunStore, tables
from tests.server.traces import LOSS, REFUSED, Small, found, found_in, is_blank, loads, registry_of, small_run


@pytest.fixture
def small(store: RunStore, samples: ModuleType) -> Small:
    return partial(small_run, store, samples)


@pytest.fixture
def registry(store: RunStore) -> Registry:
    return registry_of(store)


def ended(store: RunStore, info: RunInfo, days: float) -> None:

    with store._database.writes() as connection:
        when = datetime.now(UTC) - timedelta(days=days)
        connection.execute(sa.update(tables.runs).filter_by(id=info.id).values(finished_at=when))


def test_retention(store: RunStore, small: Small) -> None:
    old, young, running = small(), small(), small(status=RunStatus.RUNNING)
    ended(store, old, 31)
    ended(store, young, 29)
    before = [store.history(info).rounds for info in (young, running)]
    assert expire(store, days=30) == [old.id]
    after = store.history(old)
    assert all(is_blank(row, EXPIRED) for record in after.rounds for row in record.roster)
    assert [len(record.roster) for record in after.rounds] == [0, 2, 2]
    assert [store.history(info).rounds for info in (young, running)] == before
    assert {hit[0].partition("/")[0] for hit in found(store.folder, {LOSS, REFUSED})} >= {young.id, running.id}
    assert found_in(old.folder, {LOSS, REFUSED}) == set()
    assert list((old.folder / "incoming").iterdir()) == []
    assert loads(old.folder) == [0, 1, 2]
    kinds = {type(event) for event in read_events(old.folder / FILE)}
    assert kinds == {RoundCommitted}
    assert expire(store, days=30) == []
    assert expire(store, days=0) == [young.id]


def test_retention_and_erasure_may_meet(store: RunStore, small: Small, registry: Registry) -> None:
    info = small()
    erase_client(store, registry, "site-0", leave=False)
    assert expire(store, days=0) == [info.id]
    reasons = {row.client: row.reason for row in store.history(info).rounds[1].roster}
    assert reasons == {0: ERASED, 1: EXPIRED}
    erase_client(store, registry, "site-1", leave=False)
    assert {row.reason for row in store.history(info).rounds[1].roster} == {ERASED, EXPIRED}
    assert erasures(info.folder).complete


def test_a_run_that_gets_more_rounds_keeps_those(store: RunStore, small: Small, samples: ModuleType) -> None:
    info = small()
    expire(store, days=0)
    checkpoint.commit(store, store.reopen(info), samples.checkpoint(3))
    assert store.history(info).rounds[3].roster == samples.record(3).roster


@pytest.mark.parametrize("days", [-1, 36_501])
def test_a_retention_time_that_cannot_be(store: RunStore, days: int) -> None:
    with pytest.raises(ConfigError, match="give 0 to 36500 days"):
        expire(store, days=days)
