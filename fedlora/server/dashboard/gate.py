"""What stands before, and stands in for, the dashboard's router: only what is in the route table can be reached.

Each request passes, in this order: the name of this server; the path and method in the table; the session; the role;
the object; for what changes something the origin, the size and the CSRF token; the number of requests. The endpoint is
called from here, so that a route that somebody adds to the application without the table is never reached.
"""

import hmac
import logging
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import parse_qs

from anyio import to_thread
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.routing import request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora.errors import FedloraError, StoreError
from fedlora.server.dashboard.audit import DONE, FAILED, REFUSED, Note, write_down
from fedlora.server.dashboard.cookies import read_cookie
from fedlora.server.dashboard.desk import Desk
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.refusals import RefusedError, failed, refused
from fedlora.server.dashboard.routes import Route
from fedlora.server.dashboard.sending import Bodiless, EndedError, Recorded, Watched
from fedlora.server.dashboard.sessions import Session
from fedlora.server.dashboard.table import CHANGING, Found, RouteTable, may_use
from fedlora.server.operator.exchange import Headed, Replay, address_of, names_us, read_body

log = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""

BODY_SECONDS = 20.0
"""Seconds within which a request's body must be there."""

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Not no-referrer: with it browsers name no origin when a form is sent.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer that does not set its own."""

_DOWNLOADS = {"/runs/{run_id}/adapter/{round}.zip": "download adapter"}
"""Paths that hand out a model, with what the audit log calls it: noted although nothing changes."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class DashboardGate:
    """Middleware that never calls the application it is around: it has the table's endpoints called instead.

    hosts: names that the Host header may have (without port).
    """

    def __init__(self, app: ASGIApp, desk: Desk, routes: Sequence[Route], hosts: Collection[str]) -> None:
        self._app, self._desk = app, desk
        self._table = RouteTable(routes)
        self._hosts = {host.lower() for host in hosts}
        self._endpoints: Mapping[Route, ASGIApp] = {route: request_response(route.endpoint) for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headed = Headed(send, SECURITY_HEADERS)
            await self._http(scope, receive, headed, Bodiless(headed) if scope["method"] == "HEAD" else headed)

    async def _http(self, scope: Scope, receive: Receive, headed: Headed, send: Send) -> None:
        request = Request(scope)
        scope["note"] = Note(scope["method"], address_of(scope))
        try:
            await self._admitted(scope, receive, send)
        except RefusedError as refusal:
            await self._note_refusal(scope, refusal)
            await refused(request, refusal)(scope, receive, send)
        except (ClientDisconnect, EndedError) as error:
            log.debug("%s %s broke off: %s", scope["method"], scope["path"], error)
        except Exception as error:
            if headed.begun:
                raise  # too late for an answer: the connection breaks off, and nobody takes a part for the whole
            await failed(request, error)(scope, receive, self._recorded(scope, send, error))

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the endpoint of a request that may come in. Raises RefusedError, and what the endpoint raises."""
        headers = Headers(scope=scope)
        if not names_us(headers.getlist("host"), self._hosts):
            raise RefusedError(400, "This server does not have the name in the request's Host header.")
        found = self._table.find(scope)
        session = None if found is not None and found.is_open(scope["method"]) else await self._session(scope)
        route = _route(found, scope, session)
        scope["note"].action = _DOWNLOADS.get(route.path) or _words(route)
        _check_site(scope["method"], headers)
        if session is not None:
            _check_own(session.person, scope)
            self._check_often(session)
            send = Watched(send, lambda: self._goes_on(session))
        if route.method in CHANGING:
            receive = await self._checked_change(scope, receive, session)
            send = self._recorded(scope, send)
        elif route.path in _DOWNLOADS and scope["method"] == "GET":
            scope["note"].object = "run {run_id}, round {round}".format(**scope["path_params"])
            send = self._recorded(scope, send)
        await self._endpoints[route](scope, receive, send)

    async def _session(self, scope: Scope) -> Session | None:
        value = read_cookie(scope, tls=self._desk.tls)
        session = None if value is None else await to_thread.run_sync(self._desk.sessions.find, value)
        if session is not None:
            scope["person"] = session.person
            note: Note = scope["note"]
            note.person, note.role = session.person.name, session.person.role.word
        return session

    async def _goes_on(self, session: Session) -> bool:
        try:
            return await to_thread.run_sync(self._desk.sessions.holds, session.digest)
        except StoreError:
            return True  # a database that is busy ends nobody's session

    def _check_often(self, session: Session) -> None:
        limit = self._desk.limits.requests
        if not limit.add(session.digest):
            later = {"Retry-After": f"{limit.seconds:.0f}"}
            raise RefusedError(429, "These are too many requests for one session: wait a minute.", later, noted=False)

    async def _checked_change(self, scope: Scope, receive: Receive, session: Session | None) -> Receive:
        """`receive` for a request that may change something, with its body. Raises RefusedError."""
        headers = Headers(scope=scope)
        if not _is_same_origin(headers, "https" if self._desk.tls else "http"):
            raise RefusedError(403, "This was not sent by a page of this server: use the dashboard's own pages.")
        try:
            body = await read_body(headers, receive, most=MAX_BODY, seconds=BODY_SECONDS)
        except TimeoutError:
            raise RefusedError(408, "The request's body took too long.", {"Connection": "close"}) from None
        if body is None:
            raise RefusedError(
                413, f"The request's body has over {MAX_BODY:,} bytes: send less.", {"Connection": "close"}
            )
        if session is not None and not hmac.compare_digest(_csrf(headers, body).encode(), session.person.csrf.encode()):
            raise RefusedError(403, "This page is out of date: load it again, and repeat what you wanted.")
        return Replay(body, receive)

    def _recorded(self, scope: Scope, send: Send, error: Exception | None = None) -> Send:
        async def record(status: int) -> None:
            note: Note | None = scope.pop("note", None)
            if note is not None and (scope["method"] in CHANGING or note.action in _DOWNLOADS.values()):
                if note.outcome == DONE and status >= 400:
                    note.outcome, note.reason = FAILED, note.reason or _reason(error)
                await write_down(self._desk.audit, note)

        return Recorded(send, record)

    async def _note_refusal(self, scope: Scope, refusal: RefusedError) -> None:
        note: Note = scope["note"]
        if refusal.noted and (note.person or self._desk.limits.noteworthy(note.address)):
            note.outcome, note.reason = REFUSED, f"{refusal.status}: {refusal.message}"
            note.object = note.object or f"{scope['method']} {scope['path']}"
            await write_down(self._desk.audit, note)


def _route(found: Found | None, scope: Scope, session: Session | None) -> Route:
    """The route that the request means, if whoever asks may use it. Raises RefusedError."""
    method = scope["method"]
    if session is None and not (found is not None and found.is_open(method)):
        raise RefusedError(401, "Nobody is logged in: log in first.", noted=method in CHANGING)
    if found is None:
        raise RefusedError(404, "There is no such page.", noted=False)
    route = found.route(method)
    if route is None:
        raise RefusedError(405, "This page does not take that method.", {"Allow": found.allowed})
    if session is not None and not may_use(session.person.role, route):
        raise RefusedError(403, f"The role {session.person.role.word!r} is not enough for this.")
    scope["path_params"] = dict(found.parameters)
    return route


def _words(route: Route) -> str:
    """What the endpoint is called."""
    return str(getattr(route.endpoint, "__name__", route.path)).replace("_", " ")


def _check_own(person: Person, scope: Scope) -> None:
    """A collaborator asks for its own run and site alone, wherever the address names them. Raises RefusedError."""
    if person.role is not Role.COLLABORATOR:
        return
    query = QueryParams(scope["query_string"])
    for name, own in (("run", person.run), ("site", person.site)):
        if any(given != own for given in query.getlist(name)):
            raise RefusedError(404, "There is no such run here.")


def _check_site(method: str, headers: Headers) -> None:
    """What a page elsewhere has the browser ask for is refused, but the following of a link. Raises RefusedError."""
    site = headers.get("sec-fetch-site", "none")
    follows = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("same-origin", "none") and not (follows and headers.get("sec-fetch-dest") == "document"):
        raise RefusedError(403, "This was asked for by a page of another server.")


def _is_same_origin(headers: Headers, scheme: str) -> bool:
    """Whether the browser says that a page of this server sent the request. Without a word of it, no."""
    origins = headers.getlist("origin")
    if not origins:
        return headers.getlist("sec-fetch-site") == ["same-origin"]
    host = headers["host"].lower().removesuffix(_DEFAULT_PORTS[scheme])
    return origins == [f"{scheme}://{host}"]


def _reason(error: Exception | None) -> str:
    """An error's words where they are meant to be read; a library's could hold anything."""
    return str(error) if isinstance(error, FedloraError) else type(error).__name__ if error else ""


def _csrf(headers: Headers, body: bytes) -> str:
    """The CSRF token that a request gives, in a header or in a form's field; "" if it gives none, or several."""
    given = headers.getlist("x-csrf-token")
    if not given and headers.get("content-type", "").partition(";")[0] == "application/x-www-form-urlencoded":
        given = parse_qs(body.decode("latin-1")).get("csrf", [])
    return given[0] if len(given) == 1 else ""
