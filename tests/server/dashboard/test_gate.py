"""What the dashboard's gate refuses: other names, other sites' pages, odd paths, sizes, and what nobody may ask."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from fedlora.errors import ConfigError, FedloraError, IdentityError, RunError, StoreError, UnknownRunError
from fedlora.server.dashboard import gate, sending
from fedlora.server.dashboard.app import ROUTES
from fedlora.server.dashboard.cookies import cookie_name
from fedlora.server.dashboard.desk import Limits
from fedlora.server.dashboard.people import Role
from fedlora.server.dashboard.routes import Route
from fedlora.server.operator.exchange import Failures
from tests.server.dashboard.entrance import (
    ADMIN,
    COLLABORATOR,
    IN,
    OPERATOR,
    VIEWER,
    Browser,
    Entrance,
    entrance,
    stubbed,
    value_of,
)

STOP = "/runs/some-1/stop"
CHANGES = (("POST", STOP), ("DELETE", "/access/some-1"), ("DELETE", "/links/some-1"), ("POST", "/logout"))


# The name of this server


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1", "", "localhost@evil", "localhost/", "[::1]", "a b"]
)
def test_another_name_for_this_server_is_refused(door: Entrance, host: str) -> None:
    """DNS rebinding: a page whose own name was made to point here."""
    browser = door.acting(ADMIN)
    for method, path in (("GET", "/"), ("GET", "/login"), ("GET", "/static/icon.svg"), ("POST", STOP)):
        answer = browser.request(method, path, headers={"Host": host})
        assert answer.status_code == 400
        assert "Host header" in answer.text


def test_two_names_are_none(door: Entrance) -> None:
    sent = raw(door, "GET", "/login", [(b"host", b"localhost"), (b"host", b"localhost")])
    assert sent[0]["status"] == 400
    assert raw(door, "GET", "/login", [])[0]["status"] == 400
    assert raw(door, "GET", "/login", [(b"host", b"localhost")])[0]["status"] == 200


def test_all_our_names_are_taken(door: Entrance) -> None:
    for host in ("localhost", "LOCALHOST:9", "fed.example.org", "Fed.Example.Org:7445"):
        assert door.browser().get("/login", headers={"Host": host}).status_code == 200


# Other sites' pages


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost",
        "https://localhost:8888",
        "https://localhost.evil.example",
        "https://fed.example.org",
        "https://localhost/",
        "https://localhost, https://localhost",
    ],
)
def test_another_origin_changes_nothing(door: Entrance, origin: str) -> None:
    """With the right cookie and the right CSRF token."""
    browser = door.acting(ADMIN)
    for method, path in (*CHANGES, ("POST", "/login")):
        answer = browser.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403, (method, path)
        assert "not sent by a page of this server" in answer.text
    assert browser.get("/data/runs").status_code == IN


def test_without_an_origin_only_the_browser_s_own_word_counts(door: Entrance) -> None:
    browser = door.acting(ADMIN)
    del browser.headers["origin"]
    for method, path in CHANGES:
        assert browser.request(method, path).status_code == 403
    assert browser.post(STOP, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 404  # there is no such run
    for site in ("none", "cross-site", "same-site", "SAME-ORIGIN"):
        assert browser.post(STOP, headers={"Sec-Fetch-Site": site}).status_code == 403


def test_the_port_of_the_origin_is_that_of_the_host(door: Entrance) -> None:
    browser = door.acting(ADMIN)
    for host, origin, status in (
        ("localhost:7445", "https://localhost:7445", 404),
        ("localhost:443", "https://localhost", 404),
        ("LOCALHOST:7445", "https://localhost:7445", 404),
        ("localhost:7445", "https://localhost", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost:7445", "https://localhost:7446", 403),
    ):
        assert browser.post(STOP, headers={"Host": host, "Origin": origin}).status_code == status, (host, origin)


def test_a_page_elsewhere_can_embed_and_load_nothing(door: Entrance) -> None:
    browser = door.browser(VIEWER)
    navigation = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for site in ("cross-site", "same-site"):
        for path in ("/", "/data/runs", "/static/icon.svg", "/login"):
            headers = {"Sec-Fetch-Site": site}
            assert browser.get(path, headers={**headers, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
            framed = {**headers, **navigation, "Sec-Fetch-Dest": "iframe"}
            assert browser.get(path, headers=framed).status_code == 403
            assert browser.get(path, headers=headers | navigation).status_code != 403
        assert browser.post(STOP, headers={"Sec-Fetch-Site": site, **navigation}).status_code == 403


# CSRF tokens


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_every_change_repeats_the_session_s_token(door: Entrance, method: str, path: str) -> None:
    browser, other = door.browser(ADMIN), door.browser(OPERATOR)
    right = door.csrf(browser)
    wrong = ("", "x", right[:-1], right + "0", right.upper(), door.csrf(other), value_of(browser), "ä")
    for token in wrong:
        assert browser.request(method, path, headers=[("X-CSRF-Token", token.encode())]).status_code == 403, token
    assert browser.request(method, path).status_code == 403
    assert browser.request(method, f"{path}?csrf={right}").status_code == 403
    twice = [("X-CSRF-Token", right), ("X-CSRF-Token", right)]
    assert browser.request(method, path, headers=twice).status_code == 403
    assert browser.request(method, path, headers={"X-CSRF-Token": right}).status_code not in (401, 403)


def test_the_token_may_be_a_form_s_field(door: Entrance) -> None:
    browser = door.browser(ADMIN)
    right = door.csrf(browser)
    assert browser.post(STOP, data={"csrf": right}).status_code == 404
    assert browser.post(STOP, data={"csrf": right[:-1]}).status_code == 403
    assert browser.post(STOP, data={"csrf": [right, right]}).status_code == 403
    assert browser.post(STOP, json={"csrf": right}).status_code == 403
    plain = {"Content-Type": "text/plain"}
    assert browser.post(STOP, content=f"csrf={right}", headers=plain).status_code == 403
    # Where a header is given, it is the one that counts.
    assert browser.post(STOP, data={"csrf": right}, headers={"X-CSRF-Token": "x"}).status_code == 403


def test_methods_that_no_route_has_are_refused_before_anything_is_read(door: Entrance) -> None:
    browser = door.browser(ADMIN)
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PROPFIND"):
        for _, path in CHANGES:
            assert browser.request(method, path).status_code == 405, method


def test_secrets_are_compared_in_constant_time(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(gate.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    browser = door.browser(ADMIN)
    compared.clear()
    browser.post(STOP, headers={"X-CSRF-Token": "wrong"})
    assert (b"wrong", door.csrf(browser).encode()) in compared


# Paths

ODD = (
    "/static/../../etc/passwd",
    "/static/..%2f..%2fetc%2fpasswd",
    "/static/%2e%2e/%2e%2e/etc/passwd",
    "/static/%252e%252e%252fetc%252fpasswd",
    "/static/..%5c..%5cetc",
    "/static/..\\..\\etc",
    "/static/%00",
    "/static/icon.svg%00.html",
    "/static/.hidden",
    "/static//etc/passwd",
    "//static/icon.svg",
    "/static/%69con.svg",
    "/runs/../access",
    "/runs/%2e%2e",
    "/runs/..%2f..%2foperator.token",
    "/runs/../../x/report",
    "/runs/%2e%2e%2f%2e%2e/report",
    "/runs/some-1/adapter/../../../x.zip",
    "/runs/some-1/adapter/..%2f..%2fx.zip",
    "/runs/some-1/adapter/1%00.zip",
    "/runs/some-1/report/",
    "/runs/some-1%0d%0aX: y/report",
    "/RUNS/some-1",
    "/mine/../access",
    "http://localhost/access",
    "https://evil.example/",
    "*",
    "",
    "access",
    "/access;x=y",
    "/access\x00",
    "/\u202eaccess",
)


@pytest.fixture
def all_in(tmp_path: Path) -> Iterator[Entrance]:
    """Whatever gets past the gate is let in."""
    with entrance(tmp_path / "home", routes=stubbed(ROUTES)) as found:
        yield found


@pytest.mark.parametrize("path", ODD)
def test_odd_paths_lead_nowhere(all_in: Entrance, path: str) -> None:
    """Not even for an admin; and what is decoded once, as servers do, or twice, is no other."""
    value = all_in.desk.sessions.begin(str(all_in.desk.credentials.take(all_in.secrets[ADMIN])))
    cookie = (b"cookie", f"__Host-fedlora={value}".encode())
    for scope_path in (path, unquote(path), unquote(unquote(path))):
        sent = raw(all_in, "GET", scope_path, [(b"host", b"localhost"), cookie], raw_path=path)
        assert sent[0]["status"] == 404, scope_path
        sent = raw(all_in, "GET", scope_path, [(b"host", b"localhost")], raw_path=path)
        assert sent[0]["status"] in (303, 401)
        location = dict(sent[0]["headers"]).get(b"location", b"/login")
        assert re.fullmatch(rb"/login(\?next=(/[A-Za-z0-9-][A-Za-z0-9._-]*)+)?", location)
    sent = raw(all_in, "GET", "/access", [(b"host", b"localhost"), cookie], raw_path="/access")
    assert sent[0]["status"] == IN


def raw(
    door: Entrance, method: str, path: str, headers: list[tuple[bytes, bytes]], *, raw_path: str | None = None
) -> list[dict[str, Any]]:
    """The messages that answer a request which no well-behaved client would send."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": (path if raw_path is None else raw_path).encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("203.0.113.9", 1),
        "server": ("localhost", 443),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    anyio.run(door.app, scope, receive, send)
    return sent


