"""The dashboard's pages. Their numbers come from `data` and `stream`; what must be read first is in the page itself."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from fedlora.errors import FedloraError
from fedlora.server.dashboard import assets
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.data import MOST_COMPARED, role_of, views_of
from fedlora.server.dashboard.people import ROLE_WORDS, Person, Role
from fedlora.server.dashboard.refusals import failed
from fedlora.server.dashboard.render import failure, page
from fedlora.server.dashboard.routes import Route
from fedlora.server.views import visibility
from fedlora.server.views.model import RunRow

_AUDIT_PAGE = 100


def runs(request: Request) -> Response:
    """GET /: all runs."""
    if role_of(request) is Role.COLLABORATOR:
        return RedirectResponse("/mine", 303)
    rows = [visibility.shown_row(role_of(request), row) for row in views_of(request).runs()]
    return page(request, "runs.html", script="runs.js", rows=rows, counts=_counts(rows))


def run(request: Request) -> Response:
    """GET /runs/{id}."""
    try:
        row = views_of(request).run_row(str(request.path_params["run_id"]))
    except FedloraError as error:
        return failed(request, error)
    sees = visibility.may_see_clients(role_of(request), row.privacy)
    shown = visibility.shown_row(role_of(request), row)
    return page(request, "run.html", script="run.js", row=shown, sees=sees, sites=_sites(request, row.id))


def clients(request: Request) -> Response:
    """GET /clients: only where there is a server that clients connect to."""
    context: Context = request.app.state.context
    if context.registry is None:
        why = "This dashboard shows recorded runs; clients are shown by the dashboard of `fedlora server`."
        return failure(request, 404, "There are no clients here", why)
    return page(request, "clients.html", script="clients.js")


def compare(request: Request) -> Response:
    """GET /compare?run=a&run=b; the script reads the runs from the address."""
    return page(request, "compare.html", script="compare.js", most=MOST_COMPARED)


def mine(request: Request) -> Response:
    """GET /mine: what a collaborator's link shows."""
    person: Person = request.scope["person"]
    if person.run is None or person.site is None:
        why = "This page belongs to a link that shows one site its own part in a run."
        return failure(
            request, 404, "There is nothing here", why, "An operator makes such a link on the page of a run."
        )
    return page(request, "mine.html", script="mine.js", site=person.site, run_id=person.run)


def audit(request: Request) -> Response:
    """GET /audit?before=N: who did what, newest first."""
    text = request.query_params.get("before", "")
    before = int(text) if text.isdecimal() and len(text) < 16 else None
    entries = request.app.state.desk.audit.entries(before, _AUDIT_PAGE + 1)
    older = entries[_AUDIT_PAGE - 1].id if len(entries) > _AUDIT_PAGE else None
    return page(
        request, "audit.html", script="audit.js", entries=entries[:_AUDIT_PAGE], older=older, first=before is None
    )


def access(request: Request) -> Response:
    """GET /access: tokens and links."""
    desk = request.app.state.desk
    return page(
        request, "access.html", script="access.js", tokens=desk.tokens.all(), links=desk.links.all(), roles=ROLE_WORDS
    )


def about(request: Request) -> Response:
    """GET /about: what this shows, what the colours and the words mean, and the keys."""
    context: Context = request.app.state.context
    return page(request, "about.html", script="about.js", store=str(context.store.folder))


def _sites(request: Request, run_id: str) -> Sequence[str]:
    """The run's sites, for whom links can be made here; none for whoever may not make any."""
    context: Context = request.app.state.context
    if context.queue is None or role_of(request) < Role.OPERATOR:
        return ()
    return json.loads(context.store.get(run_id).config).get("federation", {}).get("sites") or ()


def _counts(rows: Sequence[RunRow]) -> dict[str, Any]:
    return {
        "all": len(rows),
        "running": sum(row.status in ("running", "stopping") for row in rows),
        "trouble": sum(row.health == "stalled" or row.status in ("failed", "interrupted") for row in rows),
    }


ROUTES = (
    Route("GET", "/", Role.COLLABORATOR, runs),
    Route("GET", "/runs/{run_id}", Role.VIEWER, run),
    Route("GET", "/clients", Role.VIEWER, clients),
    Route("GET", "/compare", Role.VIEWER, compare),
    Route("GET", "/mine", Role.COLLABORATOR, mine),
    Route("GET", "/audit", Role.ADMIN, audit),
    Route("GET", "/access", Role.ADMIN, access),
    Route("GET", "/about", Role.VIEWER, about),
    Route("GET", "/static/{name:path}", None, assets.serve),
)
