"""The dashboard's pages and data without its gate: whoever asks is who the test says."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
from starlette.applications import Starlette
from starlette.routing import Route as Served
from starlette.types import Receive, Scope, Send

from fedlora.server.dashboard import data, download, pages, stream
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.store import RunStore
from fedlora.server.views import Views

VIEWER = Person("vera", Role.VIEWER, "csrf-v")
OPERATOR = Person("otto", Role.OPERATOR, "csrf-o")
ADMIN = Person("ada", Role.ADMIN, "csrf-a")
ROUTES = (*pages.ROUTES, *data.ROUTES, *download.ROUTES, *stream.ROUTES)


def site_of(run: str, site: str) -> Person:
    """Somebody who came through a collaborator's link."""
    return Person("link", Role.COLLABORATOR, "csrf-c", run=run, site=site)


@dataclass
class Dashboard:
    """The application over a store."""

    app: Starlette
    context: Context

    def get(self, path: str, person: Person | None = OPERATOR, **headers: str) -> httpx.Response:
        """The whole answer to a GET of `person`."""
        return anyio.run(partial(self._get, path, person, headers))

    async def _get(self, path: str, person: Person | None, headers: dict[str, str]) -> httpx.Response:
        async def as_person(scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, **({} if person is None else {"person": person})}, receive, send)

        transport = httpx.ASGITransport(as_person)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)


def dashboard(store: RunStore, **changes: Any) -> Dashboard:
    """Over `store`, as recorded runs; changes: of the context."""
    context = Context(
        **{
            "store": store,
            "registry": None,
            "presences": dict,
            "queue": None,
            "closing": threading.Event(),
            "views": Views(store, work=None),
            "version": "0",
            **changes,
        }
    )
    app = Starlette(routes=[Served(route.path, route.endpoint, methods=[route.method]) for route in ROUTES])
    app.state.context = context
    return Dashboard(app, context)


Maker = Callable[..., Dashboard]
