"""What the gate, the login and the actions share: who may come in, who is in, and what is written down."""

from dataclasses import dataclass, field

from fedlora.identity.clock import Clock, utc_now
from fedlora.server.dashboard.audit import AuditLog
from fedlora.server.dashboard.credentials import Credentials, Given
from fedlora.server.dashboard.links import Links
from fedlora.server.dashboard.sessions import Sessions
from fedlora.server.dashboard.tokens import AccessTokens
from fedlora.server.operator.exchange import Failures
from fedlora.server.store.database import Database

EVERYBODY = "everybody"
"""Under this name all addresses together are counted."""


@dataclass(frozen=True)
class Limits:
    """How often what is let happen in a minute: by address, by all addresses together, by session."""

    wrong: Failures = field(default_factory=Failures)
    wrong_together: Failures = field(default_factory=lambda: Failures(limit=100))
    requests: Failures = field(default_factory=lambda: Failures(limit=1200, addresses=4096))

    def noteworthy(self, address: str) -> bool:
        """Counts something that a stranger did wrong; False once it is too much to be written down."""
        alone, together = self.wrong.add(address), self.wrong_together.add(EVERYBODY)
        return alone and together


@dataclass(frozen=True)
class Desk:
    """One for each dashboard; `request.app.state.desk`. tls: whether browsers come over HTTPS."""

    tokens: AccessTokens
    links: Links
    credentials: Credentials
    sessions: Sessions
    audit: AuditLog
    tls: bool
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def at(cls, database: Database, given: Given | None, *, tls: bool, now: Clock = utc_now) -> "Desk":
        """A desk that keeps its books in `database`. given: what opens the door beside what is in there."""
        credentials = Credentials(database, given, now)
        return cls(
            AccessTokens(database, now),
            Links(database, now),
            credentials,
            Sessions(database, credentials, now),
            AuditLog(database, now),
            tls,
        )
