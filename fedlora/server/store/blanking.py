"""The database without what was erased of its runs."""

from collections.abc import Mapping

import sqlalchemy as sa

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
        with database.writes() as connection:
            changed |= _blank_rounds(connection, run, erased) | _blank_reason(connection, run, erased)
    if changed or not all(erased.complete for erased in found.values()):
        database.purge()


def _blank_rounds(connection: sa.Connection, run: str, erased: Erasures) -> bool:
    rounds, roster = tables.rounds, tables.roster
    each_round = connection.execute(sa.select(rounds).filter_by(run=run))
    each_client = connection.execute(sa.select(roster).filter_by(run=run))
    changed = False
    for record in rows.rounds_in(each_round.mappings(), each_client.mappings()):
        clean = erased.record(record)
        if clean is record:
            continue
        changed = True
        metrics = rows.figures_out(clean.metrics)
        connection.execute(sa.update(rounds).filter_by(run=run, round=record.round).values(metrics=metrics))
        for row, old in zip(rows.roster_out(run, clean), record.roster, strict=True):
            if erased.mark(old.client, record.round) is not None:
                place = {"run": run, "round": record.round, "client": old.client}
                connection.execute(sa.update(roster).filter_by(**place).values(**row))
    return changed


def _blank_reason(connection: sa.Connection, run: str, erased: Erasures) -> bool:
    """Of the run's end: it may hold what clients said."""
    runs = tables.runs
    reason = connection.execute(sa.select(runs.c.reason).filter_by(id=run)).scalar_one_or_none()
    if reason is None or (clean := erased.text(reason)) == reason:
        return False
    connection.execute(sa.update(runs).filter_by(id=run).values(reason=clean))
    return True
