"""A copy is taken apart without trusting it: nothing is written outside, and what is damaged is refused."""

import io
import json
import os
import random
import stat
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedlora.cli.__main__ import run as fedlora
from fedlora.errors import StoreError
from fedlora.identity.home import make_home
from fedlora.server import bundle, restore
from fedlora.server.backup import back_up
from fedlora.server.bundle import FileFacts, Writer, check_files, unpack

Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a home. Read only, by agreement."""
    folder = tmp_path_factory.mktemp("good")
    make_home(folder / "home", "tests", ["localhost"])
    back_up(folder / "home", folder / "copy.tar", keys=True)
    return folder / "copy.tar"


def changed(good: Path, target: Path, change: Change) -> Path:
    """A copy with other entries; its facts list those that are there now."""
    with tarfile.open(good) as tar:
        entries = [(entry, tar.extractfile(entry).read()) for entry in tar]
    _, facts = entries.pop()
    change(entries)
    listed = {
        entry.name: {"size": len(data), "sha256": sha256(data).hexdigest()} for entry, data in entries if entry.isreg()
    }
    told = json.dumps(json.loads(facts) | {"files": listed}).encode()
    end = tarfile.TarInfo("backup.json")
    end.size = len(told)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for entry, data in [*entries, (end, told)]:
            tar.addfile(entry, io.BytesIO(data))
    return target


def added(name: str, data: bytes = b"x", **fields: object) -> Change:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return lambda entries: entries.append((entry, data))


def refused(copy: Path, tmp_path: Path, why: str) -> None:
    """It cannot be restored, and nothing of it stays."""
    (tmp_path / "room").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=why):
        restore.restore(copy, tmp_path / "room" / "home")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_changes_of_these_tests_can_be_restored(good: Path, tmp_path: Path) -> None:
    """Or they would be refused for another reason than the one that they test."""
    copy = changed(good, tmp_path / "copy.tar", added("runs/run-1/config.json"))
    restore.restore(copy, tmp_path / "home")
    assert (tmp_path / "home" / "runs" / "run-1" / "config.json").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "runs/../../outside",
        "/tmp/fedlora-outside",  # noqa: S108
        "runs//twice",
        "./runs/x",
        "runs/./x",
        "runs\\x",
        "..",
        "x/" * 13 + "x",
        "x" * 256,
        "line\nbreak",
        "bell\a",
        "right-to-left\u202e",
    ],
)
def test_names_that_lead_elsewhere(good: Path, tmp_path: Path, name: str) -> None:
    copy = changed(good, tmp_path / "copy.tar", added(name))
    refused(copy, tmp_path, "a copy cannot have a file")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        (tarfile.LNKTYPE, {"linkname": "ca/ca.key"}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.BLKTYPE, {"devmajor": 8, "devminor": 0}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.DIRTYPE, {}),
        (tarfile.CONTTYPE, {}),
    ],
)
def test_what_is_no_plain_file(good: Path, tmp_path: Path, kind: bytes, fields: dict[str, object]) -> None:
    copy = changed(good, tmp_path / "copy.tar", added("runs/x", b"", type=kind, **fields))
    refused(copy, tmp_path, "'runs/x', which is no plain file")


def test_a_link_and_then_a_file_through_it(good: Path, tmp_path: Path) -> None:
    def both(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        added("runs/x", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))(entries)
        added("runs/x/outside")(entries)

    refused(changed(good, tmp_path / "copy.tar", both), tmp_path, "no plain file")


def test_a_file_with_holes_would_be_larger_than_the_copy(good: Path, tmp_path: Path) -> None:
    holes = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.name": "runs/x"}
    copy = changed(good, tmp_path / "copy.tar", added("runs/x", b"x", pax_headers=holes))
    refused(copy, tmp_path, "no plain file")


def test_a_header_that_would_fill_the_memory(good: Path, tmp_path: Path) -> None:
    copy = changed(good, tmp_path / "copy.tar", added("runs/x", pax_headers={"comment": "x" * (2 << 20)}))
    refused(copy, tmp_path, "a header of more than 1 MiB")


@pytest.mark.parametrize("size", ["-1024", "-1", str(2**62), "x"])
def test_sizes_that_cannot_be(good: Path, tmp_path: Path, size: str) -> None:
    """Of a header that overrides the one that the reader goes by."""
    copy = changed(good, tmp_path / "copy.tar", added("runs/x", pax_headers={"size": size}))
    refused(copy, tmp_path, "damaged|copy is not whole|cut off")


def test_one_name_twice(good: Path, tmp_path: Path) -> None:
    def twice(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries.append(entries[0])

    refused(changed(good, tmp_path / "copy.tar", twice), tmp_path, "twice")


def test_a_file_in_the_place_of_a_folder(good: Path, tmp_path: Path) -> None:
    refused(changed(good, tmp_path / "copy.tar", added("ca/ca.crt/x")), tmp_path, "cannot write .*a file stands where")


def test_what_comes_after_the_end(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tar"
    copy.write_bytes(good.read_bytes())
    with tarfile.open(copy, "a") as tar:
        tar.addfile(tarfile.TarInfo("runs/late"))
    refused(copy, tmp_path, "'runs/late' twice, or after its end")


@pytest.mark.parametrize("lost", ["ca/ca.crt", "runs/fedlora.db", "backup.json"])
def test_a_file_that_is_missing(good: Path, tmp_path: Path, lost: str) -> None:
    with tarfile.open(good) as tar, tarfile.open(tmp_path / "copy.tar", "w") as less:
        for entry in tar:
            if entry.name != lost:
                less.addfile(entry, tar.extractfile(entry))
    refused(tmp_path / "copy.tar", tmp_path, f"{lost} is missing|it has no backup.json at its end")


def test_a_file_that_is_not_listed(good: Path, tmp_path: Path) -> None:
    with tarfile.open(good) as tar, tarfile.open(tmp_path / "copy.tar", "w") as more:
        more.addfile(tarfile.TarInfo("runs/x"))
        for entry in tar:
            more.addfile(entry, tar.extractfile(entry))
    refused(tmp_path / "copy.tar", tmp_path, "runs/x does not belong to it")


def test_every_changed_byte_of_a_file_is_found(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    with tarfile.open(good) as tar:
        entries = [(entry.name, entry.offset_data, entry.size) for entry in tar][:-1]
    for name, offset, size in entries:
        for place in (offset, offset + size - 1):
            copy = tmp_path / "copy.tar"
            copy.write_bytes(bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]]))
            with pytest.raises(StoreError, match=f"SHA-256 of {name} is not the one"):
                restore.restore(copy, tmp_path / "home")
            assert not (tmp_path / "home").exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.floats(0, 0.999))
@example(length=0.0)
def test_a_copy_that_is_cut_off(good: Path, tmp_path: Path, length: float) -> None:
    data = good.read_bytes()
    end = data.rindex(b"}") + 1  # what is left out after it are zeros
    (tmp_path / "copy.tar").write_bytes(data[: int(end * length)])
    with pytest.raises(StoreError, match=r"cut off|damaged"):
        restore.restore(tmp_path / "copy.tar", tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_noise_in_a_copy_never_makes_a_home_or_an_unexpected_error(good: Path, tmp_path: Path) -> None:
    draw, data = random.Random(7), good.read_bytes()  # noqa: S311
    for _ in range(60):
        noisy = bytearray(data)
        for _ in range(draw.randint(1, 20)):
            noisy[draw.randrange(len(data.rstrip(b"\0")))] = draw.randrange(256)
        (tmp_path / "copy.tar").write_bytes(noisy)
        try:
            restore.restore(tmp_path / "copy.tar", tmp_path / "home")
        except StoreError:
            assert not (tmp_path / "home").exists()
        else:  # only what nobody reads was changed: padding, times, owners
            made = {str(path.relative_to(tmp_path / "home")) for path in (tmp_path / "home").rglob("*")}
            assert made == {"ca", "runs", "ca/ca.crt", "ca/ca.key", "server.crt", "server.key", "runs/fedlora.db"}
            os.rename(tmp_path / "home", tmp_path / f"home-{draw.random()}")  # noqa: PTH104


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"format": 2}, "made by fedlora '.*', a newer one"),
        ({"revision": "9999"}, "revision '9999', which this fedlora does not know"),
        ({"surprise": 1}, "its backup.json has 1 mistakes"),
        ({"database": "oracle7"}, "its backup.json has 1 mistakes"),
        ({"files": {"../x": {"size": 1, "sha256": "x"}}}, "its backup.json has 1 mistakes"),
    ],
)
def test_facts_that_this_fedlora_does_not_know(good: Path, tmp_path: Path, fields: dict[str, object], why: str) -> None:
    with tarfile.open(good) as tar, tarfile.open(tmp_path / "copy.tar", "w") as other:
        for entry in tar:
            data = tar.extractfile(entry).read()
            if entry.name == "backup.json":
                data = json.dumps(json.loads(data) | fields).encode()
                entry.size = len(data)
            other.addfile(entry, io.BytesIO(data))
    refused(tmp_path / "copy.tar", tmp_path, why)


@pytest.mark.parametrize("content", [b"", b"no copy at all", b"\x1f\x8b" + b"x" * 2000, bytes(10240)])
def test_a_file_that_is_no_copy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "copy.tar").write_bytes(content)
    refused(tmp_path / "copy.tar", tmp_path, "no copy of a server's home")


def test_a_copy_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "copy.tar", tmp_path, "cannot read .*copy.tar: No such file")


def test_a_home_with_something_in_it_is_left_alone(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".hidden").write_text("mine")
    assert fedlora(["server", "restore", "--from", str(good), "--home", str(tmp_path / "home")]) == 20
    assert "is there already and not empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        restore.restore(good, tmp_path / "file")
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".hidden"]


def test_an_empty_home_is_filled_and_stays_after_an_error(good: Path, tmp_path: Path) -> None:
    """As systemd makes it, in a folder where nobody else may write."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "bad.tar").write_bytes(b"x")
    with pytest.raises(StoreError):
        restore.restore(tmp_path / "bad.tar", home)
    assert list(home.iterdir()) == []
    restore.restore(good, home)
    assert (home / "ca" / "ca.key").is_file()


