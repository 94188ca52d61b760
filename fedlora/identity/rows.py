"""The registry's questions to the database, and its smaller changes, inside a transaction of the caller."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from fedlora.identity.keys import CertificateFacts
from fedlora.identity.records import CertificateState, ClientRecord, ClientStatus
from fedlora.server.store.tables import certificates, clients, tokens

_MOST_UNUSED = 16
"""Certificates of one client that may wait for their first use: it may die many times while it renews."""

Row = sa.RowMapping


def client(connection: sa.Connection, name: str, *, lock: bool = False) -> Row | None:
    """The client's row. lock: whoever else wants to change this client waits until the transaction ends."""
    query = sa.select(clients).filter_by(name=name)
    return connection.execute(query.with_for_update() if lock else query).mappings().first()


def add_client(connection: sa.Connection, name: str) -> None:
    """Adds a client that is invited."""
    row = {"name": name, "status": ClientStatus.INVITED.value, "reason": "", "version": ""}
    connection.execute(sa.insert(clients), [row])


def change_client(connection: sa.Connection, name: str, **values: Any) -> None:
    """Sets columns of a client's row."""
    connection.execute(sa.update(clients).filter_by(name=name).values(**values))


def certificate(connection: sa.Connection, name: str, sha256: str) -> Row | None:
    """The certificate's row, if it is one of that client's."""
    return connection.execute(sa.select(certificates).filter_by(sha256=sha256, client=name)).mappings().first()


def has_certificate(connection: sa.Connection, name: str, moment: datetime) -> bool:
    """Whether the client has a certificate that opens the door at `moment`."""
    valid = sa.select(certificates.c.sha256).filter_by(client=name, state=CertificateState.VALID.value)
    return connection.execute(valid.where(certificates.c.expires_at > moment)).first() is not None


def add_certificate(connection: sa.Connection, name: str, facts: CertificateFacts, moment: datetime) -> None:
    """Adds a certificate as the client's newest, and forgets what nobody can use any more."""
    of_client = certificates.c.client == name
    gone = of_client & (certificates.c.state != CertificateState.VALID.value) & (certificates.c.expires_at <= moment)
    last = connection.execute(sa.select(sa.func.max(certificates.c.number)).where(of_client)).scalar() or 0
    connection.execute(sa.delete(certificates).where(gone))
    row = {
        "sha256": facts.sha256,
        "client": name,
        "number": last + 1,
        "serial": facts.serial,
        "state": CertificateState.VALID.value,
        "issued_at": moment,
        "used_at": None,
        "expires_at": facts.not_after,
    }
    connection.execute(sa.insert(certificates), [row])
    _bound_unused(connection, name)


def _bound_unused(connection: sa.Connection, name: str) -> None:
    """Takes the oldest away where a client asks for ever more certificates and uses none."""
    unused = sa.select(certificates.c.number).filter_by(client=name, state=CertificateState.VALID.value, used_at=None)
    newest_first = unused.order_by(certificates.c.number.desc())
    surplus = connection.execute(newest_first.offset(_MOST_UNUSED).limit(1)).scalar()
    if surplus is not None:
        _end(connection, name, CertificateState.REPLACED, certificates.c.used_at.is_(None), up_to=surplus)


def note_first_use(connection: sa.Connection, found: Row, moment: datetime) -> None:
    """Notes that a certificate was used: those that its client got before it are replaced."""
    connection.execute(sa.update(certificates).filter_by(sha256=found["sha256"]).values(used_at=moment))
    _end(connection, found["client"], CertificateState.REPLACED, up_to=found["number"] - 1)


def revoke_certificates(connection: sa.Connection, name: str) -> None:
    """Takes all certificates of a client away."""
    _end(connection, name, CertificateState.REVOKED)


def _end(
    connection: sa.Connection,
    name: str,
    state: CertificateState,
    *conditions: sa.ColumnElement[bool],
    up_to: int | None = None,
) -> None:
    change = sa.update(certificates).filter_by(client=name, state=CertificateState.VALID.value).where(*conditions)
    if up_to is not None:
        change = change.where(certificates.c.number <= up_to)
    connection.execute(change.values(state=state.value))


def add_token(connection: sa.Connection, name: str, digest: str, moment: datetime, expires: datetime) -> None:
    """Adds a token, in the place of others that the client did not use."""
    drop_tokens(connection, name)
    row = {"digest": digest, "client": name, "created_at": moment, "expires_at": expires, "used_at": None}
    connection.execute(sa.insert(tokens), [row])


def drop_tokens(connection: sa.Connection, name: str) -> None:
    """Withdraws the client's tokens; used ones too: with its key, whoever used one could ask again."""
    connection.execute(sa.delete(tokens).filter_by(client=name))


def living_token(connection: sa.Connection, digest: str, moment: datetime, key: str | None) -> Row | None:
    """The token's row, if it can be used at `moment`, or was used with `key` and has not expired since."""
    usable = sa.select(tokens).filter_by(digest=digest).where(tokens.c.expires_at > moment)
    unused = tokens.c.used_at.is_(None)
    open_to = unused if key is None else unused | (tokens.c.key_sha256 == key)  # no key is not the key of NULL
    return connection.execute(usable.where(open_to)).mappings().first()


def use_token(connection: sa.Connection, digest: str, moment: datetime, key: str | None) -> bool:
    """Marks a token as used. False if it could not be used at `moment`: another was faster, it expired, is unknown.

    key: SHA-256 of the public key for which it is used.
    """
    usable = sa.update(tokens).filter_by(digest=digest, used_at=None).where(tokens.c.expires_at > moment)
    return connection.execute(usable.values(used_at=moment, key_sha256=key)).rowcount == 1


def has_connected(connection: sa.Connection, name: str) -> bool:
    """Whether the client has used a certificate since it last joined: that took older ones away."""
    of_join = sa.select(certificates.c.number).filter_by(client=name).where(certificates.c.used_at.is_not(None))
    return connection.execute(of_join.where(certificates.c.state != CertificateState.REVOKED.value)).first() is not None


def forget_unused(connection: sa.Connection, name: str) -> None:
    """Deletes the certificates that the client has not used: they may not even have reached it."""
    connection.execute(sa.delete(certificates).filter_by(client=name, used_at=None))


def client_records(connection: sa.Connection, moment: datetime) -> Sequence[ClientRecord]:
    """All clients, by name."""
    # The one in use last: it overwrites the others.
    order = (certificates.c.used_at.is_not(None), certificates.c.number)
    valid = sa.select(certificates).filter_by(state=CertificateState.VALID.value).order_by(*order)
    held = {row["client"]: row for row in connection.execute(valid).mappings()}
    unused = sa.select(tokens).filter_by(used_at=None).where(tokens.c.expires_at > moment)
    invited = {row["client"]: row["expires_at"] for row in connection.execute(unused).mappings()}
    # Not in the database's order: each language has its own.
    found = sorted(connection.execute(sa.select(clients)).mappings(), key=lambda row: row["name"])
    return tuple(_record(row, held.get(row["name"]), invited.get(row["name"])) for row in found)


def _record(row: Row, held: Row | None, invitation_expires: datetime | None) -> ClientRecord:
    return ClientRecord(
        **dict(row)
        | {
            "status": ClientStatus(row["status"]),
            "certificate": held["sha256"] if held else None,
            "certificate_expires": held["expires_at"] if held else None,
            "invitation_expires": invitation_expires,
        }
    )
