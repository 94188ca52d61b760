"""Opening the store's database: SQLite or PostgreSQL, its migrations, and errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout
from sqlalchemy import event, exc

from fedlora.errors import StoreError
from fedlora.server.durable import explained, free_bytes
from fedlora.server.store import postgres, urls

BUSY_TIMEOUT = 5.0  # seconds that one process waits for another's write
_MIGRATION_WAIT = 60.0  # seconds to wait for another process that is making the same tables
_BARE = {"fedlora_bare": True}  # no transaction around a statement
_PRAGMAS = (
    f"busy_timeout = {int(BUSY_TIMEOUT * 1000)}",  # first: the next ones may have to wait
    "journal_mode = WAL",
    "synchronous = FULL",  # a committed round must survive a power cut
    "foreign_keys = ON",
)
_REMEDIES = {
    "SQLITE_FULL": "the disk is full: free some space, then resume the run",
    "SQLITE_READONLY": "it cannot be written: give this user write permission on its folder, or use --store elsewhere",
    "SQLITE_CANTOPEN": "it cannot be opened: its folder must exist and be writable by this user",
    "SQLITE_NOTADB": "it is no SQLite database: move it away (the run folders stay whole) or restore a backup",
    "SQLITE_CORRUPT": "it is damaged: restore a backup, or move it away (the run folders stay whole)",
    "SQLITE_IOERR": "the disk reports a fault, or it is full: look at the system's log",
    "SQLITE_BUSY": f"another process has been writing for over {BUSY_TIMEOUT:g} s: try again, or end that process",
}


class Database:
    """An open database, with its tables at the newest revision.

    reads() and writes() give a connection in a transaction; an error inside rolls it back. Both raise StoreError, which
    never holds a password. One transaction writes at a time: what it has read stays so until it ends.
    """

    def __init__(self, url: sa.URL, folder: Path, *, migrate: bool = True) -> None:
        """Opens it. folder: the store's. migrate: False leaves its tables as they are, for whoever only copies them."""
        self.kind, self._where, self._folder = urls.kind(url), urls.spoken(url), folder
        try:
            self._engine = _engine(url)
        except ImportError as error:
            raise StoreError(
                f"cannot use the database {self._where}: its driver is missing ({error}): pip install"
                " 'fedlora[postgres]'"
            ) from error
        options = (postgres.READS, postgres.WRITES_AS) if self.kind == urls.POSTGRES else ({}, {})
        self._reader = self._engine.execution_options(**options[0])
        self._writer = self._engine.execution_options(**options[1])
        try:
            self._migrate() if migrate else self.revision()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reads(self) -> Iterator[sa.Connection]:
        """A transaction that sees one moment of the database."""
        with self._explained(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writes(self, *, wait: float | None = None) -> Iterator[sa.Connection]:
        """A transaction that is committed, down to the disk, when the block ends.

        wait: seconds for those of other processes on PostgreSQL; SQLite always waits for BUSY_TIMEOUT.
        """
        seconds = BUSY_TIMEOUT if wait is None else wait
        writer = self._writer.execution_options(**{postgres.WRITES: seconds})
        with self._explained(), writer.begin() as connection:
            yield connection

    @contextmanager
    def session(self) -> Iterator[sa.Connection]:
        """A connection that is closed when the block ends, for what lasts as long as one; statements are on their own.

        Of PostgreSQL alone.
        """
        with self._explained(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()  # else it would live on in the pool
            yield connection

    def revision(self) -> str | None:
        """The revision of its tables; None if there is no table at all.

        Raises StoreError if this fedlora does not know it, or the tables are others'.
        """
        with self.reads() as connection:
            return self._found(connection, _scripts())

    def purge(self) -> None:
        """Rewrites SQLite's files, so that rows that were changed or deleted are in none of them any more.

        It takes as much space again meanwhile. Other databases do this by themselves, in their own time.

        Raises StoreError too if another process has been reading for too long.
        """
        if self.kind != urls.SQLITE:
            return
        with self._explained(), self._engine.execution_options(**_BARE).connect() as connection:
            connection.exec_driver_sql("VACUUM")
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar()
        if busy:
            raise StoreError(
                f"what was deleted is still in the log of the database {self._where}: another process has been reading"
                f" for over {BUSY_TIMEOUT:g} s; try again, or end that process"
            )

    def close(self) -> None:
        """Closes the connections; the database may be opened again."""
        self._engine.dispose()

    def copy_to(self, path: Path) -> None:
        """Writes a whole copy of an SQLite database, as it is at one moment, to the new file `path`."""
        with self._explained(), self._engine.execution_options(**_BARE).connect() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(path),))

    def _migrate(self) -> None:
        """Brings the tables to the newest revision; one process at a time, the others wait and find it done."""
        if self.kind == urls.POSTGRES:  # its processes may be on many hosts; whoever writes there waits anyway
            self._upgrade()
            return
        lock = FileLock(self._folder / ".migrating.lock")
        with explained("lock the run store", self._folder):
            try:
                lock.acquire(timeout=_MIGRATION_WAIT)
            except Timeout as error:  # an OSError too
                raise StoreError(
                    f"the run store {self._folder} has been in the hands of another starting process for over"
                    f" {_MIGRATION_WAIT:g} s: end that process, then try again"
                ) from error
        try:
            self._upgrade()
        finally:
            lock.release()

    def _upgrade(self) -> None:
        config, script = _config(), _scripts()
        with self.writes(wait=_MIGRATION_WAIT) as connection:
            if self._found(connection, script) == script.get_current_head():
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _found(self, connection: sa.Connection, script: ScriptDirectory) -> str | None:
        found = MigrationContext.configure(connection).get_current_revision()
        self._check_known(found, script)
        self._check_ours(found, connection)
        return found

    def _check_known(self, found: str | None, script: ScriptDirectory) -> None:
        if found is not None and found not in known_revisions():
            raise StoreError(
                f"the database {self._where} has revision {found!r}, which this fedlora does not know (its newest is"
                f" {script.get_current_head()!r}): it was written by a newer fedlora; install that version or newer,"
                " or use another --store"
            )

    def _check_ours(self, found: str | None, connection: sa.Connection) -> None:
        tables = sa.inspect(connection).get_table_names()
        if found is None and tables:
            raise StoreError(
                f"the database {self._where} has tables ({', '.join(tables[:5])}) but is no run store:"
                " use another --store, or move that database away"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise StoreError(f"cannot use the database {self._where}: {self._reason(error)}") from error

    def _reason(self, error: exc.SQLAlchemyError) -> str:
        cause = getattr(error, "orig", None) or error
        if self.kind == urls.POSTGRES:
            remedy = postgres.remedy(cause, lost=bool(getattr(error, "connection_invalidated", False)))
        else:
            remedy = self._sqlite_remedy(cause)
        return f"{postgres.told(cause)}; {remedy}" if remedy else postgres.told(cause)

    def _sqlite_remedy(self, cause: BaseException) -> str:
        code = getattr(cause, "sqlite_errorname", "")
        remedy = next((text for prefix, text in _REMEDIES.items() if code.startswith(prefix)), "")
        full = code.startswith(("SQLITE_FULL", "SQLITE_IOERR"))
        return remedy + f" ({free_bytes(self._folder):,} bytes are free)" if full else remedy


def known_revisions() -> set[str]:
    """The revisions of the tables that this fedlora can bring to its own."""
    return {revision.revision for revision in _scripts().walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "fedlora.server.store:migrations")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _engine(url: sa.URL) -> sa.Engine:
    """Its errors do not repeat what was to be written: personal data, and digests of tokens."""
    if urls.kind(url) == urls.SQLITE:
        engine = sa.create_engine(url, hide_parameters=True)
        _use_pragmas(engine)
    else:
        engine = sa.create_engine(postgres.connected_well(url), hide_parameters=True, pool_pre_ping=True)
        postgres.use_turns(engine)
    return engine


def _use_pragmas(engine: sa.Engine) -> None:
    """Sets up each SQLite connection. The only SQL in fedlora that is SQLite's own, beside its VACUUM."""

    def connected(connection: Any, record: Any) -> None:
        del record
        connection.isolation_level = None  # or the driver opens transactions by itself, and none around DDL
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()

    def begun(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes can fail at once, without waiting, if another wrote between
        # (SQLITE_BUSY_SNAPSHOT). One that says at its start that it will write waits for its turn.
        options = connection.get_execution_options()
        if "fedlora_bare" not in options:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if postgres.WRITES in options else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
