"""A store's whole database in one file, as it was at one moment; and back."""

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from fedlora.errors import StoreError
from fedlora.server.store import postgres, tables, urls
from fedlora.server.store.database import Database, known_revisions

_PROGRAMS = "install PostgreSQL's client programs (on Debian postgresql-client), not older than the database's server"
_TOLD = 1000  # characters of what a program says


@dataclass(frozen=True)
class DumpedRun:
    """A run in a dump: its id, folder (relative where it is inside the store), status, and committed rounds."""

    id: str
    folder: str
    status: str
    rounds: tuple[int, ...]


@dataclass(frozen=True)
class Dump:
    """What a file holds. kind: POSTGRES or SQLITE. revision: of its tables."""

    kind: str
    revision: str
    runs: Sequence[DumpedRun]


def dump(url: sa.URL, folder: Path, target: Path) -> Dump:
    """Copies the database at `url` into the new file `target`; servers that use it go on meanwhile.

    SQLite becomes SQLite, PostgreSQL an archive of `pg_dump`. folder: the store's. The database is not upgraded.

    Raises StoreError: it cannot be read, has no tables or those of a newer fedlora, there is no `pg_dump`.
    """
    database = Database(url, folder, migrate=False)
    try:
        revision = database.revision()
        if revision is None:
            raise StoreError(f"the database {urls.spoken(url)} is empty: there is nothing to copy")
        runs = (_dump_postgres if database.kind == urls.POSTGRES else _dump_sqlite)(database, url, target)
        return Dump(database.kind, revision, runs)
    finally:
        database.close()


def restore_postgres(url: sa.URL, folder: Path, source: Path) -> None:
    """Fills the empty database at `url` from a `dump` of PostgreSQL: with all of it, or with nothing.

    Raises StoreError: it is not empty, it cannot be written, there is no `pg_restore`.
    """
    database = Database(url, folder, migrate=False)
    try:
        with database.reads() as connection:
            found = sa.inspect(connection).get_table_names()
    finally:
        database.close()
    if found:
        raise StoreError(
            f"the database {urls.spoken(url)} is not empty (it has {', '.join(found[:5])}): a copy is restored into a"
            " new one; make it with `createdb` and name it in FEDLORA_DATABASE"
        )
    options = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    _run("pg_restore", url, *options, str(source))


def check_known(revision: str) -> None:
    """Raises StoreError unless this fedlora knows the revision of a dump, or an older one."""
    if revision not in known_revisions():
        raise StoreError(
            f"the copy's database has revision {revision[:40]!r}, which this fedlora does not know: a newer fedlora"
            " made it; install that version or newer"
        )


def _dump_sqlite(database: Database, url: sa.URL, target: Path) -> Sequence[DumpedRun]:
    del url
    database.copy_to(target)
    copy = sa.create_engine(sa.URL.create("sqlite", database=str(target)), poolclass=sa.NullPool)
    with copy.connect() as connection:
        return _runs(connection)


def _dump_postgres(database: Database, url: sa.URL, target: Path) -> Sequence[DumpedRun]:
    with database.reads() as connection:  # the program looks at the same moment as this transaction
        moment = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar()
        options = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={moment}", f"--file={target}")
        _run("pg_dump", url, *options)
        return _runs(connection)


def _runs(connection: sa.Connection) -> Sequence[DumpedRun]:
    """Asks for columns that every revision has."""
    of, at = tables.runs.c, tables.rounds.c
    each_run = connection.execute(sa.select(of.id, of.folder, of.status).order_by(of.created_at)).all()
    each_round = connection.execute(sa.select(at.run, at.round).order_by(at.round)).all()
    committed: dict[str, list[int]] = defaultdict(list)
    for run, number in each_round:
        committed[run].append(number)
    return [DumpedRun(*row, rounds=tuple(committed[row.id])) for row in each_run]


def _run(name: str, url: sa.URL, *arguments: str) -> None:
    """Runs one of PostgreSQL's programs; the password is not among its arguments, which every user can read."""
    program = shutil.which(name)
    if program is None:
        raise StoreError(f"there is no `{name}` on the PATH, which copies PostgreSQL's databases: {_PROGRAMS}")
    where, secret = postgres.for_programs(url)
    done = subprocess.run(  # noqa: S603 - a fixed command line; the URL is the operator's own
        [program, "--no-password", f"--dbname={where}", *arguments],
        env={**os.environ, **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        told = " ".join(done.stderr.split())[-_TOLD:]
        raise StoreError(f"`{name}` failed for the database {urls.spoken(url)}: {told}; {_PROGRAMS}")
