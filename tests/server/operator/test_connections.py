"""Who sends the headers of a request a byte at a time is disconnected; who follows a stream is not."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from fedlora.server.operator import connections
from fedlora.server.operator.api import make_api
from fedlora.server.operator.serve import OperatorServer
from tests.server.operator.living import Living
from tests.server.operator.test_api import RUNS, started

SOON = 0.6
"""Seconds that a request has here."""

LATEST = 8.0
"""Seconds after which a test gives up."""


@pytest.fixture
def server(alive: Living, monkeypatch: pytest.MonkeyPatch) -> Iterator[OperatorServer]:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", SOON)
    app = make_api(alive.queue, alive.store, alive.token, list)
    with OperatorServer(app, "127.0.0.1", 0, None, None) as found:
        yield found


def opened(server: OperatorServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=LATEST)


def head(method: str, path: str, token: str, *more: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}", *more)
    return "\r\n".join((*lines, "", "")).encode()


def read_until(connection: socket.socket, words: bytes) -> bytes:
    found = b""
    while words not in found:
        part = connection.recv(65536)
        assert part, f"the connection ended after {found!r}"
        found += part
    return found


def trickled(connection: socket.socket, text: bytes) -> float:
    """Sends `text` over and over, a byte at a time, until the other side has enough; returns after how many seconds."""
    began = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - began < LATEST:
        for byte in text:
            try:
                connection.sendall(bytes([byte]))
                if connection.recv(65536) == b"":
                    return time.monotonic() - began
            except TimeoutError:
                continue
            except OSError:  # reset, as who is disconnected is told
                return time.monotonic() - began
    raise AssertionError("it was listened to all the time")


@pytest.mark.parametrize(
    ("before", "slowly"),
    [(b"", b"GET /api/v1/health HTTP/1.1\r\n"), (b"GET /api/v1/health HTTP/1.1\r\n", b"X-Header: y\r\n")],
)
def test_headers_that_trickle_come_to_an_end_and_a_stream_does_not(
    server: OperatorServer, alive: Living, before: bytes, slowly: bytes
) -> None:
    with alive.http() as http, closing(opened(server)) as stream:
        run_id = started(http)
        stream.sendall(head("GET", f"{RUNS}/{run_id}/events/stream", alive.token))
        assert b"200 OK" in read_until(stream, b"\r\n\r\n")
        with closing(opened(server)) as slow:
            slow.sendall(before)
            assert SOON / 2 < trickled(slow, slowly) < SOON + 3
        time.sleep(SOON)
        alive.player.free()
        read_until(stream, b'"run_finished"')


def test_who_says_nothing_is_disconnected(server: OperatorServer) -> None:
    began = time.monotonic()
    with closing(opened(server)) as silent:
        assert ended(silent)
    assert SOON / 2 < time.monotonic() - began < SOON + 3


def test_the_time_runs_anew_for_the_next_request(server: OperatorServer, alive: Living) -> None:
    """A connection that was used well may be used on, but not for a second request that never ends."""
    with closing(opened(server)) as connection:
        for _ in range(3):
            connection.sendall(head("GET", RUNS, alive.token))
            assert b"200 OK" in read_until(connection, b'{"runs":[]}')
            time.sleep(SOON / 2)
        assert trickled(connection, b"GET / HTTP/1.1\r\nX-Header: y\r\n") < SOON + 3


def test_a_body_that_nobody_wants_any_more_comes_to_an_end(server: OperatorServer) -> None:
    with closing(opened(server)) as connection:
        connection.sendall(head("POST", RUNS, "x", "Content-Length: 100000"))
        assert b"401 Unauthorized" in read_until(connection, b"IdentityError")
        assert trickled(connection, b"body") < SOON + 3


def test_a_wanted_body_has_its_own_time(server: OperatorServer, alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.server.operator.guard.BODY_SECONDS", 3 * SOON)
    with closing(opened(server)) as connection:
        connection.sendall(head("POST", RUNS, alive.token, "Content-Length: 100000"))
        began = time.monotonic()
        assert b"408 " in read_until(connection, b"\r\n\r\n")
        assert time.monotonic() - began > 2 * SOON


def test_one_address_has_its_share_of_the_connections(
    server: OperatorServer, alive: Living, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "PER_ADDRESS", 3)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 2 * LATEST)
    monkeypatch.setattr(connections, "_told", connections.Failures(limit=1))
    with ExitStack() as stack:
        used = [stack.enter_context(closing(opened(server))) for _ in range(3)]
        for each in used:
            each.sendall(head("GET", RUNS, alive.token))
            read_until(each, b'{"runs":[]}')
        for _ in range(3):
            assert ended(stack.enter_context(closing(opened(server))))
        used[0].close()
        deadline = time.monotonic() + LATEST
        while not taken(server, alive):
            assert time.monotonic() < deadline
    told = [record.message for record in caplog.records if "over 3 connections" in record.message]
    assert told == ["127.0.0.1 has over 3 connections: further ones are not taken"]


def taken(server: OperatorServer, alive: Living) -> bool:
    with closing(opened(server)) as connection:
        try:
            connection.sendall(head("GET", RUNS, alive.token))
            return connection.recv(65536) != b""
        except OSError:
            return False


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_under_tls_too(alive: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for a goodbye, which never comes."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", SOON)
    context = ssl.create_default_context(cafile=alive.home / "ca" / "ca.crt")
    with closing(context.wrap_socket(opened(alive.server), server_hostname="localhost")) as slow:
        assert SOON / 2 < trickled(slow, b"GET / HTTP/1.1\r\n") < SOON + 3


def test_who_keeps_a_connection_after_the_last_answer_does_not_hold_up_the_servers_end(
    alive: Living, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer ends after the server has begun to: it closes then, and the goodbye to that does not come."""
    context = ssl.create_default_context(cafile=alive.home / "ca" / "ca.crt")
    with (
        alive.http() as http,
        closing(context.wrap_socket(opened(alive.server), server_hostname="localhost")) as kept,
    ):
        kept.sendall(head("GET", f"{RUNS}/{started(http)}/events/stream", alive.token))
        read_until(kept, b"\r\n\r\n")
        alive.server._server.should_exit = True
        time.sleep(2 * SOON)
        alive.server._app.state.closing.set()
        read_until(kept, b"\r\n0\r\n\r\n")
        alive.server._thread.join(LATEST)
    assert "timeout graceful shutdown exceeded" not in caplog.text
