"""Every action: what it does, what it answers to scripts and to browsers, and what the audit log then has."""

import pytest

from fedlora.identity.keys import read_certificate
from fedlora.identity.records import ClientStatus
from fedlora.identity.tokens import decode
from fedlora.server.dashboard.app import front
from fedlora.server.dashboard.inviting import Inviter, reached_at
from fedlora.server.operator.api import make_api
from fedlora.server.records import RunStatus
from tests.server.dashboard.entrance import ADMIN, COLLABORATOR, IN, OPERATOR, ORIGIN, Browser, Entrance, log_in


def page_of(door: Entrance, who: str) -> Browser:
    """A browser that asks for pages."""
    return door.acting(who, Accept="text/html")


def last(door: Entrance) -> tuple[str, ...]:
    return door.audited()[-1]


def test_stopping_a_run(door: Entrance) -> None:
    first, second = door.runs
    script, browser = door.acting(OPERATOR), page_of(door, OPERATOR)
    answer = script.post(f"/runs/{first.id}/stop")
    assert answer.json() == {"id": first.id, "status": "stopped", "stop_requested": False}
    assert door.store.get(first.id).status is RunStatus.STOPPED
    assert last(door) == ("the-operator", "operator", "stop run", f"run {first.id}", "done")
    door.store.mark_running(second)
    answer = browser.post(f"/runs/{second.id}/stop")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{second.id}")
    assert door.queue.stop_requested(second.id)
    door.store.finish(second, RunStatus.FINISHED)
    answer = script.post(f"/runs/{second.id}/stop")
    assert answer.status_code == 409
    assert answer.json()["error"]["message"] == f"run {second.id} cannot be stopped: it has finished"
    assert last(door)[2:] == ("stop run", f"run {second.id}", "failed")
    assert "has finished" in door.desk.audit.entries()[0].reason
    assert script.post("/runs/nothing/stop").status_code == 404


def test_resuming_a_run(door: Entrance) -> None:
    run = door.queue.stop(door.runs[0].id)
    script = door.acting(OPERATOR)
    assert script.post(f"/runs/{run.id}/resume", data={"rounds": "9"}).json()["status"] == "queued"
    assert door.store.get(run.id).rounds == 9
    assert door.desk.audit.entries()[0].reason == "9 rounds"
    assert script.post(f"/runs/{run.id}/resume").status_code == 409
    door.queue.stop(run.id)
    assert script.post(f"/runs/{run.id}/resume", json={"rounds": 10}).status_code == 200
    door.queue.stop(run.id)
    for wrong in ({"rounds": "0"}, {"rounds": "x"}, {"rounds": "1e3"}, {"round": "3"}, {"rounds": "-1"}):
        assert script.post(f"/runs/{run.id}/resume", data=wrong).status_code == 422, wrong
    assert page_of(door, OPERATOR).post(f"/runs/{run.id}/resume", data={"rounds": ""}).status_code == 303


def test_enrolling_a_client(door: Entrance) -> None:
    script = door.acting(OPERATOR)
    answer = script.post("/clients", data={"name": "ward-1", "hours": "2"})
    assert answer.status_code == 201
    found = answer.json()
    assert (found["secret"], found["command"]) == ("token-of-ward-1", "fedlora client join --token-file ward-1.token")
    assert found["expires"] == "2031-01-01T00:00:00+00:00"
    assert last(door) == ("the-operator", "operator", "enroll client", "client ward-1", "done")
    page = page_of(door, OPERATOR).post("/clients", data={"name": "ward-1"})
    assert page.status_code == 201
    assert "location" not in page.headers
    for shown in (
        "token-of-ward-1",
        "fedlora client join --token-file ward-1.token",
        "Good for one use, until 2031-01-01",
    ):
        assert shown in page.text
    for wrong in ({}, {"name": "x", "hours": "soon"}, {"name": "x", "status": "active"}):
        assert script.post("/clients", data=wrong).status_code == 422


def test_a_token_from_the_dashboard_is_one_that_joins(door: Entrance, authority_file: bytes) -> None:
    invite = Inviter(door.registry, authority_file, reached_at(("localhost", "fed.example.org"), "0.0.0.0:7444"))
    made = invite("ward-1", 2.0, False)
    invitation = decode(made.token)
    assert (invitation.name, invitation.server) == ("ward-1", "fed.example.org:7444")
    assert door.registry.redeem(invitation.secret, "ward-1") == "ward-1"
    assert made.command == "fedlora client join --home site --token-file ward-1.token"
    assert made.token not in repr(made)


def test_where_the_server_is_reached() -> None:
    assert reached_at(("localhost", "127.0.0.1"), "0.0.0.0:7444") == "localhost:7444"
    assert reached_at(("localhost", "2001:db8::1"), "[::]:7444") == "[2001:db8::1]:7444"


