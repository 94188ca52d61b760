"""What can be done to the link's port below gRPC: no TLS, half of it, bytes that trickle, and HTTP/2 that is none."""

import resource
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedlora.link import enrolment, limits, service
from tests.link.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    NO_WINDOW,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    closed,
    frame,
    headers,
    push,
    said,
    stream_ended,
)
from tests.link.raw import hello, tls
from tests.link.siege import Siege, besieged
from tests.link.world import eventually, make_world

TIMEOUT = "grpc.server_handshake_timeout_ms"
IDLE = "grpc.max_connection_idle_ms"
_QUICK = {TIMEOUT: 1500, IDLE: 1500}


@pytest.fixture
def siege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Siege]:
    """With less patience, as far as the server has any at all."""
    options = tuple((name, _QUICK.get(name, value)) for name, value in service.OPTIONS)
    monkeypatch.setattr(service, "OPTIONS", options)
    with besieged(make_world(tmp_path)) as found:
        yield found


def plain(siege: Siege) -> socket.socket:
    return socket.create_connection(("localhost", siege.world.port), timeout=10.0)


def secure(siege: Siege) -> ssl.SSLSocket:
    context = tls(siege.world, siege.world.folder)
    return context.wrap_socket(plain(siege), server_hostname="localhost")


BEFORE_TLS = {
    "nothing": b"",
    "zeros": bytes(100_000),
    "garbage": b"\xde\xad\xbe\xef" * 10_000,
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/2": PREFACE + frame(SETTINGS),
    "half a ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "a ClientHello of 16 MB": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16000),
}


@pytest.mark.parametrize("what", BEFORE_TLS)
def test_what_is_no_tls_is_hung_up_on(siege: Siege, what: str) -> None:
    with plain(siege) as connection:
        push(connection, BEFORE_TLS[what])
        siege.check_honest()
        assert closed(connection)
    siege.check_honest()


INSTEAD_OF_HTTP2: dict[str, list[bytes]] = {
    "nothing": [],
    "garbage": [b"\xde\xad\xbe\xef" * 10_000],
    "HTTP/1": [b"POST / HTTP/1.1\r\n\r\n"],
    "a frame of 16 MB": [PREFACE, frame(SETTINGS), frame(DATA, stream=1, size=2**24 - 1), bytes(100_000)],
    "garbage for headers": [PREFACE, frame(SETTINGS), frame(HEADERS, b"\xff" * 100, flags=END_HEADERS, stream=1)],
    "an even stream": [PREFACE, frame(SETTINGS), headers(2)],
    "data without a stream": [PREFACE, frame(SETTINGS), frame(DATA, b"abc", stream=0)],
    "settings that cannot be": [PREFACE, frame(SETTINGS, b"123")],
    "pings": [PREFACE, frame(SETTINGS), *[frame(PING, b"12345678")] * 2000],
    "headers without end": [
        PREFACE,
        frame(SETTINGS),
        headers(1, flags=0),
        *[frame(CONTINUATION, b"\0\x01x\x7f" + b"y" * 127, stream=1)] * 20_000,
    ],
    "calls that are reset at once": [
        PREFACE,
        frame(SETTINGS),
        *[headers(2 * i + 1) + frame(RESET, struct.pack(">I", 8), stream=2 * i + 1) for i in range(500)],
    ],
}


@pytest.mark.parametrize("what", INSTEAD_OF_HTTP2)
def test_what_is_no_http2_is_hung_up_on(siege: Siege, what: str) -> None:
    with secure(siege) as connection:
        push(connection, *INSTEAD_OF_HTTP2[what])
        siege.check_honest()
        assert closed(connection)
    assert "site-1" not in siege.host.hub.connected()
    siege.check_honest()


def test_a_connection_on_which_nothing_is_asked_is_closed(siege: Siege) -> None:
    with secure(siege) as connection:
        push(connection, PREFACE, frame(SETTINGS))
        assert closed(connection)


