"""What stands before every route of the operator API, those added later too: one gate around the whole application.

A dependency of FastAPI would not do: it is asked after the body was read, and it covers neither mounted applications
nor plain Starlette routes. The gate knows one open path; all else needs the token.
"""

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora.errors import ConfigError, IdentityError, LinkError
from fedlora.server.operator.answers import failure, unexpected
from fedlora.server.operator.exchange import MAX_BODY, Failures, Headed, Replay, address_of, names_us, read_body
from fedlora.server.operator.noting import Refusals

log = logging.getLogger(__name__)

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

BODY_SECONDS = 60.0
"""Seconds within which a request's body must be there."""


class Gate:
    """Lets a request through that names this server, gives the token and is small enough; for `open_paths`, no token.

    readers: path → a further token that is good for GET of exactly that path, and for nothing else.
    hosts: names that the Host header may have (without port), or a page elsewhere could have its own name point here
    and talk to the server through the operator's browser. A right token is never held up, whatever failed before from
    its address: it has 256 bits, so nobody gets it by trying, and a script with an old one must not lock out the
    operator. The limit keeps those who try out of the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        hosts: Collection[str],
        open_paths: Collection[str],
        failures: Failures,
        refusals: Refusals,
        readers: Mapping[str, str] | None = None,
    ) -> None:
        self._app = app
        self._failures, self._refusals = failures, refusals
        self._token = token.encode()
        self._readers = {path: given.encode() for path, given in (readers or {}).items()}
        self._hosts = {host.lower() for host in hosts}
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, Headed(send, SECURITY_HEADERS))

    async def _http(self, scope: Scope, receive: Receive, send: Headed) -> None:
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except ClientDisconnect:
            return
        except TimeoutError as error:
            await failure(LinkError(str(error)), 408, {"Connection": "close"})(scope, receive, send)
            return
        if body is None:
            problem = f"the request's body has over {MAX_BODY:,} bytes: send less"
            await failure(ConfigError([problem]), 413, {"Connection": "close"})(scope, receive, send)
            return
        try:
            await self._app(scope, Replay(body, receive), send)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if send.begun:
                raise  # too late for an answer: the connection breaks off, and nobody takes a part for the whole
            await unexpected()(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        if scope["path"] in self._open:
            return b""
        return await read_body(Headers(scope=scope), receive, seconds=BODY_SECONDS)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not names_us(headers.getlist("host"), self._hosts):
            return failure(LinkError("this server does not have the name in the request's Host header"), 400)
        if scope["path"] in self._open or self._has_token(scope, headers.getlist("authorization")):
            return None
        address = address_of(scope)
        challenge = {"WWW-Authenticate": "Bearer"}
        if not self._failures.add(address):
            later = {**challenge, "Retry-After": f"{self._failures.seconds:.0f}"}
            return failure(IdentityError("too many requests with a wrong token from this address"), 429, later)
        log.warning("%s %s without the operator's token, from %s", scope["method"], scope["path"], address)
        problem = "the operator's token is missing or wrong"
        await self._refusals.note(scope, f"401: {problem}")
        return failure(IdentityError(problem), 401, challenge)

    def _has_token(self, scope: Scope, given: Sequence[str]) -> bool:
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        reader = self._readers.get(scope["path"]) if scope["method"] == "GET" else None
        good = [known for known in (self._token, reader) if known is not None]
        return scheme.lower() == "bearer" and any(secrets.compare_digest(token.strip().encode(), k) for k in good)
