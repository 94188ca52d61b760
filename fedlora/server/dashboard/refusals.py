"""Answers to what was refused or has failed: as JSON for scripts, as a page for people."""

import logging
from collections.abc import Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedlora.errors import ConfigError, ExitCode, FedloraError, IdentityError, RunError, StoreError, UnknownRunError
from fedlora.server.dashboard.render import failure as failure_page
from fedlora.server.dashboard.table import is_plain
from fedlora.server.operator.answers import error_content

log = logging.getLogger(__name__)

_TITLES: Mapping[int, str] = {
    400: "This request cannot be understood",
    401: "Log in first",
    403: "This is not for you",
    404: "There is nothing here",
    405: "This cannot be done here",
    408: "That took too long",
    409: "That is not possible now",
    413: "That is too much",
    422: "Something is wrong with what you gave",
    429: "Too many requests",
    503: "The server cannot answer now",
}
_STATUS: Sequence[tuple[type[FedloraError], int]] = (
    (ConfigError, 422),
    (UnknownRunError, 404),
    (RunError, 409),
    (IdentityError, 409),
    (StoreError, 503),
)


class RefusedError(Exception):
    """The gate does not let a request through. noted: whether the audit log shall have it."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, *, noted: bool = True
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers, self.noted = dict(headers or {}), noted


def wants_json(request: Request) -> bool:
    """Whether a script asks, and not a browser for a page."""
    return "application/json" in request.headers.get("accept", "") or request.url.path.startswith(
        ("/data/", "/stream", "/mine/")
    )


def told(request: Request, status: int, message: str, kind: str = "Refused", code: int = ExitCode.IDENTITY) -> Response:
    """The answer that says `message`. kind, code: of the error that a script is told."""
    if wants_json(request):
        return JSONResponse(error_content(kind, message, code), status)
    return failure_page(request, status, _TITLES.get(status, "Something went wrong"), message)


def refused(request: Request, refusal: RefusedError) -> Response:
    """The answer to what the gate refused; who asks for a page without login is sent to the login."""
    if refusal.status == 401 and request.method in ("GET", "HEAD") and not wants_json(request):
        path = request.url.path
        return RedirectResponse(f"/login?next={path}" if is_plain(path) and path != "/" else "/login", 303)
    answer = told(request, refusal.status, refusal.message)
    answer.headers.update(refusal.headers)
    return answer


def failed(request: Request, error: Exception) -> Response:
    """The answer to what was let through and could not be done. A bug is logged; the answer has no details of it."""
    if isinstance(error, HTTPException):
        return told(request, error.status_code, str(error.detail))
    if isinstance(error, FedloraError):
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return told(request, status, str(error), type(error).__name__, error.exit_code)
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    message = "The server met an unexpected error, a bug in fedlora; its log says more."
    return told(request, 500, message, "InternalError", ExitCode.INTERNAL)
