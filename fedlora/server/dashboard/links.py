"""Links for collaborators: each shows one site what it has to do with one run, and nothing else, to whoever has it.

The secret stands behind the `#` of the address: a browser sends it to nobody by itself, so that it is in no server's
log, no proxy's and no Referer. The login page takes it from there, and posts it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from fedlora.errors import IdentityError, UnknownRunError
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.names import check_name
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.server.dashboard.tokens import lifetime
from fedlora.server.store.database import Database
from fedlora.server.store.tables import collaborator_links, dashboard_sessions, runs

DAYS = 30
"""For how long a link is good unless something else is said."""

_MOST_DAYS = 366
_ID_BYTES = 6


@dataclass(frozen=True)
class Link:
    """What is known of a link; its secret, nobody knows any more. created_by: the person's name."""

    id: str
    run: str
    site: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    last_used: datetime | None


@dataclass(frozen=True)
class NewLink:
    """A link that was just made. secret: shown once."""

    id: str
    secret: str = field(repr=False)


class Links:
    """The links of one server. Every method raises StoreError if the database cannot be used."""

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database, self._now = database, now

    def add(self, run: str, site: str, days: int = DAYS, by: str = "") -> NewLink:
        """A new link that shows `site` its part in the run, for `days` (1 to 366). by: who makes it.

        Whether the site takes part in the run, the caller has checked. Raises UnknownRunError; IdentityError for a
        site's name that cannot be, or such a time.
        """
        moment, made = self._now(), NewLink(secrets.token_hex(_ID_BYTES), new_secret())
        row = {
            "id": made.id,
            "digest": secret_digest(made.secret),
            "run": run,
            "site": check_name(site),
            "created_by": by,
            "created_at": moment,
            "expires_at": moment + lifetime(days, _MOST_DAYS),
        }
        with self._database.writes() as connection:
            if connection.execute(sa.select(runs.c.id).filter_by(id=run)).first() is None:
                raise UnknownRunError(f"there is no run {run[:100]!r} to make a link for")
            connection.execute(sa.insert(collaborator_links), [row])
        return made

    def remove(self, link: str) -> None:
        """Ends the link of that id, and whoever has come through it is logged out. Raises IdentityError."""
        with self._database.writes() as connection:
            digest = connection.execute(sa.select(collaborator_links.c.digest).filter_by(id=link)).scalar()
            if digest is None:
                raise IdentityError(f"there is no link {link[:40]!r} to remove")
            connection.execute(sa.delete(collaborator_links).filter_by(id=link))
            connection.execute(sa.delete(dashboard_sessions).filter_by(credential=digest))

    def remove_of(self, site: str) -> int:
        """Ends all links of a site, with the sessions of whoever has come through them; returns how many links."""
        digests = sa.select(collaborator_links.c.digest).filter_by(site=site)
        with self._database.writes() as connection:
            connection.execute(sa.delete(dashboard_sessions).where(dashboard_sessions.c.credential.in_(digests)))
            return connection.execute(sa.delete(collaborator_links).filter_by(site=site)).rowcount

    def all(self, run: str | None = None) -> Sequence[Link]:
        """All links, or those of one run, the newest first; those that have expired too."""
        shown = [column for column in collaborator_links.c if column.name != "digest"]
        query = sa.select(*shown).order_by(collaborator_links.c.created_at.desc(), collaborator_links.c.id)
        with self._database.reads() as connection:
            found = connection.execute(query if run is None else query.filter_by(run=run)).mappings().all()
        return tuple(Link(**row) for row in found)
