"""Logging in and out.

A login shows one secret: an access token, the operator's token, a collaborator's link or a code for one use. In a link
it stands behind the `#`, which browsers send to nobody; the page's script puts it into the form's field.
"""

import logging

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedlora.errors import ExitCode
from fedlora.server.dashboard.audit import REFUSED, Note
from fedlora.server.dashboard.cookies import give_cookie, read_cookie, take_cookie
from fedlora.server.dashboard.desk import Desk
from fedlora.server.dashboard.forms import Form, read_form
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.refusals import RefusedError, wants_json
from fedlora.server.dashboard.render import page
from fedlora.server.dashboard.routes import Route
from fedlora.server.dashboard.table import is_plain
from fedlora.server.operator.answers import error_content

log = logging.getLogger(__name__)

_WRONG = "This token is not known here: it is wrong, has expired, was removed, or could be used once and was."
_TOO_MANY = "Too many wrong tokens came from this address. Wait a minute; a right one is taken all the same."


class _Login(Form):
    token: str = ""
    next: str = "/"


def login_page(request: Request) -> Response:
    """The form; `next` in the address is where a login leads."""
    return _form(request, 200, "", request.query_params.get("next", "/"))


async def login(request: Request) -> Response:
    """Begins a session for whoever gives a secret that is known. Its value is new; one that was there before ends."""
    form, desk = await read_form(request, _Login), _desk(request)
    credential = await to_thread.run_sync(desk.credentials.take, form.token.strip())
    person = None if credential is None else await to_thread.run_sync(desk.credentials.person, credential)
    if credential is None or person is None:
        return _refused(request, form.next)
    note: Note = request.scope["note"]
    note.person, note.role = person.name, person.role.word
    before = read_cookie(request.scope, tls=desk.tls)
    if before is not None:
        await _check_not_less(desk, before, person)
    value = await to_thread.run_sync(desk.sessions.begin, credential, before)
    where = _landing(person, form.next)
    answer = JSONResponse({"next": where}) if wants_json(request) else RedirectResponse(where, 303)
    give_cookie(answer, request.scope, value, tls=desk.tls)
    return answer


async def logout(request: Request) -> Response:
    """Ends the session."""
    desk = _desk(request)
    value = read_cookie(request.scope, tls=desk.tls)
    if value is not None:
        await to_thread.run_sync(desk.sessions.end, value)
    answer = JSONResponse({"next": "/login"}) if wants_json(request) else RedirectResponse("/login", 303)
    take_cookie(answer, request.scope, tls=desk.tls)
    answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


ROUTES = (
    Route("GET", "/login", None, login_page),
    Route("POST", "/login", None, login),
    Route("POST", "/logout", Role.COLLABORATOR, logout),
)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _check_not_less(desk: Desk, before: str, person: Person) -> None:
    """Or a link that somebody sends could take the place of an operator's session. Raises RefusedError."""
    session = await to_thread.run_sync(desk.sessions.find, before)
    if session is not None and session.person.role > person.role:
        raise RefusedError(
            409, f"This browser is logged in as {session.person.name}, who may do more: log out first, then try again."
        )


def _refused(request: Request, following: str) -> Response:
    """A right secret is never held up, whatever came before it: it has 256 bits, so nobody gets it by trying."""
    note: Note = request.scope["note"]
    if not _desk(request).limits.noteworthy(note.address):
        del request.scope["note"]
        answer = _form(request, 429, _TOO_MANY, following)
        answer.headers["Retry-After"] = "60"
        return answer
    note.outcome, note.reason = REFUSED, "wrong token"
    log.warning("a login with a wrong token, from %s", note.address)
    return _form(request, 401, _WRONG, following)


def _form(request: Request, status: int, error: str, following: str) -> Response:
    if wants_json(request):
        return JSONResponse(error_content("IdentityError", error, ExitCode.IDENTITY), status)
    return page(request, "login.html", status, error=error, next=_local(following))


def _landing(person: Person, following: str) -> str:
    return "/mine" if person.role is Role.COLLABORATOR else _local(following)


def _local(path: str) -> str:
    """`path` if it is one of ours, or the first page: a login leads nowhere else."""
    return path if is_plain(path) and path != "/login" else "/"
