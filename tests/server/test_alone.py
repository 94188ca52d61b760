"""Two servers never share a home or a database."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedlora.errors import StoreError
from fedlora.server import alone
from fedlora.server.alone import locked, only_server
from fedlora.server.store import RunStore
from tests.postgres import POSTGRES, Cluster

Kill = Callable[[], object]


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "LOOKS", 0.1)
    monkeypatch.setattr(alone, "PATIENCE", 0.3)


@pytest.fixture
def kill(postgres: Cluster, store_url: str) -> Kill:
    """Ends all connections to the test's database."""
    ours = f"datname = '{sa.make_url(store_url).database}' AND pid <> pg_backend_pid()"
    return lambda: postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")  # noqa: S608


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that this process would have got."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append(number))
    return sent


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_home_has_one_server(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StoreError, match="another server runs in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@POSTGRES
def test_one_database_has_one_server(store_url: str, tmp_path: Path) -> None:
    name = sa.make_url(store_url).database
    with only_server(store_url, tmp_path):
        told = rf"another server uses .*/{name} \(connected from 127\.0\.0\.1 since 2"
        with pytest.raises(StoreError, match=told), only_server(store_url, tmp_path / "other"):
            pass
        with RunStore.open(tmp_path, url=store_url) as store:  # whoever only reads or enrols comes in
            assert store.list() == ()
    with only_server(store_url, tmp_path):  # the first one has ended
        pass


@POSTGRES
def test_a_server_waits_a_little_for_the_end_of_another(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "PATIENCE", 10.0)
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with only_server(store_url, tmp_path):
            entered.set()
            leave.wait(10.0)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10.0)
    threading.Timer(0.3, leave.set).start()
    with only_server(store_url, tmp_path):
        thread.join()


@POSTGRES
def test_a_lock_that_was_lost_with_its_connection_is_taken_again(store_url: str, tmp_path: Path, kill: Kill) -> None:
    with only_server(store_url, tmp_path):
        assert kill()

        def kept_off() -> bool:
            try:
                with only_server(store_url, tmp_path):
                    return False
            except StoreError:
                return True

        eventually(kept_off)


@POSTGRES
def test_a_server_that_another_one_has_overtaken_ends(
    store_url: str, tmp_path: Path, kill: Kill, terminated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "LOOKS", 0.5)

    def overtaken() -> None:
        with only_server(store_url, tmp_path):
            assert kill()
            with only_server(store_url, tmp_path / "faster"):
                eventually(lambda: terminated == [signal.SIGTERM])

    with pytest.raises(StoreError, match="another server uses the database"):
        overtaken()


def test_a_database_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    nowhere = "postgresql://me@127.0.0.1:1/db"
    with pytest.raises(StoreError, match="check that its server runs"), only_server(nowhere, tmp_path):
        pass


@pytest.mark.parametrize("url", [None, "sqlite:////nowhere/fedlora.db"])
def test_sqlite_needs_no_more_than_the_lock_of_the_home(url: str | None, tmp_path: Path) -> None:
    with only_server(url, tmp_path), only_server(url, tmp_path):
        pass
