"""What pages fetch: the query layer's answers as JSON, a comparison as CSV. Numbers are finite or null."""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from fedlora.errors import FedloraError
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.refusals import failed, told
from fedlora.server.dashboard.routes import Route
from fedlora.server.dashboard.shared import Packed, Shared
from fedlora.server.queue import STOP
from fedlora.server.records import RunInfo
from fedlora.server.views import Views, visibility
from fedlora.server.views.facts import facts

WHY = (
    "This run is under central differential privacy: who took part in which round stays secret, or the guarantee would"
    " be a weaker one. Rosters and single clients' figures are for the operator."
)
MOST_COMPARED = 40
"""Runs that one comparison may have."""
_MOST_EVENTS = 500


class QuestionError(FedloraError):
    """A question that is not answered; `status` says how in HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def refuse(status: int, message: str) -> NoReturn:
    """Ends an endpoint with an answer that says why."""
    raise QuestionError(status, message)


def answered(endpoint: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """An endpoint whose errors become JSON with a sentence."""

    @functools.wraps(endpoint)
    def answer(request: Request) -> Response:
        try:
            return endpoint(request)
        except QuestionError as error:
            return told(request, error.status, str(error))
        except FedloraError as error:
            return failed(request, error)

    return answer


def plain(request: Request, value: Any) -> Response:
    """A value of the query layer as JSON, packed where that pays."""
    return _sent(request, Packed.of(value))


def _sent(request: Request, packed: Packed) -> Response:
    text, headers = packed.text, {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if packed.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        text, headers = packed.zipped, headers | {"Content-Encoding": "gzip"}
    return Response(text, media_type="application/json", headers=headers)


def _once(request: Request, run: RunInfo, what: Hashable, make: Callable[[], Any]) -> Response:
    """As `plain`, of what `make` gives; pages that ask for the same of the same round have the same answer."""
    if getattr(request.app.state, "shared", None) is None:
        request.app.state.shared = Shared()
    shared: Shared = request.app.state.shared
    version = (run.status, run.rounds_done, (run.folder / STOP).exists())
    return _sent(request, shared.get((run.id, what, role_of(request)), version, make))


def views_of(request: Request) -> Views:
    """The query layer of the application."""
    context: Context = request.app.state.context
    return context.views


def role_of(request: Request) -> Role:
    """The role of whoever asks."""
    person: Person = request.scope["person"]
    return person.role


def sight(request: Request, run_id: str) -> bool:
    """Whether whoever asks may see who took part in a run."""
    return _sees(request, _stored(request, run_id))


def _sees(request: Request, run: RunInfo) -> bool:
    return visibility.may_see_clients(role_of(request), facts(run).privacy)


def _stored(request: Request, run_id: str) -> RunInfo:
    context: Context = request.app.state.context
    return context.store.get(run_id)


def _need_sight(request: Request, run_id: str) -> RunInfo:
    run = _stored(request, run_id)
    if not _sees(request, run):
        refuse(403, WHY)
    return run


def _run(request: Request) -> str:
    return str(request.path_params["run_id"])


def _number(request: Request, name: str, otherwise: int | None, most: int) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal() or len(text) > 15:
        refuse(400, f"{name}={text[:40]!r} is no whole number")
    return min(int(text), most)


@answered
def runs(request: Request) -> Response:
    """GET /data/runs."""
    role = role_of(request)
    return plain(request, {"runs": [visibility.shown_row(role, row) for row in views_of(request).runs()]})


@dataclass(frozen=True)
class _More:
    """What one answer has beside the run itself, so that a page asks once after a commit. spread: of that metric."""

    matrix: bool
    spread: str | None


@answered
def run(request: Request) -> Response:
    """GET /data/runs/{id}?matrix=1&spread=: everything that the page of a run shows."""
    run_id, role, views = _run(request), role_of(request), views_of(request)
    more = _More("matrix" in request.query_params, request.query_params.get("spread"))
    return _once(request, _stored(request, run_id), more, lambda: _whole(views, run_id, role, more))


def _whole(views: Views, run_id: str, role: Role, more: _More) -> dict[str, Any]:
    row = views.run_row(run_id)
    sees = visibility.may_see_clients(role, row.privacy)
    metrics = list(views.roster_metrics(run_id)) if sees else []
    return {
        "row": visibility.shown_row(role, row),
        "series": visibility.shown_series(role, row.privacy, views.series(run_id)),
        "checkpoints": list(visibility.shown_checkpoints(role, row.privacy, views.checkpoints(run_id))),
        "roster_metrics": metrics,
        "rosters": sees,
        "why": "" if sees else WHY,
        "matrix": views.matrix(run_id) if sees and more.matrix else None,
        "spread": views.spread(run_id, more.spread) if more.spread in metrics else None,
    }


@answered
def matrix(request: Request) -> Response:
    """GET /data/runs/{id}/matrix."""
    found, views = _need_sight(request, _run(request)), views_of(request)
    return _once(request, found, "matrix", lambda: views.matrix(found.id))


@answered
def roster(request: Request) -> Response:
    """GET /data/runs/{id}/rounds/{n}."""
    _need_sight(request, _run(request))
    wanted = request.path_params["round"]
    if not wanted.isdecimal() or len(wanted) > 9:
        refuse(404, f"there is no round {wanted[:40]!r}")
    return plain(request, {"roster": list(views_of(request).roster(_run(request), int(wanted)))})


@answered
def spread(request: Request) -> Response:
    """GET /data/runs/{id}/spread?metric=."""
    found, views = _need_sight(request, _run(request)), views_of(request)
    metric = request.query_params.get("metric", "")

    def make() -> Any:
        if metric not in views.roster_metrics(found.id):
            refuse(404, f"no client of this run reported a metric {metric[:80]!r}")
        return views.spread(found.id, metric)

    return _once(request, found, ("spread", metric), make)


@answered
def events(request: Request) -> Response:
    """GET /data/runs/{id}/events?client=&before=&limit=."""
    _need_sight(request, _run(request))
    client = request.query_params.get("client") or None
    before = _number(request, "before", None, 10**15)
    limit = _number(request, "limit", 100, _MOST_EVENTS) or 1
    return plain(request, views_of(request).client_events(_run(request), client, before, limit))


@answered
def config(request: Request) -> Response:
    """GET /data/runs/{id}/config?other=."""
    views, other = views_of(request), request.query_params.get("other")
    found = [{"key": key, "value": value} for key, value in views.config(_run(request)).items()]
    different = list(views.config_difference(_run(request), other)) if other else None
    return plain(request, {"config": found, "difference": different})


@answered
def clients(request: Request) -> Response:
    """GET /data/clients."""
    return plain(request, {"clients": views_of(request).clients(role_of(request))})


def _compared(request: Request) -> Sequence[str]:
    ids = list(dict.fromkeys(request.query_params.getlist("run")))
    if len(ids) > MOST_COMPARED:
        refuse(400, f"{len(ids)} runs are too many for one comparison: name at most {MOST_COMPARED}")
    return ids


@answered
def compare(request: Request) -> Response:
    """GET /data/compare?run=a&run=b."""
    return plain(request, visibility.shown_comparison(role_of(request), views_of(request).compare(_compared(request))))


@answered
def compare_csv(request: Request) -> Response:
    """GET /data/compare.csv?run=a&run=b."""
    found = visibility.shown_comparison(role_of(request), views_of(request).compare(_compared(request)))
    name = {"Content-Disposition": 'attachment; filename="fedlora-comparison.csv"', "Cache-Control": "no-store"}
    return Response(views_of(request).csv(found), media_type="text/csv; charset=utf-8", headers=name)


@answered
def mine(request: Request) -> Response:
    """GET /mine/data: what a collaborator's link shows."""
    person: Person = request.scope["person"]
    if person.run is None or person.site is None:
        refuse(404, "this page belongs to a collaborator's link")
    return plain(request, views_of(request).mine(person.run, person.site))


ROUTES = (
    Route("GET", "/data/runs", Role.VIEWER, runs),
    Route("GET", "/data/runs/{run_id}", Role.VIEWER, run),
    Route("GET", "/data/runs/{run_id}/matrix", Role.VIEWER, matrix),
    Route("GET", "/data/runs/{run_id}/rounds/{round}", Role.VIEWER, roster),
    Route("GET", "/data/runs/{run_id}/spread", Role.VIEWER, spread),
    Route("GET", "/data/runs/{run_id}/events", Role.VIEWER, events),
    Route("GET", "/data/runs/{run_id}/config", Role.VIEWER, config),
    Route("GET", "/data/clients", Role.VIEWER, clients),
    Route("GET", "/data/compare", Role.VIEWER, compare),
    Route("GET", "/data/compare.csv", Role.VIEWER, compare_csv),
    Route("GET", "/mine/data", Role.COLLABORATOR, mine),
)
