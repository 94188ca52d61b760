from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_IMODE

import pytest

from fedlora.errors import IdentityError
from fedlora.identity import tls
from fedlora.identity.authority import Authority, create_authority
from fedlora.identity.keys import certificate_facts, new_key, read_private, signing_request, write_private
from fedlora.identity.tls import ensure_server_certificate, server_files
from tests.identity.handshakes import shake

HOSTS = ("localhost", "127.0.0.1")


def contents(home: Path) -> tuple[bytes, bytes]:
    return (home / "server.key").read_bytes(), (home / "server.crt").read_bytes()


def test_where_the_files_are(tmp_path: Path) -> None:
    files = server_files(tmp_path)
    assert files.authority_key == tmp_path / "ca" / "ca.key"
    assert files.authority_certificate == tmp_path / "ca" / "ca.crt"
    assert (files.key, files.certificate) == (tmp_path / "server.key", tmp_path / "server.crt")
    assert not any(tmp_path.iterdir())


def test_a_server_speaks_tls_with_what_is_made(tmp_path: Path, authority: Authority) -> None:
    assert ensure_server_certificate(tmp_path, authority, HOSTS)
    assert S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600
    key = new_key()
    client = (key, authority.sign_client(signing_request(key, "a"), "a"))
    (tmp_path / "tls").mkdir()
    assert shake(tmp_path / "tls", authority.certificate, contents(tmp_path), client, "localhost").agreed


def test_what_will_do_stays(tmp_path: Path, authority: Authority) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    before = contents(tmp_path)
    assert not ensure_server_certificate(tmp_path, authority, ["127.0.0.1", "LOCALHOST", "localhost"])
    assert contents(tmp_path) == before


def test_other_hosts_need_another_certificate(tmp_path: Path, authority: Authority) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    before = contents(tmp_path)
    assert ensure_server_certificate(tmp_path, authority, ["example.org", "::1"])
    key, certificate = contents(tmp_path)
    assert certificate_facts(certificate).hosts == ("example.org", "::1")
    assert key != before[0]


@pytest.mark.parametrize(("days_left", "renewed"), [(31, False), (29, True), (-1, True)])
def test_renewal_before_the_end(tmp_path: Path, authority: Authority, days_left: int, renewed: bool) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    end = certificate_facts(contents(tmp_path)[1]).not_after
    now = end - timedelta(days=days_left)
    assert ensure_server_certificate(tmp_path, authority, HOSTS, now=lambda: now) is renewed


def test_another_authoritys_certificate_is_replaced(tmp_path: Path, authority: Authority) -> None:
    ensure_server_certificate(tmp_path, create_authority(tmp_path / "ca", "tests"), HOSTS)
    assert ensure_server_certificate(tmp_path, authority, HOSTS)
    assert authority.issued(contents(tmp_path)[1])


@pytest.mark.parametrize("gone", ["server.key", "server.crt"])
def test_half_of_the_pair_is_made_whole(tmp_path: Path, authority: Authority, gone: str) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    (tmp_path / gone).unlink()
    assert ensure_server_certificate(tmp_path, authority, HOSTS)
    assert not ensure_server_certificate(tmp_path, authority, HOSTS)


def test_a_crash_between_key_and_certificate_is_repaired(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tls, "replace_synced", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_server_certificate(tmp_path, authority, ["example.org"])
    monkeypatch.undo()
    assert ensure_server_certificate(tmp_path, authority, HOSTS)
    assert not ensure_server_certificate(tmp_path, authority, HOSTS)


@pytest.mark.parametrize("torn", ["server.key", "server.crt"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, authority: Authority, torn: str) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    write_private(tmp_path / torn, b"torn")
    assert ensure_server_certificate(tmp_path, authority, HOSTS)
    assert not ensure_server_certificate(tmp_path, authority, HOSTS)


def test_a_key_that_others_can_read_is_not_silently_replaced(tmp_path: Path, authority: Authority) -> None:
    ensure_server_certificate(tmp_path, authority, HOSTS)
    (tmp_path / "server.key").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        ensure_server_certificate(tmp_path, authority, HOSTS)


def test_hosts_that_cannot_be_change_nothing(tmp_path: Path, authority: Authority) -> None:
    for hosts in ([], ["*.example.org"]):
        with pytest.raises(IdentityError, match="host"):
            ensure_server_certificate(tmp_path, authority, hosts)
    assert not (tmp_path / "server.key").exists()


def test_two_that_make_it_at_once_leave_one_pair(tmp_path: Path, authority: Authority) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ensure_server_certificate(tmp_path, authority, HOSTS), range(4)))
    assert sum(made) == 1
    assert read_private(tmp_path / "server.key")
    assert not ensure_server_certificate(tmp_path, authority, HOSTS, now=lambda: datetime.now(UTC))
