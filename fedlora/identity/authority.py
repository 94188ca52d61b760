"""A certificate authority of the server's own. It signs for servers and clients; nobody else has to trust it."""

import secrets
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedlora.errors import IdentityError
from fedlora.identity.building import begun, general_name, key_usage, lifetime, self_signed
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.keys import (
    CLIENT_URI,
    PARSING_ERRORS,
    is_authority,
    new_key,
    parse_certificate,
    parse_key,
    read_certificate,
    read_private,
    write_private,
)
from fedlora.identity.names import check_host, check_name
from fedlora.identity.requests import checked_public_key
from fedlora.server.durable import explained, sync_folder, write_synced

KEY, CERTIFICATE = "ca.key", "ca.crt"

_MOST_HOSTS = 100
_LONGEST_NAME = 64  # bytes of a common name (RFC 5280)


class Authority:
    """Signs requests with its key. Made by `create_authority` and `open_authority`; safe to use from many threads."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, now: Clock = utc_now) -> None:
        self._key, self._certificate, self._now = key, certificate, now

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM: what others verify against."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign_server(self, signing_request: bytes, hosts: Sequence[str], days: int = 825) -> bytes:
        """A server's certificate (PEM) for the key in `signing_request`, reached as `hosts`: DNS names, IP addresses.

        days: it does not outlive the authority's own. Raises IdentityError for a request or a host that is refused.
        """
        if not 0 < len(hosts) <= _MOST_HOSTS:
            raise IdentityError(f"a server's certificate is for 1 to {_MOST_HOSTS} hosts, not {len(hosts)}")
        names = [general_name(host) for host in dict.fromkeys(map(check_host, hosts))]
        return self._sign(signing_request, "fedlora server", names, ExtendedKeyUsageOID.SERVER_AUTH, days)

    def sign_client(self, signing_request: bytes, name: str, days: int = 365) -> bytes:
        """A certificate (PEM) for the client `name`, for the key in `signing_request`.

        days: it does not outlive the authority's own. Raises IdentityError for a request or a name that is refused.
        """
        names = [x509.UniformResourceIdentifier(CLIENT_URI + check_name(name))]
        return self._sign(signing_request, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def issued(self, certificate: bytes) -> bool:
        """Whether this authority signed `certificate` (PEM). Raises IdentityError if that cannot be read."""
        try:
            parse_certificate(certificate).verify_directly_issued_by(self._certificate)
        except (*PARSING_ERRORS, InvalidSignature):
            return False
        return True

    def check_alive(self) -> None:
        """Raises IdentityError if the authority's own certificate has ended."""
        self._end(1)

    def _sign(
        self, request: bytes, name: str, names: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier, days: int
    ) -> bytes:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            begun(name, checked_public_key(request), self._now(), self._end(days))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def _end(self, days: int) -> datetime:
        """When a certificate of so many days ends: not after the authority's own."""
        now, last = self._now(), self._certificate.not_valid_after_utc
        if last <= now:
            raise IdentityError(
                f"the authority's certificate ended on {last:%Y-%m-%d}: make a new authority in another home"
                " (`fedlora ca init`) and enrol every client anew"
            )
        return min(now + lifetime(days), last)


def create_authority(folder: Path, name: str, *, days: int = 3650, now: Clock = utc_now) -> Authority:
    """A new authority called `name`, in `folder` (mode 0700): its key (mode 0600), and its certificate for `days`.

    It is made beside `folder` and put there in one step: a crash, or another process that does the same, leaves a
    whole authority or none. Raises IdentityError if something is in `folder`, or the name is empty, longer than 64
    bytes or not printable; StoreError if it cannot be written.
    """
    if not (name.strip() and name.isprintable() and len(name.encode()) <= _LONGEST_NAME):
        raise IdentityError(f"{name[:80]!r} cannot name an authority: give 1 to {_LONGEST_NAME} printable characters")
    folder = Path(folder).absolute()
    key = new_key()
    certificate = self_signed(parse_key(key), name, now(), days)
    with explained("make an authority in", folder):
        _place(folder, key, certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(parse_key(key), certificate, now)


def open_authority(folder: Path, *, now: Clock = utc_now) -> Authority:
    """The authority in `folder`.

    Raises IdentityError if there is none, others can use its key or it is not the certificate's, or the certificate
    has ended or is not an authority's; StoreError if a file cannot be read.
    """
    certificate = parse_certificate(read_certificate(folder / CERTIFICATE))
    key = parse_key(read_private(folder / KEY))
    if key.public_key() != certificate.public_key():
        raise IdentityError(f"{folder / KEY} is not the key of {folder / CERTIFICATE}: restore both from one backup")
    if not is_authority(certificate):
        raise IdentityError(f"{folder / CERTIFICATE} is no authority's certificate: restore it from a backup")
    authority = Authority(key, certificate, now)
    authority.check_alive()
    return authority


def _place(folder: Path, key: bytes, certificate: bytes) -> None:
    """Writes the key, then the certificate, to a folder beside `folder`; only one that is whole gets the name."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.mkdir(mode=0o700)
        write_private(draft / KEY, key)
        write_synced(draft / CERTIFICATE, certificate)
        sync_folder(draft)
        _rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def _rename(draft: Path, folder: Path) -> None:
    """The operating system takes the place of an empty folder with it, but not of one that another process filled."""
    try:
        draft.rename(folder)
    except OSError as error:
        if folder.exists():
            raise _taken(folder) from error
        raise


def _taken(folder: Path) -> IdentityError:
    return IdentityError(
        f"{folder} is not empty: an authority is never overwritten, or every certificate that it signed would be worth"
        " nothing; use the one that is there (`fedlora ca show`), or choose another home"
    )
