"""The dashboard's own and third-party scripts, styles and pictures: read once, served from memory by exact name."""

import base64
import functools
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from fedlora.server.dashboard import vendor
from fedlora.server.durable import explained

STATIC = Path(__file__).parent / "static"
CHARTS = ("vendor/uPlot.iife.min.js", "vendor/uPlot.min.css")
"""What the charts need; there only where `vendor.build` could fetch it."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK = "no-cache"


@dataclass(frozen=True)
class Asset:
    """A file: its bytes, as they are and packed, and its SHA-384 as HTML wants it."""

    body: bytes
    packed: bytes
    media_type: str
    integrity: str

    @property
    def version(self) -> str:
        """Changes whenever the file does."""
        return hashlib.sha256(self.integrity.encode()).hexdigest()[:12]


@functools.cache
def assets() -> Mapping[str, Asset]:
    """Every file under `static` by its name there; a name that is not in this table is not served.

    Third-party files count only if they are those that the build wrote down. Raises StoreError if one cannot be read.
    """
    found = {}
    expected = vendor.integrity()
    for path in sorted(path for path in STATIC.rglob("*") if path.suffix in _TYPES and path.is_file()):
        with explained("read the dashboard's file", path):
            asset = _asset(path.read_bytes(), _TYPES[path.suffix])
        if path.parent.name == "vendor" and expected.get(path.name) != asset.integrity:
            continue
        found[path.relative_to(STATIC).as_posix()] = asset
    return found


def charts_are_there() -> bool:
    """Whether the browser will be able to draw charts."""
    return all(name in assets() for name in CHARTS)


def url(name: str) -> str:
    """The address of a file; it changes whenever the file does, so that browsers may keep it."""
    return f"/static/{name}?v={assets()[name].version}"


def integrity(name: str) -> str:
    """The file's SHA-384, for an `integrity` attribute."""
    return assets()[name].integrity


def serve(request: Request) -> Response:
    """GET /static/{name}. No path is ever made of the name."""
    asset = assets().get(request.path_params["name"])
    if asset is None:
        return Response("there is no such file\n", 404, media_type="text/plain")
    exact = request.query_params.get("v") == asset.version
    tag = f'"{asset.version}"'
    headers = {"Cache-Control": _FOREVER if exact else _ASK, "ETag": tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    body = asset.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers = asset.packed, headers | {"Content-Encoding": "gzip"}
    return Response(body, headers=headers, media_type=asset.media_type)


def _asset(body: bytes, media_type: str) -> Asset:
    digest = base64.b64encode(hashlib.sha384(body).digest()).decode()
    return Asset(body, gzip.compress(body, 9), media_type, f"sha384-{digest}")