# Objects


def test_a_collaborator_asks_for_its_own_run_and_site_alone(all_in: Entrance) -> None:
    first, second = all_in.runs
    value = all_in.desk.sessions.begin(str(all_in.desk.credentials.take(all_in.secrets[COLLABORATOR])))
    own = all_in.browser(Cookie=f"__Host-fedlora={value}")
    for path in ("/mine", "/mine/data", "/mine/stream"):
        for query in ("", f"?run={first.id}", "?site=ward-7", f"?run={first.id}&site=ward-7"):
            assert own.get(path + query).status_code == IN, path + query
        for query in (
            f"?run={second.id}",
            "?run=",
            "?site=ward-9",
            f"?run={first.id}&run={second.id}",
            f"?run={first.id}&site=ward-9",
            "?site=WARD-7",
            f"?%72un={second.id}",
        ):
            assert own.get(path + query).status_code == 404, path + query
    for run in (first, second):
        for path in (f"/runs/{run.id}", f"/data/runs/{run.id}", f"/stream?run={run.id}", f"/runs/{run.id}/report"):
            assert own.get(path).status_code == 403, path


# Sizes and numbers


def test_large_bodies_are_refused(door: Entrance) -> None:
    browser = door.acting(ADMIN)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/login", STOP):
        assert browser.post(path, content=b"x" * (gate.MAX_BODY + 1), headers=form).status_code == 413
        assert browser.post(path, content=chunks(gate.MAX_BODY + 1), headers=form).status_code == 413
        for wrong in ("-1", "x", "9" * 30, "1e3"):
            answer = browser.post(path, content=b"", headers={**form, "Content-Length": wrong})
            assert answer.status_code == 413, wrong
    assert browser.post(STOP, content=b"x=" + b"x" * (gate.MAX_BODY - 2), headers=form).status_code == 422


