"""A dashboard for tests of its gate: two runs, two sites, somebody of each role; every endpoint but ours says "in"."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fedlora.identity.registry import Registry
from fedlora.server.dashboard import actions, login
from fedlora.server.dashboard.app import ROUTES, make_dashboard
from fedlora.server.dashboard.context import Context, Invited
from fedlora.server.dashboard.credentials import Given
from fedlora.server.dashboard.desk import Desk
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.routes import Route
from fedlora.server.operator.token import make_token
from fedlora.server.queue import RunQueue
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore
from tests.server.operator.living import load_samples

ORIGIN = "https://localhost"
HOSTS = ("localhost", "fed.example.org")
NOBODY, COLLABORATOR, VIEWER, OPERATOR, ADMIN = "nobody", "collaborator", "viewer", "operator", "admin"
EVERYBODY = (NOBODY, COLLABORATOR, VIEWER, OPERATOR, ADMIN)
IN = 299
"""The status of what was let in."""


async def let_in(request: Request) -> Response:
    """What stands in for every endpoint where only the gate is tested."""
    person: Person | None = request.scope.get("person")
    return PlainTextResponse("let-in: " + ("" if person is None else person.role.word), IN)


def stubbed(routes: Sequence[Route]) -> Sequence[Route]:
    """The routes with `let_in` in the place of their endpoints."""
    return tuple(replace(route, endpoint=let_in) for route in routes)


OURS: Sequence[Route] = (*login.ROUTES, *actions.ROUTES)
ALL_BUT_OURS = tuple(route for route in ROUTES if route not in OURS)


class Browser:
    """Asks the application itself, without a network, and keeps its cookies."""

    def __init__(self, app: Starlette, base: str, headers: Mapping[str, str], address: str = "203.0.113.5") -> None:
        transport = httpx.ASGITransport(app, client=(address, 50_000))
        self._client = httpx.AsyncClient(transport=transport, base_url=base, headers=dict(headers))

    @property
    def cookies(self) -> httpx.Cookies:
        """What it has been given."""
        return self._client.cookies

    @property
    def headers(self) -> httpx.Headers:
        """What it says with each request."""
        return self._client.headers

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The whole answer to one request; where it redirects to, it does not go."""
        return anyio.run(partial(self._client.request, method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    moment: datetime = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def move(self, **time: float) -> None:
        """Moves it on, as in `move(hours=3)`."""
        self.moment += timedelta(**time)


@dataclass
class Entrance:
    """The dashboard, and what opens it."""

    app: Starlette
    store: RunStore
    registry: Registry
    queue: RunQueue
    runs: Sequence[RunInfo]
    clock: Clock
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def desk(self) -> Desk:
        """Its books."""
        desk: Desk = self.app.state.desk
        return desk

    def browser(self, who: str = NOBODY, **headers: str) -> Browser:
        """A browser in which that person has logged in, which asks for JSON and says its origin."""
        given = {"Origin": ORIGIN, "Accept": "application/json", **headers}
        found = Browser(self.app, ORIGIN, given)
        if who != NOBODY:
            answer = log_in(found, self.secrets[who])
            assert answer.status_code in (200, 303), answer.text
        return found

    def acting(self, who: str, **headers: str) -> Browser:
        """As `browser`, with the CSRF token of its session in every request."""
        found = self.browser(who, **headers)
        found.headers["X-CSRF-Token"] = self.csrf(found)
        return found

    def csrf(self, browser: Browser) -> str:
        """The CSRF token of a browser's session."""
        session = self.desk.sessions.find(value_of(browser))
        return "" if session is None else session.person.csrf

    def audited(self) -> list[tuple[str, str, str, str, str]]:
        """The audit log, oldest first: person, role, action, object, outcome."""
        entries = reversed(self.desk.audit.entries())
        return [(one.person, one.role, one.action, one.object, one.outcome) for one in entries]


def log_in(browser: Browser, secret: str) -> Any:
    """Sends the login form."""
    return browser.post("/login", data={"token": secret})


def value_of(browser: Browser) -> str:
    """The session's value in a browser; "" without one."""
    return str(browser.cookies.get("__Host-fedlora") or "")


def invited(name: str, hours: float, again: bool) -> Invited:
    """What a server without an authority says."""
    del again
    return Invited(
        f"token-of-{name}", f"fedlora client join --token-file {name}.token", datetime(2031, 1, 1, tzinfo=UTC)
    )


@contextmanager
def entrance(
    folder: Path, *, routes: Sequence[Route] = (*stubbed(ALL_BUT_OURS), *OURS), url: str | None = None, **changes: Any
) -> Iterator[Entrance]:
    """A dashboard in `folder`; changes: of its Context."""
    folder.mkdir(exist_ok=True)
    clock = Clock()
    with RunStore.open(folder / "runs", url=url) as store:
        runs = [_run(store, name) for name in ("first", "second")]
        registry, queue = Registry(store.database), RunQueue(store)
        facts: Mapping[str, Any] = {
            "store": store,
            "registry": registry,
            "presences": dict,
            "queue": queue,
            "closing": threading.Event(),
            "views": None,
            "version": "0",
            "invite": invited,
        }
        context = cast("Context", Context(**{**facts, **changes}))
        token = make_token(folder / "operator.token")
        given = Given(token, Person("operator.token", Role.ADMIN))
        app = make_dashboard(context, HOSTS, tls=True, given=given, routes=routes, now=clock)
        found = Entrance(app, store, registry, queue, runs, clock, {"operator.token": token})
        for role in (VIEWER, OPERATOR, ADMIN):
            found.secrets[role] = found.desk.tokens.add(f"the-{role}", role)
        found.secrets[COLLABORATOR] = found.desk.links.add(runs[0].id, "ward-7", by="somebody").secret
        yield found


def _run(store: RunStore, name: str) -> RunInfo:
    plain = json.loads(load_samples().config().model_dump_json())
    plain["federation"]["sites"] = ["ward-7", "ward-9", "ward-11"]
    config = load_samples().config(federation=plain["federation"])
    return store.create(config, name=name, status=RunStatus.QUEUED)
