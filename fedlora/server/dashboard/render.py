"""Filling the dashboard's templates. Everything that comes from a run, a client or a person is escaped."""

import functools
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

import fedlora
from fedlora.server.dashboard import assets
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.people import Person, Role
from fedlora.words import bytes_text, counted, number, seconds_text, spoken

_HEADERS = {"Cache-Control": "no-store"}


def page(request: Request, template: str, status: int = 200, **contents: Any) -> HTMLResponse:
    """The page that `template` makes of `contents`, for whoever is logged in (nobody is, on the login page).

    Every template also knows: `person` (or None), `role` (of the person, 0 for nobody), `Role`, `live` (a server with
    clients, or recorded runs), `charts` (whether the charts' scripts are there), `version`, `path`.
    """
    person: Person | None = request.scope.get("person")
    context: Context | None = getattr(request.app.state, "context", None)
    known = {
        "person": person,
        "role": 0 if person is None else person.role,
        "live": context is not None and context.registry is not None,
        "acts": context is not None and context.queue is not None,
        "charts": assets.charts_are_there(),
        "path": request.url.path,
        "now": datetime.now(UTC),
    }
    return HTMLResponse(_environment().get_template(template).render(known | contents), status, headers=dict(_HEADERS))


def failure(request: Request, status: int, title: str, message: str, advice: str = "") -> HTMLResponse:
    """A page that says what went wrong and what to do about it."""
    return page(request, "error.html", status, title=title, message=message, advice=advice, code=status)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedlora.server.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(asset=assets.url, integrity=assets.integrity, version=fedlora.__version__, Role=Role)
    environment.filters.update(
        number=number,
        bytes=bytes_text,
        seconds=seconds_text,
        spoken=spoken,
        counted=counted,
        percent=_percent,
        moment=_moment,
        machine=_machine,
    )
    return environment


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _moment(when: datetime | None) -> str:
    """A time in UTC as people read it; the browser's script makes it local."""
    return "–" if when is None else f"{_in_utc(when):%Y-%m-%d %H:%M} UTC"


def _machine(when: datetime | None) -> str:
    """A time for a `datetime` attribute."""
    return "" if when is None else _in_utc(when).isoformat(timespec="seconds")


def _in_utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
