"""`fedlora ca`, as an operator would call it."""

import json
import socket
from pathlib import Path
from stat import S_IMODE

import pytest

from fedlora.cli.__main__ import run
from fedlora.identity.authority import open_authority
from fedlora.identity.home import default_hosts
from fedlora.identity.keys import certificate_facts
from fedlora.server.store import RunStore


def shown(home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run(["ca", "show", str(home), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_home_with_all_that_a_server_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "my home"
    assert run(["ca", "init", str(home), "--name", "hospitals", "--host", "Example.ORG", "--host", "10.0.0.1"]) == 0
    said = capsys.readouterr().out
    authority = certificate_facts(open_authority(home / "ca").certificate)
    server = certificate_facts((home / "server.crt").read_bytes())
    for words in (
        authority.sha256,
        "hospitals",
        "example.org, 10.0.0.1",
        f"fedlora server enroll NAME --home '{home}'",
    ):
        assert words in said
    found = shown(home, capsys)
    assert (found["name"], found["sha256"]) == ("hospitals", authority.sha256)
    expires = f"{server.not_after:%Y-%m-%dT%H:%M:%SZ}"
    assert found["server"] == {"hosts": ["example.org", "10.0.0.1"], "sha256": server.sha256, "expires": expires}
    assert run(["ca", "show", str(home)]) == 0
    assert authority.sha256 in capsys.readouterr().out
    with RunStore.open(home / "runs", create=False) as store:
        assert store.list() == ()


def test_keys_and_folders_are_their_owners(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    assert run(["ca", "init", str(home)]) == 0
    modes = {str(path.relative_to(home)): S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}
    assert {modes["."], modes["ca"], modes["runs"]} == {0o700}
    assert {modes["ca/ca.key"], modes["server.key"]} == {0o600}


def test_the_hosts_that_it_takes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Node-1")
    assert run(["ca", "init", str(tmp_path / "home")]) == 0
    hosts = certificate_facts((tmp_path / "home" / "server.crt").read_bytes()).hosts
    assert set(hosts) == {"localhost", "127.0.0.1", "node-1"}
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody can be called this")
    assert default_hosts() == ("localhost", "127.0.0.1")


def test_an_authority_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", "init", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in (*(tmp_path / "ca").iterdir(), *tmp_path.glob("server.*"))}
    assert len(before) == 4
    assert run(["ca", "init", str(tmp_path), "--host", "example.org"]) == 50
    assert "never overwritten" in capsys.readouterr().err
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_wrong_host_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", "init", str(tmp_path / "home"), "--host", "https://example.org"]) == 50
    assert "'https://example.org' is no host" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_other_hosts_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", "init", str(tmp_path)]) == 0
    authority = shown(tmp_path, capsys)["sha256"]
    assert run(["ca", "hosts", str(tmp_path), "--host", "example.org"]) == 0
    assert "restart the server" in capsys.readouterr().out
    found = shown(tmp_path, capsys)
    assert found["sha256"] == authority
    assert found["server"]["hosts"] == ["example.org"]  # type: ignore[index]
    assert run(["ca", "hosts", str(tmp_path), "--host", "example.org"]) == 0
    assert "will do" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [["show"], ["hosts", "--host", "a.org"]])
def test_where_there_is_no_authority(tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", asked[0], str(tmp_path), *asked[1:]]) == 50
    assert "there is no certificate" in capsys.readouterr().err
