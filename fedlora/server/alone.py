"""One server a home, and one server a database: two would give out different models under one name."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from fedlora.errors import StoreError
from fedlora.server.durable import explained
from fedlora.server.store import postgres, urls
from fedlora.server.store.database import Database

log = logging.getLogger(__name__)

LOOKS = 5.0
"""Seconds between looks at whether the database still keeps others off."""

PATIENCE = 2.0
"""Seconds that a server which starts waits for another one's end."""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One server a home. Raises StoreError if another one runs."""
    lock = FileLock(home / ".server.lock")
    with explained("lock", home):
        try:
            lock.acquire(timeout=1.0)
        except Timeout:
            raise StoreError(f"another server runs in {home}: stop it first, or use a home of its own") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_server(url: str | None, folder: Path) -> Iterator[None]:
    """Keeps other servers off a PostgreSQL database for the block; SQLite's is in the home, which has its own lock.

    url, folder: of the run store. If the connection that keeps them off is lost, another one is made. If another server
    was faster then, this process gets a SIGTERM, and the block ends with a StoreError.

    Raises StoreError, saying where it runs, if another server uses the database.
    """
    if url is None or urls.kind(urls.parse(url)) != urls.POSTGRES:
        yield
        return
    # Its tables are left alone: another server may be using them.
    database = Database(urls.parse(url), folder, migrate=False)
    guard = _Guard(database, urls.spoken(urls.parse(url)))
    try:
        guard.begin()
        yield
    finally:
        guard.end()
        database.close()
        if guard.ousted is not None:
            raise guard.ousted


class _Guard:
    """Has the lock, in a connection of its own, and looks after it in a thread."""

    def __init__(self, database: Database, where: str) -> None:
        self._database, self._where = database, where
        self._settled, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="only server", daemon=True)
        self._had = False
        self._error: Exception | None = None
        self.ousted: StoreError | None = None

    def begin(self) -> None:
        """Takes the lock. Raises StoreError if another server has it."""
        self._thread.start()
        self._settled.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._had = False
            try:
                self._hold()
            except Exception as error:  # noqa: BLE001 - whoever waits gets it, or the log
                if self._gives_up(error):
                    return
            if not self._had:
                self._over.wait(LOOKS)

    def _gives_up(self, error: Exception) -> bool:
        if not self._settled.is_set():
            self._error = error
            self._settled.set()
            return True
        if isinstance(error, _TakenError):
            log.critical("%s: this server ends", error)
            self.ousted = error
            os.kill(os.getpid(), signal.SIGTERM)
            return True
        log.error("nothing keeps other servers off the database now: %s", error)
        return False

    def _hold(self) -> None:
        """Takes the lock and keeps it; returns at the end, or when it is lost."""
        with self._database.session() as connection:
            self._take(connection)
            self._had = True
            log.info("no other server can use the database %s while this one runs", self._where)
            self._settled.set()
            while not self._over.wait(LOOKS):
                if not postgres.has_server_lock(connection):
                    return

    def _take(self, connection: sa.Connection) -> None:
        """Waits a little: of a server that was killed the database may not know yet."""
        end = time.monotonic() + PATIENCE
        while (holder := postgres.take_server_lock(connection)) is not None:
            if time.monotonic() > end:
                raise _TakenError(
                    f"another server uses the database {self._where} ({holder}): stop it first, or give this one a"
                    " database of its own; of a host that has died the database knows within a minute"
                )
            self._over.wait(0.2)


class _TakenError(StoreError):
    """Another server has the database."""
