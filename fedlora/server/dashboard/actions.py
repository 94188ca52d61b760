"""Everything that changes something: each passed the gate, and is in the audit log before its answer is sent."""

from typing import Any

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedlora.config.schema import RunConfig
from fedlora.errors import IdentityError, RunError
from fedlora.identity.registry import Registry
from fedlora.server.dashboard import links, tokens
from fedlora.server.dashboard.context import Context
from fedlora.server.dashboard.desk import Desk
from fedlora.server.dashboard.forms import Form, read_form
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.refusals import wants_json
from fedlora.server.dashboard.render import page
from fedlora.server.dashboard.routes import Route
from fedlora.server.queue import RunQueue
from fedlora.server.records import RunInfo


class _Nothing(Form):
    pass


class _Resumption(Form):
    rounds: int | None = Field(None, ge=1, le=1_000_000)


class _Enrolment(Form):
    name: str
    hours: float = 72.0
    again: bool = False


class _Revocation(Form):
    reason: str = Field("", max_length=500)


class _NewAccess(Form):
    name: str
    role: str
    days: int = tokens.DAYS


class _NewLink(Form):
    site: str
    days: int = links.DAYS


async def stop_run(request: Request) -> Response:
    """Asks a run to stop after its round; one that waits is stopped at once."""
    await read_form(request, _Nothing)
    run = await to_thread.run_sync(_queue(request).stop, _of_path(request, "run_id"))
    return _changed(request, run)


async def resume_run(request: Request) -> Response:
    """Puts a run that was stopped or has failed back into the queue, for `rounds` in all if they are given."""
    form = await read_form(request, _Resumption)
    run_id = _of_path(request, "run_id")
    if form.rounds is not None:
        request.scope["note"].reason = f"{form.rounds} rounds"
    return _changed(request, await to_thread.run_sync(_queue(request).resume, run_id, form.rounds))


async def enroll_client(request: Request) -> Response:
    """A token with which one client can join, shown this once."""
    form, invite = await read_form(request, _Enrolment), _context(request).invite
    _note(request, f"client {form.name}", f"for {form.hours:g} hours" + (", again" if form.again else ""))
    if invite is None:
        raise IdentityError("no client can join here: `enrolment` in the server's settings is null")
    invited = await to_thread.run_sync(invite, form.name, form.hours, form.again)
    note = (
        f"Good for one use, until {invited.expires:%Y-%m-%d %H:%M} UTC. Give it to the owner of {form.name} in private:"
        f" whoever uses it first takes part under that name. They save it as {form.name}.token, then run:"
    )
    facts = {"name": form.name, "expires": invited.expires.isoformat()}
    return _shown(request, f"The token for {form.name}", invited.token, invited.command, note, facts, "/clients")


async def revoke_client(request: Request) -> Response:
    """Takes a client's certificates and tokens away; its connection ends within seconds."""
    form, name = await read_form(request, _Revocation), _of_path(request, "name")
    _note(request, f"client {name}", form.reason)
    await to_thread.run_sync(_registry(request).revoke, name, form.reason)
    return _done(request, {"name": name, "status": "revoked"}, "/clients")


async def add_access(request: Request) -> Response:
    """An access token for a person, shown this once."""
    form = await read_form(request, _NewAccess)
    _note(request, f"access token {form.name}", f"role {form.role}, {form.days} days")
    secret = await to_thread.run_sync(_desk(request).tokens.add, form.name, form.role, form.days)
    note = f"Good for {form.days} days. Give it to {form.name} in private: who has it can do all that the role may."
    facts = {"name": form.name, "role": form.role}
    return _shown(request, f"The access token of {form.name}", secret, "", note, facts, "/access")


async def remove_access(request: Request) -> Response:
    """Ends an access token and its sessions."""
    await read_form(request, _Nothing)
    name = _of_path(request, "name")
    _note(request, f"access token {name}")
    await to_thread.run_sync(_desk(request).tokens.remove, name)
    return _done(request, {"name": name, "removed": True}, "/access")


