"""A site's home: who may read it, who has it, and what a crash leaves."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.client.home import (
    KEY_BYTES,
    SiteHome,
    fingerprint_key,
    holder,
    joined,
    locked,
    note_joined,
    policy_template,
)
from fedlora.errors import IdentityError, StoreError

HOLD = """
import sys
from pathlib import Path
from fedlora.client.home import SiteHome, locked
with locked(SiteHome(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def other(home: SiteHome) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the home."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(home.folder)], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_a_home_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        home = SiteHome.create(tmp_path / "deep" / "site")
        with locked(home):
            found = [home.folder, *home.folder.rglob("*")]
            modes = {path.name: mode(path) for path in found}
    finally:
        os.umask(before)
    folders = {path.name for path in found if path.is_dir()}
    assert folders == {"site", "identity", "ledgers", "state", "log", "controls", "results"}
    assert {name for name in modes if name not in folders} == {
        *("policy.yaml", "fingerprint.key", ".lock", ".holder.json")
    }
    assert modes == {name: 0o700 if name in folders else 0o600 for name in modes}


def test_an_empty_folder_becomes_a_home_and_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir(mode=0o755)
    SiteHome.create(tmp_path / "site")
    assert mode(tmp_path / "site") == 0o700
    assert SiteHome.open(tmp_path / "site").policy.read_text(encoding="utf-8") == policy_template()


def test_a_home_is_never_made_twice(home: SiteHome) -> None:
    key = home.fingerprint_key.read_bytes()
    home.policy.write_text("hours: []\n")
    with pytest.raises(StoreError, match="already: nothing was changed"):
        SiteHome.create(home.folder)
    assert (home.fingerprint_key.read_bytes(), home.policy.read_text()) == (key, "hours: []\n")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StoreError, match=r"not empty \(it has thesis.txt\)"):
        SiteHome.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_crash_left_is_completed_with_the_same_secret(home: SiteHome) -> None:
    key = fingerprint_key(home)
    home.policy.unlink()
    home.results.rmdir()
    (home.folder / ".policy.yaml.0123.tmp").touch()
    with pytest.raises(StoreError, match="no site's home"):
        SiteHome.open(home.folder)
    assert fingerprint_key(SiteHome.create(home.folder)) == key
    assert home.results.is_dir()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "site").touch()
    with pytest.raises(StoreError, match="stands where a folder is needed"):
        SiteHome.create(tmp_path / "site")


def test_two_homes_have_two_secrets(tmp_path: Path) -> None:
    keys = {fingerprint_key(SiteHome.create(tmp_path / name)) for name in "ab"}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_a_secret_that_others_may_read_or_that_is_damaged(home: SiteHome) -> None:
    home.fingerprint_key.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        fingerprint_key(home)
    home.fingerprint_key.chmod(0o600)
    home.fingerprint_key.write_bytes(b"short")
    with pytest.raises(IdentityError, match="has 5 bytes, not 32"):
        fingerprint_key(home)
    home.fingerprint_key.unlink()
    with pytest.raises(IdentityError, match="is gone: restore it"):
        fingerprint_key(home)


def test_the_server_that_was_joined(home: SiteHome) -> None:
    assert joined(home) is None
    note_joined(home, "FL.example.org:8443")
    assert joined(home) == "fl.example.org:8443"
    assert mode(home.server) == 0o600
    with pytest.raises(ValueError, match="host:port"):
        note_joined(home, "example.org")
    assert joined(home) == "fl.example.org:8443"
    for text in ("", "[]", "{}", '{"address": 3}', "[" * 100_000):
        home.server.write_text(text)
        with pytest.raises(IdentityError, match="join anew"):
            joined(home)


def test_a_second_daemon_is_told_who_has_the_home(home: SiteHome, other: "subprocess.Popen[str]") -> None:
    named = f"process {other.pid} on "
    with pytest.raises(StoreError, match="is in the hands of") as caught, locked(home):
        pytest.fail("two processes had one home")
    assert named in str(caught.value)
    found = holder(home)
    assert found is not None
    assert found.pid == other.pid


def test_a_killed_daemon_holds_nothing(home: SiteHome, other: "subprocess.Popen[str]") -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((home.folder / ".holder.json").read_text())["pid"] == other.pid
    assert holder(home) is None
    with locked(home):
        found = holder(home)
        assert found is not None
        assert found.pid == os.getpid()
    assert holder(home) is None


def test_a_home_that_is_not_there_is_not_made_by_locking_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot lock"), locked(SiteHome(tmp_path / "nowhere")):
        pytest.fail("there is no such folder")
    assert list(tmp_path.iterdir()) == []
