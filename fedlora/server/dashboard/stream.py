"""The dashboard's one stream of server-sent events: rows and presences that changed, and a run's log, line by line.

event: hello    the first message, at each (re)connection: what was shown before may be old, fetch it again
event: runs     rows of runs that changed; {"gone": [ids]} for those that were erased
event: clients  what changed about who is connected
event: line     a line of the run's log; its id is the line's number, from which a browser resumes
event: alive    nothing happened for a while
event: closing  the server ends: come back later
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fedlora.server.dashboard import lines
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.data import sight
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.refusals import told
from fedlora.server.dashboard.routes import Route
from fedlora.server.dashboard.watcher import Feed, Watcher
from fedlora.server.operator.stream import Line
from fedlora.server.records import RunInfo
from fedlora.server.views import visibility
from fedlora.server.views.mine import own_number

HEARTBEAT = 10.0
"""Seconds without a message after which a stream shows that it is alive."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Wish:
    """What one stream is to tell. person: who listens. run, see: whose log, and through which filter."""

    person: Person
    run: RunInfo | None
    see: lines.Filter
    after: int | None


def message(event: str, data: Any, number: int | None = None) -> bytes:
    """One server-sent event; `data` becomes strict JSON on one line."""
    text = data if isinstance(data, bytes) else to_json(data, inf_nan_mode="null")
    mark = b"" if number is None else b"id: %d\n" % number
    return b"event: %b\n%bdata: %b\n\n" % (event.encode(), mark, text)


def watcher_of(app: Any, context: Context) -> Watcher:
    """The application's one watcher, made when the first page listens."""
    if getattr(app.state, "watcher", None) is None:
        app.state.watcher = Watcher(context)
    return app.state.watcher  # type: ignore[no-any-return]


async def stream(request: Request) -> Response:
    """GET /stream?run=ID&after=N. Without `after` and Last-Event-ID, a log is told from now on."""
    context: Context = request.app.state.context
    person: Person = request.scope["person"]
    run_id = request.query_params.get("run")
    run = await to_thread.run_sync(context.store.get, run_id) if run_id else None
    see = lines.whole if run is None or await to_thread.run_sync(sight, request, run.id) else lines.released
    return _answer(request, Wish(person, run, see, _after(request)))


async def mine(request: Request) -> Response:
    """GET /mine/stream: of the run that a collaborator's link is for, what is the collaborator's."""
    context: Context = request.app.state.context
    person: Person = request.scope["person"]
    if person.run is None or person.site is None:
        return told(request, 404, "this page belongs to a collaborator's link")
    run = await to_thread.run_sync(context.store.get, person.run)
    return _answer(request, Wish(person, run, lines.own(own_number(run, person.site)), _after(request)))


def _answer(request: Request, wish: Wish) -> Response:
    context: Context = request.app.state.context
    told = tell(watcher_of(request.app, context), context, wish)
    return StreamingResponse(told, media_type="text/event-stream", headers=_HEADERS)


def _after(request: Request) -> int | None:
    """The line after which to begin. A browser that reconnects by itself knows it better than the address does."""
    for text in (request.headers.get("last-event-id", ""), request.query_params.get("after", "")):
        if text.isdecimal() and len(text) < 16:
            return int(text)
    return None


async def tell(watcher: Watcher, context: Context, wish: Wish, heartbeat: float = HEARTBEAT) -> AsyncIterator[bytes]:
    """The messages of one stream, until the server ends."""
    with watcher.listening():
        async with watcher.reading(wish.run) as feed:
            last = 0 if feed is None else feed.last
            at = last if wish.after is None else min(wish.after, last)
            await watcher.fresh()
            runs, clients = watcher.runs.version, watcher.clients.version
            yield message("hello", {"after": at}, at)
            while not context.closing.is_set():
                signal = watcher.signal()
                told = _rows(watcher, wish, runs) + _presences(watcher, wish, clients)
                runs, clients = watcher.runs.version, watcher.clients.version
                found = () if feed is None else await _after_line(feed, at)
                told += _lines(wish, found)
                if told:
                    yield told
                if found:
                    at = found[-1][0]  # there may be more
                elif not told:
                    await watcher.wait(signal, heartbeat)
                    if not signal.is_set():
                        yield message("alive", {})
            yield message("closing", {})


async def _after_line(feed: Feed, number: int) -> Sequence[Line]:
    """Most often they are there already, and no thread is needed."""
    known = feed.known(number)
    return await to_thread.run_sync(feed.read, number) if known is None else known


def _lines(wish: Wish, found: Sequence[Line]) -> bytes:
    """What the listener may see of some lines."""
    seen = ((number, wish.see(line)) for number, line in found)
    return b"".join(message("line", line, number) for number, line in seen if line is not None)


def _rows(watcher: Watcher, wish: Wish, version: int) -> bytes:
    """The runs that changed; of a collaborator's, only that it did."""
    changed = watcher.runs.after(version)
    if wish.person.role is Role.COLLABORATOR:
        ours = wish.run is not None and wish.run.id in changed
        return message("mine", {}) if ours else b""
    if not changed:
        return b""
    rows = [visibility.shown_row(wish.person.role, row) for row in changed.values() if row is not None]
    return message("runs", {"rows": rows, "gone": [key for key, row in changed.items() if row is None]})


def _presences(watcher: Watcher, wish: Wish, version: int) -> bytes:
    if wish.person.role < Role.OPERATOR:
        return b""
    changed: Mapping[str, Any] = watcher.clients.after(version)
    rows = [one or {"name": name, "connected": False} for name, one in changed.items()]
    return message("clients", rows) if rows else b""


ROUTES = (
    Route("GET", "/stream", Role.VIEWER, stream),
    Route("GET", "/mine/stream", Role.COLLABORATOR, mine),
)
