"""Finding the route of a request. What is not in the table is not there, however the path is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import compile_path
from starlette.types import Scope

from fedlora.server.dashboard.people import Role
from fedlora.server.dashboard.routes import Route

CHANGING = ("POST", "PUT", "PATCH", "DELETE")
"""The methods that may change something; all that they ask for is checked."""

_METHODS = ("GET", *CHANGING)
# No name in a path of ours needs an escape, so none is taken: no %2e, no %00, no backslash; nor two slashes, nor "..".
_SEGMENT = "[A-Za-z0-9_~][A-Za-z0-9_.~-]*"
_PATH = re.compile(f"/(?:{_SEGMENT}(?:/{_SEGMENT})*)?")


@dataclass(frozen=True)
class Found:
    """A path of the table: what is there by method, and what stands in the place of the path's parameters."""

    methods: Mapping[str, Route]
    parameters: Mapping[str, Any]

    def route(self, method: str) -> Route | None:
        """What answers that method here: GET answers HEAD, too."""
        return self.methods.get("GET" if method == "HEAD" else method)

    def is_open(self, method: str) -> bool:
        """Whether that method needs no login here; where it is not known, whether none of the path does."""
        route = self.route(method)
        asked = self.methods.values() if route is None else [route]
        return all(one.least is None for one in asked)

    @property
    def allowed(self) -> str:
        """For an Allow header."""
        return ", ".join(sorted({*self.methods, *(["HEAD"] if "GET" in self.methods else [])}))


class RouteTable:
    """All routes. Raises ValueError for two of one method and path, and for a method that there is not."""

    def __init__(self, routes: Sequence[Route]) -> None:
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            _check(route, by_path.setdefault(route.path, {}))
            by_path[route.path][route.method] = route
        exact_first = sorted(by_path, key=lambda path: (path.count("{"), path))
        self._compiled = [(*compile_path(path)[::2], by_path[path]) for path in exact_first]

    def find(self, scope: Scope) -> Found | None:
        """What is at the path of a request; None if nothing is."""
        path = scope["path"]
        if not is_plain(path) or scope.get("raw_path", path.encode()) != path.encode():
            return None
        for pattern, convertors, methods in self._compiled:
            found = pattern.match(path)
            if found is not None:
                return Found(
                    methods, {name: convertors[name].convert(text) for name, text in found.groupdict().items()}
                )
        return None


def is_plain(path: str) -> bool:
    """Whether `path` is written as paths of the dashboard are."""
    return _PATH.fullmatch(path) is not None


def _check(route: Route, others: Mapping[str, Route]) -> None:
    if route.method not in _METHODS:
        raise ValueError(f"{route.path} cannot have the method {route.method!r}: give one of {', '.join(_METHODS)}")
    if route.method in others:
        raise ValueError(f"there are two routes for {route.method} {route.path}: take one out")
    if _is_for_collaborators(route.path) and route.least is not Role.COLLABORATOR:
        raise ValueError(f"{route.path} is for collaborators: give it Role.COLLABORATOR")


def may_use(role: Role, route: Route) -> bool:
    """Whether somebody of that role may use the route: what is for collaborators is for nobody else."""
    if route.least is None:
        return True
    if _is_for_collaborators(route.path):
        return role is Role.COLLABORATOR
    return role >= route.least


def _is_for_collaborators(path: str) -> bool:
    return path == "/mine" or path.startswith("/mine/")
