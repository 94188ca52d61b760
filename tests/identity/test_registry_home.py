"""The commands of a server's operator use the database that the server uses."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedlora.cli.__main__ import run
from fedlora.errors import ConfigError, IdentityError, StoreError
from fedlora.identity.home import open_registry, open_store
from fedlora.identity.tokens import decode
from fedlora.server.store import RunStore
from tests.postgres import POSTGRES, Cluster

Captured = pytest.CaptureFixture[str]
HOW = pytest.mark.parametrize("how", ["environment", "settings"])


@pytest.fixture
def home(tmp_path: Path, store_url: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.delenv("FEDLORA_DATABASE", raising=False)
    if how == "environment":
        monkeypatch.setenv("FEDLORA_DATABASE", store_url)
    else:
        (home / "server.yaml").write_text(f"database: {store_url}\n")
    assert run(["ca", "init", str(home), "--host", "localhost"]) == 0
    capsys.readouterr()
    return home


@POSTGRES
@HOW
def test_commands_share_the_servers_database(home: Path, store_url: str, tmp_path: Path, capsys: Captured) -> None:
    assert not (home / "runs" / "fedlora.db").exists()
    assert run(["server", "enroll", "clinic-7", "--home", str(home), "--address", "localhost:9443"]) == 0
    secret = decode(capsys.readouterr().out).secret
    assert run(["server", "clients", "--home", str(home), "--json"]) == 0
    assert [client["name"] for client in json.loads(capsys.readouterr().out)] == ["clinic-7"]
    with RunStore.open(tmp_path / "elsewhere", url=store_url) as store, store.database.reads() as connection:
        assert connection.execute(sa.text("SELECT status FROM clients")).scalars().all() == ["invited"]
    assert run(["server", "revoke", "clinic-7", "--home", str(home), "--reason", "left"]) == 0
    with open_registry(home) as registry:
        assert [client.reason for client in registry.clients()] == ["left"]
        with pytest.raises(IdentityError):
            registry.redeem(secret)
    assert list((home / "runs").iterdir()) == []


@POSTGRES
@HOW
def test_an_authority_that_is_there_keeps_its_database(home: Path, postgres: Cluster, capsys: Captured) -> None:
    """The second `ca init` fails before it touches anything."""
    (home / "server.yaml").write_text("lnik: x\n")
    assert run(["ca", "init", str(home)]) == 50
    assert "never overwritten" in capsys.readouterr().err


def test_a_home_whose_database_is_away_can_be_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("FEDLORA_DATABASE", "postgresql://me:geheim@127.0.0.1:1/db")
    assert run(["ca", "init", str(tmp_path / "home")]) == 20
    told = capsys.readouterr().err
    assert "check that its server runs" in told
    assert "geheim" not in told
    assert not (tmp_path / "home" / "ca").exists()
    monkeypatch.delenv("FEDLORA_DATABASE")
    assert run(["ca", "init", str(tmp_path / "home")]) == 0


def test_another_folder_is_no_home_whatever_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("", "postgresql://me@127.0.0.1:1/db"):
        monkeypatch.setenv("FEDLORA_DATABASE", url)
        with pytest.raises(IdentityError, match=r"is no server's home \(there is no .*fedlora ca init"):
            open_store(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_settings_and_url_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLORA_DATABASE", raising=False)
    assert run(["ca", "init", str(tmp_path)]) == 0
    (tmp_path / "server.yaml").write_text("database: oracle7://host/db\n")
    with pytest.raises(StoreError, match="a database of the kind 'oracle7'"), open_registry(tmp_path):
        pytest.fail("it was opened")
    (tmp_path / "server.yaml").write_text("databse: x\n")
    with pytest.raises(ConfigError, match="did you mean 'database'"), open_registry(tmp_path):
        pytest.fail("it was opened")
