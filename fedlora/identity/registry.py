"""Which clients a server knows, and with which certificates they may connect."""

import hmac
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from threading import Lock

import sqlalchemy as sa

from fedlora.errors import IdentityError
from fedlora.identity import rows
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.keys import CertificateFacts
from fedlora.identity.names import check_name
from fedlora.identity.records import CertificateState, ClientRecord, ClientStatus
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.link.limits import shown
from fedlora.server.store.database import Database

_MOST_HOURS = 24 * 366
_LONGEST_TEXT = 500  # characters of a reason or a version
_SEEN_EVERY = timedelta(minutes=1)
_ENDED = {
    CertificateState.REPLACED: "was replaced by a newer one, which its client has used since: two hosts may have the"
    " same identity; use the newer one, or join anew with a token from the operator",
    CertificateState.REVOKED: "was taken away; the operator can give out a token to join anew",
}


class Registry:
    """The clients of one server, in its database; many threads and processes may use it at once.

    Every method raises StoreError if the database cannot be read or written.
    """

    def __init__(self, database: Database, now: Clock = utc_now) -> None:
        self._database, self._now = database, now
        self._noted: dict[str, datetime] = {}
        self._noting = Lock()

    def invite(self, name: str, *, hours: float = 72.0, again: bool = False) -> str:
        """The secret of a new token for the client `name`, good for one use within `hours`; earlier ones end.

        again: also for a client that has a certificate, because it lost its key; it keeps its certificate until the
        token is used. A revoked client is let in again.

        Raises IdentityError if that name or time cannot be, or the client has a certificate and `again` is False.
        """
        moment, secret = self._now(), new_secret()
        expires = moment + _hours(hours)
        with self._database.writes() as connection:
            self._make_invited(connection, check_name(name), moment, again)
            rows.add_token(connection, name, secret_digest(secret), moment, expires)
        return secret

    def redeem(self, secret: str, name_hint: str | None = None, *, key: str | None = None) -> str:
        """The name of the client that joins with `secret`; from now on the token is used, and old certificates end.

        name_hint: the name that the client expects, if it said one; a wrong one does not use the token up. key: SHA-256
        of the public key that is to be certified. With the same key a used token can be used again, until it expires
        or a certificate that came of it is used: the reply may have been lost on its way.

        Raises IdentityError, always with the same text, if the token is used, expired, withdrawn, unknown or another's.
        """
        digest, moment = secret_digest(secret), self._now()
        name = self._name_of(digest, moment, name_hint, key)
        with self._database.writes() as connection:
            rows.client(connection, name, lock=True)
            if rows.use_token(connection, digest, moment, key):
                rows.revoke_certificates(connection, name)
            else:
                self._check_may_repeat(connection, name, digest, key)
                rows.forget_unused(connection, name)
            rows.change_client(connection, name, status=ClientStatus.INVITED.value, reason="")
        return name

    def record_certificate(self, name: str, facts: CertificateFacts, *, renews: str | None = None) -> None:
        """Makes a certificate that was just signed one with which the client may connect.

        renews: the SHA-256 of the certificate with which the client asked for this one; it holds until this one is
        used. None: the client has just joined with a token.

        Raises IdentityError if the certificate is not for that client, or the client was revoked meanwhile, or has
        joined before and names no certificate that it renews, or one that does not hold.
        """
        if not facts.is_client or facts.name != name:
            raise IdentityError(f"the certificate of {facts.name!r} is not one for the client {name!r}")
        moment = self._now()
        with self._database.writes() as connection:
            self._check_may_get(connection, name, renews)
            rows.add_certificate(connection, name, facts, moment)
            if renews is None:
                rows.change_client(connection, name, status=ClientStatus.ACTIVE.value, enrolled_at=moment)

    def admit(self, name: str, certificate_sha256: str) -> None:
        """Returns if the client may connect with that certificate (SHA-256 of its DER form, hexadecimal).

        The first use of a certificate ends those that its client got before. That the client has the certificate's
        key, TLS has checked. Raises IdentityError with the reason if it may not.
        """
        with self._database.reads() as connection:
            first = self._admitted(connection, name, certificate_sha256)["used_at"] is None
        if first:
            with self._database.writes() as connection:
                rows.client(connection, name, lock=True)
                found = self._admitted(connection, name, certificate_sha256)
                rows.note_first_use(connection, found, self._now())

    def revoke(self, name: str, reason: str = "") -> None:
        """Takes all certificates and tokens of a client away. One that is revoked already stays so, for its old reason.

        Raises IdentityError if there is no such client.
        """
        with self._database.writes() as connection:
            found = rows.client(connection, name, lock=True)
            if found is None:
                raise IdentityError(f"there is no client {name[:80]!r} to revoke; `fedlora server clients` lists them")
            if found["status"] != ClientStatus.REVOKED.value:
                revoked = {"status": ClientStatus.REVOKED.value, "reason": shown(reason, _LONGEST_TEXT)}
                rows.change_client(connection, name, **revoked)
            rows.revoke_certificates(connection, name)
            rows.drop_tokens(connection, name)

    def clients(self) -> Sequence[ClientRecord]:
        """All clients that were ever invited, by name."""
        with self._database.reads() as connection:
            return rows.client_records(connection, self._now())

    def seen(self, name: str, version: str) -> None:
        """Notes that a client is there, with its version of fedlora (what it says); at most once a minute for each."""
        moment = self._now()
        with self._noting:
            noted = self._noted.get(name)
            if noted is not None and timedelta() <= moment - noted < _SEEN_EVERY:
                return
            self._noted[name] = moment
        with self._database.writes() as connection:
            rows.change_client(connection, name, last_seen=moment, version=shown(version, _LONGEST_TEXT))

    def _make_invited(self, connection: sa.Connection, name: str, moment: datetime, again: bool) -> None:
        """The client's row, made or changed for a new token."""
        found = rows.client(connection, name, lock=True)
        if found is None:
            rows.add_client(connection, name)
        elif not rows.has_certificate(connection, name, moment):
            rows.change_client(connection, name, status=ClientStatus.INVITED.value, reason="")
        elif not again:
            raise IdentityError(
                f"client {name!r} has a certificate that holds: choose another name, or, if it has lost its key, invite"
                " it with --again; its old certificate ends when it joins"
            )

    def _name_of(self, digest: str, moment: datetime, name_hint: str | None, key: str | None) -> str:
        """Whose token it is. Only read, so that guesses from strangers never keep others from writing."""
        with self._database.reads() as connection:
            found = rows.living_token(connection, digest, moment, key)
        if found is None or not hmac.compare_digest(found["digest"], digest):
            raise _bad_token()
        name: str = found["client"]
        if name_hint is not None and name_hint != name:
            raise _bad_token()
        return name

    def _check_may_repeat(self, connection: sa.Connection, name: str, digest: str, key: str | None) -> None:
        found = rows.living_token(connection, digest, self._now(), key)
        if found is None or rows.has_connected(connection, name):
            raise _bad_token()

    def _check_may_get(self, connection: sa.Connection, name: str, renews: str | None) -> None:
        found = rows.client(connection, name, lock=True)
        if renews is not None:
            self._admitted(connection, name, renews)
        elif found is None or found["status"] != ClientStatus.INVITED.value:
            status = "unknown" if found is None else found["status"]
            raise IdentityError(
                f"client {name!r} cannot get a certificate by joining: it is {status}. One that is active renews the"
                " certificate that it has; others need a new token from the operator"
            )

    def _admitted(self, connection: sa.Connection, name: str, sha256: str) -> rows.Row:
        """The row of a certificate that opens the door. Raises IdentityError with the reason if it does not."""
        _check_client(rows.client(connection, name), name)
        found = rows.certificate(connection, name, sha256)
        if found is None:
            raise IdentityError(
                f"the certificate {sha256[:16]}… of client {name!r} is not on record here: it is another server's, or"
                " this server's database was restored from an older copy; join anew with a token from the operator"
            )
        state = CertificateState(found["state"])
        if state is not CertificateState.VALID:
            raise IdentityError(f"the certificate {sha256[:16]}… of client {name!r} {_ENDED[state]}")
        if found["expires_at"] <= self._now():
            raise IdentityError(
                f"the certificate {sha256[:16]}… of client {name!r} expired on {found['expires_at']:%Y-%m-%d}: join"
                " anew with a token from the operator"
            )
        return found


def _check_client(found: rows.Row | None, name: str) -> None:
    if found is None:
        raise IdentityError(
            f"no client {name[:80]!r} is registered here: its operator can invite it (`fedlora server enroll`)"
        )
    if found["status"] == ClientStatus.REVOKED.value:
        reason = f" ({found['reason']})" if found["reason"] else ""
        raise IdentityError(f"client {name!r} was revoked{reason}: only the server's operator can let it in again")


def _bad_token() -> IdentityError:
    return IdentityError(
        "this token cannot be used: it was used before, has expired, was withdrawn, or is not from this server; ask the"
        " server's operator for a new one"
    )


def _hours(hours: float) -> timedelta:
    if not (math.isfinite(hours) and 0 < hours <= _MOST_HOURS):
        raise IdentityError(f"a token cannot be good for {hours:g} hours: give more than 0 and at most {_MOST_HOURS}")
    return timedelta(hours=hours)
