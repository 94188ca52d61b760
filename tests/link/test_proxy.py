"""A network with a proxy: connections go through it by CONNECT, and one that opens TLS is found out and named."""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedlora.identity.authority import create_authority
from fedlora.identity.keys import new_key, signing_request
from fedlora.link.diagnose import diagnose
from tests.link.world import Daemon, Scripted, World, make_world, message, values


@dataclass
class ConnectProxy:
    """An HTTP proxy that demands a password."""

    secret: str = base64.b64encode(b"ward:7").decode()
    asked: list[str] = field(default_factory=list)
    refused: int = 0
    port: int = 0

    @contextmanager
    def running(self) -> Iterator["ConnectProxy"]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()
            yield self

    def _serve(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            target = head.split(b" ")[1].decode()
            self.asked.append(target)
            if self.secret.encode() not in head:
                self.refused += 1
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(there, client), daemon=True)
                back.start()
                _pump(client, there)
                back.join(5)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_a_round_goes_through_a_proxy_with_a_password(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy().running() as proxy, world.server() as host:
        monkeypatch.setenv("https_proxy", f"http://ward:7@127.0.0.1:{proxy.port}")
        daemon = Daemon(world.dial("site-0"), Scripted(0), world.folder / "answers")
        try:
            replies = list(world.grid(host, ["site-0"]).send_and_receive([message(0, 1)]))
        finally:
            daemon.stop()
    assert values(replies) == {2: 1.0}
    assert proxy.asked == [f"localhost:{world.port}"]
    assert not proxy.refused


def test_without_the_password_nothing_goes_through(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy().running() as proxy, world.server() as host:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        daemon = Daemon(world.dial("site-0"), Scripted(0), world.folder / "answers")
        try:
            grid = world.grid(host, ["site-0"], absence=1.0)
            (lost,) = grid.send_and_receive([message(0, 1)])
        finally:
            daemon.stop()
    assert lost.has_error()
    assert proxy.refused


@contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[int]:
    """A port that speaks TLS as `context` says, or sends something else."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):
                        if context is None:
                            client.sendall(b"SSH-2.0-nothing\r\n")
                        else:
                            context.wrap_socket(client, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def served(folder: Path, name: str, host: str) -> ssl.SSLContext:
    """TLS with a certificate of an authority called `name`, in `folder`."""
    authority, key = create_authority(folder, name), new_key()
    pair = folder / "pair.pem"
    pair.write_bytes(key + authority.sign_server(signing_request(key, "server"), [host]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


def test_a_proxy_that_opens_tls_is_named(world: World, tmp_path: Path) -> None:
    with listening(served(tmp_path / "bluecoat", "Corporate Inspection", "127.0.0.1")) as port:
        said = diagnose(f"127.0.0.1:{port}", world.authority.certificate)
    assert "Corporate Inspection" in said
    assert "a proxy on the way opens TLS" in said


def test_what_stands_in_the_way_is_told_apart(world: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    assert "nothing listens" in diagnose(f"127.0.0.1:{closed}", world.authority.certificate)
    assert "is not known here" in diagnose("no-such-host.invalid:7443", world.authority.certificate)
    with listening(None) as port:
        assert "speaks no TLS" in diagnose(f"127.0.0.1:{port}", world.authority.certificate)
    other = tmp_path / "other-name"
    with listening(served(other, "test", "elsewhere.example")) as port:
        said = diagnose(f"127.0.0.1:{port}", (other / "ca.crt").read_bytes())
    assert "is for elsewhere.example, not for '127.0.0.1'" in said
    right = tmp_path / "right"
    with listening(served(right, "test", "127.0.0.1")) as port:
        assert "its certificate is right" in diagnose(f"127.0.0.1:{port}", (right / "ca.crt").read_bytes())
