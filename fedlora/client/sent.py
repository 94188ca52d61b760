"""The site's record of every message that left: one line of JSON each, bound to the line before by its hash.

A line is on the disk before the message leaves, so that the record may hold one that in the end did not leave, and
never lacks one that did. An edit, or a line taken out, shows. That the newest lines were cut off, a second small file
shows (`sent_head`). Whoever changes both leaves no trace here: the ledger and the server's receipts show that.
"""

import csv
import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlora.client.home import SiteHome
from fedlora.client.own_files import open_own
from fedlora.client.sent_head import EMPTY, Head, check_head, read_head, write_head
from fedlora.errors import StoreError
from fedlora.privacy.journal import GENESIS, canonical
from fedlora.server.durable import explained, sync_folder

log = logging.getLogger(__name__)

_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Sent:
    """One message that left.

    time: UTC, ISO 8601. server: "host:port". kind: "train", "query", … work: its id. manifest: digest of the run's
    adapter manifest. sha256, bytes: of the message's content. epsilon: of the whole run, as the ledger counts it; None
    without local DP. tensors: how many were in it.
    """

    time: str
    server: str
    run: str
    round: int
    kind: str
    work: str
    manifest: str
    sha256: str
    bytes: int
    epsilon: float | None
    tensors: int


class SentRecord:
    """The record of a home, for the one process that has the home. Threads may share it."""

    def __init__(self, home: SiteHome) -> None:
        """Checks every line; what a crash left of a line that never was whole is taken off, which the log says.

        Raises StoreError, naming the line, if the record was edited, or lines are missing at its end.
        """
        self._path = home.sent
        self._guard = threading.Lock()
        self._head: Head | None = _recover(self._path)

    def append(
        self,
        *,
        server: str,
        run: str,
        round_number: int,
        kind: str,
        work: str,
        manifest: str,
        sha256: str,
        size: int,
        epsilon: float | None,
        tensors: int,
    ) -> Sent:
        """Notes what is about to leave (see `Sent`); when this returns, the note survives a power cut.

        Raises StoreError if the disk does not take it: then the message must not leave.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Sent(time, server, run, round_number, kind, work, manifest, sha256, size, epsilon, tensors)
        with self._guard:
            before = _recover(self._path) if self._head is None else self._head
            line = _line(before.digest, entry)
            self._head = None  # until all is written: half a line is repaired by the next append
            if before == EMPTY:
                write_head(self._path, EMPTY)  # a record that has lines has a head
            _append(self._path, line)
            after = Head(before.count + 1, _digest(line))
            write_head(self._path, after)
            self._head = after
        return entry


def read(home: SiteHome) -> list[Sent]:
    """Every message that left, the oldest first. What the daemon is writing at this moment is left out.

    Raises StoreError, naming the line, if the record was edited, or lines are missing at its end.
    """
    head = read_head(home.sent)  # first: the record may grow before it is read
    whole, _ = _split(_content(home.sent))
    found = list(_verified(home.sent, whole))
    check_head(home.sent, head, [digest for _, digest in found])
    return [entry for entry, _ in found]


def as_json(entries: Iterable[Sent]) -> list[dict[str, Any]]:
    """The entries as JSON values."""
    return [asdict(entry) for entry in entries]


def as_csv(entries: Iterable[Sent]) -> str:
    """The entries as CSV with a heading. Texts that a spreadsheet would take for a formula get a leading apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Sent)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in as_json(entries))
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = "".join(char if char.isprintable() else "�" for char in value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _recover(path: Path) -> Head:
    """Where the record stands, once it ends with a whole line and its head says so.

    Raises StoreError if the record was edited, or lines are missing at its end.
    """
    content, head = _content(path), read_head(path)
    whole, rest = _split(content)
    digests = [digest for _, digest in _verified(path, whole)]
    check_head(path, head, [*digests, *_unended(path, rest, digests)])
    if rest:
        last = digests[-1] if digests else GENESIS
        found = _mended(path, len(content) - len(rest), rest, last, number=len(whole) + 1)
        digests += [found] if found != last else []
    now = Head(len(digests), digests[-1]) if digests else EMPTY
    if now != head and digests:
        write_head(path, now)
    return now


def _unended(path: Path, rest: bytes, digests: Sequence[str]) -> list[str]:
    """The hash of a last line that lacks nothing but its end."""
    written = rest.rstrip(b"\0")
    if not written or not _is_whole(written):
        return []
    last = digests[-1] if digests else GENESIS
    return [digest for _, digest in _verified(path, [written], last, len(digests) + 1)]


def _mended(path: Path, at: int, rest: bytes, last: str, *, number: int) -> str:
    """Ends a line that lacks nothing but its end, and takes off one that never was whole; neither if it is not ours."""
    written = rest.rstrip(b"\0")  # a file system may have made room for what it then did not write
    if _is_whole(written):
        _, digest = next(_verified(path, [written], last, number))
        _replace_end(path, at, written + b"\n")
        log.warning("%s:%d had lost its end in a crash and got it back", path, number)
        return digest
    start = _opening(last)
    if not (start.startswith(written) or written.startswith(start)):
        raise StoreError(
            f"{path}:{number} is not the beginning of a line that follows the one before: the record was edited;"
            " restore it from a copy"
        )
    _replace_end(path, at, b"")
    log.warning("%s:%d was cut off by a crash before its message could leave: taken off", path, number)
    return last


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _verified(path: Path, lines: Iterable[bytes], last: str = GENESIS, number: int = 1) -> Iterator[tuple[Sent, str]]:
    """Each line's entry and hash. Raises StoreError at the first that is none, or does not follow the one before."""
    for at, line in enumerate(lines, start=number):
        try:
            found = json.loads(line)
            before, entry = found.pop("before"), Sent(**found)
            as_written = _line(before, entry)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"{path}:{at} is no record of a message: it was edited; restore it from a copy") from error
        if before != last or as_written != line:
            raise StoreError(
                f"{path}:{at} does not follow from the line before it: a line was edited, added or taken out there or"
                " just before; restore the record from a copy"
            )
        last = _digest(line)
        yield entry, last


def _line(before: str, entry: Sent) -> bytes:
    facts: Mapping[str, Any] = asdict(entry)
    return _opening(before) + b"," + canonical(facts).encode()[1:]


def _opening(before: str) -> bytes:
    return f'{{"before":"{before}"'.encode()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _content(path: Path) -> bytes:
    if not path.exists():
        return b""
    with explained("read", path):
        return path.read_bytes()


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """The lines that have an end, and what follows the last end."""
    *whole, rest = content.split(b"\n")
    return whole, rest


def _append(path: Path, line: bytes) -> None:
    with explained("note what leaves in", path, needed=len(line)):
        new = not path.exists()
        with open(path, "ab", opener=open_own) as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def _replace_end(path: Path, at: int, end: bytes) -> None:
    with explained("repair", path), path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(end)
        file.flush()
        os.fsync(file.fileno())
