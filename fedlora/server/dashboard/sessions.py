"""Who has logged in: sessions that the server keeps, each behind a cookie of 256 random bits.

A session is no more than a pointer to what its person logged in with: role, run and site are looked up there at each
request, so that what is removed, replaced or expired ends every session of it at once, through restarts too.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.server.dashboard.credentials import Credentials
from fedlora.server.dashboard.people import Person
from fedlora.server.operator.token import check_form
from fedlora.server.store.database import Database
from fedlora.server.store.tables import dashboard_sessions

IDLE = timedelta(hours=12)
"""A session that was not used for so long has ended."""

LONGEST = timedelta(days=7)
"""A session ends so long after its login, however much it is used."""

_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Session:
    """A session that holds. digest: of the cookie's value, which is not kept. person: with the CSRF token."""

    digest: str
    person: Person


class Sessions:
    """The sessions of one server. Every method raises StoreError if the database cannot be used."""

    def __init__(self, database: Database, credentials: Credentials, now: Clock = utc_now) -> None:
        self._database, self._credentials, self._now = database, credentials, now

    def begin(self, credential: str, instead: str | None = None) -> str:
        """A new session's value, for whoever has just shown the credential with that digest.

        instead: the value of the session that the same browser had, which ends. The value is always a new one: what
        somebody else has put into a browser before a login is worth nothing after it.
        """
        moment, value = self._now(), new_secret()
        row = {"digest": secret_digest(value), "credential": credential, "created_at": moment, "used_at": moment}
        with self._database.writes() as connection:
            connection.execute(sa.delete(dashboard_sessions).where(_over(moment)))
            if instead is not None:
                connection.execute(sa.delete(dashboard_sessions).filter_by(digest=secret_digest(instead)))
            connection.execute(sa.insert(dashboard_sessions), [row])
            self._credentials.note_use(connection, credential, moment)
        return value

    def find(self, value: str) -> Session | None:
        """The session behind a cookie's value; None if there is none (any more). It counts as use."""
        if not check_form(value):
            return None
        digest = secret_digest(value)
        found = self._row(digest)
        if found is None:
            return None
        person = self._credentials.person(found["credential"])
        if person is None:
            self._delete(digest)
            return None
        self._note_use(found)
        return Session(digest, replace(person, csrf=csrf_of(value)))

    def holds(self, digest: str) -> bool:
        """Whether the session with that digest goes on. It does not count as use: an open page is no person."""
        found = self._row(digest)
        return found is not None and self._credentials.person(found["credential"]) is not None

    def end(self, value: str) -> None:
        """Ends the session behind a cookie's value, if there is one."""
        self._delete(secret_digest(value))

    def _row(self, digest: str) -> sa.RowMapping | None:
        query = sa.select(dashboard_sessions).filter_by(digest=digest).where(~_over(self._now()))
        with self._database.reads() as connection:
            return connection.execute(query).mappings().first()

    def _note_use(self, found: sa.RowMapping) -> None:
        moment = self._now()
        if timedelta() <= moment - found["used_at"] < _NOTED_EVERY:
            return
        with self._database.writes() as connection:
            used = sa.update(dashboard_sessions).filter_by(digest=found["digest"]).values(used_at=moment)
            connection.execute(used)
            self._credentials.note_use(connection, found["credential"], moment)

    def _delete(self, digest: str) -> None:
        with self._database.writes() as connection:
            connection.execute(sa.delete(dashboard_sessions).filter_by(digest=digest))


def csrf_of(value: str) -> str:
    """What each action of a session must repeat: from its value one can find it, from it not the value."""
    return hashlib.sha256(b"fedlora csrf\0" + value.encode()).hexdigest()


def _over(moment: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(dashboard_sessions.c.used_at <= moment - IDLE, dashboard_sessions.c.created_at <= moment - LONGEST)
