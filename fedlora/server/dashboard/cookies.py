"""The cookie that holds a session's value."""

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

NAME = "__Host-fedlora"
"""Over TLS: the prefix keeps other hosts of the same domain from setting it."""


def cookie_name(scope: Scope, *, tls: bool) -> str:
    """The cookie's name. Without TLS, on loopback, it has the port in it: cookies are shared by all ports of a host."""
    return NAME if tls else f"fedlora-{(scope.get('server') or ('', 0))[1]}"


def read_cookie(scope: Scope, *, tls: bool) -> str | None:
    """The session's value that a request gives. Two of them are none: somebody else has set the other one."""
    name = cookie_name(scope, tls=tls)
    pairs = [pair.strip().partition("=") for text in Headers(scope=scope).getlist("cookie") for pair in text.split(";")]
    found = [value for key, _, value in pairs if key == name]
    return found[0] if len(found) == 1 else None


def give_cookie(response: Response, scope: Scope, value: str, *, tls: bool) -> None:
    """Lets the browser keep `value` until it is closed. No script can read it, and no other site's page can send it."""
    name = cookie_name(scope, tls=tls)
    response.set_cookie(name, value, path="/", secure=tls, httponly=True, samesite="strict")


def take_cookie(response: Response, scope: Scope, *, tls: bool) -> None:
    """Lets the browser forget it."""
    name = cookie_name(scope, tls=tls)
    response.delete_cookie(name, path="/", secure=tls, httponly=True, samesite="strict")
