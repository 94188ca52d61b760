"""Who gets in where: every path and method of the dashboard for every role, against a table that is written here."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse

from fedlora.server.dashboard.app import ROUTES, looking
from fedlora.server.dashboard.people import Role
from fedlora.server.dashboard.routes import Route
from fedlora.server.dashboard.table import RouteTable
from tests.server.dashboard.entrance import (
    ADMIN,
    COLLABORATOR,
    EVERYBODY,
    IN,
    NOBODY,
    OPERATOR,
    VIEWER,
    Browser,
    Entrance,
    entrance,
    stubbed,
)

PAGE = Path(__file__).parents[3] / "docs" / "dashboard-security.md"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

ALL, IN_ALL = EVERYBODY, EVERYBODY[1:]
LOOKING, ACTING, ADMINS, OWN = (VIEWER, OPERATOR, ADMIN), (OPERATOR, ADMIN), (ADMIN,), (COLLABORATOR,)

WHO: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("GET", "/login"): ALL,
    ("POST", "/login"): ALL,
    ("GET", "/static/{name:path}"): ALL,
    ("POST", "/logout"): IN_ALL,
    ("GET", "/"): IN_ALL,
    ("GET", "/mine"): OWN,
    ("GET", "/mine/data"): OWN,
    ("GET", "/mine/stream"): OWN,
    ("GET", "/runs/{run_id}"): LOOKING,
    ("GET", "/runs/{run_id}/adapter/{round}.zip"): LOOKING,
    ("GET", "/runs/{run_id}/report"): LOOKING,
    ("GET", "/clients"): LOOKING,
    ("GET", "/compare"): LOOKING,
    ("GET", "/about"): LOOKING,
    ("GET", "/stream"): LOOKING,
    ("GET", "/data/runs"): LOOKING,
    ("GET", "/data/runs/{run_id}"): LOOKING,
    ("GET", "/data/runs/{run_id}/matrix"): LOOKING,
    ("GET", "/data/runs/{run_id}/rounds/{round}"): LOOKING,
    ("GET", "/data/runs/{run_id}/spread"): LOOKING,
    ("GET", "/data/runs/{run_id}/events"): LOOKING,
    ("GET", "/data/runs/{run_id}/config"): LOOKING,
    ("GET", "/data/clients"): LOOKING,
    ("GET", "/data/compare"): LOOKING,
    ("GET", "/data/compare.csv"): LOOKING,
    ("POST", "/runs/{run_id}/stop"): ACTING,
    ("POST", "/runs/{run_id}/resume"): ACTING,
    ("POST", "/runs/{run_id}/links"): ACTING,
    ("DELETE", "/links/{id}"): ACTING,
    ("POST", "/clients"): ACTING,
    ("POST", "/clients/{name}/revoke"): ACTING,
    ("GET", "/audit"): ADMINS,
    ("GET", "/access"): ADMINS,
    ("POST", "/access"): ADMINS,
    ("DELETE", "/access/{name}"): ADMINS,
}
"""Nothing else is let in. A new route must be added here, and in docs/dashboard-security.md."""

PATHS = sorted({path for _, path in WHO})


def test_the_table_is_that_of_the_application() -> None:
    assert {(route.method, route.path) for route in ROUTES} == set(WHO)


def address(path: str) -> str:
    """A path with something in the place of each parameter."""
    return re.sub(r"\{[^}]+\}", "some-1", path)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entrance]:
    """All routes there are, without what they do."""
    with entrance(tmp_path_factory.mktemp("stub") / "home", routes=stubbed(ROUTES)) as found:
        yield found


@pytest.fixture(scope="module")
def browsers(stub: Entrance) -> Mapping[str, Browser]:
    """A browser for each role; the login is a stub too, so that their sessions are made by hand."""
    found = {}
    for who in EVERYBODY:
        found[who] = stub.browser()
        if who != NOBODY:
            credential = stub.desk.credentials.take(stub.secrets[who])
            assert credential is not None
            value = stub.desk.sessions.begin(credential)
            found[who].headers["Cookie"] = f"__Host-fedlora={value}"
            session = stub.desk.sessions.find(value)
            assert session is not None
            found[who].headers["X-CSRF-Token"] = session.person.csrf
    return found


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_who_gets_in(browsers: Mapping[str, Browser], path: str, method: str, who: str) -> None:
    answer = browsers[who].request(method, address(path))
    asked = "GET" if method == "HEAD" else method
    there = {of for of, at in WHO if at == path}
    if asked in there:
        is_in = who in WHO[asked, path]
        expected = IN if is_in else 401 if who == NOBODY else 403
    else:
        is_open = all(NOBODY in WHO[of, path] for of in there)
        expected = 405 if who != NOBODY or is_open else 401
    assert answer.status_code == expected
    if expected == IN and method != "HEAD":
        assert answer.text.startswith("let-in: ")
    elif expected != IN:
        assert "let-in: " not in answer.text
    if expected == 405:
        assert set(answer.headers["allow"].split(", ")) == there | ({"HEAD"} if "GET" in there else set())


@pytest.mark.parametrize("who", EVERYBODY)
def test_what_is_not_there_is_told_to_nobody_but_those_who_are_in(browsers: Mapping[str, Browser], who: str) -> None:
    for path in ("/nothing", "/runs", "/admin", "/docs", "/openapi.json", "/.git/config", "/api/v1/runs", "/metrics"):
        for method in METHODS:
            assert browsers[who].request(method, path).status_code == (401 if who == NOBODY else 404), (method, path)


def test_a_route_that_is_not_in_the_table_is_never_reached(stub: Entrance, browsers: Mapping[str, Browser]) -> None:
    """However it was added: as a route, a mounted application, or at a path that is open."""

    async def plain(request: object) -> PlainTextResponse:
        return PlainTextResponse("secret")

    stub.app.add_route("/later", plain, methods=["GET", "DELETE"])
    stub.app.mount("/mounted", PlainTextResponse("secret"))
    stub.app.add_route("/login", plain, methods=["PUT"])
    for browser in browsers.values():
        for method, path in (("GET", "/later"), ("DELETE", "/later"), ("GET", "/mounted"), ("PUT", "/login")):
            answer = browser.request(method, path)
            assert answer.status_code in (401, 404, 405)
            assert "secret" not in answer.text


def test_mistakes_in_a_table_are_found() -> None:
    page = Route("GET", "/page", Role.VIEWER, print)
    for wrong, why in (
        ((page, replace(page, endpoint=len)), "two routes for GET /page"),
        ((replace(page, method="TRACE"),), "cannot have the method 'TRACE'"),
        ((replace(page, method="get"),), "cannot have the method 'get'"),
        ((replace(page, path="/mine/all"),), "is for collaborators"),
    ):
        with pytest.raises(ValueError, match=why):
            RouteTable(wrong)


def test_without_a_server_there_is_only_what_can_be_looked_at() -> None:
    found = {(route.method, route.path) for route in looking(ROUTES)}
    assert {method for method, _ in found} == {"GET", "POST"}
    assert {path for method, path in found if method == "POST"} == {"/login", "/logout"}
    hidden = ("/clients", "/data/clients", "/audit", "/access", "/mine", "/mine/data", "/mine/stream")
    assert found == {key for key in WHO if key[0] == "GET" and key[1] not in hidden} | {
        ("POST", "/login"),
        ("POST", "/logout"),
    }


def test_the_page_about_security_has_the_same_table() -> None:
    marks = {ALL: "everybody", IN_ALL: "all who are logged in", LOOKING: "viewer", ACTING: "operator", ADMINS: "admin"}
    marks[OWN] = "collaborator"
    rows = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \| ([a-z ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {(method, path): who for method, path, who in rows} == {key: marks[who] for key, who in WHO.items()}
    assert len(rows) == len(WHO)
