"""A client's key and certificates: how it joins a server, renews its certificate, and leaves."""

from dataclasses import dataclass
from typing import Any

import grpc

from fedlora.client.home import SiteHome, note_joined
from fedlora.client.own_files import write_own
from fedlora.errors import IdentityError, LinkError
from fedlora.identity.keys import certificate_facts, new_key, read_certificate, read_private, signing_request
from fedlora.identity.tokens import Invitation
from fedlora.link.diagnose import diagnose
from fedlora.link.v1 import link_pb2_grpc
from fedlora.link.v1.link_pb2 import EraseReply, EraseRequest, JoinRequest, RenewRequest

TIMEOUT = 30.0


@dataclass(frozen=True)
class Credentials:
    """Key, certificate and the server's authority, PEM."""

    key: bytes
    certificate: bytes
    authority: bytes


PAIR = "client.pem"
"""Key and certificate in one file, so that a crash while they are replaced cannot leave one of each."""

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def credentials(home: SiteHome) -> Credentials:
    """What is in the home. Raises IdentityError or StoreError if it cannot be used."""
    pair = read_private(home.identity / PAIR)
    at = pair.find(_CERTIFICATE)
    if at < 0:
        raise IdentityError(f"{home.identity / PAIR} holds no key with its certificate: restore it, or join anew")
    return Credentials(pair[:at], pair[at:], read_certificate(home.authority))


def join(home: SiteHome, invitation: Invitation, *, server: str | None = None) -> str:
    """Joins the server of `invitation` with a new key, which never leaves; returns the link's address.

    server: "host:port" of the enrolment, if it is reached here under another address than the token says.

    Raises IdentityError if the server refuses, LinkError if it cannot be reached.
    """
    address = server or invitation.server
    key = _kept_key(home)
    request = JoinRequest(token=invitation.secret, signing_request=signing_request(key, invitation.name))
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(invitation.authority))
    with channel:
        stub = link_pb2_grpc.EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        issued = _call(stub.Join, request, address, invitation.authority)
    if issued.authority != invitation.authority or certificate_facts(issued.certificate).name != invitation.name:
        raise IdentityError(f"the server at {address} issued something else than a certificate for {invitation.name!r}")
    write_own(home.authority, issued.authority)
    write_own(home.identity / PAIR, key + issued.certificate)
    home.client_key.unlink(missing_ok=True)
    port = str(issued.link)
    link = address.rpartition(":")[0] + port if port.startswith(":") else port
    note_joined(home, link)
    return link


def _kept_key(home: SiteHome) -> bytes:
    """A join that was cut short goes on with its key."""
    if not home.client_key.is_file():
        write_own(home.client_key, new_key())
    return read_private(home.client_key)


def renewed(home: SiteHome, server: str) -> None:
    """Gets a new key and a certificate for it. The old ones hold until the new ones are first used.

    Raises IdentityError if the server refuses, LinkError if it cannot be reached.
    """
    found = credentials(home)
    key, name = new_key(), certificate_facts(found.certificate).name
    with _channel(server, found) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        request = RenewRequest(signing_request=signing_request(key, name))
        issued = _call(stub.Renew, request, server, found.authority)
    write_own(home.identity / PAIR, key + issued.certificate)


def leave(home: SiteHome, server: str, *, erase: bool) -> EraseReply:
    """Leaves the server, whose certificate for this client ends; with `erase` it deletes what it stores of it.

    Raises IdentityError if the server refuses, LinkError if it cannot be reached.
    """
    found = credentials(home)
    with _channel(server, found) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        reply: EraseReply = _call(stub.Erase, EraseRequest(leave=True, keep=not erase), server, found.authority)
    return reply


def _channel(server: str, found: Credentials) -> Any:
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(found.authority, found.key, found.certificate))


def _call(method: Any, request: Any, address: str, authority: bytes) -> Any:
    try:
        return method(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED):
            raise IdentityError(f"the server refused: {error.details()}") from None
        reason = diagnose(address, authority) if error.code() is grpc.StatusCode.UNAVAILABLE else error.details()
        raise LinkError(f"the server at {address} could not be asked: {reason}") from error
