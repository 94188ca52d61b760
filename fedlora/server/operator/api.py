"""The operator's HTTP API of a server daemon: submit, watch, stop, resume and fetch runs, and see who is connected."""

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, TypeAdapter
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, FedloraError, IdentityError, LinkError, StoreError, UnknownRunError
from fedlora.server.dashboard.audit import AuditLog
from fedlora.server.operator.answers import failure
from fedlora.server.operator.archive import ADAPTER, adapter_files, zipped
from fedlora.server.operator.exchange import Failures
from fedlora.server.operator.guard import Gate
from fedlora.server.operator.noting import PREFIX, Noted, Refusals, tell, told_of
from fedlora.server.operator.scrape import Scrape
from fedlora.server.operator.stream import lines_after, server_sent
from fedlora.server.operator.submission import Restart, Resumption, Submission, read_submission
from fedlora.server.operator.token import check_form
from fedlora.server.queue import RunQueue
from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.restart import restart_without
from fedlora.server.store import RunStore
from fedlora.server.store.names import check_id
from fedlora.server.views import Link, Views
from fedlora.server.views.model import RunRow

HEALTH = f"{PREFIX}/health"
"""The only path that needs no token."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_OF_ROW = ("bytes_up", "bytes_down", "bytes_once", "stop_requested", "health", "health_reason")
Clients = Callable[[], Sequence[Mapping[str, Any]]]
Prepare = Callable[[RunConfig], RunConfig]

_INFO: TypeAdapter[RunInfo] = TypeAdapter(RunInfo)
_ROUNDS: TypeAdapter[Sequence[RoundRecord]] = TypeAdapter(Sequence[RoundRecord])


def make_api(
    queue: RunQueue,
    store: RunStore,
    token: str,
    clients: Clients,
    *,
    prepare: Prepare = lambda config: config,
    hosts: Collection[str] = LOOPBACK,
    metrics: Scrape | None = None,
    views: Views | None = None,
) -> FastAPI:
    """The application. Every path but `HEALTH` needs `Authorization: Bearer <token>`, those added to it later too.

    clients: what is known of each client now, as JSON values; called for each request, by any thread.
    prepare: makes a submitted configuration fit for this server (who its sites are, what depends on this machine); may
    raise ConfigError, which is told to the submitter. hosts: names in requests' Host header that mean this server.
    metrics: what Prometheus reads, with a token of its own; None: nothing is there for it. views: what tells how runs
    fare; None: some that know nothing of the link.
    `app.state.closing`, an Event: when it is set, streams of events end, so that the server can.
    What is done is in the audit log of the store's database, with what is refused for a wrong token.
    Raises IdentityError if `token` is none that `make_token` makes.
    """
    if not check_form(token):
        raise IdentityError("the operator's token must be one that fedlora makes: 256 random bits, base64")
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.closing = threading.Event()
    seen = views or Views(store, link=Link(driven=lambda: queue.driven), work=None)
    _Routes(queue, store, clients, prepare, seen, app.state.closing).add_to(app)
    app.add_exception_handler(FedloraError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    if metrics is not None:
        metrics.add_to(app)
    readers, audit = {} if metrics is None else {metrics.path: metrics.token}, AuditLog(store.database)
    app.add_middleware(Noted, audit=audit)
    app.add_middleware(
        Gate,
        token=token,
        hosts=hosts,
        open_paths=(HEALTH,),
        failures=Failures(),
        refusals=Refusals(audit),
        readers=readers,
    )  # the last one is the outermost
    return app


def plain_run(run: RunInfo, row: RunRow) -> dict[str, Any]:
    """A run as JSON: its record without the configuration, its bytes, whether a stop was asked for, how it fares."""
    plain: dict[str, Any] = _INFO.dump_python(run, mode="json")
    del plain["config"]
    return plain | {name: getattr(row, name) for name in _OF_ROW}


def _valid_id(text: str) -> str:
    try:
        return check_id(text)
    except StoreError as error:
        raise ValueError(str(error)) from error


RunId = Annotated[str, AfterValidator(_valid_id)]
After = Annotated[int, Query(ge=0, lt=2**53)]


class _Routes:
    """The routes. All but the stream run in threads: the store and Hydra take their time."""

    def __init__(
        self,
        queue: RunQueue,
        store: RunStore,
        clients: Clients,
        prepare: Prepare,
        views: Views,
        closing: threading.Event,
    ) -> None:
        self._queue, self._store = queue, store
        self._clients, self._prepare = clients, prepare
        self._views, self._closing = views, closing

    def add_to(self, app: FastAPI) -> None:
        """Each path with its function."""
        for method, path, function in (
            ("GET", "/health", self.health),
            ("GET", "/clients", self.clients),
            ("GET", "/runs", self.runs),
            ("POST", "/runs", self.submit),
            ("GET", "/runs/{run_id}", self.history),
            ("GET", "/runs/{run_id}/events", self.events),
            ("GET", "/runs/{run_id}/events/stream", self.stream),
            ("POST", "/runs/{run_id}/stop", self.stop),
            ("POST", "/runs/{run_id}/resume", self.resume),
            ("POST", "/runs/{run_id}/restart", self.restart),
            ("GET", "/runs/{run_id}/adapter", self.adapter),
        ):
            app.add_api_route(PREFIX + path, function, methods=[method], response_model=None)

    def health(self) -> Response:
        return JSONResponse({"status": "ok"})

    def clients(self) -> Response:
        found = to_json({"clients": [dict(client) for client in self._clients()]}, inf_nan_mode="strings")
        return Response(found, media_type="application/json")

    def runs(self) -> Response:
        runs, rows = self._store.list(), {row.id: row for row in self._views.runs()}
        return JSONResponse({"runs": [plain_run(run, rows[run.id]) for run in runs if run.id in rows]})

    def submit(self, request: Request, body: Submission) -> Response:
        config = self._prepare(read_submission(body))
        name = config.name or f"{config.strategy.name}-{config.data.name}"
        run = self._queue.submit(config, name, body.submit_key)
        tell(request.scope, what=f"run {run.id}")
        return self._run(run, 201)

    def history(self, run_id: RunId) -> Response:
        history = self._store.history(self._store.get(run_id))
        return JSONResponse(
            {
                "run": plain_run(history.run, self._views.run_row(run_id)),
                "rounds": _ROUNDS.dump_python(history.rounds, mode="json"),
                "config": json.loads(history.run.config),
            }
        )

    def events(self, run_id: RunId, after: After = 0) -> Response:
        return StreamingResponse(lines_after(self._store.get(run_id), after), media_type="application/x-ndjson")

    def stream(
        self, run_id: RunId, after: After = 0, last_event_id: Annotated[str | None, Header()] = None
    ) -> Response:
        self._store.get(run_id)
        if self._ends():
            return failure(LinkError("the server is shutting down: come back later"), 503, {"Retry-After": "5"})
        lines = server_sent(self._queue, run_id, max(after, _number(last_event_id or "")), self._ends)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    def stop(self, run_id: RunId) -> Response:
        return self._run(self._queue.stop(run_id))

    def resume(self, request: Request, run_id: RunId, body: Resumption | None = None) -> Response:
        rounds = None if body is None else body.rounds
        tell(request.scope, reason="" if rounds is None else f"{rounds} rounds")
        return self._run(self._queue.resume(run_id, rounds))

    def restart(self, request: Request, run_id: RunId, body: Restart) -> Response:
        run = restart_without(self._queue, run_id, body.without)
        tell(request.scope, reason=f"run {run.id}, without {', '.join(body.without)}")
        return self._run(run, 201)

    def adapter(self, run_id: RunId) -> Response:
        run = self._store.get(run_id)
        files = adapter_files(run)
        name = {"Content-Disposition": f'attachment; filename="{run.id}-{ADAPTER}.zip"'}
        return StreamingResponse(zipped(files, run.folder / ADAPTER), media_type="application/zip", headers=name)

    def _run(self, run: RunInfo, status: int = 200) -> Response:
        return JSONResponse(plain_run(run, self._views.run_row(run.id)), status)

    def _ends(self) -> bool:
        return self._closing.is_set() or self._queue.closing


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0


async def _told(request: Request, error: Exception) -> Response:
    if not isinstance(error, FedloraError):
        raise error
    tell(request.scope, reason=told_of(error))
    return failure(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """All that is wrong with a path, query or body that does not have its form."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    wrong = ConfigError([f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found])
    tell(request.scope, reason=told_of(wrong))
    return failure(wrong)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 404:
        return failure(UnknownRunError(f"there is nothing at {request.url.path}"), 404)
    return failure(LinkError(f"{request.method} {request.url.path} cannot be answered"), status)
