"""The exact bytes that a round released, for when the server asks again: a retry never gets a second noise."""

import hashlib
import re
import shutil
from collections.abc import Set
from pathlib import Path

from fedlora.errors import PrivacyError
from fedlora.server.durable import explained, replace_synced, sync_folder

KEPT = 4
"""How many rounds of a run are kept: the newest, and a few before, which a server that was set back may ask for."""

_FOLDER = "outbox"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def check_run(run: str) -> None:
    """Raises PrivacyError unless `run` can name a folder: up to 100 of A–Z, a–z, 0–9, dot, underscore and hyphen."""
    if not _NAME.fullmatch(run) or run in {".", ".."}:
        raise PrivacyError(
            f"{run[:100]!r} cannot be the id of a run: it names a folder, so only letters of A to Z, digits, '.', '_'"
            " and '-' may be in it, 100 at most"
        )


class Outbox:
    """What one run released, in the ledger's `folder`. Raises PrivacyError for a run id that cannot name a folder."""

    def __init__(self, folder: Path, run: str) -> None:
        check_run(run)
        self._folder = folder / _FOLDER / run

    def store(self, round_number: int, content: bytes) -> str:
        """Keeps the bytes of a round and returns their SHA-256 once the disk has them.

        Of the rounds before, the newest stays; older ones are removed. Raises StoreError if the disk does not take it.
        """
        path = self._path(round_number)
        with explained("store the bytes of a round at", path, needed=len(content)):
            if not self._folder.is_dir():
                self._make_folder()
            replace_synced(path, content)
            self._keep_newest(round_number)
        return hashlib.sha256(content).hexdigest()

    def read(self, round_number: int, digest: str) -> bytes:
        """The bytes of a round. Raises PrivacyError if they are gone, or their SHA-256 is not `digest`."""
        path = self._path(round_number)
        if not path.is_file():
            raise PrivacyError(f"{path} is gone: what the round released cannot be sent again, and its ε is spent")
        with explained("read", path):
            content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise PrivacyError(
                f"{path} is damaged: its SHA-256 is {found}, the ledger noted {digest}. It may not be sent, and the"
                " round's ε is spent; restore the file if you have a copy"
            )
        return content

    def discard(self, round_number: int) -> None:
        """Removes a round of which nothing left, if it is there."""
        path = self._path(round_number)
        with explained("remove", path):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all rounds of the run."""
        with explained("remove", self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{round_number}.bin"

    def _make_folder(self) -> None:
        """New names survive a power cut only if each folder above them is synced."""
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self._folder.parent)
        sync_folder(self._folder.parent.parent)

    def _keep_newest(self, stored: int) -> None:
        """What was stored just now stays even if the server went back to a lower number."""
        others = sorted(int(path.stem) for path in self._folder.glob("[0-9]*.bin") if path.stem.isdecimal())
        others = [number for number in others if number != stored]
        for number in others[: max(0, len(others) - (KEPT - 1))]:
            self._path(number).unlink()
        for draft in self._folder.glob(".*.tmp"):  # a crash left it
            draft.unlink()


def sweep(folder: Path, closed: Set[str]) -> None:
    """Removes what a crash left of runs that are `closed`: it came after the ledger's entry, before their removal."""
    place = folder / _FOLDER
    if place.is_dir():
        for run in sorted(closed & {path.name for path in place.iterdir()}):
            Outbox(folder, run).clear()
