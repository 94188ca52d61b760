"""One-time tokens: what an operator hands to a data owner, who joins the server with it.

A token holds the certificate of the server's authority, so that a client knows the server from the first byte on, and
a secret of 256 bits. The server keeps only the secret's SHA-256: whoever reads its database cannot join.
"""

import base64
import binascii
import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from fedlora.errors import IdentityError
from fedlora.identity.keys import is_authority, parse_certificate
from fedlora.identity.names import check_address, check_name

PREFIX = "fedlora1."

_LONGEST = 16 * 1024  # characters; ours have about 1,300
_SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_REMEDY = "copy the whole token as it was given, in one line, or ask the server's operator for a new one"


@dataclass(frozen=True)
class Invitation:
    """What a token says: who may join, which server (host:port), its authority (PEM), the secret, until when (UTC)."""

    name: str
    server: str
    authority: bytes
    secret: str = field(repr=False)  # no log may hold it
    expires: datetime


def new_secret() -> str:
    """256 random bits, as 43 letters, digits, '-' and '_'."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def secret_digest(secret: str) -> str:
    """What a server keeps of a secret: its SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def encode(invitation: Invitation) -> str:
    """The token of an invitation. Raises IdentityError if a part of it is not what `decode` would take."""
    _check(invitation)
    plain = asdict(invitation) | {
        "authority": invitation.authority.decode("ascii"),
        "expires": _time_text(invitation.expires),
    }
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=True)
    return PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(text: str) -> Invitation:
    """The invitation in a token; space around it does not count. Whether it has expired, the server knows.

    Raises IdentityError unless `text` is, to the letter, what `encode` gives for an invitation.
    """
    token = text[: 2 * _LONGEST].strip()
    if not token.startswith(PREFIX) or len(token) > _LONGEST:
        raise IdentityError(f"this is no enrolment token (one starts with {PREFIX!r} and is a single word): {_REMEDY}")
    try:
        invitation = _invitation(json.loads(_decoded(token.removeprefix(PREFIX))))
        same = encode(invitation) == token
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        # Not the error's text: it may quote the secret.
        raise IdentityError(f"this enrolment token is damaged ({type(error).__name__}): {_REMEDY}") from None
    if not same:
        raise IdentityError(f"this enrolment token is not in its one right form: {_REMEDY}")
    return invitation


def _decoded(text: str) -> bytes:
    if not text.isascii():
        raise binascii.Error("letters outside ASCII")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _invitation(plain: Any) -> Invitation:
    return Invitation(
        **plain
        | {
            "authority": plain["authority"].encode("ascii"),
            "expires": datetime.strptime(plain["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC),
        }
    )


def _check(invitation: Invitation) -> None:
    check_name(invitation.name)
    check_address(invitation.server)
    if not _SECRET.fullmatch(invitation.secret):
        raise IdentityError(f"the secret of an invitation has another form than `new_secret` gives: {_REMEDY}")
    authority = parse_certificate(invitation.authority)
    if not is_authority(authority) or authority.public_bytes(Encoding.PEM) != invitation.authority:
        raise IdentityError(f"what an invitation has for a certificate is not one of an authority alone: {_REMEDY}")


def _time_text(moment: datetime) -> str:
    """Whole seconds: a fraction is dropped, so that a token never claims more than it is good for."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