def test_a_restore_that_is_killed_leaves_no_server(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority comes last: without it no server starts."""
    order: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (order.append(path.name), rename(path, target))[1])
    restore.restore(good, tmp_path / "home")
    assert set(order) == {"ca", "runs", "server.crt", "server.key"}
    assert order[-1] == "ca"


def test_too_little_space_is_said_first(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "free_bytes", lambda folder: 1000)
    refused(good, tmp_path, "1,000 are free")


def test_what_grows_while_it_is_copied(tmp_path: Path) -> None:
    """The beginning is copied, as long as it was; an end that comes meanwhile is not."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"a" * 100)
    read = bundle._Summed.read

    def grows(self: object, size: int = -1) -> bytes:
        with path.open("ab") as file:
            file.write(b"b" * 100)
        return read(self, size)

    with pytest.MonkeyPatch.context() as patch, Writer(tmp_path / "copy.tar") as writer:
        patch.setattr(bundle._Summed, "read", grows)
        writer.add("events.jsonl", path)
        patch.undo()
        writer.finish({})
    assert writer.files["events.jsonl"] == FileFacts(size=100, sha256=sha256(b"a" * 100).hexdigest())
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "copy.tar", tmp_path / "out")
    check_files(tmp_path / "out", {"events.jsonl": writer.files["events.jsonl"]})


def test_what_becomes_shorter_or_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(path)
    with Writer(tmp_path / "copy.tar") as writer:
        for name, why in (("pipe", "no plain file"), ("link", "cannot copy")):
            with pytest.raises(StoreError, match=why):
                writer.add(name, tmp_path / name)
        with pytest.raises(FileNotFoundError):
            writer.add("gone", tmp_path / "gone")
        monkeypatch.setattr(bundle.os, "fstat", lambda file: os.stat_result([stat.S_IFREG, *[0] * 5, 200, *[0] * 3]))
        with pytest.raises(StoreError, match="unexpected end of data"):
            writer.add("x", path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="cannot write"):
        Writer(tmp_path / "copy.tar")
