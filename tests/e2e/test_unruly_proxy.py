"""The proxy that `make faults` puts on the clients' lines does what it is asked to, and nothing else."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.unruly_proxy import Trouble, UnrulyProxy

TEXT = bytes(range(256)) * 40


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes."""

    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[UnrulyProxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = UnrulyProxy(server.server_address[1])
        yield found
        found.close()
        server.shutdown()


def connected(proxy: UnrulyProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0)


def echoed(line: socket.socket, text: bytes) -> bytes:
    """What comes back of `text`, until it is all there or the line ends."""
    line.sendall(text)
    found = b""
    while len(found) < len(text) and (data := line.recv(1 << 16)):
        found += data
    return found


def test_a_good_proxy_passes_everything_on(proxy: UnrulyProxy) -> None:
    with connected(proxy) as line:
        assert echoed(line, TEXT) == TEXT
    assert proxy.connections == 1


def test_lines_are_reset_and_taken_anew(proxy: UnrulyProxy) -> None:
    with connected(proxy) as line:
        assert echoed(line, b"one") == b"one"
        proxy.drop()
        assert gone(line)
    with connected(proxy) as line:
        assert echoed(line, b"two") == b"two"


def gone(line: socket.socket) -> bool:
    """Whether the line ends."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def test_lines_are_refused_until_the_proxy_is_mended(proxy: UnrulyProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.mend()
    with connected(proxy) as line:
        assert echoed(line, TEXT) == TEXT


@pytest.mark.parametrize("how", [UnrulyProxy.silence, lambda proxy: proxy.delay(0.3)])
def test_a_silent_or_slow_line_loses_nothing(proxy: UnrulyProxy, how: Callable[[UnrulyProxy], None]) -> None:
    with connected(proxy) as line:
        assert echoed(line, b"one") == b"one"
        how(proxy)
        line.settimeout(0.2)
        line.sendall(b"two")
        with pytest.raises(TimeoutError):
            line.recv(1)
        proxy.mend()
        line.settimeout(5.0)
        assert line.recv(10) == b"two"


@pytest.mark.parametrize("upward", [True, False])
def test_bytes_are_spoilt_where_they_should_be(proxy: UnrulyProxy, upward: bool) -> None:
    for how in ("truncate", "corrupt", "swap"):
        trouble = Trouble(how, 1000, upward)
        proxy.spoil(trouble)
        with connected(proxy) as line:
            found = echoed(line, TEXT)
        assert trouble.fired
        if how == "truncate":  # on the way up, what would have come back is lost with the line
            assert found == TEXT[:1000] or (upward and TEXT[:1000].startswith(found))
        elif how == "corrupt":
            assert found == TEXT[:1000] + bytes([TEXT[1000] ^ 1]) + TEXT[1001:]
        else:
            assert found != TEXT
            assert found[:1000] == TEXT[:1000]
            assert sorted(found) == sorted(TEXT)


def test_a_spoilt_connection_is_followed_by_a_good_one(proxy: UnrulyProxy) -> None:
    proxy.spoil(Trouble("truncate", 10))
    with connected(proxy) as line:
        assert len(echoed(line, TEXT)) <= 10
    began = time.monotonic()
    with connected(proxy) as line:
        assert echoed(line, TEXT) == TEXT
    assert time.monotonic() - began < 5.0
