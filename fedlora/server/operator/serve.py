"""Serves the operator API in a thread, over TLS."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from fedlora.errors import IdentityError, LinkError
from fedlora.server.operator.access import is_loopback
from fedlora.server.operator.connections import BoundedProtocol

log = logging.getLogger(__name__)

_BEGIN = 30.0  # seconds that a server may take until it answers
_GRACE = 5  # seconds that answers under way have when it stops
_CONNECTIONS = 256  # at a time; one more is told to come back
_BACKLOG = 128  # connections that wait to be accepted


class OperatorServer:
    """An application at an address. `start` and `stop` once each, or use as a context manager.

    port: 0 for any free one; `port` then says which. certificate, key: PEM files; without them there is no TLS, which
    only a loopback address may do. Raises IdentityError for a certificate that is missing or does not fit its key.
    """

    def __init__(self, app: Starlette, host: str, port: int, certificate: Path | None, key: Path | None) -> None:
        if (certificate is None or key is None) and not is_loopback(host):
            raise IdentityError(
                f"the operator API cannot listen on {host} without TLS: the token would cross the network in the clear."
                " Give it a certificate and a key, or let it listen on 127.0.0.1"
            )
        self.host, self.port = host, port
        self._app = app
        context = None if certificate is None or key is None else _context(certificate, key)
        self._server = uvicorn.Server(_settings(app, context))
        self._thread = threading.Thread(target=self._serve, name="operator-api", daemon=True)
        self._socket: socket.socket | None = None

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        scheme = "https" if self._server.config.is_ssl else "http"
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{self.port}"

    def start(self) -> None:
        """Returns when the API answers. Raises LinkError if the address cannot be used."""
        self._socket = _bound(self.host, self.port)
        self.port = self._socket.getsockname()[1]
        self._thread.start()
        waited = 0.0
        while not self._server.started and self._thread.is_alive() and waited < _BEGIN:
            self._thread.join(0.01)
            waited += 0.01
        if not self._server.started:
            self.stop()
            raise LinkError(f"the operator API did not begin to answer on {self.host}:{self.port}; see the log")

    def stop(self) -> None:
        """Ends the API: streams are closed, answers under way have a few seconds. It can be called twice."""
        self._app.state.closing.set()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_GRACE + 5)
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        try:
            asyncio.run(self._until_stopped())
        except Exception:
            log.exception("the operator API has ended with an error")

    async def _until_stopped(self) -> None:
        await self._server.serve(sockets=[] if self._socket is None else [self._socket])
        for connection in list(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:  # of somebody who does not read: TLS would wait for a goodbye
                transport.abort()
        await asyncio.sleep(0)


def _settings(app: Starlette, context: ssl.SSLContext | None) -> uvicorn.Config:
    """h11: it bounds the size of headers. No proxy headers: anybody on this machine could claim any address."""
    factory = None if context is None else partial(_as_it_is, context)
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
        ssl_context_factory=factory,
    )


def _as_it_is(context: ssl.SSLContext, *_: object) -> ssl.SSLContext:
    """What uvicorn asks for when it wants to make a context of its own."""
    return context


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(
            f"the operator API cannot use the certificate {certificate} with the key {key}: {error}; both must be PEM"
            " files that this user can read, and belong together"
        ) from error
    return context


def _bound(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port < 2**16:  # getaddrinfo takes it modulo 65536
            raise OverflowError("ports go from 0 to 65535")
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        with contextlib.ExitStack() as undo:
            opened = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(_BACKLOG)
            undo.pop_all()
            return opened
    except (OSError, OverflowError) as error:
        raise LinkError(
            f"the operator API cannot listen on {host}:{port} ({error}): is another server running there? Choose"
            " another port, or 0 for any free one"
        ) from error
