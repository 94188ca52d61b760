"""The database without what was erased of its runs."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from fedlora.server.records import RoundRecord
from fedlora.server.scrub import Erasures
from fedlora.server.store import rows, tables
from fedlora.server.store.database import Database


def blank(database: Database, found: Mapping[str, Erasures]) -> None:
    """Blanks what `found` (run → what is erased of it) covers: roster rows, figures of a lone reporter, reasons.

    Then nothing of it is left in SQLite's files either. Other databases free the space in their own time. Raises
    StoreError.
    """
    changed = False
    for run, erased in found.items():
        for record in _rounds(database, run):
            clean = erased.record(record)
            if clean is not record:
                changed = True
                _write(database, run, record, clean)
        changed |= _blank_reason(database, run, erased)
    if changed or not all(erased.complete for erased in found.values()):
        database.purge()


def _rounds(database: Database, run: str) -> Sequence[RoundRecord]:
    with database.reads() as connection:
        each_round = connection.execute(sa.select(tables.rounds).filter_by(run=run))
        each_client = connection.execute(sa.select(tables.roster).filter_by(run=run))
        return rows.rounds_in(each_round.mappings(), each_client.mappings())


def _write(database: Database, run: str, old: RoundRecord, new: RoundRecord) -> None:
    """One round in a transaction of its own: a run that commits meanwhile does not wait for long."""
    place = {"run": run, "round": new.round}
    with database.writes() as connection:
        if new.metrics != old.metrics:
            figures = rows.figures_out(new.metrics)
            connection.execute(sa.update(tables.rounds).filter_by(**place).values(metrics=figures))
        for row, before, values in zip(new.roster, old.roster, rows.roster_out(run, new), strict=True):
            if row is not before:
                connection.execute(sa.update(tables.roster).filter_by(**place, client=row.client).values(**values))


def _blank_reason(database: Database, run: str, erased: Erasures) -> bool:
    """Of the run's end: it may hold what clients said."""
    column = tables.runs.c.reason
    with database.writes() as connection:
        reason = connection.execute(sa.select(column).where(tables.runs.c.id == run)).scalar_one_or_none() or ""
        clean = erased.text(reason)
        if clean != reason:
            connection.execute(sa.update(tables.runs).filter_by(id=run).values(reason=clean))
    return clean != reason
