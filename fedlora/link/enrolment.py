"""The gRPC side of enrolment: `Join` for strangers with a token. Everything else needs a certificate."""

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from fedlora.errors import IdentityError
from fedlora.identity.enrolment import Issued
from fedlora.link import limits
from fedlora.link.v1 import link_pb2_grpc
from fedlora.link.v1.link_pb2 import Certificate, JoinRequest

log = logging.getLogger(__name__)

LARGEST_REQUEST = 32 * 1024
FAILURES, WINDOW = 10, 300.0
"""Refused joins that one address may make in that many seconds."""

Join = Callable[[str, bytes], Issued]
"""Takes a secret and a signing request (PEM); raises IdentityError if it is refused."""


class EnrolmentService(link_pb2_grpc.EnrolmentServicer):
    """`fedlora.v1.Enrolment`."""

    def __init__(self, join: Join, link: str) -> None:
        """link: the address that clients are to connect to, "host:port", or ":port" of the host that they know."""
        self._join, self._link = join, link
        self._failures = limits.Recent(FAILURES, WINDOW)

    async def Join(self, request: JoinRequest, context: Any) -> Certificate:  # noqa: N802 - gRPC's name
        """A first certificate for whoever has a token's secret."""
        address = place(str(context.peer()))
        if self._failures.too_many(address):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many refused tokens: wait five minutes")
        try:
            issued = await asyncio.to_thread(self._join, request.token, request.signing_request)
        except IdentityError as error:
            self._failures.note(address)
            log.warning("%s: a join was refused: %s", address, error)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except Exception:  # nothing of what is wrong inside is told outside
            log.exception("%s: a join failed", address)
            await context.abort(grpc.StatusCode.INTERNAL, "the server cannot enrol a client now; its log says why")
        else:
            log.info("client %s has joined from %s", issued.name, address)
            return as_reply(issued, self._link)
        raise AssertionError  # abort raises


def as_reply(issued: Issued, link: str = "") -> Certificate:
    """What was issued, as it travels. link: where to connect with it."""
    return Certificate(name=issued.name, certificate=issued.certificate, authority=issued.authority, link=link)


def place(peer: str) -> str:
    """Where a caller is, for counting: its address, or, as one host has many of those, its network of IPv6."""
    host = unquote(peer.rsplit(":", 1)[0].partition(":")[2]).strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or ipaddress.ip_network((address.packed, 64), strict=False))


CALLS = 1000
"""At a time; more are refused."""

OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_REQUEST),
    ("grpc.so_reuseport", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.max_connection_age_ms", 20_000),
    ("grpc.max_connection_age_grace_ms", 5_000),  # else whoever reads no reply holds its call for ever
    ("grpc.max_concurrent_streams", 4),
)
"""A stranger's connection is short: it is made, asks once, and ends."""


def enrolment_server(service: EnrolmentService, credentials: Any, address: str) -> tuple[Any, int]:
    """A gRPC server for `service` at `address`, not started yet; and its port."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS)
    join = grpc.unary_unary_rpc_method_handler(service.Join, _request, Certificate.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fedlora.v1.Enrolment", {"Join": join}),))
    return server, server.add_secure_port(address, credentials)


def _request(data: bytes) -> JoinRequest:
    """The request in `data`; an empty one, which is refused, for what cannot be read.

    gRPC's own way with that is a traceback in the log: strangers could fill the disk.
    """
    try:
        return JoinRequest.FromString(data)
    except DecodeError:
        return JoinRequest()
