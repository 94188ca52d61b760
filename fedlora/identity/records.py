"""What the registry tells of its clients."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ClientStatus(StrEnum):
    """INVITED: may join, and has no certificate that holds. ACTIVE: has one. REVOKED: may not connect."""

    INVITED = "invited"
    ACTIVE = "active"
    REVOKED = "revoked"


class CertificateState(StrEnum):
    """VALID: opens the door until it expires. REPLACED: a newer one was used. REVOKED: taken away."""

    VALID = "valid"
    REPLACED = "replaced"
    REVOKED = "revoked"


@dataclass(frozen=True)
class ClientRecord:
    """A client as the server knows it; times in UTC, None for what has not happened or does not exist.

    reason: of the revocation. certificate: SHA-256 (hexadecimal) of the one in use, or given out last;
    certificate_expires: its end. invitation_expires: the end of a token that was not used yet. version: of the fedlora
    package, as the client says.
    """

    name: str
    status: ClientStatus
    reason: str
    certificate: str | None
    certificate_expires: datetime | None
    invitation_expires: datetime | None
    enrolled_at: datetime | None
    last_seen: datetime | None
    version: str
