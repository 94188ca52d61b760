"""Logging in, staying in, and out: what opens the door, for how long, and what is written down of it."""

import logging
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedlora.errors import IdentityError, UnknownRunError
from fedlora.identity.tokens import new_secret, secret_digest
from fedlora.server.dashboard import credentials
from fedlora.server.dashboard.audit import AuditLog, Note
from fedlora.server.dashboard.credentials import Credentials, Given
from fedlora.server.dashboard.people import Person, Role
from fedlora.server.dashboard.sessions import IDLE, LONGEST, Sessions, csrf_of
from fedlora.server.retention import forget
from fedlora.server.settings import ServerSettings
from fedlora.server.store import tables
from tests.postgres import BOTH
from tests.server.dashboard.entrance import (
    ADMIN,
    COLLABORATOR,
    EVERYBODY,
    IN,
    OPERATOR,
    ORIGIN,
    VIEWER,
    Browser,
    Entrance,
    entrance,
    log_in,
    value_of,
)

DATA = "/data/runs"


def is_in(browser: Browser) -> bool:
    return browser.get(DATA).status_code == IN


# What opens the door


@BOTH
def test_each_secret_opens_what_it_is_for(door: Entrance) -> None:
    assert door.browser(VIEWER).get(DATA).text == "let-in: viewer"
    assert door.browser(ADMIN).get("/audit").text == "let-in: admin"
    assert door.browser("operator.token").get("/access").text == "let-in: admin"
    assert door.browser(COLLABORATOR).get("/mine").text == "let-in: collaborator"


def test_the_person_of_a_link_has_its_run_and_site(door: Entrance) -> None:
    session = door.desk.sessions.find(value_of(door.browser(COLLABORATOR)))
    assert session is not None
    person = session.person
    assert (person.name, person.role, person.run, person.site) == (
        *("ward-7", Role.COLLABORATOR),
        *(door.runs[0].id, "ward-7"),
    )


@pytest.mark.parametrize("secret", ["", "x", "x" * 43, "x" * 44, "ä" * 43, "0" * 64, "' OR 1=1 --", "\0" * 43])
def test_other_secrets_open_nothing(door: Entrance, secret: str) -> None:
    browser = door.browser()
    answer = log_in(browser, secret)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert not is_in(browser)


def test_a_digest_is_no_secret(door: Entrance) -> None:
    """Whoever reads the database cannot log in with what is there."""
    for secret in list(door.secrets.values()):
        assert log_in(door.browser(), secret_digest(secret)).status_code == 401
        assert log_in(door.browser(), secret_digest(secret)[:43]).status_code == 401


def test_the_database_has_no_secret(door: Entrance) -> None:
    browser = door.browser(ADMIN)
    secrets = {*door.secrets.values(), value_of(browser), door.csrf(browser)}
    with door.store.database.reads() as connection:
        text = str([connection.execute(sa.select(table)).all() for table in tables.metadata.sorted_tables])
    assert secret_digest(value_of(browser)) in text
    assert not [secret for secret in secrets if secret in text]