async def chunks(size: int) -> Any:
    for _ in range(size // 1000 + 1):
        yield b"x" * 1000


def test_slow_bodies_are_given_up(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)

    async def slow() -> Any:
        yield b"x"
        await anyio.sleep(5)
        yield b"y"

    browser = door.acting(ADMIN)
    for path in ("/login", STOP):
        with anyio.from_thread.start_blocking_portal():
            answer = browser.post(path, content=slow())
        assert answer.status_code == 408
        assert answer.headers["connection"] == "close"


def test_a_session_asks_only_so_often(door: Entrance) -> None:
    object.__setattr__(door.desk, "limits", Limits(requests=Failures(limit=5)))
    browser, other = door.browser(VIEWER), door.browser(OPERATOR)
    assert [browser.get("/data/runs").status_code for _ in range(8)] == [IN] * 5 + [429] * 3
    assert browser.get("/data/runs").headers["retry-after"] == "60"
    assert other.get("/data/runs").status_code == IN
    assert browser.get("/login").status_code == 200


# What every answer says, and what endpoints do wrong


async def breaks(request: Request) -> Response:
    raise {
        "config": ConfigError(["rounds = 0: give more"]),
        "run": UnknownRunError("no run"),
        "queue": RunError("it has finished"),
        "identity": IdentityError("the name is taken"),
        "store": StoreError("the disk is full"),
        "other": FedloraError("something"),
        "bug": ZeroDivisionError("secret-in-a-bug"),
    }[request.path_params["how"]]


async def own_policy(request: Request) -> Response:
    return PlainTextResponse("x", headers={"Content-Security-Policy": "sandbox"})


async def endless(request: Request) -> Response:
    async def parts() -> Any:
        while True:
            yield b"part\n"
            await anyio.sleep(0.01)

    return StreamingResponse(parts())


async def half(request: Request) -> Response:
    async def parts() -> Any:
        yield b"part\n"
        raise ZeroDivisionError("too late")

    return StreamingResponse(parts())


def login_routes() -> tuple[Route, ...]:
    return tuple(route for route in ROUTES if "/log" in route.path)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Entrance]:
    """Endpoints that misbehave."""
    routes = (
        *login_routes(),
        Route("GET", "/breaks/{how}", Role.VIEWER, breaks),
        Route("POST", "/breaks/{how}", Role.VIEWER, breaks),
        Route("GET", "/own", Role.VIEWER, own_policy),
        Route("GET", "/endless", Role.VIEWER, endless),
        Route("GET", "/half", Role.VIEWER, half),
    )
    with entrance(tmp_path / "home", routes=routes) as found:
        yield found


