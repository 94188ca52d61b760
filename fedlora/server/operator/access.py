"""Where a server's operator API is, and what opens it: for commands on the same machine, and on others."""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fedlora.errors import IdentityError, LinkError
from fedlora.server.durable import explained, replace_synced
from fedlora.server.operator.token import FILE as TOKEN
from fedlora.server.operator.token import check_form, read_token

ADDRESS = "operator.json"
AUTHORITY = Path("ca") / "ca.crt"
"""In a server's home: where the API listens (`publish`), and the certificate that the server's own is signed with."""

_HOW = (
    "give --home with the server's home on this machine, or --server https://HOST:PORT with FEDLORA_TOKEN (the text in"
    " the server's operator.token) and FEDLORA_CA (a copy of its ca/ca.crt)"
)


@dataclass(frozen=True)
class Access:
    """An API to call. url: without a path. authority: the CA's certificate; None: those that the system trusts."""

    url: str
    token: str = field(repr=False)
    authority: Path | None = None

    @property
    def host(self) -> str:
        """The host's name or address."""
        return urlsplit(self.url).hostname or ""


def publish(home: Path, url: str) -> None:
    """Writes the address `url` of a server's API into its `home`. Raises StoreError."""
    path = home / ADDRESS
    with explained("write", path):
        replace_synced(path, (json.dumps({"url": url}) + "\n").encode())


def find_access(server: str | None, home: Path | None, environment: Mapping[str, str]) -> Access:
    """What was asked for with options, else what the environment says (FEDLORA_SERVER, FEDLORA_TOKEN, FEDLORA_CA).

    server: an address; it wins over the one that `home` has. home: a server's home, whose token and CA are used.
    Raises LinkError if no server is named, or its address is none; IdentityError if token or CA cannot be read.
    """
    if home is not None:
        return Access(_checked(server or _published(home)), read_token(home / TOKEN), _readable(home / AUTHORITY))
    url = server or environment.get("FEDLORA_SERVER", "")
    if not url:
        raise LinkError(f"no server is named: {_HOW}")
    authority = environment.get("FEDLORA_CA", "")
    token = environment.get("FEDLORA_TOKEN", "").strip()
    if not check_form(token):
        raise IdentityError(f"FEDLORA_TOKEN {'is no operator token' if token else 'is not set'}: {_HOW}")
    return Access(_checked(url), token, _readable(Path(authority)) if authority else None)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine itself: a loopback address or "localhost"."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _published(home: Path) -> str:
    path = home / ADDRESS
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LinkError(
            f"the address of the server is not in {path} ({type(error).__name__}): is that the home of a server, and"
            " was it started? Or give --server https://HOST:PORT"
        ) from error


def _checked(url: str) -> str:
    """The address without a path. The token must not cross a network in the clear."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0 and parts.path in ("", "/")
    except ValueError:
        fits = False
    if not fits or parts.username or parts.query or parts.fragment:
        raise LinkError(f"{url!r} is no address of a server: give https://HOST:PORT")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise LinkError(f"{url} is not encrypted, and the token would be read on the way: give https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise IdentityError(
            f"the certificate of the server's authority, {path}, is not there: take the ca/ca.crt of the server's home"
        )
    return path