def test_where_a_login_leads(door: Entrance) -> None:
    for given, led in (
        ("/runs/some-1", "/runs/some-1"),
        ("", "/"),
        ("/login", "/"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/%2f/evil.example", "/"),
        ("/x\r\nSet-Cookie: a=b", "/"),
        ("javascript:alert(1)", "/"),
    ):
        form = {"token": door.secrets[VIEWER], "next": given}
        answer = door.browser(Accept="text/html").post("/login", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, led), given
    form = {"token": door.secrets[COLLABORATOR], "next": "/runs/some-1"}
    assert door.browser(Accept="text/html").post("/login", data=form).headers["location"] == "/mine"


def test_the_login_page(door: Entrance) -> None:
    page = door.browser(Accept="text/html").get('/login?next=/runs/some-1"><script>alert(1)</script>')
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    wrong = door.browser(Accept="text/html").post("/login", data={"token": "wrong-token-of-mine"})
    assert wrong.status_code == 401
    assert "wrong-token-of-mine" not in wrong.text


@pytest.mark.parametrize("body", [{"tokn": "x"}, {"token": "x", "role": "admin"}, {"token": ["a", "b"]}])
def test_a_login_takes_nothing_else(door: Entrance, body: dict[str, object]) -> None:
    answer = door.browser().post("/login", data=body)
    assert answer.status_code == 422
    assert "set-cookie" not in answer.headers


def test_a_code_is_good_for_one_login(door: Entrance) -> None:
    given = Given(new_secret(), Person("local", Role.OPERATOR), once=True)
    known = Credentials(door.store.database, given)
    taken: list[str | None] = []
    threads = [threading.Thread(target=lambda: taken.append(known.take(given.secret))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [digest for digest in taken if digest is not None] == [given.digest]
    assert known.person(given.digest) == given.person, "its session goes on"


def test_secrets_are_compared_in_constant_time(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(credentials.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    door.browser(VIEWER)
    digest = secret_digest(door.secrets[VIEWER])
    assert (digest, digest) in compared
    assert (secret_digest(door.secrets["operator.token"]), digest) in compared


# Sessions


def test_the_cookie(door: Entrance) -> None:
    answer = log_in(door.browser(), door.secrets[ADMIN])
    (cookie,) = answer.headers.get_list("set-cookie")
    name_and_value, *attributes = [part.strip() for part in cookie.split(";")]
    name, _, value = name_and_value.partition("=")
    assert (name, len(value)) == ("__Host-fedlora", 43)
    assert {part.lower() for part in attributes} == {"httponly", "path=/", "samesite=strict", "secure"}


def test_a_session_that_somebody_else_has_prepared_is_worth_nothing(door: Entrance) -> None:
    """Session fixation: a login always begins a new one, and ends what was there."""
    planted = new_secret()
    victim = door.browser(Cookie=f"__Host-fedlora={planted}")
    answer = log_in(victim, door.secrets[ADMIN])
    assert planted not in str(answer.headers.get_list("set-cookie"))
    attacker = door.browser(Cookie=f"__Host-fedlora={planted}")
    assert not is_in(attacker)

    own = door.browser(VIEWER)
    before = value_of(own)
    log_in(own, door.secrets[VIEWER])
    assert value_of(own) != before
    assert is_in(own)
    assert not is_in(door.browser(Cookie=f"__Host-fedlora={before}"))


def test_two_cookies_are_none(door: Entrance) -> None:
    value = value_of(door.browser(VIEWER))
    right = f"__Host-fedlora={value}"
    for cookies in (f"{right}; {right}", f"__Host-fedlora=x; {right}", f"{right}; __Host-fedlora="):
        assert not is_in(door.browser(Cookie=cookies))
    assert is_in(door.browser(Cookie=f"other=1; {right}; more=2"))
    assert not is_in(door.browser(Cookie=f"__host-fedlora={value}"))


def test_a_link_does_not_take_the_place_of_more(door: Entrance) -> None:
    """What an operator is sent cannot log the operator out."""
    browser = door.browser(OPERATOR)
    assert log_in(browser, door.secrets[COLLABORATOR]).status_code == 409
    assert is_in(browser)
    assert log_in(browser, door.secrets[ADMIN]).status_code == 200


@BOTH
def test_logout_ends_the_session_on_the_server(door: Entrance) -> None:
    browser = door.acting(VIEWER)
    value = value_of(browser)
    answer = browser.post("/logout")
    assert answer.status_code == 200
    assert 'fedlora=""' in answer.headers["set-cookie"]
    assert answer.headers["clear-site-data"] == '"cache"'
    assert not is_in(door.browser(Cookie=f"__Host-fedlora={value}"))
    assert not is_in(browser)


@BOTH
def test_a_session_that_rests_ends_and_so_does_a_long_one(door: Entrance) -> None:
    resting, busy = door.browser(VIEWER), door.browser(OPERATOR)
    for _ in range(int(LONGEST / (IDLE / 2)) - 1):
        door.clock.moment += IDLE / 2
        assert is_in(busy)
    assert not is_in(resting)
    door.clock.moment += IDLE / 2
    assert not is_in(busy)
    log_in(door.browser(), door.secrets[VIEWER])
    with door.store.database.reads() as connection:
        left = connection.execute(sa.select(sa.func.count()).select_from(tables.dashboard_sessions)).scalar()
    assert left == 1, "those that are over are deleted"


def test_an_open_stream_is_no_use(door: Entrance) -> None:
    browser = door.browser(VIEWER)
    digest = secret_digest(value_of(browser))
    door.clock.moment += IDLE - timedelta(minutes=1)
    assert door.desk.sessions.holds(digest)
    door.clock.move(minutes=2)
    assert not door.desk.sessions.holds(digest)


@BOTH
def test_what_is_removed_or_expires_ends_its_sessions(door: Entrance) -> None:
    desk, clock = door.desk, door.clock
    viewer, operator, collaborator = (door.browser(who) for who in (VIEWER, OPERATOR, COLLABORATOR))
    desk.tokens.remove("the-viewer")
    assert not is_in(viewer)
    assert is_in(operator)
    (link,) = desk.links.all()
    assert collaborator.get("/mine").status_code == IN
    desk.links.remove(link.id)
    assert collaborator.get("/mine").status_code == 401
    assert log_in(door.browser(), door.secrets[COLLABORATOR]).status_code == 401
    short = desk.tokens.add("short", "viewer", 1)
    door.secrets["short"] = short
    browser = door.browser("short")
    clock.move(hours=11)
    assert is_in(browser)
    clock.move(hours=11)
    assert is_in(browser)
    clock.move(hours=3)
    assert not is_in(browser)
    assert log_in(browser, short).status_code == 401


def test_a_role_that_changes_ends_the_sessions(door: Entrance) -> None:
    """A role belongs to a token: another role is another token."""
    browser = door.browser(ADMIN)
    door.desk.tokens.remove("the-admin")
    door.secrets[ADMIN] = door.desk.tokens.add("the-admin", "viewer")
    assert browser.get("/audit").status_code == 401
    assert door.browser(ADMIN).get("/audit").status_code == 403


@BOTH
def test_sessions_outlive_the_server_unless_its_token_is_another(door: Entrance) -> None:
    browser, first = door.browser(VIEWER), door.browser("operator.token")
    database = door.store.database
    again = Sessions(database, Credentials(database, None, door.clock), door.clock)
    assert again.find(value_of(browser)) is not None
    assert again.find(value_of(first)) is None


def test_a_run_that_goes_takes_its_links_with_it(door: Entrance) -> None:
    browser = door.browser(COLLABORATOR)
    with door.store.database.writes() as connection:
        connection.execute(sa.delete(tables.runs).filter_by(id=door.runs[0].id))
    assert browser.get("/mine").status_code == 401
    assert door.desk.links.all() == ()


def test_the_csrf_token_says_nothing_of_the_session(door: Entrance) -> None:
    value = new_secret()
    assert len(csrf_of(value)) == 64
    assert csrf_of(value) not in (secret_digest(value), value)
    assert "csrf" not in repr(Person("x", Role.ADMIN, csrf_of(value)))


def test_last_use_is_noted_once_a_minute(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    browser, began = door.browser(VIEWER), door.clock.moment
    written: list[object] = []
    writes = door.store.database.writes
    monkeypatch.setattr(door.store.database, "writes", lambda: written.append(1) or writes())
    for _ in range(10):
        assert is_in(browser)
    assert written == []
    door.clock.move(seconds=61)
    assert is_in(browser)
    assert is_in(browser)
    assert len(written) == 1
    (used,) = [token.last_used for token in door.desk.tokens.all() if token.name == "the-viewer"]
    assert used == began + timedelta(seconds=61)


# Guessing


def test_guessing_is_slowed_down_and_does_not_lock_anybody_out(
    door: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    browser = door.browser()
    guesses = [new_secret() for _ in range(14)]
    with caplog.at_level(logging.WARNING):
        codes = [log_in(browser, guess).status_code for guess in guesses]
    assert codes == [401] * 10 + [429] * 4
    assert log_in(browser, "x").headers["retry-after"] == "60"
    assert log_in(browser, door.secrets[VIEWER]).status_code == 200
    entries = [entry for entry in door.desk.audit.entries() if entry.outcome == "refused"]
    assert [(one.action, one.reason, one.address, one.person) for one in entries] == [
        ("login", "wrong token", "203.0.113.5", "")
    ] * 10
    assert caplog.text.count("a login with a wrong token, from 203.0.113.5") == 10
    assert not [guess for guess in guesses if guess in caplog.text]


def test_guessing_from_everywhere_is_slowed_down_too(door: Entrance) -> None:
    codes = []
    for number in range(12):
        browser = Browser(door.app, ORIGIN, {"Origin": ORIGIN, "Accept": "application/json"}, f"203.0.113.{number}")
        codes += [log_in(browser, new_secret()).status_code for _ in range(10)]
    assert codes == [401] * 100 + [429] * 20
    assert len(door.desk.audit.entries(limit=1000)) == 100


def test_strangers_do_not_fill_the_audit_log(door: Entrance) -> None:
    browser = door.browser()
    for _ in range(30):
        assert browser.post("/runs/some-1/stop").status_code == 401
        assert browser.get(DATA).status_code == 401
        assert browser.get("/login", headers={"Host": "evil.example"}).status_code == 400
    assert len(door.desk.audit.entries(limit=1000)) == 10


# Tokens and links


@BOTH
def test_names_roles_and_times_of_tokens(door: Entrance) -> None:
    tokens = door.desk.tokens
    for name, role, days, why in (
        ("the-viewer", "viewer", 1, "there is an access token 'the-viewer' already"),
        ("The-Viewer", "viewer", 1, "cannot be a client's name"),
        ("", "viewer", 1, "cannot be a client's name"),
        ("x\r\n", "viewer", 1, "cannot be a client's name"),
        ("operator.token", "viewer", 1, "cannot be a client's name"),
        ("x", "collaborator", 1, "cannot have the role 'collaborator': give one of viewer, operator, admin"),
        ("x", "ADMIN", 1, "cannot have the role"),
        ("x", "viewer", 0, "cannot be good for 0 days"),
        ("x", "viewer", 3661, "from 1 to 3,660"),
    ):
        with pytest.raises(IdentityError, match=why):
            tokens.add(name, role, days)
    assert [token.name for token in tokens.all()] == ["the-admin", "the-operator", "the-viewer"]
    with pytest.raises(IdentityError, match="there is no access token 'x' to remove"):
        tokens.remove("x")
    door.clock.move(days=366)
    assert tokens.add("the-viewer", "operator")
    assert {token.name: token.role for token in tokens.all()}["the-viewer"] is Role.OPERATOR


@BOTH
def test_links(door: Entrance) -> None:
    links = door.desk.links
    with pytest.raises(UnknownRunError, match="there is no run 'nothing'"):
        links.add("nothing", "ward-7")
    with pytest.raises(IdentityError, match="cannot be good for 367 days"):
        links.add(door.runs[0].id, "ward-7", 367)
    door.clock.move(minutes=1)
    made = links.add(door.runs[1].id, "ward-9", 2, "anna")
    assert made.secret not in repr(made)
    assert [(link.run, link.site, link.created_by) for link in links.all()] == [
        (door.runs[1].id, "ward-9", "anna"),
        (door.runs[0].id, "ward-7", "somebody"),
    ]
    assert [link.id for link in links.all(door.runs[1].id)] == [made.id]
    with pytest.raises(IdentityError, match="there is no link 'x'"):
        links.remove("x")


# The audit log


@BOTH
def test_the_audit_log(door: Entrance) -> None:
    audit = door.desk.audit
    for number in range(5):
        audit.write(Note("stop run", "127.0.0.1", "anna", "operator", f"run {number}", reason="x" * 600))
        door.clock.move(days=1)
    newest = audit.entries(limit=2)
    assert [entry.object for entry in newest] == ["run 4", "run 3"]
    assert [entry.object for entry in audit.entries(newest[-1].id)] == ["run 2", "run 1", "run 0"]
    assert len(newest[0].reason) == 500
    assert audit.expire(3) == 2
    assert [entry.object for entry in audit.entries()] == ["run 4", "run 3", "run 2"]


def test_the_audit_log_forgets_as_the_settings_say(door: Entrance) -> None:
    log = AuditLog(door.store.database)
    log.write(Note("login", "127.0.0.1"))
    AuditLog(door.store.database, door.clock).write(Note("logout", "127.0.0.1"))  # in 2031
    forget(door.store, ServerSettings())
    assert len(log.entries()) == 2
    forget(door.store, ServerSettings(keep_audit_days=0))
    assert [entry.action for entry in log.entries()] == ["logout"]
    assert ServerSettings().keep_audit_days == 365


def test_who_came_and_went_is_written_down(door: Entrance) -> None:
    browser = door.acting(VIEWER)
    browser.post("/runs/some-1/stop")
    browser.post("/logout")
    assert door.audited() == [
        ("the-viewer", "viewer", "login", "", "done"),
        ("the-viewer", "viewer", "POST", "POST /runs/some-1/stop", "refused"),
        ("the-viewer", "viewer", "logout", "", "done"),
    ]


def test_no_secret_is_logged_or_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), entrance(tmp_path / "home") as door:
        for who in EVERYBODY[1:]:
            browser = door.acting(who)
            made = [
                browser.post("/access", data={"name": "new", "role": "viewer"}),
                browser.post("/clients", data={"name": "ward-1"}),
                browser.post(f"/runs/{door.runs[0].id}/links", data={"site": "ward-9"}),
                browser.post("/access", data={"name": door.secrets[ADMIN]}),
            ]
            secrets = [answer.json().get("secret", "") for answer in made]
            secrets += [value_of(browser), door.csrf(browser), door.secrets[who]]
            log_in(door.browser(), door.secrets[who] + "x")
            text = caplog.text + str(door.desk.audit.entries())
            assert not [secret for secret in filter(None, secrets) if secret.rpartition("=")[2] in text]
        assert secret_digest(door.secrets[VIEWER]) not in caplog.text
