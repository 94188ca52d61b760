"""`fedlora server enroll`, `clients` and `revoke`, as an operator would call them."""

import json
import os
import pwd
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest

from fedlora.cli.__main__ import run
from fedlora.cli.noted import login_name
from fedlora.errors import IdentityError
from fedlora.identity.authority import open_authority
from fedlora.identity.enrolment import admit, join
from fedlora.identity.home import open_registry, open_store
from fedlora.identity.keys import new_key, signing_request
from fedlora.identity.tokens import decode
from fedlora.server.dashboard.audit import AuditLog, Entry

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, capsys: Captured) -> Path:
    assert run(["ca", "init", str(tmp_path / "home"), "--host", "localhost", "--host", "::1"]) == 0
    capsys.readouterr()
    return tmp_path / "home"


def enroll(home: Path, name: str, *more: str) -> int:
    return run(["server", "enroll", name, "--home", str(home), "--address", "localhost:9443", *more])


def listed(home: Path, capsys: Captured) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["server", "clients", "--home", str(home), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def joined(home: Path, token: str) -> bytes:
    """The certificate that a server would give to whoever comes with `token`."""
    with open_registry(home) as registry:
        request = signing_request(new_key(), "any")
        issued = join(registry, open_authority(home / "ca"), decode(token).secret, request)
        admit(registry, issued.name, issued.certificate)
        return issued.certificate


def test_the_token_alone_is_on_standard_output(home: Path, capsys: Captured) -> None:
    assert enroll(home, "clinic-7", "--hours", "2") == 0
    said = capsys.readouterr()
    invitation = decode(said.out)
    assert said.out.count("\n") == 1
    assert (invitation.name, invitation.server) == ("clinic-7", "localhost:9443")
    assert invitation.authority == (home / "ca" / "ca.crt").read_bytes()
    assert abs(invitation.expires - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=2)
    assert "good for one use" in said.err
    assert invitation.secret not in said.err
    (client,) = listed(home, capsys)
    assert (client["name"], client["status"]) == ("clinic-7", "invited")
    assert joined(home, said.out)
    with pytest.raises(IdentityError, match="this token cannot be used"):
        joined(home, said.out)


def test_the_token_in_a_file(home: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "token"
    assert enroll(home, "clinic-7", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert str(out) in said.err
    assert S_IMODE(out.stat().st_mode) == 0o600
    assert decode(out.read_text()).name == "clinic-7"
    assert enroll(home, "clinic-8", "--out", str(out)) == 2
    assert "exists already" in capsys.readouterr().err
    assert [client["name"] for client in listed(home, capsys)] == ["clinic-7"]


def test_a_client_that_lost_its_key_joins_again(home: Path, capsys: Captured) -> None:
    enroll(home, "clinic-7")
    old = joined(home, capsys.readouterr().out)
    assert enroll(home, "clinic-7") == 50
    assert "--again" in capsys.readouterr().err
    assert enroll(home, "clinic-7", "--again") == 0
    joined(home, capsys.readouterr().out)
    with open_registry(home) as registry, pytest.raises(IdentityError, match="was taken away"):
        admit(registry, "clinic-7", old)


def test_the_list_of_clients(home: Path, capsys: Captured) -> None:
    assert run(["server", "clients", "--home", str(home)]) == 0
    assert "no clients yet" in capsys.readouterr().out
    for name in ("clinic-7", "clinic-8", "clinic-9"):
        enroll(home, name)
        token = capsys.readouterr().out
        if name != "clinic-9":
            joined(home, token)
    with open_registry(home) as registry:
        registry.seen("clinic-7", "0.1.0\x1b[31m")
    assert run(["server", "revoke", "clinic-8", "--home", str(home), "--reason", "left [bold]the study"]) == 0
    assert "'clinic-8' is revoked" in capsys.readouterr().out
    seven, eight, nine = listed(home, capsys)
    assert [each["status"] for each in (seven, eight, nine)] == ["active", "revoked", "invited"]
    assert (eight["certificate"], eight["reason"]) == (None, "left [bold]the study")
    assert seven["version"].startswith("0.1.0")
    assert (seven["last_seen"] is None, nine["last_seen"]) == (False, None)
    assert run(["server", "clients", "--home", str(home)]) == 0
    said = capsys.readouterr().out
    for words in (seven["certificate"][:16], "ago", "never", "left [bold]the study", "token good until"):
        assert words in said
    assert "\x1b" not in said


def test_a_revoked_client_is_not_admitted(home: Path, capsys: Captured) -> None:
    enroll(home, "clinic-7")
    certificate = joined(home, capsys.readouterr().out)
    assert run(["server", "revoke", "clinic-7", "--home", str(home), "--reason", "left"]) == 0
    with open_registry(home) as registry, pytest.raises(IdentityError, match=r"was revoked \(left\)"):
        admit(registry, "clinic-7", certificate)


def audited(home: Path) -> list[Entry]:
    """Oldest first."""
    with open_store(home) as store:
        return list(reversed(AuditLog(store.database).entries()))


def test_what_was_done_is_in_the_audit_log(home: Path, capsys: Captured) -> None:
    enroll(home, "clinic-7", "--hours", "2")
    secret = decode(capsys.readouterr().out).secret
    enroll(home, "clinic-7", "--again")
    run(["server", "revoke", "clinic-7", "--home", str(home), "--reason", "left"])
    entries = audited(home)
    assert [(one.action, one.object, one.outcome, one.reason) for one in entries] == [
        ("enroll client", "client clinic-7", "done", "for 2 hours"),
        ("enroll client", "client clinic-7", "done", "for 72 hours, again"),
        ("revoke client", "client clinic-7", "done", "left"),
    ]
    who = pwd.getpwuid(os.getuid()).pw_name
    assert {(one.person, one.role, one.address) for one in entries} == {(who, "", "command line")}
    assert secret not in str(entries)


def test_the_environment_does_not_say_who_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    enroll(home, "clinic-7")
    assert audited(home)[0].person != "somebody-else"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert login_name() == "user 4000000000"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (["enroll", "Clinic 7", "--address", "localhost:9443"], "cannot be a client's name"),
        (["enroll", "clinic-7", "--address", "localhost"], "is no address"),
        (["enroll", "clinic-7", "--address", "example.org:9443"], "the server's certificate is for localhost, ::1"),
        (["enroll", "clinic-7", "--address", "localhost:9443", "--hours", "0"], "cannot be good for 0 hours"),
        (["revoke", "clinic-7"], "no client 'clinic-7' to revoke"),
    ],
)
def test_mistakes_are_named_and_nothing_is_changed(home: Path, asked: list[str], text: str, capsys: Captured) -> None:
    assert run(["server", *asked, "--home", str(home)]) == 50
    said = capsys.readouterr()
    assert text in said.err
    assert said.out == ""
    assert listed(home, capsys) == []
    assert audited(home) == []


def test_the_address_may_be_ipv6(home: Path, capsys: Captured) -> None:
    assert run(["server", "enroll", "a", "--home", str(home), "--address", "[::1]:9443"]) == 0
    assert decode(capsys.readouterr().out).server == "[::1]:9443"


@pytest.mark.parametrize("command", [["clients"], ["revoke", "clinic-7"]])
def test_a_folder_that_is_no_home(tmp_path: Path, command: list[str], capsys: Captured) -> None:
    assert run(["server", *command, "--home", str(tmp_path / "nowhere")]) == 50
    assert "is no server's home" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