async def add_link(request: Request) -> Response:
    """A link that shows one site its part in the run, shown this once."""
    form, run_id = await read_form(request, _NewLink), _of_path(request, "run_id")
    person: Person = request.scope["person"]
    _note(request, f"run {run_id}, site {form.site}", f"{form.days} days")
    check_takes_part(await to_thread.run_sync(_context(request).store.get, run_id), form.site)
    made = await to_thread.run_sync(_desk(request).links.add, run_id, form.site, form.days, person.name)
    secret = link_address(f"{request.url.scheme}://{request.headers['host']}", made.secret)
    note = f"Good for {form.days} days. It shows {form.site} its own part in this run, to whoever has it."
    facts = {"id": made.id, "site": form.site}
    return _shown(request, f"The link for {form.site}", secret, "", note, facts, f"/runs/{run_id}")


async def remove_link(request: Request) -> Response:
    """Ends a link and its sessions."""
    await read_form(request, _Nothing)
    link = _of_path(request, "id")
    _note(request, f"link {link}")
    await to_thread.run_sync(_desk(request).links.remove, link)
    return _done(request, {"id": link, "removed": True}, "/access")


ROUTES = (
    Route("POST", "/runs/{run_id}/stop", Role.OPERATOR, stop_run),
    Route("POST", "/runs/{run_id}/resume", Role.OPERATOR, resume_run),
    Route("POST", "/runs/{run_id}/links", Role.OPERATOR, add_link),
    Route("DELETE", "/links/{id}", Role.OPERATOR, remove_link),
    Route("POST", "/clients", Role.OPERATOR, enroll_client),
    Route("POST", "/clients/{name}/revoke", Role.OPERATOR, revoke_client),
    Route("POST", "/access", Role.ADMIN, add_access),
    Route("DELETE", "/access/{name}", Role.ADMIN, remove_access),
)


def check_takes_part(run: RunInfo, site: str) -> None:
    """Raises RunError unless the run is one of that site's, too."""
    sites = RunConfig.model_validate_json(run.config).federation.sites or ()
    if site not in sites:
        known = f"its sites are {', '.join(sites)}" if sites else "it has no sites: its clients were simulated"
        raise RunError(f"{site[:80]!r} takes no part in run {run.id}: {known}")


def link_address(server: str, secret: str) -> str:
    """What a collaborator opens. The browser keeps to itself what stands behind the `#`."""
    return f"{server}/login#token={secret}"


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _queue(request: Request) -> RunQueue:
    queue = _context(request).queue
    if queue is None:
        raise RunError("recorded runs can only be looked at here: use the dashboard of the server that drives them")
    return queue


def _registry(request: Request) -> Registry:
    registry = _context(request).registry
    if registry is None:
        raise IdentityError("there are no clients here: use the dashboard of the server that they connect to")
    return registry


def _of_path(request: Request, name: str) -> str:
    """A parameter of the path; it is what the action is about unless the endpoint says more."""
    text = str(request.path_params[name])
    _note(request, f"run {text}" if name == "run_id" else text)
    return text


def _note(request: Request, what: str, reason: str = "") -> None:
    """What the audit log will say. Never a secret."""
    note = request.scope["note"]
    note.object, note.reason = what, reason or note.reason


def _changed(request: Request, run: RunInfo) -> Response:
    stopping = _queue(request).stop_requested(run.id)
    return _done(request, {"id": run.id, "status": run.status.value, "stop_requested": stopping}, f"/runs/{run.id}")


def _done(request: Request, facts: dict[str, Any], back: str) -> Response:
    return JSONResponse(facts) if wants_json(request) else RedirectResponse(back, 303)


def _shown(
    request: Request, title: str, secret: str, command: str, note: str, facts: dict[str, Any], back: str
) -> Response:
    """What is seen this once: in the answer itself, so that it is in no address."""
    if wants_json(request):
        return JSONResponse({**facts, "secret": secret, "command": command, "note": note}, 201)
    return page(request, "shown_once.html", 201, title=title, secret=secret, command=command, note=note, back=back)