def test_without_enrolment_nobody_is_enrolled(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.server.dashboard.entrance import entrance

    with entrance(tmp_path_factory.mktemp("closed") / "home", invite=None) as door:
        answer = door.acting(ADMIN).post("/clients", data={"name": "ward-1"})
        assert answer.status_code == 409
        assert "`enrolment` in the server's settings is null" in answer.text


def test_revoking_a_client(door: Entrance) -> None:
    door.registry.invite("ward-1")
    answer = door.acting(OPERATOR).post("/clients/ward-1/revoke", data={"reason": "left"})
    assert answer.json() == {"name": "ward-1", "status": "revoked"}
    (client,) = door.registry.clients()
    assert (client.status, client.reason) == (ClientStatus.REVOKED, "left")
    entry = door.desk.audit.entries()[0]
    assert (entry.action, entry.object, entry.reason, entry.address) == (
        *("revoke client", "client ward-1"),
        *("left", "203.0.113.5"),
    )
    assert door.acting(OPERATOR).post("/clients/ward-2/revoke").status_code == 409


def test_giving_access_and_taking_it(door: Entrance) -> None:
    script = door.acting(ADMIN)
    made = script.post("/access", data={"name": "anna", "role": "viewer", "days": "3"})
    assert made.status_code == 201
    anna = door.browser()
    assert log_in(anna, made.json()["secret"]).status_code == 200
    assert anna.get("/data/runs").text == "let-in: viewer"
    assert last(door)[2:] == ("login", "", "done")
    assert script.post("/access", data={"name": "anna", "role": "viewer"}).status_code == 409
    for wrong in ({"name": "x"}, {"name": "x", "role": "viewer", "days": "x"}):
        assert script.post("/access", data=wrong).status_code == 422
    assert script.post("/access", data={"name": "x", "role": "collaborator"}).status_code == 409
    assert script.request("DELETE", "/access/anna").json() == {"name": "anna", "removed": True}
    assert last(door) == ("the-admin", "admin", "remove access", "access token anna", "done")
    assert anna.get("/data/runs").status_code == 401
    assert script.request("DELETE", "/access/anna").status_code == 409


def test_links(door: Entrance) -> None:
    first = door.runs[0]
    script = door.acting(OPERATOR)
    made = script.post(f"/runs/{first.id}/links", data={"site": "ward-9", "days": "2"}).json()
    address, _, secret = made["secret"].partition("#token=")
    assert address == f"{ORIGIN}/login"
    guest = door.browser()
    assert log_in(guest, secret).json() == {"next": "/mine"}
    assert guest.get("/mine").status_code == IN
    assert script.post(f"/runs/{first.id}/links", data={"site": "elsewhere"}).status_code == 409
    assert script.post("/runs/nothing/links", data={"site": "ward-9"}).status_code == 404
    page = page_of(door, OPERATOR).post(f"/runs/{first.id}/links", data={"site": "ward-9"})
    assert f"{ORIGIN}/login#token=" in page.text
    assert script.request("DELETE", f"/links/{made['id']}").status_code == 200
    assert guest.get("/mine").status_code == 401
    assert last(door)[2:] == ("remove link", f"link {made['id']}", "done")


def test_nobody_acts_beyond_the_role(door: Entrance) -> None:
    for who in (COLLABORATOR, "viewer"):
        browser = door.acting(who)
        assert browser.post(f"/runs/{door.runs[0].id}/stop").status_code == 403
        assert browser.post("/clients", data={"name": "ward-1"}).status_code == 403
    assert door.acting(OPERATOR).post("/access", data={"name": "x", "role": "admin"}).status_code == 403
    assert door.store.get(door.runs[0].id).status is RunStatus.QUEUED
    assert door.registry.clients() == ()
    assert [entry[4] for entry in door.audited() if entry[2] != "login"] == ["refused"] * 5


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"[" * 60_000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"name=a&name=b", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % number for number in range(50)), "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"<xml/>", "text/xml"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_bodies_that_are_no_form(door: Entrance, body: bytes, kind: str) -> None:
    answer = door.acting(ADMIN).post("/access", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "ConfigError"


def test_the_operator_s_port_has_both(door: Entrance) -> None:
    """The API behind its token, the dashboard behind its sessions; neither opens the other."""
    token = door.secrets["operator.token"]
    api = make_api(door.queue, door.store, token, list, hosts=("localhost",))
    both = front(api, door.app)
    assert both.state.closing is api.state.closing
    browser = door.browser(ADMIN)
    inside = Browser(both, ORIGIN, {**browser.headers, "Cookie": f"__Host-fedlora={browser.cookies['__Host-fedlora']}"})
    assert inside.get("/data/runs").status_code == IN
    for path in ("/api/v1/runs", "/api/v1/clients", "/api", "/metrics", "/%61pi/v1/runs"):
        assert inside.get(path).status_code in (401, 404), path
    script = Browser(both, ORIGIN, {"Authorization": f"Bearer {token}", "Accept": "application/json"})
    assert script.get("/api/v1/runs").status_code == 200
    for path in ("/data/runs", "/", "/access", "/apiary", "//api/v1/runs", "/metrics/x"):
        assert script.get(path).status_code == 401, path
    assert script.get("/api/v1/health").json() == {"status": "ok"}


@pytest.fixture
def authority_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The certificate of an authority, as the daemon has it."""
    from fedlora.identity.authority import create_authority

    folder = tmp_path_factory.mktemp("authority") / "ca"
    create_authority(folder, "test")
    return read_certificate(folder / "ca.crt")
