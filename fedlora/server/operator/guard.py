"""What stands before every route of the operator API, those added later too: one gate around the whole application.

A dependency of FastAPI would not do: it is asked after the body was read, and it covers neither mounted applications
nor plain Starlette routes. The gate knows one open path; all else needs the token.
"""

import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedlora.errors import ConfigError, IdentityError, LinkError
from fedlora.server.operator.answers import failure, unexpected

log = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer that does not set its own."""

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Failures:
    """Wrong tokens by address: at most `limit` in `seconds`, of the last `addresses` that gave one. In memory."""

    def __init__(
        self,
        limit: int = 10,
        seconds: float = 60.0,
        addresses: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._limit, self._addresses, self._clock = limit, addresses, clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, address: str) -> bool:
        """Counts a wrong token of `address`; True while it is within the limit."""
        now = self._clock()
        since, count = self._counts.pop(address, (now, 0))
        if now - since >= self.seconds:
            since, count = now, 0
        self._counts[address] = since, count + 1
        if len(self._counts) > self._addresses:
            self._counts.popitem(last=False)
        return count < self._limit


class Gate:
    """Lets a request through that names this server, gives the token and is small enough; for `open_paths`, no token.

    hosts: names that the Host header may have (without port), or a page elsewhere could have its own name point here
    and talk to the server through the operator's browser. A right token is never held up, whatever failed before from
    its address: it has 256 bits, so nobody gets it by trying, and a script with an old one must not lock out the
    operator. The limit keeps those who try out of the log.
    """

    def __init__(
        self, app: ASGIApp, token: str, hosts: Collection[str], open_paths: Collection[str], failures: Failures
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._open = frozenset(open_paths)
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, _Headed(send))

    async def _http(self, scope: Scope, receive: Receive, send: "_Headed") -> None:
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = b"" if scope["path"] in self._open else await _read_body(Headers(scope=scope), receive)
        except ClientDisconnect:
            return
        if body is None:
            problem = f"the request's body has over {MAX_BODY:,} bytes: send less"
            await failure(ConfigError([problem]), 413, {"Connection": "close"})(scope, receive, send)
            return
        try:
            await self._app(scope, _Replay(body, receive), send)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if send.begun:
                raise  # too late for an answer: the connection breaks off, and nobody takes a part for the whole
            await unexpected()(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._names_us(headers.getlist("host")):
            return failure(LinkError("this server does not have the name in the request's Host header"), 400)
        if scope["path"] in self._open or self._has_token(headers.getlist("authorization")):
            return None
        address = str((scope.get("client") or ["unknown"])[0])
        challenge = {"WWW-Authenticate": "Bearer"}
        if not self._failures.add(address):
            later = {**challenge, "Retry-After": f"{self._failures.seconds:.0f}"}
            return failure(IdentityError("too many requests with a wrong token from this address"), 429, later)
        log.warning("%s %s without the operator's token, from %s", scope["method"], scope["path"], address)
        return failure(IdentityError("the operator's token is missing or wrong"), 401, challenge)

    def _names_us(self, given: Sequence[str]) -> bool:
        """One Host header, with one of our names and any port."""
        found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        return found is not None and found["name"].strip("[]").lower() in self._hosts

    def _has_token(self, given: Sequence[str]) -> bool:
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        return secrets.compare_digest(token.strip().encode(), self._token) and scheme.lower() == "bearer"


class _Headed:
    """`send`, with the security headers on the answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


class _Replay:
    """`receive` for a request whose body was read already: the body, then what happens to the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body; None if it is too large, without reading all of it. Raises ClientDisconnect."""
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 20 or int(declared) > MAX_BODY:
        return None
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