TRICKLES: dict[str, Callable[[Siege], tuple[socket.socket, bytes]]] = {
    "the handshake": lambda siege: (plain(siege), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(1000)),
    "the preface": lambda siege: (secure(siege), PREFACE),
    "the first settings": lambda siege: (secure(siege), PREFACE + frame(SETTINGS, bytes(600))),
}


@pytest.mark.parametrize("what", TRICKLES)
def test_a_connection_that_is_made_byte_by_byte_is_closed(siege: Siege, what: str) -> None:
    connection, data = TRICKLES[what](siege)
    with connection:
        began = time.monotonic()
        for byte in data:
            push(connection, bytes([byte]))
            if closed(connection, 0.15):
                break
        assert closed(connection, 0.5)
        assert time.monotonic() - began < 8.0
        siege.check_honest()


def test_a_hello_that_trickles_is_not_waited_for(siege: Siege, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLO", 1.0)
    with secure(siege) as connection:
        push(connection, PREFACE, frame(SETTINGS), headers(1))
        data = b"\0\0\0\0\x7f" + hello().SerializeToString()
        for byte in data[:10]:
            push(connection, frame(DATA, bytes([byte]), stream=1))
            time.sleep(0.1)
        assert stream_ended(connection, 5.0)
    assert "site-1" not in siege.host.hub.presences
    siege.check_honest()


def test_who_takes_no_frame_at_all_soon_gets_no_call_either(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "LAST_WORD", 0.2)
    with ExitStack() as stack:
        for first in [hello(instance=""), *[hello(protocol=7)] * (limits.STUCK - 1)]:
            connection = stack.enter_context(secure(siege))
            push(connection, NO_WINDOW, headers(1), said(first))
        eventually(lambda: siege.service._stuck["site-1"] == limits.STUCK)
        with secure(siege) as one_more:
            push(one_more, NO_WINDOW, headers(1), said(hello()))
            assert stream_ended(one_more, 5.0)
        with siege.raw() as raw:
            assert "RESOURCE_EXHAUSTED: read or close your other connections first" in raw.ended()
        siege.check_honest()
    eventually(lambda: not siege.service._stuck)
    siege.offender().hang_up()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_says_hello_and_takes_no_frame_is_gone_all_the_same(
    siege: Siege, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT", 0.3)
    with secure(siege) as connection:
        push(connection, NO_WINDOW, headers(1), said(hello()))
        eventually(lambda: "site-1" in siege.host.hub.connected())
        eventually(lambda: "site-1" not in siege.host.hub.connected())
        eventually(lambda: siege.service._stuck["site-1"] == 1)
    monkeypatch.undo()
    eventually(lambda: not siege.service._stuck)
    siege.offender().hang_up()
    siege.check_honest()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_thousand_half_open_connections_keep_nobody_out(siege: Siege) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard < wanted:
        pytest.skip(f"this process may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with ExitStack() as stack:
            half = [stack.enter_context(plain(siege)) for _ in range(1000)]
            for connection in half[::2]:
                push(connection, BEFORE_TLS["half a ClientHello"])
            siege.check_honest()
            siege.offender().hang_up()  # a new connection is made meanwhile
            siege.check_honest()
            assert all(closed(connection) for connection in half)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    siege.check_honest()


@pytest.mark.parametrize("options", [service.OPTIONS, enrolment.OPTIONS], ids=["link", "enrolment"])
def test_the_ports_are_not_patient_with_strangers(options: tuple[tuple[str, int], ...]) -> None:
    found = dict(options)
    assert found[TIMEOUT] <= 10_000
    assert found[IDLE] <= 30_000
    assert found["grpc.max_concurrent_streams"] <= 8
    assert found["grpc.max_receive_message_length"] <= limits.CLIENT_FRAME
    assert found["grpc.compression_enabled_algorithms_bitset"] == 1
