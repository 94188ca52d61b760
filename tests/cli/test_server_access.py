"""`fedlora server access` and `link`: tokens and links that open the dashboard, printed once."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedlora.cli.__main__ import run
from fedlora.cli.noted import login_name
from fedlora.errors import ExitCode
from fedlora.identity.home import open_store
from fedlora.server.dashboard.audit import AuditLog
from fedlora.server.dashboard.credentials import Credentials
from fedlora.server.dashboard.people import Role
from fedlora.server.records import RunStatus
from tests.server.operator.living import load_samples

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, capsys: Captured) -> Path:
    assert run(["ca", "init", str(tmp_path / "home"), "--host", "fed.example.org"]) == ExitCode.OK
    capsys.readouterr()
    return tmp_path / "home"


def access(home: Path, *words: str) -> int:
    return run(["server", "access", *words, "--home", str(home)])


def opens(home: Path, secret: str) -> tuple[str, Role, str | None] | None:
    with open_store(home) as store:
        known = Credentials(store.database)
        digest = known.take(secret)
        person = None if digest is None else known.person(digest)
    return None if person is None else (person.name, person.role, person.site)


def test_a_token_is_printed_once_and_logs_in(home: Path, capsys: Captured) -> None:
    assert access(home, "add", "anna", "--role", "operator", "--days", "3") == ExitCode.OK
    shown = capsys.readouterr()
    secret = shown.out.strip()
    assert len(secret) == 43
    assert secret not in shown.err
    assert opens(home, secret) == ("anna", Role.OPERATOR, None)
    assert access(home, "ls") == ExitCode.OK
    listed = capsys.readouterr().out
    assert "anna" in listed
    assert "operator" in listed
    assert secret not in listed
    assert access(home, "ls", "--json") == ExitCode.OK
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["role"], found["last_used"]) == ("anna", "operator", None)
    assert 2 <= (datetime.fromisoformat(found["expires_at"]) - datetime.now(UTC)).days <= 3
    assert access(home, "rm", "anna") == ExitCode.OK
    assert opens(home, secret) is None
    with open_store(home) as store:
        entries = AuditLog(store.database).entries()
    assert [(entry.action, entry.object, entry.address) for entry in entries] == [
        ("remove access", "access token anna", "command line"),
        ("add access", "access token anna", "command line"),
    ]
    assert {entry.person for entry in entries} == {login_name()}
    assert secret not in str(entries)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["add", "Anna", "--role", "viewer"], "cannot be a client's name"),
        (["add", "anna", "--role", "root"], "cannot have the role 'root': give one of viewer, operator, admin"),
        (["rm", "nobody"], "there is no access token 'nobody' to remove"),
    ],
)
def test_mistakes_are_named(home: Path, words: list[str], text: str, capsys: Captured) -> None:
    assert access(home, *words) == ExitCode.IDENTITY
    assert text in " ".join(capsys.readouterr().err.split())
    with open_store(home) as store:
        assert AuditLog(store.database).entries() == ()


def test_an_empty_list_says_what_to_do(home: Path, capsys: Captured) -> None:
    assert access(home, "ls") == ExitCode.OK
    assert "`fedlora server access add` makes one" in capsys.readouterr().out
    assert access(home, "ls", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == []


def test_a_link_for_a_site(home: Path, capsys: Captured) -> None:
    config = load_samples().config()
    federation = config.federation.model_copy(update={"sites": ("ward-7", "ward-9", "ward-11")})
    with open_store(home) as store:
        made = store.create(config.model_copy(update={"federation": federation}), name="x", status=RunStatus.QUEUED)
    assert run(["server", "link", "latest", "ward-7", "--home", str(home), "--days", "2"]) == ExitCode.OK
    shown = capsys.readouterr()
    address, _, secret = shown.out.strip().partition("#token=")
    assert address == "https://fed.example.org:7445/login"
    assert secret not in shown.err
    assert made.id in shown.err.replace("\n", "")
    assert opens(home, secret) == ("ward-7", Role.COLLABORATOR, "ward-7")
    with open_store(home) as store:
        (entry,) = AuditLog(store.database).entries()
    assert (entry.action, entry.object) == ("add link", f"run {made.id}, site ward-7")
    assert secret not in str(entry)
    more = ["--address", "https://other.example/"]
    assert run(["server", "link", made.id, "ward-9", "--home", str(home), *more]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("https://other.example/login#token=")
    assert run(["server", "link", "latest", "elsewhere", "--home", str(home)]) == ExitCode.RUN_FAILED
    assert "takes no part in run" in capsys.readouterr().err
    assert run(["server", "link", "nothing", "ward-7", "--home", str(home)]) == ExitCode.UNKNOWN_RUN
