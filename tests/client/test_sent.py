"""The record of what left: every edit shows, every crash is survived."""

import csv
import hashlib
import io
import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.client import sent as module
from fedlora.client.home import SiteHome
from fedlora.client.sent import Sent, SentRecord, as_csv, as_json, read
from fedlora.client.sent_head import EMPTY, Head, beside, read_head, write_head
from fedlora.errors import StoreError

FACTS: dict[str, Any] = {
    "server": "fl.example.org:8443",
    "run": "run-1",
    "kind": "train",
    "work": "ab" * 32,
    "manifest": "cd" * 32,
    "sha256": "ef" * 32,
    "size": 12_345,
    "epsilon": 2.5,
    "tensors": 7,
}


def fill(home: SiteHome, count: int = 3) -> list[bytes]:
    """The lines of a record of `count` messages, with their ends."""
    record = SentRecord(home)
    for number in range(1, count + 1):
        record.append(**FACTS, round_number=number)
    return home.sent.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return fill(SiteHome(tmp_path_factory.mktemp("filled")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    """A folder for many examples, one after another."""
    return SiteHome(tmp_path_factory.mktemp("examples"))


def put(home: SiteHome, content: bytes, count: int) -> None:
    """A record with any content, and a head that speaks of its first `count` lines."""
    home.sent.write_bytes(content)
    before = content.split(b"\n")[:count]
    write_head(home.sent, Head(count, hashlib.sha256(before[-1]).hexdigest()) if before else EMPTY)


def test_what_left_is_read_back_in_order(home: SiteHome) -> None:
    assert read(home) == []
    fill(home)
    SentRecord(home).append(**{**FACTS, "epsilon": None}, round_number=4)
    found = read(home)
    assert [entry.round for entry in found] == [1, 2, 3, 4]
    assert [entry.epsilon for entry in found] == [2.5, 2.5, 2.5, None]
    assert (found[0].bytes, found[0].tensors, found[0].work) == (12_345, 7, "ab" * 32)
    assert found[0].time.endswith("+00:00")
    assert stat.S_IMODE(home.sent.stat().st_mode) == 0o600


def test_each_line_has_the_hash_of_the_one_before(lines: list[bytes]) -> None:
    found = [json.loads(line)["before"] for line in lines]
    hashes = [hashlib.sha256(line.rstrip(b"\n")).hexdigest() for line in lines]
    assert found == ["0" * 64, *hashes[:-1]]


def test_a_note_is_on_the_disk_before_append_returns(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    record = SentRecord(home)
    record.append(**FACTS, round_number=1)
    assert home.sent.stat().st_size in synced


@given(data=st.data())
def test_any_changed_byte_shows(lines: list[bytes], place: SiteHome, data: st.DataObject) -> None:
    content = b"".join(lines)
    at = data.draw(st.integers(0, len(content) - len(lines[-1]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
    place.sent.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
    for look in (read, SentRecord):
        with pytest.raises(StoreError, match=r"sent\.jsonl:[1-4] "):
            look(place)


@pytest.mark.parametrize("order", [[1, 2], [0, 2], [1, 0, 2], [0, 0, 1, 2], [0, 1, 1], [2, 1, 0], [0, 2, 1]])
def test_lines_that_were_taken_out_moved_or_copied(lines: list[bytes], home: SiteHome, order: list[int]) -> None:
    home.sent.write_bytes(b"".join(lines[number] for number in order))
    wrong = next(at for at, number in enumerate(order, start=1) if number != at - 1)
    for look in (read, SentRecord):
        with pytest.raises(StoreError, match=rf"sent\.jsonl:{wrong} does not follow"):
            look(home)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"bytes":12345', b'"bytes":12346'),
        (b'"bytes":12345', b'"bytes": 12345'),
        (b'"epsilon":2.5', b'"epsilon":2.50'),
        (b'"tensors":7', b'"tensors":7,"more":1'),
        (b'"kind":"train",', b""),
        (b'"kind":"train"', b'"kind":"train","kind":"train"'),
    ],
)
@pytest.mark.parametrize("number", [1, 3])
def test_an_edited_line_is_named(lines: list[bytes], home: SiteHome, number: int, old: bytes, new: bytes) -> None:
    """Also the last one, which no later line speaks for: if it is as lines are written, the head says so."""
    edited = [line.replace(old, new) if at == number else line for at, line in enumerate(lines, start=1)]
    put(home, b"".join(lines), 3)
    home.sent.write_bytes(b"".join(edited))
    named = r"line 3 is another one" if number == 3 and new == b'"bytes":12346' else r"sent\.jsonl:[123] "
    with pytest.raises(StoreError, match=named):
        read(home)


def test_a_crash_at_any_byte_of_a_line_costs_at_most_that_line(
    lines: list[bytes], place: SiteHome, caplog: pytest.LogCaptureFixture
) -> None:
    whole = b"".join(lines[:2])
    end = len(lines[2])
    for cut in [*range(0, end - 3, 11), *range(end - 3, end + 1)]:
        put(place, whole + lines[2][:cut], 2)
        expected = 2 if cut < len(lines[2]) - 1 else 3
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            record = SentRecord(place)
        assert place.sent.read_bytes() == b"".join(lines[:expected])
        told = "" if cut in (0, len(lines[2])) else "got it back" if expected == 3 else "taken off"
        assert told in caplog.text
        assert bool(told) == bool(caplog.text)
        record.append(**FACTS, round_number=9)
        assert [entry.round for entry in read(place)] == [*range(1, expected + 1), 9]


def test_room_that_a_file_system_made_and_did_not_fill(lines: list[bytes], place: SiteHome) -> None:
    for cut in (0, 1, 40, 90, 200, len(lines[2]) - 1):
        put(place, b"".join(lines[:2]) + lines[2][:cut] + bytes(64), 2)
        SentRecord(place)
        kept = 3 if cut == len(lines[2]) - 1 else 2
        assert place.sent.read_bytes() == b"".join(lines[:kept])


def test_a_broken_chain_is_never_repaired(lines: list[bytes], home: SiteHome) -> None:
    for content in (
        lines[1] + lines[2][:50],
        lines[0] + lines[2][:80],
        lines[0] + lines[2].rstrip(b"\n"),
        b"".join(lines) + b"something else",
        b"".join(lines) + b"{}",
        b"".join(lines) + b'{"before":"' + b"0" * 30,
    ):
        put(home, content, 1)
        with pytest.raises(StoreError, match=r"sent\.jsonl:\d "):
            SentRecord(home)
        assert home.sent.read_bytes() == content


def test_looking_changes_nothing_and_ignores_what_is_being_written(lines: list[bytes], home: SiteHome) -> None:
    put(home, b"".join(lines[:2]) + lines[2][:30], 2)
    before = home.sent.read_bytes()
    assert [entry.round for entry in read(home)] == [1, 2]
    assert home.sent.read_bytes() == before


def test_a_full_disk_is_told_and_survived(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    record = SentRecord(home)
    record.append(**FACTS, round_number=1)
    real, left = os.fsync, [1]

    def full(descriptor: int) -> None:
        if left.pop():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 20)  # the last bytes found no room
            left.append(0)
            raise OSError(28, "No space left on device")
        left.append(0)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="free some space"):
        record.append(**FACTS, round_number=2)
    assert not home.sent.read_bytes().endswith(b"\n")
    record.append(**FACTS, round_number=3)
    assert [entry.round for entry in read(home)] == [1, 3]


# The head: nothing is cut off unseen, and no crash looks like it.


@pytest.mark.parametrize("kept", ["two lines", "no line", "no file", "a line without its end", "half a line"])
def test_that_the_newest_lines_were_cut_off_shows(lines: list[bytes], home: SiteHome, kept: str) -> None:
    put(home, b"".join(lines), 3)
    shorter = {"two lines": lines[:2], "no line": [], "half a line": [*lines[:2], lines[2][:99]]}
    content = b"".join(shorter.get(kept, lines[:2]))
    home.sent.write_bytes(content + (b"" if kept != "a line without its end" else lines[1].rstrip()))
    if kept == "no file":
        home.sent.unlink()
    looks = [read] if kept == "a line without its end" else [read, SentRecord]
    for look in looks:
        with pytest.raises(StoreError, match=r"but had 3: the newest were cut off"):
            look(home)
    assert read_head(home.sent) == Head(3, hashlib.sha256(lines[2].rstrip()).hexdigest())
    if kept != "no file" and kept != "a line without its end":
        assert home.sent.read_bytes() == content  # nothing was mended before it was told


def test_a_last_line_that_only_lost_its_end_is_no_alarm_when_the_daemon_starts(
    lines: list[bytes], home: SiteHome
) -> None:
    put(home, b"".join(lines), 3)
    home.sent.write_bytes(b"".join(lines).rstrip(b"\n"))
    SentRecord(home)
    assert [entry.round for entry in read(home)] == [1, 2, 3]


def test_a_record_whose_head_is_gone_or_anothers_is_not_believed(lines: list[bytes], home: SiteHome) -> None:
    put(home, b"".join(lines), 3)
    whole = beside(home.sent).read_bytes()
    cases = {
        "line 2 is another one": json.dumps({"count": 2, "digest": "ab" * 32}).encode(),
        "does not say how long": b"{}",
        "was edited": b'{"count": -1, "digest": ""}',
        "it was edited": b"\xff",
    }
    for said, content in cases.items():
        beside(home.sent).write_bytes(content)
        for look in (read, SentRecord):
            with pytest.raises(StoreError, match=said):
                look(home)
    beside(home.sent).unlink()
    for look in (read, SentRecord):
        with pytest.raises(StoreError, match="is missing"):
            look(home)
    beside(home.sent).write_bytes(whole)
    assert len(read(home)) == 3


@pytest.mark.parametrize("already", [0, 2])
@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_between_the_line_and_its_head_is_no_alarm(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, already: int, writes: int
) -> None:
    """It dies at the first or at the second write of a head: of the first line there are two."""
    if already:
        fill(home, already)
    left = writes if already == 0 else 0

    def dies(path: Path, head: Head) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write_head(path, head)

    monkeypatch.setattr(module, "write_head", dies)
    with pytest.raises(KeyboardInterrupt):
        SentRecord(home).append(**FACTS, round_number=9)
    monkeypatch.undo()
    begun = [entry.round for entry in read(home)]
    assert begun in ([*range(1, already + 1), 9], [*range(1, already + 1)])
    SentRecord(home).append(**FACTS, round_number=10)
    assert [entry.round for entry in read(home)] == [*begun, 10]
    found = read_head(home.sent)
    assert found is not None
    assert found.count == len(begun) + 1
    assert stat.S_IMODE(beside(home.sent).stat().st_mode) == 0o600


def test_a_head_that_cannot_be_written_keeps_the_message_here(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    record = SentRecord(home)
    record.append(**FACTS, round_number=1)

    def full(path: Path, head: Head) -> None:
        raise StoreError("no room")

    monkeypatch.setattr(module, "write_head", full)
    for _ in range(2):
        with pytest.raises(StoreError, match="no room"):
            record.append(**FACTS, round_number=2)
    monkeypatch.undo()
    record.append(**FACTS, round_number=3)
    assert [entry.round for entry in read(home)] == [1, 2, 3]


def test_reading_while_the_daemon_writes_is_no_alarm(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is read first: a record may only be longer than it says."""
    record = SentRecord(home)
    record.append(**FACTS, round_number=1)
    looked = module.read_head

    def meanwhile(path: Path) -> Head | None:
        found = looked(path)
        monkeypatch.undo()
        record.append(**FACTS, round_number=2)
        return found

    monkeypatch.setattr(module, "read_head", meanwhile)
    assert [entry.round for entry in read(home)] == [1, 2]


def test_threads_share_a_record(home: SiteHome) -> None:
    record = SentRecord(home)
    threads = [threading.Thread(target=lambda n=n: record.append(**FACTS, round_number=n)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.round for entry in read(home)) == list(range(20))


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot note"):
        SentRecord(SiteHome(tmp_path / "nowhere")).append(**FACTS, round_number=1)


def test_exports_have_every_field(home: SiteHome) -> None:
    fill(home, 2)
    entries = read(home)
    assert as_json(entries)[1]["round"] == 2
    rows = list(csv.DictReader(io.StringIO(as_csv(entries))))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == set(as_json(entries)[0]) == set(Sent.__dataclass_fields__)
    assert as_csv([]).count("\n") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\t=x", "�=x"),
        ("a\rb\nc", "a�b�c"),
        ("a=b", "a=b"),
    ],
)
def test_a_spreadsheet_runs_nothing(home: SiteHome, text: str, shown: str) -> None:
    SentRecord(home).append(**{**FACTS, "run": text}, round_number=1)
    (row,) = csv.DictReader(io.StringIO(as_csv(read(home))))
    assert row["run"] == shown
    assert as_json(read(home))[0]["run"] == text
