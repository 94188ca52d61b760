"""An append-only file of JSON entries, each bound to the one before by its hash, durable before `append` returns."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import PrivacyError
from fedlora.server.durable import explained, replace_synced, sync_folder

GENESIS = "0" * 64
"""What the first entry names as the hash before it."""

_JOURNAL, _HEAD = "journal.jsonl", "head.json"


@dataclass(frozen=True)
class Head:
    """How many entries a journal has, and the hash of the last."""

    length: int
    digest: str


class Journal:
    """The entries of one folder, checked when it is opened. One process at a time: the owner of a journal locks it."""

    def __init__(self, folder: Path) -> None:
        self._path, self._head_path = folder / _JOURNAL, folder / _HEAD
        self.entries: list[Mapping[str, Any]] = []
        self._digests: list[str] = []
        self._torn = False

    @classmethod
    def create(cls, folder: Path, first: Mapping[str, Any]) -> "Journal":
        """A journal in a new folder, with its first entry; a crash leaves it whole, or to be created again.

        Raises PrivacyError if there is one already, or the note of one that is gone.
        """
        journal = cls(folder)
        with explained("create a journal in", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if cls.exists(folder):
                raise PrivacyError(
                    f"{journal._path} exists already, or did: what it held has been spent; open it, or restore it"
                )
            journal._note_head()
            line = journal._line(first)
            replace_synced(journal._path, line.encode() + b"\n")
            journal._take(0, line)
            journal._note_head()
            sync_folder(folder.parent)
        return journal

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether a journal is in `folder`, or the note of one that is gone; not what a crash left of `create`."""
        journal = cls(folder)
        return journal._path.exists() or (journal._head_path.exists() and journal._noted_head().length > 0)

    @classmethod
    def open(cls, folder: Path) -> "Journal":
        """The journal in `folder`, every hash checked.

        A last line that has no end was cut off by a crash before `append` returned: it is taken away.

        Raises PrivacyError if the journal is missing, edited, or shorter than its own note of its length.
        """
        journal = cls(folder)
        if not journal._path.exists() or not journal._head_path.exists():
            raise PrivacyError(
                f"there is no complete journal in {folder}: without it nobody knows what was spent already, so nothing"
                " may be. Restore the newest copy; an older one will be refused"
            )
        with explained("read", folder):
            for number, line in enumerate(_whole_lines(journal._path)):
                journal._take(number, line)
            journal._check_head()
        return journal

    @property
    def head(self) -> Head:
        """Where the journal stands."""
        return Head(len(self.entries), self._digests[-1] if self._digests else GENESIS)

    def append(self, entry: Mapping[str, Any]) -> Head:
        """Adds an entry; when this returns, it survives a power cut.

        Raises StoreError if the disk does not take it. Whether it is there then shows when the journal is opened again.
        """
        if self._torn:
            raise PrivacyError(
                f"an entry could not be written whole to {self._path}: close the journal and open it again"
            )
        line = self._line(entry)
        self._torn = True  # until all is written: after half a line another would be lost with it
        with explained("add an entry to", self._path):
            with self._path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._take(len(self.entries), line)
            self._note_head()
        self._torn = False
        return self.head

    def holds(self, head: Head) -> bool:
        """Whether this journal once stood, or stands, at `head`."""
        if head.length == 0:
            return head.digest == GENESIS
        return head.length <= len(self._digests) and self._digests[head.length - 1] == head.digest

    def _take(self, number: int, line: str) -> None:
        try:
            found = json.loads(line)
            before, entry, digest = found["before"], dict(found["entry"]), found["digest"]
            follows = before == self.head.digest and digest == _digest(before, canonical(entry))
        except (ValueError, KeyError, TypeError) as error:
            raise PrivacyError(f"{self._path}:{number + 1} is no journal entry: the file was edited") from error
        if not follows:
            raise PrivacyError(
                f"{self._path}:{number + 1} does not follow from the entry before it: the journal was edited, or parts"
                " of it are missing. Nothing may be spent on it; restore the newest copy"
            )
        self.entries.append(entry)
        self._digests.append(digest)

    def _line(self, entry: Mapping[str, Any]) -> str:
        before = self.head.digest
        return json.dumps(
            {"before": before, "entry": entry, "digest": _digest(before, canonical(entry))}, sort_keys=True
        )

    def _note_head(self) -> None:
        replace_synced(self._head_path, canonical(asdict(self.head)).encode())

    def _noted_head(self) -> Head:
        try:
            noted = json.loads(self._head_path.read_text())
            return Head(int(noted["length"]), str(noted["digest"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PrivacyError(f"{self._head_path} is no note of a journal's length: it was edited") from error

    def _check_head(self) -> None:
        head = self._noted_head()
        if not self.holds(head):
            raise PrivacyError(
                f"{self._path} has {len(self.entries)} entries, but had {head.length}: it was cut, or is an older copy."
                " Nothing may be spent on it; restore the newest copy"
            )
        if head != self.head:  # a crash came between an entry and its note
            self._note_head()


def canonical(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, ASCII. What is hashed or signed is written so."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _whole_lines(path: Path) -> Sequence[str]:
    """The lines that end; what follows the last end is taken off the file."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    try:
        return whole.decode("ascii").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise PrivacyError(f"{path} is no journal: it was edited") from error
