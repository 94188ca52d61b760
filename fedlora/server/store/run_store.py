"""The run store. One database and one folder for each run; many readers, one writing process a run."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from fedlora.config.schema import RunConfig
from fedlora.errors import StoreError, UnknownRunError
from fedlora.server.durable import explained
from fedlora.server.records import Numbers, RoundRecord, RunHistory, RunInfo, RunStatus
from fedlora.server.scrub import Erasures, erasures, exclusive
from fedlora.server.store import blanking, folders, locks, names, rows, tables, urls
from fedlora.server.store.database import Database

DATABASE = "fedlora.db"


@dataclass(frozen=True)
class Traffic:
    """Bytes of a run's committed rounds, heads included; `once` is apart from `down`."""

    up: int = 0
    down: int = 0
    once: int = 0


class RunStore:
    """Which runs there are, which of their rounds are committed, and who took part.

    Made by `open`. Every method raises StoreError if the database or a folder cannot be read or written, with the
    path and the remedy. Runs are given as RunInfo; only their ids count, so an old one is as good as a fresh one.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self._database = database

    @classmethod
    def open(cls, folder: Path, *, url: str | None = None, create: bool = True) -> Self:
        """Opens the store in `folder`, and brings its database to this version's tables.

        url: of an SQLite or a PostgreSQL database (see `urls.parse`); None: SQLite in `folder`/fedlora.db. create:
        make what is not there; if False, a folder without a database is a StoreError.
        """
        folder = Path(folder).resolve()
        if not create and url is None and not (folder / DATABASE).is_file():
            raise StoreError(f"there is no run store in {folder} (no {DATABASE}): check --store, or start a run first")
        with explained("make the store's folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, Database(sqlite_url(folder) if url is None else urls.parse(url), folder))

    @property
    def database(self) -> Database:
        """The database itself, for what a server keeps beside runs."""
        return self._database

    def close(self) -> None:
        """Closes the database connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(
        self,
        config: RunConfig,
        *,
        name: str,
        run_id: str | None = None,
        folder: Path | None = None,
        sweep: str | None = None,
        status: RunStatus = RunStatus.RUNNING,
    ) -> RunInfo:
        """A new run with its folder: `folder`, else `config.output`, else one in the store named by the id.

        status: RUNNING, or QUEUED for a run that a server will begin later.

        Raises StoreError if the folder has something in it, or a run of that id or folder exists.
        """
        run = self._new_run(config, name, run_id, sweep)
        place = folder or config.output
        run = replace(run, status=status, folder=self.folder / run.id if place is None else Path(place).resolve())
        folders.claim(run.folder)
        try:
            folders.write_config(run.folder, run.config)
            self._insert(run)
        except StoreError:
            folders.abandon(run.folder)
            raise
        return run

    def list(
        self, *, status: RunStatus | None = None, strategy: str | None = None, sweep: str | None = None
    ) -> Sequence[RunInfo]:
        """The runs, newest first; only those with the given status, strategy and sweep."""
        wanted = {"status": status and str(status), "strategy": strategy, "sweep": sweep}
        query = sa.select(tables.runs).filter_by(**{key: value for key, value in wanted.items() if value is not None})
        query = query.order_by(tables.runs.c.created_at.desc(), tables.runs.c.id.desc())
        with self._database.reads() as connection:
            return tuple(rows.run_in(row, self.folder) for row in connection.execute(query).mappings())

    def find(self, text: str) -> RunInfo:
        """The run that `text` means: `latest`, an id, a run's folder, a name, or the beginning of an id.

        Raises UnknownRunError if there is none, with the nearest words, or more than one, with all of them.
        """
        return names.choose(self.list(), text, self.folder)

    def get(self, run_id: str) -> RunInfo:
        """The run as it stands now. Raises UnknownRunError."""
        with self._database.reads() as connection:
            return self._read(connection, run_id)

    def history(self, run: RunInfo) -> RunHistory:
        """The run as it stands now, with its committed rounds and their rosters (in client order)."""
        rounds, roster = tables.rounds, tables.roster
        with self._database.reads() as connection:
            fresh = self._read(connection, run.id)
            each_round = connection.execute(sa.select(rounds).filter_by(run=run.id).order_by(rounds.c.round))
            each_client = connection.execute(
                sa.select(roster).filter_by(run=run.id).order_by(roster.c.round, roster.c.client)
            )
            return RunHistory(fresh, rows.rounds_in(each_round.mappings(), each_client.mappings()))

    def traffic(self) -> Mapping[str, Traffic]:
        """What each run has carried, by run id; runs without a committed round are left out."""
        of = tables.rounds.c
        totals = [sa.func.sum(column) for column in (of.bytes_up, of.bytes_down, of.bytes_once)]
        with self._database.reads() as connection:
            found = connection.execute(sa.select(of.run, *totals).group_by(of.run))
            return {run: Traffic(*map(int, sums)) for run, *sums in found}

    def last_round(self, run: RunInfo) -> int | None:
        """The last committed round; None if there is none yet."""
        with self._database.reads() as connection:
            return _last_round(connection, run.id)

    def commit_round(self, run: RunInfo, record: RoundRecord) -> RoundRecord:
        """Commits a round with its roster, and the run's `rounds_done`, in one transaction.

        Returns the record with the time of the commit where it had none. Raises StoreError if the round is not the one
        after the last committed one, or if a client is twice on the roster.
        """
        stamped = record if record.committed_at else replace(record, committed_at=datetime.now(UTC))
        _check_roster(run.id, record)
        with self._database.writes() as connection:
            self._read(connection, run.id)
            _check_next(_last_round(connection, run.id), run.id, record.round)
            connection.execute(sa.insert(tables.rounds), [rows.round_out(run.id, stamped)])
            if record.roster:
                connection.execute(sa.insert(tables.roster), rows.roster_out(run.id, stamped))
            self._change(connection, run.id, rounds_done=record.round)
        return stamped

    def discard_after(self, run: RunInfo, last: int) -> RunInfo:
        """Forgets the committed rounds after `last`, with their rosters; -1 forgets all.

        `checkpoint.last_committed` then removes their folders.
        """
        with self._database.writes() as connection:
            gone = (tables.rounds.c.run == run.id) & (tables.rounds.c.round > last)
            connection.execute(sa.delete(tables.rounds).where(gone))
            return self._change(connection, run.id, rounds_done=_last_round(connection, run.id) or 0)

    def finish(self, run: RunInfo, status: RunStatus, summary: Numbers | None = None, reason: str = "") -> RunInfo:
        """Marks the end of a run. reason: a sentence, for a run that did not finish."""
        with exclusive(run.folder), self._database.writes() as connection:
            told = erasures(run.folder).text(reason)
            changes = {"status": str(status), "reason": told, "summary": rows.figures_out(summary or {})}
            return self._change(connection, run.id, finished_at=datetime.now(UTC), **changes)

    def mark_running(self, run: RunInfo) -> RunInfo:
        """Marks a QUEUED run RUNNING; nothing else of it changes."""
        with self._database.writes() as connection:
            return self._change(connection, run.id, status=str(RunStatus.RUNNING))

    def reopen(self, run: RunInfo, rounds: int | None = None, *, status: RunStatus = RunStatus.RUNNING) -> RunInfo:
        """Marks a run RUNNING (or QUEUED) again; `rounds`: another number in all, in its configuration too.

        The figures of its summary go: they were those of an earlier end. Raises StoreError if more rounds than that
        are committed.
        """
        now = self.get(run.id)
        total = now.rounds if rounds is None else rounds
        if total < max(now.rounds_done, 1):
            raise StoreError(
                f"run {run.id} cannot have {total} rounds in all: {now.rounds_done} are committed; ask for more"
            )
        config = now.config if total == now.rounds else folders.with_rounds(now.config, total)
        folders.write_config(now.folder, config)
        changes = {"rounds": total, "config": config, "summary": {}, "reason": "", "finished_at": None}
        with self._database.writes() as connection:
            return self._change(connection, run.id, status=str(status), **changes)

    def blank_roster(self, found: Mapping[str, Erasures]) -> None:
        """Blanks the roster of runs, by id, where it is erased; of that SQLite's files have no trace left."""
        blanking.blank(self._database, found)

    def lock(self, run: RunInfo) -> AbstractContextManager[None]:
        """Holds the run for the block: whoever writes to it must. A dead process's lock frees by itself.

        Raises StoreError, naming the process that holds it, if another one does.
        """
        return locks.held(run.folder, run.id)

    def holder(self, run: RunInfo) -> locks.Holder | None:
        """The process that holds the run's lock now. None for a RUNNING run: its process died; it can be resumed."""
        return locks.holder(run.folder)

    def _new_run(self, config: RunConfig, name: str, run_id: str | None, sweep: str | None) -> RunInfo:
        now = datetime.now(UTC)
        return RunInfo(
            id=self._free_id(config.strategy.name, now) if run_id is None else names.check_id(run_id),
            name=name,
            status=RunStatus.RUNNING,
            strategy=config.strategy.name,
            seed=config.seed,
            rounds=config.federation.rounds,
            rounds_done=0,
            folder=self.folder,
            created_at=now,
            finished_at=None,
            sweep=sweep,
            summary={},
            config=folders.config_text(config),
        )

    def _free_id(self, strategy: str, now: datetime) -> str:
        """An id that no run and no folder of the store has; ids of one second differ by chance alone."""
        taken = {run.id for run in self.list(strategy=strategy)}
        while True:
            run_id = names.new_id(strategy, now)
            if run_id not in taken and not (self.folder / run_id).exists():
                return run_id

    def _insert(self, run: RunInfo) -> None:
        query = sa.select(tables.runs.c.id, tables.runs.c.folder)
        folder = rows.folder_out(run.folder, self.folder)
        taken = (tables.runs.c.id == run.id) | (tables.runs.c.folder == folder)
        with self._database.writes() as connection:
            other = connection.execute(query.where(taken)).first()
            if other is not None:
                raise StoreError(
                    f"cannot make run {run.id} in {run.folder}: the store has run {other.id} in"
                    f" {self.folder / other.folder}; choose another id and folder"
                )
            connection.execute(sa.insert(tables.runs), [rows.run_out(run, self.folder)])

    def _read(self, connection: sa.Connection, run_id: str) -> RunInfo:
        row = connection.execute(sa.select(tables.runs).filter_by(id=run_id)).mappings().first()
        if row is None:
            raise UnknownRunError(f"no run {run_id!r} in the store {self.folder}; `fedlora runs ls` lists them")
        return rows.run_in(row, self.folder)

    def _change(self, connection: sa.Connection, run_id: str, **changes: Any) -> RunInfo:
        connection.execute(sa.update(tables.runs).filter_by(id=run_id).values(**changes))
        return self._read(connection, run_id)


def sqlite_url(folder: Path) -> sa.URL:
    """The database of a store in `folder` that has no other one."""
    return sa.URL.create("sqlite", database=str(folder / DATABASE))


def _last_round(connection: sa.Connection, run_id: str) -> int | None:
    return connection.execute(sa.select(sa.func.max(tables.rounds.c.round)).filter_by(run=run_id)).scalar()


def _check_next(last: int | None, run_id: str, wanted: int) -> None:
    """A run's first round is 0, or 1 where nothing was saved before training; then one after another."""
    fitting = (0, 1) if last is None else (last + 1,)
    if wanted not in fitting:
        state = "no round is committed yet" if last is None else f"round {last} is the last committed one"
        raise StoreError(f"cannot commit round {wanted} of run {run_id}: {state}; resume the run from there")


def _check_roster(run_id: str, record: RoundRecord) -> None:
    seen: set[int] = set()
    for row in record.roster:
        if row.client in seen:
            raise StoreError(f"client {row.client} is twice on the roster of round {record.round} of run {run_id}")
        seen.add(row.client)
