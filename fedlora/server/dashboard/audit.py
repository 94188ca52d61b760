"""Who did what, from where, and how it went: rows that are added, and deleted once they are old.

None is ever changed, but where a client has itself erased: then its name goes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from anyio import to_thread

from fedlora.errors import StoreError
from fedlora.identity.clock import Clock, utc_now
from fedlora.server.dashboard.forgetting import without_client
from fedlora.server.store.database import Database
from fedlora.server.store.tables import audit

log = logging.getLogger(__name__)

DONE, REFUSED, FAILED = "done", "refused", "failed"
"""Outcomes: it was done; the gate or the login said no; it was let through, but could not be done."""

_LONGEST = {"action": 80, "object": 200, "reason": 500, "address": 64, "person": 63}
_SHORT = 20  # characters, as the table's other columns have


@dataclass
class Note:
    """What an entry will say. The gate begins it; endpoints add what only they know, in `request.scope["note"]`."""

    action: str
    address: str
    person: str = ""
    role: str = ""
    object: str = ""
    outcome: str = DONE
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One line of the audit log. address: where the request came from. object: what was acted on, in words."""

    id: int
    at: datetime
    person: str
    role: str
    action: str
    object: str
    outcome: str
    reason: str
    address: str


class AuditLog:
    """The audit log of one server. Every method raises StoreError if the database cannot be used."""

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database, self._now = database, now

    def write(self, note: Note) -> None:
        """Adds an entry; what is too long for it is cut."""
        row = {name: str(value)[: _LONGEST.get(name, _SHORT)] for name, value in vars(note).items()}
        with self._database.writes() as connection:
            connection.execute(sa.insert(audit), [{**row, "at": self._now()}])

    def entries(self, before: int | None = None, limit: int = 200) -> Sequence[Entry]:
        """The newest entries first, at most `limit`. before: only those with a smaller id, for the next page."""
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.id < before)
        with self._database.reads() as connection:
            return tuple(Entry(**row) for row in connection.execute(query).mappings())

    def expire(self, days: int) -> int:
        """Deletes entries that are older than `days`; returns how many."""
        old = sa.delete(audit).where(audit.c.at < self._now() - timedelta(days=days))
        with self._database.writes() as connection:
            return connection.execute(old).rowcount

    def forget(self, client: str) -> int:
        """Takes the name of a client that is erased out of all entries, see `without_client`; returns out of how many.

        The bytes are gone from SQLite's files after `Database.purge`.
        """
        texts = (audit.c.person, audit.c.object, audit.c.reason)
        named = sa.or_(*(sa.func.lower(text).contains(client, autoescape=True) for text in texts))
        with self._database.writes() as connection:
            found = connection.execute(sa.select(audit).where(named)).mappings().all()
            changes = {row["id"]: without_client(dict(row), client) for row in found}
            for number, changed in changes.items():
                if changed:
                    connection.execute(sa.update(audit).filter_by(id=number).values(**changed))
        return sum(map(bool, changes.values()))


async def write_down(audit_log: AuditLog, note: Note) -> None:
    """Adds an entry, in a thread. Where it cannot be written, the server's own log says what is missing."""
    try:
        await to_thread.run_sync(audit_log.write, note)
    except StoreError as error:
        log.error("the audit log lacks an entry (%s): %s", error, note)
