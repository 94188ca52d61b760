"""The audit log of what comes through the operator API: its actions, and requests with a wrong token."""

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from fedlora.errors import FedloraError
from fedlora.server.dashboard.audit import FAILED, REFUSED, AuditLog, Note, write_down
from fedlora.server.dashboard.people import Role
from fedlora.server.dashboard.sending import Recorded
from fedlora.server.operator.exchange import Failures, address_of
from fedlora.server.operator.token import FILE

PREFIX = "/api/v1"

ACTIONS = {
    ("POST", "/runs"): "submit run",
    ("POST", "/runs/{run_id}/stop"): "stop run",
    ("POST", "/runs/{run_id}/resume"): "resume run",
    ("POST", "/runs/{run_id}/restart"): "restart run",
    ("GET", "/runs/{run_id}/adapter"): "download adapter",
}
"""Routes of the API whose use is noted: all that change something, and what hands out a model."""

_PATHS = [(method, compile_path(PREFIX + path)[0], action) for (method, path), action in ACTIONS.items()]
_EVERYBODY = "everybody"
_READING = ("GET", "HEAD")


class Refusals:
    """Notes requests without the operator's token: at most a hundred in a minute, from all addresses together."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit, self._together = audit, Failures(limit=100)

    async def note(self, scope: Scope, reason: str) -> None:
        """Writes one down, unless somebody only looks and shows no token at all."""
        shows_one = any(name == b"authorization" for name, _ in scope["headers"])
        if (shows_one or scope["method"] not in _READING) and self._together.add(_EVERYBODY):
            what = f"{scope['method']} {scope['path']}"
            note = Note("use the operator's API", address_of(scope), object=what, outcome=REFUSED, reason=reason)
            await write_down(self._audit, note)


class Noted:
    """Middleware: each action of whoever has the operator's token is in the audit log before its answer begins.

    What only an endpoint knows, it adds with `tell`.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self._app, self._audit = app, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        note = None if scope["type"] != "http" else note_of(scope)
        if note is None:
            await self._app(scope, receive, send)
            return
        scope["note"] = note

        async def record(status: int) -> None:
            note.outcome = FAILED if status >= 400 else note.outcome
            scope["note"] = None
            await write_down(self._audit, note)

        try:
            await self._app(scope, receive, Recorded(send, record))
        except Exception as error:
            if scope["note"] is not None:
                note.reason = type(error).__name__  # a library's words could hold anything
                await record(500)
            raise


def note_of(scope: Scope) -> Note | None:
    """What the entry for a request begins with; None if it is no action."""
    for method, path, action in _PATHS:
        found = path.match(scope["path"])
        if found and method == scope["method"]:
            run = found.groupdict().get("run_id")
            what = "" if run is None else f"run {run}"
            return Note(action, address_of(scope), person=FILE, role=Role.ADMIN.word, object=what)
    return None


def tell(scope: Scope, *, what: str = "", reason: str = "") -> None:
    """Adds to the entry of a request, if it gets one. Never a secret."""
    note: Note | None = scope.get("note")
    if note is not None:
        note.object, note.reason = what or note.object, reason or note.reason


def told_of(error: FedloraError) -> str:
    """An error's words for an entry. Not those of mistakes in what was sent: they would repeat it."""
    problems = getattr(error, "problems", None)
    return str(error) if problems is None else f"what was sent has {len(problems)} mistakes"
