"""The dashboard of a real server over TLS, and the one over recorded runs: whole, with everything that they serve."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fedlora.identity.home import make_home
from fedlora.identity.tokens import decode
from fedlora.server.daemon import running
from fedlora.server.dashboard import gate
from fedlora.server.dashboard.audit import AuditLog
from fedlora.server.dashboard.local import local_dashboard
from fedlora.server.operator.access import find_access
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.running import Server
from fedlora.server.settings import ServerSettings
from fedlora.server.store import RunStore
from tests.server.operator.living import load_samples

HTML = {"Accept": "text/html"}
NASTY = 'x"\r\nSet-Cookie: a=b\r\n\r\n<script>alert(1)</script>'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "home"
    make_home(folder, "test", ["localhost", "127.0.0.1"])
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    settings = ServerSettings(link="127.0.0.1:0", enrolment="127.0.0.1:0", operator="127.0.0.1:0")
    with running(home, settings) as found:
        yield found


@pytest.fixture(scope="module")
def nasty(server: Server) -> RunInfo:
    """A run whose name is an attack, with one round."""
    run = server.store.create(load_samples().config(), name=NASTY, status=RunStatus.QUEUED)
    server.store.commit_round(run, load_samples().record(0))
    return run


@contextmanager
def browsing(home: Path, server: Server, *, logged_in: bool = True) -> Iterator[httpx.Client]:
    del server
    access = find_access(None, home, {})
    context = ssl.create_default_context(cafile=home / "ca" / "ca.crt")
    headers = {"Origin": access.url, **HTML}
    with httpx.Client(verify=context, base_url=access.url, headers=headers, trust_env=False, timeout=20) as client:
        if logged_in:
            answer = client.post("/login", data={"token": access.token})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
        yield client


def test_logging_in_and_out_over_tls(home: Path, server: Server, nasty: RunInfo) -> None:
    with browsing(home, server, logged_in=False) as client:
        assert client.get("/").headers["location"] == "/login"
        page = client.get("/login")
        assert "<form" in page.text
        assert page.headers["content-security-policy"] == gate.SECURITY_HEADERS["Content-Security-Policy"]
        client.post("/login", data={"token": find_access(None, home, {}).token})
        assert client.cookies["__Host-fedlora"]
        page = client.get("/")
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        csrf = re.search(r'data-csrf="([0-9a-f]{64})"', page.text)
        assert csrf
        assert client.get(f"/runs/{nasty.id}").status_code == 200
        assert client.post("/logout", data={"csrf": csrf[1]}).headers["location"] == "/login"
        assert client.get("/").status_code == 303
    assert [entry.action for entry in AuditLog(server.store.database).entries(limit=2)] == ["logout", "login"]


def test_every_page_is_there_and_has_no_script_of_its_own(home: Path, server: Server, nasty: RunInfo) -> None:
    with browsing(home, server) as client:
        for path in ("/", f"/runs/{nasty.id}", "/clients", "/compare", "/access", "/audit", "/about", "/nothing"):
            page = client.get(path)
            assert page.status_code == (404 if path == "/nothing" else 200), path
            assert not re.search(r"<script(?![^>]*\ssrc=)|\son[a-z]+=|\sstyle=|<style|javascript:", page.text), path
            for address in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
                assert address.startswith("/"), f"{path} loads {address} from elsewhere"


def test_a_run_s_name_is_in_no_header(home: Path, server: Server, nasty: RunInfo) -> None:
    with browsing(home, server) as client:
        for path in (f"/runs/{nasty.id}", f"/data/runs/{nasty.id}", f"/data/compare.csv?run={nasty.id}"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "set-cookie" not in answer.headers
            assert "alert" not in str(answer.headers)
        answer = client.get(f"/data/compare.csv?run={nasty.id}")
        assert answer.headers["content-disposition"] == 'attachment; filename="fedlora-comparison.csv"'


def test_a_client_is_invited_with_a_token_that_joins(home: Path, server: Server) -> None:
    with browsing(home, server) as client:
        csrf = re.search(r'data-csrf="([0-9a-f]{64})"', client.get("/clients").text)
        assert csrf
        form = {"name": "ward-1", "csrf": csrf[1]}
        answer = client.post("/clients", data=form, headers={"Accept": "application/json"})
        # The enrolment of this server has no fixed port, which no token can name.
        assert answer.status_code == 409, answer.text
    from dataclasses import replace

    from fedlora.server.dashboard.serving import _inviter

    fixed = replace(server, settings=ServerSettings(enrolment="0.0.0.0:7444"))
    invite = _inviter(fixed, ("localhost",))
    assert invite is not None
    assert decode(invite("ward-2", 1.0, False).token).server == "localhost:7444"
    assert _inviter(replace(server, settings=ServerSettings(enrolment=None)), ("localhost",)) is None


def sent(home: Path, lines: bytes) -> bytes:
    """What the server answers to exactly these bytes."""
    access = find_access(None, home, {})
    port = int(access.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=home / "ca" / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(lines)
        connection.settimeout(5)
        found = b""
        while part := connection.recv(65_536):
            found += part
        return found


END = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_lines", "status"),
    [
        (b"GET /login HTTP/1.1\r\nHost: localhost\r\n", b"200"),
        (b"GET http://localhost/login HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"GET https://evil.example/login HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"GET /login HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", b"400"),
        (b"GET /login HTTP/1.1\r\nHost: evil.example\r\n", b"400"),
        (b"GET /login HTTP/1.1\r\n", b"400"),
        (b"GET /static/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"GET /static/../../app.py HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"GET /%2e%2e/login HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", b"401"),
        (b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n", b"200"),
        (b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\n", b"401"),
    ],
)
def test_odd_requests_over_the_wire(home: Path, server: Server, request_lines: bytes, status: bytes) -> None:
    del server
    answer = sent(home, request_lines + b"Accept: application/json\r\n" + END)
    assert answer.split(b" ", 2)[1] == status, answer[:300]
    assert b"server:" not in answer.lower()


def test_a_slow_body_over_the_wire(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    del server
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.3)
    began = time.monotonic()
    origin = find_access(None, home, {}).url.encode()
    host = origin.removeprefix(b"https://")
    lines = b"POST /login HTTP/1.1\r\nHost: " + host + b"\r\nOrigin: " + origin + b"\r\nContent-Length: 100\r\n"
    answer = sent(home, lines + b"Accept: application/json\r\n\r\ntoken=")
    assert answer.split(b" ", 2)[1] == b"408"
    assert time.monotonic() - began < 3


# Over recorded runs


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, RunInfo]:
    with RunStore.open(tmp_path / "runs") as store:
        run = store.create(load_samples().config(), name="recorded")
        store.commit_round(run, load_samples().record(0))
        return tmp_path / "runs", store.finish(run, RunStatus.FINISHED)


def test_recorded_runs_can_be_looked_at_and_nothing_else(recorded: tuple[Path, RunInfo]) -> None:
    folder, run = recorded
    with local_dashboard(folder) as shown:
        address, _, code = shown.link.partition("/login#token=")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        assert (shown.page.stat().st_mode & 0o777, shown.page.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert shown.link in shown.page.read_text()
        assert code not in repr(shown)
        with httpx.Client(base_url=address, headers={"Origin": address}, trust_env=False) as client:
            assert client.get("/").headers["location"] == "/login"
            answer = client.post("/login", data={"token": code})
            port = address.rpartition(":")[2]
            cookie = answer.headers["set-cookie"].lower()
            assert cookie.startswith(f"fedlora-{port}=")
            assert "secure" not in cookie
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            page = client.get("/")
            assert page.status_code == 200
            assert client.get(f"/runs/{run.id}").status_code == 200
            assert client.get(f"/data/runs/{run.id}").status_code == 200
            csrf = re.search(r'data-csrf="([0-9a-f]{64})"', page.text)
            assert csrf
            token = {"X-CSRF-Token": csrf[1]}
            for method, path in (
                ("POST", f"/runs/{run.id}/stop"),
                ("POST", f"/runs/{run.id}/resume"),
                ("POST", f"/runs/{run.id}/links"),
                ("POST", "/access"),
                ("DELETE", "/access/x"),
                ("POST", "/clients"),
                ("GET", "/clients"),
                ("GET", "/audit"),
                ("GET", "/access"),
                ("GET", "/mine"),
                ("GET", "/api/v1/runs"),
            ):
                assert client.request(method, path, headers=token).status_code in (404, 405), path
        with httpx.Client(base_url=address, headers={"Origin": address}, trust_env=False) as other:
            assert other.post("/login", data={"token": code}).status_code == 401
            assert other.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert not shown.page.exists()
    with RunStore.open(folder) as store:
        assert AuditLog(store.database).entries() == (), "nothing is kept of who looks"