def test_every_answer_has_the_headers(odd: Entrance) -> None:
    browser = odd.acting(VIEWER)
    answers = [
        *(odd.browser().get(path) for path in ("/login", "/", "/nothing")),
        *(browser.get(path) for path in ("/own", "/nothing", "/breaks/bug", "/breaks/run")),
        browser.post("/login", data={"token": "x"}),
        browser.get("/login", headers={"Host": "evil.example"}),
        browser.request("TRACE", "/own"),
    ]
    for answer in answers:
        for name, value in gate.SECURITY_HEADERS.items():
            if name != "Content-Security-Policy":
                assert answer.headers[name] == value, (answer.url, name)
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "server"]
    policies = {answer.headers["content-security-policy"] for answer in answers}
    assert policies == {"sandbox", gate.SECURITY_HEADERS["Content-Security-Policy"]}
    assert "unsafe" not in gate.SECURITY_HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("how", "status"),
    [("config", 422), ("run", 404), ("queue", 409), ("identity", 409), ("store", 503), ("other", 500), ("bug", 500)],
)
def test_errors_are_told_as_json_and_as_a_page(
    odd: Entrance, how: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    for browser in (odd.acting(VIEWER), odd.acting(VIEWER, Accept="text/html")):
        for method in ("GET", "POST"):
            answer = browser.request(method, f"/breaks/{how}")
            assert answer.status_code == status
            assert "secret-in-a-bug" not in answer.text
            assert "Traceback" not in answer.text
            if "html" not in browser.headers["accept"]:
                assert set(answer.json()["error"]) >= {"type", "message", "exit_code"}
    assert ("secret-in-a-bug" in caplog.text) == (how == "bug")
    written = odd.desk.audit.entries()
    assert [one.outcome for one in written if one.action == "breaks"] == ["failed", "failed"]
    assert "secret-in-a-bug" not in str(written)


def test_an_answer_that_breaks_off_is_not_made_whole(odd: Entrance) -> None:
    with pytest.raises(ZeroDivisionError, match="too late"):
        odd.browser(VIEWER).get("/half")


def test_head_has_no_body_and_ends_a_stream(odd: Entrance) -> None:
    answer = odd.browser(VIEWER).request("HEAD", "/endless")
    assert (answer.status_code, answer.content) == (200, b"")
    answer = odd.browser(VIEWER).request("HEAD", "/own")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "1")


