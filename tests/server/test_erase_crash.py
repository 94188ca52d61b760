"""Erasures that die, and others who read and write beside them."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.errors import StoreError
from fedlora.identity.registry import Registry
from fedlora.server import checkpoint, erase, scrub_files
from fedlora.server.erase import erase_client, finish_erasures
from fedlora.server.events import (
    FILE,
    ClientRefused,
    ClientReported,
    EventLog,
    RoundCommitted,
    read_events,
)
from fedlora.server.records import Outcome, RunStatus
from fedlora.server.scrub import Erasures, erasures
from fedlora.server.store import RunStore, database
from fedlora.simulations import report
from tests.server.traces import LOSS, REFUSED, Small, found, found_in, is_blank, loads, registry_of, rows_of, small_run


@pytest.fixture
def small(store: RunStore, samples: ModuleType) -> Small:
    return partial(small_run, store, samples)


@pytest.fixture
def registry(store: RunStore) -> Registry:
    return registry_of(store)


class Killed(BaseException):
    """Not an Exception: nothing tidies up after it."""


class Instants:
    """Ends the process, as far as Python can, before a change to a disk."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fatal, self.count = -1, 0
        for owner, name in (
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "chmod"),
            (erase.scrub_files.shutil, "rmtree"),
            (RunStore, "blank_roster"),
            (Registry, "revoke"),
        ):
            patch.setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **more: object) -> object:
            self.pass_by()
            return call(*arguments, **more)

        return wrapped

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            raise Killed


