"""Errors as JSON: the form of `fedlora … --json`, and the HTTP status that goes with each."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from fedlora.errors import ConfigError, ExitCode, FedloraError, IdentityError, RunError, UnknownRunError

_STATUS: Sequence[tuple[type[FedloraError], int]] = (
    (ConfigError, 422),
    (UnknownRunError, 404),
    (RunError, 409),
    (IdentityError, 401),
)


def failure(error: FedloraError, status: int | None = None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for `error`, by its class 500 unless `status` says otherwise."""
    by_class = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    problems = error.problems if isinstance(error, ConfigError) else None
    content = error_content(type(error).__name__, str(error), error.exit_code, problems)
    return JSONResponse(content, status or by_class, headers)


def error_content(kind: str, message: str, code: int, problems: Sequence[str] | None = None) -> dict[str, Any]:
    """The body of an error: its class, its message, the exit code of a command that ends with it."""
    listed = {} if problems is None else {"problems": list(problems)}
    return {"error": {"type": kind, "message": message, "exit_code": int(code), **listed}}


def unexpected() -> JSONResponse:
    """For a bug: the log has the details, the answer has none."""
    message = "the server met an unexpected error, a bug in fedlora; its log says more"
    return JSONResponse(error_content("InternalError", message, ExitCode.INTERNAL), 500)