def test_a_stream_ends_with_its_session(odd: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LOOK", 0.02)
    browser = odd.browser(VIEWER)
    threshold = iter(range(100))
    holds = odd.desk.sessions.holds

    def look(digest: str) -> bool:
        if next(threshold) == 3:
            odd.desk.tokens.remove("the-viewer")
        return holds(digest)

    monkeypatch.setattr(odd.desk.sessions, "holds", look)
    answer = browser.get("/endless")
    assert answer.status_code == 200
    assert 3 < answer.text.count("part") < 200
    assert next(threshold) == 4
    assert browser.get("/endless").status_code == 401


def test_no_websockets(door: Entrance) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is to be read")

    anyio.run(door.app, {"type": "websocket", "path": "/stream", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_strangers_are_sent_to_the_login(door: Entrance) -> None:
    page, script = door.browser(Accept="text/html"), door.browser()
    assert page.get("/").headers["location"] == "/login"
    assert page.get("/runs/some-1").headers["location"] == "/login?next=/runs/some-1"
    assert page.get("/runs/some-1").status_code == 303
    assert script.get("/runs/some-1").status_code == 401
    assert page.get("/data/runs").status_code == 401
    assert page.post(STOP).status_code == 401


def test_the_cookie_s_name_says_where_it_is_from() -> None:
    scope = {"server": ("127.0.0.1", 4321)}
    assert cookie_name(scope, tls=True) == "__Host-fedlora"
    assert cookie_name(scope, tls=False) == "fedlora-4321"


def test_a_store_that_fails_does_not_open_the_door(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    browser: Browser = door.browser(ADMIN)

    def fails(value: str) -> None:
        raise StoreError("cannot use the database")

    monkeypatch.setattr(door.desk.sessions, "find", fails)
    assert browser.get("/data/runs").status_code == 503
    assert browser.get("/access").status_code == 503


def test_what_cannot_be_written_down_is_logged(
    door: Entrance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    browser = door.acting(ADMIN)

    def fails(note: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(door.desk.audit, "write", fails)
    with caplog.at_level(logging.ERROR):
        assert browser.post(STOP).status_code == 404
    assert "the audit log lacks an entry (the disk is full)" in caplog.text
    assert "stop run" in caplog.text


def test_who_takes_a_model_away_is_noted(door: Entrance) -> None:
    """Though nothing changes; the rest of what is only looked at is not."""
    browser, run_id = door.browser(VIEWER), door.runs[0].id
    before = door.audited()
    browser.get(f"/runs/{run_id}/report")
    browser.request("HEAD", f"/runs/{run_id}/adapter/2.zip")
    assert door.audited() == before
    assert browser.get(f"/runs/{run_id}/adapter/2.zip").status_code == IN
    download = ("the-viewer", "viewer", "download adapter", f"run {run_id}, round 2", "done")
    assert door.audited() == [*before, download]