def test_crashes_of_two_sites_one_in_the_other(
    store: RunStore, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins with a checkpoint as the first has left it; it loads at each instant of both."""
    info = small(rounds=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        instants = Instants(patch)

        def killed_at(fatal: int, folder: Path, erased: Erasures) -> bool:
            instants.fatal, instants.count = fatal, 0
            try:
                scrub_files.scrub_checkpoints(folder, erased)
            except Killed:
                return True
            finally:
                instants.fatal = -1
                assert loads(folder) == [0, 1], fatal
            return False

        first, crashed = 0, True
        while crashed:
            first, second, again = first + 1, 0, True
            while again:
                second += 1
                folder = tmp_path / f"{first}-{second}"
                shutil.copytree(info.folder / "checkpoints", folder / "checkpoints")
                shutil.copy(info.folder / "fixed.safetensors", folder)
                crashed = killed_at(first, folder, Erasures({0: None}))
                again = killed_at(second, folder, Erasures({0: None, 1: None}))
            assert found_in(folder, {LOSS, REFUSED}) == set()
    assert first > 6


def test_killed_at_every_instant(
    store: RunStore, small: Small, samples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checkpoints load after each crash, another site's erasure may come between, and a repetition ends it."""
    info = small()
    registry_of(store)
    (info.folder / "report.html").write_bytes(LOSS)
    draft = info.folder / "checkpoints" / ".round-0007.tmp"
    shutil.copytree(info.folder / "checkpoints" / "round-0002", draft)
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", lambda history, path: path.write_text("clean"))  # a second each
        patch.setattr(os, "fsync", lambda file: None)
        instants = Instants(patch)
        fatal = 0
        while fatal == 0 or instants.count >= fatal:
            fatal += 1
            instants.fatal, folder = -1, tmp_path / f"crash-{fatal}"
            shutil.copytree(store.folder, folder)
            with RunStore.open(folder) as copy:
                registry = Registry(copy._database)
                instants.fatal, instants.count = fatal, 0
                try:
                    erase_client(copy, registry, "site-0", leave=True)
                except Killed:
                    instants.fatal = -1
                    assert loads(folder / info.id) == [0, 1, 2]
                    list(read_events(folder / info.id / FILE))
                    samples.assert_same(
                        replace(checkpoint.load(folder / info.id, 2), record=samples.record(2)), samples.checkpoint(2)
                    )
                    if fatal % 2:
                        erase_client(copy, registry, "site-1", leave=False)
                        assert loads(folder / info.id) == [0, 1, 2]
                    if fatal % 3:
                        erase_client(copy, registry, "site-0", leave=True)
                    else:
                        finish_erasures(copy)
                if fatal > 1:  # else nothing was noted yet, and nobody but the site itself can know
                    assert found(folder, {LOSS}) == set(), fatal
                    assert [is_blank(row) for row in rows_of(copy.history(info), 0)] == [True, True]
                    assert erasures(folder / info.id).complete
                    assert loads(folder / info.id) == [0, 1, 2]
            count, instants.fatal = instants.count, -1
            shutil.rmtree(folder)
            instants.count = count
    assert fatal > 20


def test_beside_a_run_that_commits(store: RunStore, small: Small, samples: ModuleType, registry: Registry) -> None:
    """Sites erase while a run writes as fast as it can: no line and no round is lost, and nothing comes back."""
    info = small(rounds=1, status=RunStatus.RUNNING)
    rounds, failures = 25, list[BaseException]()

    def write() -> None:
        try:
            with EventLog(info.folder / FILE) as log:
                for number in range(1, rounds):
                    point = samples.checkpoint(number)
                    for row in point.record.roster:
                        kind = ClientReported if row.outcome is Outcome.REPORTED else ClientRefused
                        log.append(kind(run=info.id, round=number, row=row))
                    checkpoint.commit(store, info, point)
                    log.append(RoundCommitted.of(info.id, point.record, rounds=rounds))
        except BaseException as error:
            failures.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    erase_client(store, registry, "site-0", leave=True)
    while writer.is_alive():
        erase_client(store, registry, "site-1", leave=False)
        for number in checkpoint.saved_rounds(info.folder):
            checkpoint.load(info.folder, number)
    writer.join()
    assert failures == []
    assert found(store.folder, {LOSS}) == set()
    erase_client(store, registry, "site-1", leave=False)
    assert found(store.folder, {LOSS, REFUSED}) == set()
    told = [event.round for event in read_events(info.folder / FILE) if isinstance(event, RoundCommitted)]
    assert told == list(range(rounds))
    assert loads(info.folder) == list(range(rounds))
    assert len(store.history(info).rounds) == rounds


def test_a_reader_never_takes_a_checkpoint_for_damaged(
    store: RunStore, small: Small, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the old list of files, and then the new roster: so it looks again."""
    info = small()
    checked = checkpoint._checked
    once = iter([True])

    def erase_meanwhile(path: Path, *digests: str | None) -> bytes:
        if path.name == "roster.json" and next(once, False):
            erase_client(store, registry, "site-0", leave=False)
        return checked(path, *digests)

    monkeypatch.setattr(checkpoint, "_checked", erase_meanwhile)
    assert all(is_blank(row) for row in checkpoint.load(info.folder, 2).record.roster if row.client == 0)
    assert next(once, False) is False


def test_free_pages_of_the_database_are_no_hiding_place(store: RunStore, small: Small, registry: Registry) -> None:
    """What was deleted long ago, by a SQLite that does not overwrite it, is gone too."""
    small()
    writer = sqlite3.connect(store.folder / "fedlora.db", isolation_level=None)
    writer.execute("PRAGMA secure_delete = OFF")
    writer.execute("CREATE TABLE old (row TEXT)")
    writer.executemany("INSERT INTO old VALUES (?)", [(f"{REFUSED.decode()} {n} " * 50,) for n in range(50)])
    writer.execute("DROP TABLE old")
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()
    assert (store.folder / "fedlora.db").read_bytes().count(REFUSED) > 1000
    erase_client(store, registry, "site-1", leave=False)
    assert found(store.folder, {REFUSED}) == set()


def test_a_reader_who_keeps_the_database_busy_is_named(
    store: RunStore, small: Small, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its view of the past is in the log: so the site is not told that all is gone."""
    small()
    monkeypatch.setattr(database, "_PRAGMAS", ("busy_timeout = 50", *database._PRAGMAS[1:]))
    with RunStore.open(store.folder) as hurried:
        reader = sqlite3.connect(store.folder / "fedlora.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM roster").fetchone()
        with pytest.raises(StoreError, match="another process has been reading"):
            erase_client(hurried, registry, "site-1", leave=False)
        reader.close()
        erase_client(hurried, registry, "site-1", leave=False)
    assert found(store.folder, {REFUSED}) == set()
