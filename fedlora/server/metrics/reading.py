"""What a scrape asks the store: a fixed number of queries, whatever the number of runs, rounds and clients."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fedlora.server.metrics.tally import Tally
from fedlora.server.records import Numbers, RunStatus
from fedlora.server.store.database import Database
from fedlora.server.store.rows import figures_in
from fedlora.server.store.tables import rounds, runs

MOST_RUNS = 20
"""Runs that have metrics of their own: those that run, then those that ended last."""

_DESCRIBED = ("id", "name", "strategy", "status", "rounds")


@dataclass(frozen=True)
class Committed:
    """The last committed round of a run."""

    round: int
    metrics: Numbers
    seconds: float
    at: datetime


@dataclass(frozen=True)
class Shown:
    """A run that has metrics of its own. last: None until a round is committed."""

    id: str
    name: str
    strategy: str
    status: str
    rounds: int
    last: Committed | None


@dataclass(frozen=True)
class Reading:
    """Runs by status, and those that are shown."""

    statuses: Mapping[str, int]
    shown: Sequence[Shown]


def read(database: Database, tally: Tally) -> Reading:
    """Reads one moment of the store, and brings `tally` up to it. Raises StoreError."""
    with database.reads() as connection:
        standing = connection.execute(sa.select(runs.c.id, runs.c.status, runs.c.rounds_done)).all()
        tally.update(connection, {run: done for run, _, done in standing})
        return Reading(Counter(status for _, status, _ in standing), _shown(connection))


def _shown(connection: sa.Connection) -> Sequence[Shown]:
    last = runs.outerjoin(rounds, (rounds.c.run == runs.c.id) & (rounds.c.round == runs.c.rounds_done))
    described = [runs.c[name] for name in _DESCRIBED]
    figures = [rounds.c[name] for name in ("round", "metrics", "seconds", "committed_at")]
    query = (
        sa.select(*described, *figures)
        .select_from(last)
        .where(runs.c.status != str(RunStatus.QUEUED))
        .order_by(runs.c.status != str(RunStatus.RUNNING), runs.c.finished_at.desc(), runs.c.created_at.desc())
        .limit(MOST_RUNS)
    )
    return [_one(row) for row in connection.execute(query).mappings()]


def _one(row: sa.RowMapping) -> Shown:
    found: dict[str, Any] = {name: row[name] for name in _DESCRIBED}
    if row["round"] is None:
        return Shown(**found, last=None)
    return Shown(**found, last=Committed(row["round"], figures_in(row["metrics"]), row["seconds"], row["committed_at"]))
