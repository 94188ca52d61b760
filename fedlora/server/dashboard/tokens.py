"""Access tokens: what a person logs in with. The database has their SHA-256 alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from fedlora.errors import IdentityError
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.names import check_name
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.server.dashboard.people import ROLE_WORDS, Role
from fedlora.server.store.database import Database
from fedlora.server.store.tables import access_tokens, dashboard_sessions

DAYS = 365
"""For how long a token is good unless something else is said."""

_MOST_DAYS = 3660


@dataclass(frozen=True)
class AccessToken:
    """What is known of a token; the secret, nobody knows any more."""

    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used: datetime | None


class AccessTokens:
    """The access tokens of one server. Every method raises StoreError if the database cannot be used."""

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database, self._now = database, now

    def add(self, name: str, role: str, days: int = DAYS) -> str:
        """The secret of a new token of that name, good for `days` (1 to 3,660), shown once.

        role: one of `ROLE_WORDS`. Raises IdentityError for a name that is taken or cannot be, a role that there is
        not, or such a time. A token of that name that has expired makes room.
        """
        moment, secret = self._now(), new_secret()
        row = {
            "name": check_name(name),
            "role": checked_role(role).word,
            "digest": secret_digest(secret),
            "created_at": moment,
            "expires_at": moment + lifetime(days, _MOST_DAYS),
        }
        with self._database.writes() as connection:
            expired = sa.delete(access_tokens).filter_by(name=name).where(access_tokens.c.expires_at <= moment)
            connection.execute(expired)
            if connection.execute(sa.select(access_tokens.c.name).filter_by(name=name)).first() is not None:
                raise IdentityError(
                    f"there is an access token {name!r} already: choose another name, or remove it first with"
                    f" `fedlora server access rm {name}`"
                )
            connection.execute(sa.insert(access_tokens), [row])
        return secret

    def remove(self, name: str) -> None:
        """Ends the token, and whoever has logged in with it is logged out. Raises IdentityError if there is none."""
        with self._database.writes() as connection:
            digest = connection.execute(sa.select(access_tokens.c.digest).filter_by(name=name)).scalar()
            if digest is None:
                raise IdentityError(
                    f"there is no access token {name[:80]!r} to remove; `fedlora server access ls` lists them"
                )
            connection.execute(sa.delete(access_tokens).filter_by(name=name))
            connection.execute(sa.delete(dashboard_sessions).filter_by(credential=digest))

    def all(self) -> Sequence[AccessToken]:
        """All tokens, by name, those that have expired too."""
        shown = [column for column in access_tokens.c if column.name != "digest"]
        with self._database.reads() as connection:
            found = connection.execute(sa.select(*shown)).mappings().all()
        tokens = [AccessToken(**{**row, "role": Role[row["role"].upper()]}) for row in found]
        return tuple(sorted(tokens, key=lambda token: token.name))


def checked_role(word: str) -> Role:
    """The role that `word` names. Raises IdentityError if a token cannot have it."""
    if word not in ROLE_WORDS:
        raise IdentityError(f"an access token cannot have the role {word[:40]!r}: give one of {', '.join(ROLE_WORDS)}")
    return Role[word.upper()]


def lifetime(days: int, most: int) -> timedelta:
    """`days` as a time. Raises IdentityError unless it is from 1 to `most` of them."""
    if not 1 <= days <= most:
        raise IdentityError(f"this cannot be good for {days} days: give from 1 to {most:,}")
    return timedelta(days=days)
