"""The home of a server: its authority, its certificate, its run store."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.keys import CertificateFacts, certificate_facts, read_certificate
from fedlora.identity.names import check_address, check_host
from fedlora.identity.registry import Registry
from fedlora.identity.tls import ensure_server_certificate, server_files
from fedlora.server.durable import explained
from fedlora.server.settings import database_of
from fedlora.server.store import RunStore
from fedlora.server.store.run_store import DATABASE


def default_hosts() -> Sequence[str]:
    """localhost, 127.0.0.1, and the name of this machine if a certificate can have it."""
    hosts = ["localhost", "127.0.0.1"]
    with contextlib.suppress(IdentityError):
        hosts.append(check_host(socket.gethostname()))
    return tuple(dict.fromkeys(hosts))


def make_home(home: Path, name: str, hosts: Sequence[str]) -> Authority:
    """Makes all that a server needs in `home` (mode 0700 where it is new): see `server_files`.

    Its run store is in the database that `home`'s settings or the environment name (see `database_of`).

    Raises IdentityError if an authority is there already, for a host that cannot be or a name that cannot; StoreError
    if it cannot be written, or the database cannot be used; ConfigError for settings with mistakes.
    """
    for host in hosts:
        check_host(host)
    files = server_files(home)
    with explained("make the server's home", home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not files.authority.exists():  # first: what fails here can be repeated
        _make_store(home)
    authority = create_authority(files.authority, name)
    ensure_server_certificate(home, authority, hosts)
    return authority


def _make_store(home: Path) -> None:
    folder = server_files(home).runs
    with explained("make the run store's folder", folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    RunStore.open(folder, url=database_of(home)).close()


@contextlib.contextmanager
def open_store(home: Path) -> Iterator[RunStore]:
    """The run store of the server whose home that is, for the block; the server may run meanwhile.

    Raises IdentityError if it is no server's home, StoreError, and ConfigError for settings with mistakes.
    """
    with RunStore.open(server_files(home).runs, url=checked_database(home)) as store:
        yield store


@contextlib.contextmanager
def open_registry(home: Path) -> Iterator[Registry]:
    """The registry of the server whose home that is, for the block. Raises what `open_store` does."""
    with open_store(home) as store:
        yield Registry(store.database)


def checked_database(home: Path) -> str | None:
    """As `database_of`, of a home that is certainly a server's. Raises IdentityError if it is none, and ConfigError."""
    files, url = server_files(home), database_of(home)
    sign = files.runs / DATABASE if url is None else files.authority_certificate
    if not sign.is_file():
        raise IdentityError(
            f"{home} is no server's home (there is no {sign}): check --home, or make one with `fedlora ca init {home}`"
        )
    return url


def check_reachable(home: Path, address: str) -> None:
    """Raises IdentityError unless `address` (host:port) is one for which the server's certificate is."""
    host, _ = check_address(address)
    known = certificate_facts(read_certificate(server_files(home).certificate)).hosts
    if host not in known:
        raise IdentityError(
            f"the server's certificate is for {', '.join(known)}, not for {host!r}: a client would refuse to talk to"
            f" it. Use one of those, or make a new certificate with `fedlora ca hosts {home} --host {host} …`"
        )


def server_facts(home: Path) -> dict[str, Any]:
    """Authority and server certificate of a home, for people and scripts. Raises IdentityError if one is missing."""
    files = server_files(home)
    authority = certificate_facts(read_certificate(files.authority_certificate))
    server = certificate_facts(read_certificate(files.certificate))
    of_server = {"hosts": list(server.hosts), "sha256": server.sha256, "expires": _time_text(server)}
    return {
        "name": authority.name,
        "sha256": authority.sha256,
        "expires": _time_text(authority),
        "certificate": str(files.authority_certificate),
        "server": of_server,
    }


def _time_text(facts: CertificateFacts) -> str:
    return f"{facts.not_after:%Y-%m-%dT%H:%M:%SZ}"
