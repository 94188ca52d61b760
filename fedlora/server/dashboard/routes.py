"""What the dashboard answers: each path and method, and the least role that may use it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedlora.server.dashboard.people import Role


@dataclass(frozen=True)
class Route:
    """One method of one path, as in `Route("GET", "/runs/{run_id}", Role.VIEWER, show)`.

    least: the least role that may use it, None: anybody, without login. What begins with `/mine` is for collaborators
    alone, who reach nothing else but what has `Role.COLLABORATOR` (the stream, logout, the page about fedlora).
    endpoint: as in Starlette, `async` or run in a thread; `request.scope["person"]` is the Person (absent where
    nobody has logged in), `request.app.state.context` the Context. GET answers HEAD too.
    """

    method: str
    path: str
    least: Role | None
    endpoint: Callable[..., Any]
