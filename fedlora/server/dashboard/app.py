"""The dashboard as one application, and both applications of the operator's port as one."""

from collections.abc import Collection, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora.identity.clock import Clock, utc_now
from fedlora.server.dashboard import actions, data, download, login, pages, stream
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.credentials import Given
from fedlora.server.dashboard.desk import Desk
from fedlora.server.dashboard.gate import DashboardGate
from fedlora.server.dashboard.routes import Route
from fedlora.server.store.database import Database

ROUTES: Sequence[Route] = (
    *pages.ROUTES,
    *data.ROUTES,
    *download.ROUTES,
    *stream.ROUTES,
    *login.ROUTES,
    *actions.ROUTES,
)
"""All that there is."""

_OF_A_SERVER = ("/clients", "/data/clients", "/audit", "/access", "/mine")


def make_dashboard(
    context: Context,
    hosts: Collection[str],
    *,
    tls: bool,
    given: Given | None = None,
    database: Database | None = None,
    now: Clock = utc_now,
    routes: Sequence[Route] = ROUTES,
) -> Starlette:
    """The dashboard.

    hosts: names in requests' Host header that mean this server. tls: whether it is served over HTTPS. given: a secret
    that opens the door beside the access tokens and links in the database. database: where sessions, tokens, links and
    the audit log are; None: in the store's. Where `context` has no queue, there is nothing but what can be looked at.
    """
    desk = Desk.at(database or context.store.database, given, tls=tls, now=now)
    offered = routes if context.queue is not None else looking(routes)
    app = Starlette(middleware=[Middleware(DashboardGate, desk=desk, routes=offered, hosts=hosts)])
    app.state.context, app.state.desk, app.state.closing = context, desk, context.closing
    return app


def looking(routes: Sequence[Route]) -> Sequence[Route]:
    """Those with which runs are looked at, and login and logout: what there is where there is no server."""
    seen = [route for route in routes if route.method == "GET" and not route.path.startswith(_OF_A_SERVER)]
    return (*seen, *(route for route in login.ROUTES if route.method != "GET"))


def front(api: Starlette, dashboard: Starlette) -> Starlette:
    """What the operator's port serves: `/api/…` and `/metrics` are the API, with its gate, the rest the dashboard."""
    app = Starlette(middleware=[Middleware(_Fork, api=api, dashboard=dashboard)])
    app.state.closing = api.state.closing
    return app


class _Fork:
    """Middleware that never calls the application it is around."""

    def __init__(self, app: ASGIApp, api: ASGIApp, dashboard: ASGIApp) -> None:
        del app
        self._api, self._dashboard = api, dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        to_api = path in ("/api", "/metrics") or path.startswith("/api/")
        await (self._api if to_api else self._dashboard)(scope, receive, send)
