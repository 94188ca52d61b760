"""What leaves a second time is what left the first time, or nothing."""

import hashlib
from pathlib import Path

import pytest

from fedlora.errors import PrivacyError, StoreError
from fedlora.privacy.accounting import Release
from fedlora.privacy.ledger import Schedule, create_ledger, open_ledger
from fedlora.privacy.outbox import Outbox


def test_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    digest = Outbox(tmp_path, "run-1").store(3, b"noised")
    assert digest == hashlib.sha256(b"noised").hexdigest()
    assert (tmp_path / "outbox" / "run-1" / "3.bin").read_bytes() == b"noised"
    assert Outbox(tmp_path, "run-1").read(3, digest) == b"noised"
    assert Outbox(tmp_path, "run-1").store(3, b"") != digest  # a round that was void is made anew


def test_damaged_or_missing_bytes_never_leave(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")
    digest = outbox.store(1, b"noised")
    path = tmp_path / "outbox" / "a" / "1.bin"
    for damaged in (b"noise", b"Noised", b""):
        path.write_bytes(damaged)
        with pytest.raises(PrivacyError, match="is damaged: its SHA-256 is"):
            outbox.read(1, digest)
    path.unlink()
    with pytest.raises(PrivacyError, match="is gone"):
        outbox.read(1, digest)
    with pytest.raises(PrivacyError, match="is gone"):
        Outbox(tmp_path, "b").read(1, digest)


def test_the_newest_rounds_of_a_run_are_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "a")

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "outbox" / "a").iterdir()}

    for number in range(12):
        outbox.store(number, b"%d" % number)
        (tmp_path / "outbox" / "a" / ".5.bin.tmp").write_bytes(b"what a crash left")
    Outbox(tmp_path, "b").store(1, b"another run's")
    outbox.store(12, b"12")
    assert kept() == {"9.bin", "10.bin", "11.bin", "12.bin"}
    outbox.store(3, b"3")  # the server was set back: what was stored just now stays
    assert kept() == {"10.bin", "11.bin", "12.bin", "3.bin"}
    outbox.discard(3)
    outbox.discard(3)
    assert kept() == {"10.bin", "11.bin", "12.bin"}
    assert Outbox(tmp_path, "b").read(1, hashlib.sha256(b"another run's").hexdigest())


@pytest.mark.parametrize("run", ["", ".", "..", "a/b", "../a", "a b", "a\n", "ä", "a\0", "x" * 101])
def test_run_ids_that_cannot_name_a_folder(tmp_path: Path, run: str) -> None:
    with pytest.raises(PrivacyError, match="cannot be the id of a run"):
        Outbox(tmp_path, run)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file stands here")
    with pytest.raises(StoreError, match="cannot store the bytes of a round"):
        Outbox(tmp_path, "a").store(1, b"noised")


def test_a_closed_run_leaves_nothing(tmp_path: Path) -> None:
    create_ledger(tmp_path, "patients", 3.0, 1e-5)
    with open_ledger(tmp_path) as ledger:
        for run in ("a", "b"):
            ledger.reserve(Schedule(run, "server", (Release(2.0, 0.05, 10),), 1))
            Outbox(tmp_path, run).store(1, b"noised")
        ledger.close("a")
        assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["b"]
    Outbox(tmp_path, "a").store(1, b"a crash came before this was removed")
    (tmp_path / "outbox" / "no run: stays").mkdir()
    with open_ledger(tmp_path):
        assert {path.name for path in (tmp_path / "outbox").iterdir()} == {"b", "no run: stays"}


def test_the_rounds_that_a_server_may_go_back_to_are_kept(tmp_path: Path) -> None:
    """A server that died asks for the round that arrived last, though two later ones were stored meanwhile."""
    box = Outbox(tmp_path, "run")
    digests = {number: box.store(number, bytes([number])) for number in (1, 2, 3, 45, 47, 46)}
    for number in (45, 47, 46):
        assert box.read(number, digests[number]) == bytes([number])
    with pytest.raises(PrivacyError, match="gone"):
        box.read(1, digests[1])
