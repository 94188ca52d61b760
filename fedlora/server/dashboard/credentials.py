"""What one can log in with: an access token, a collaborator's link, or a secret that the server itself was given."""

import hmac
import threading
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.tokens import secret_digest
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.operator.token import check_form
from fedlora.server.store.database import Database
from fedlora.server.store.tables import access_tokens, collaborator_links


@dataclass
class Given:
    """A secret that is in no database: the operator's token, or a code that is good for one login.

    once: whether it is a code; `used` then says that nobody can log in with it any more.
    """

    secret: str = field(repr=False)
    person: Person
    once: bool = False
    used: bool = False

    @property
    def digest(self) -> str:
        """The secret's digest."""
        return secret_digest(self.secret)


class Credentials:
    """Whose a secret is. Every method raises StoreError if the database cannot be used; threads may call it at once."""

    def __init__(self, database: Database, given: Given | None = None, now: Clock = utc_now) -> None:
        self._database, self._given, self._now = database, given, now
        self._taking = threading.Lock()

    def take(self, secret: str) -> str | None:
        """The digest of `secret`, if one can log in with it now; a code that is good once is then used."""
        if not check_form(secret):
            return None
        digest = secret_digest(secret)
        if self._is_given(digest):
            return digest if self._use_given() else None
        return None if self.person(digest) is None else digest

    def person(self, digest: str) -> Person | None:
        """Whose the secret with that digest is; None if it is nobody's now: unknown, expired, removed."""
        if self._is_given(digest):
            return self._given.person if self._given else None
        moment = self._now()
        with self._database.reads() as connection:
            return _token(connection, digest, moment) or _link(connection, digest, moment)

    def note_use(self, connection: sa.Connection, digest: str, moment: datetime) -> None:
        """Notes, in the caller's transaction, that it was used just now."""
        for table in (access_tokens, collaborator_links):
            connection.execute(sa.update(table).filter_by(digest=digest).values(last_used=moment))

    def _is_given(self, digest: str) -> bool:
        return self._given is not None and hmac.compare_digest(self._given.digest, digest)

    def _use_given(self) -> bool:
        given = self._given
        with self._taking:
            if given is None or given.used:
                return False
            given.used = given.once
            return True


def _token(connection: sa.Connection, digest: str, moment: datetime) -> Person | None:
    query = sa.select(access_tokens).filter_by(digest=digest)
    found = _holds(connection.execute(query).mappings().first(), digest, moment)
    return None if found is None else Person(found["name"], Role[found["role"].upper()])


def _link(connection: sa.Connection, digest: str, moment: datetime) -> Person | None:
    query = sa.select(collaborator_links).filter_by(digest=digest)
    found = _holds(connection.execute(query).mappings().first(), digest, moment)
    if found is None:
        return None
    return Person(found["site"], Role.COLLABORATOR, run=found["run"], site=found["site"])


def _holds(row: sa.RowMapping | None, digest: str, moment: datetime) -> sa.RowMapping | None:
    if row is None or not hmac.compare_digest(row["digest"], digest):
        return None
    expires = row["expires_at"]
    return row if expires is None or expires > moment else None
