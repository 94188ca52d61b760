"""The files with which a server speaks TLS, in its home. Nothing here knows gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from filelock import FileLock

from fedlora.errors import IdentityError
from fedlora.identity.authority import CERTIFICATE, KEY, Authority
from fedlora.identity.clock import Clock, utc_now
from fedlora.identity.keys import (
    certificate_facts,
    new_key,
    parse_certificate,
    parse_key,
    read_certificate,
    read_private,
    signing_request,
    write_private,
)
from fedlora.identity.names import check_host
from fedlora.server.durable import explained, replace_synced

RENEW_BEFORE = timedelta(days=30)
"""A server's certificate with less time left than this is renewed."""


@dataclass(frozen=True)
class ServerFiles:
    """The paths in a server's home; `runs` is its run store."""

    home: Path
    authority: Path
    authority_key: Path
    authority_certificate: Path
    key: Path
    certificate: Path
    runs: Path


def server_files(home: Path) -> ServerFiles:
    """Where everything is in the server home `home`; nothing is read or made."""
    authority = home / "ca"
    return ServerFiles(
        home=home,
        authority=authority,
        authority_key=authority / KEY,
        authority_certificate=authority / CERTIFICATE,
        key=home / "server.key",
        certificate=home / "server.crt",
        runs=home / "runs",
    )


def ensure_server_certificate(home: Path, authority: Authority, hosts: Sequence[str], *, now: Clock = utc_now) -> bool:
    """Makes a new key and certificate for the server, reached as `hosts`, unless those that are there will do.

    They will not if they are missing, do not belong together, are another authority's or for other hosts, or end in
    less than 30 days. Returns whether new ones were made; a server that runs takes them up when it starts again.

    Raises IdentityError for a host that cannot be, or a key that others can read; StoreError if a file cannot be read
    or written.
    """
    wanted = tuple(dict.fromkeys(map(check_host, hosts)))
    files = server_files(home)
    with explained("lock", home):
        lock = FileLock(home / ".server-certificate.lock")
        lock.acquire(timeout=60)
    try:
        if _will_do(files, authority, wanted, now):
            return False
        _make(files, authority, wanted)
        return True
    finally:
        lock.release()


def _will_do(files: ServerFiles, authority: Authority, hosts: Sequence[str], now: Clock) -> bool:
    if not files.key.exists() or not files.certificate.exists():
        return False
    key, certificate = read_private(files.key), read_certificate(files.certificate)
    try:
        facts = certificate_facts(certificate)
        return (
            _belong_together(key, certificate)
            and authority.issued(certificate)
            and set(facts.hosts) == set(hosts)
            and facts.not_after - now() >= RENEW_BEFORE
        )
    except IdentityError:  # damaged: made anew
        return False


def _belong_together(key: bytes, certificate: bytes) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ours, certified = parse_key(key).public_key(), parse_certificate(certificate).public_key()
    return ours.public_bytes(*form) == certified.public_bytes(*form)


def _make(files: ServerFiles, authority: Authority, hosts: Sequence[str]) -> None:
    """The key goes first: after a crash between the two they do not belong together, and are made anew."""
    key = new_key()
    certificate = authority.sign_server(signing_request(key, "server"), hosts)
    write_private(files.key, key)
    with explained("write", files.certificate):
        replace_synced(files.certificate, certificate)
