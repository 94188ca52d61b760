"""One process a run. The operating system frees the lock of a process that dies, however it dies."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fedlora.errors import StoreError
from fedlora.server.durable import explained

_LOCK = ".lock"
_HOLDER = ".holder.json"
_PATIENCE = 1.0  # seconds: longer than a look at the lock by `fedlora runs ls` takes


@dataclass(frozen=True)
class Holder:
    """The process that has a run's lock: its id, host, command line, and since when (UTC, ISO 8601)."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


@contextmanager
def held(folder: Path, run: str) -> Iterator[None]:
    """Holds the lock of the run in `folder` for the block.

    Raises StoreError, naming the process that holds it, if another one does, and if the folder cannot be written.
    """
    lock = FileLock(folder / _LOCK, thread_local=False)
    with explained("lock", folder):
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:  # an OSError too
            raise StoreError(_taken(folder, run)) from error
    try:
        with explained("write", folder / _HOLDER):
            (folder / _HOLDER).write_text(json.dumps(asdict(_this_process())), encoding="utf-8")
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> Holder | None:
    """The process that holds the lock of the run in `folder` now, or None.

    Only the lock counts: the note of a process that died is not believed.
    """
    if not (folder / _LOCK).exists():
        return None
    lock = FileLock(folder / _LOCK, thread_local=False)
    with explained("look at the lock of", folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return _noted(folder) or Holder(0, "an unknown host", "it has left no note", "an unknown time")
    lock.release()
    return None


def _taken(folder: Path, run: str) -> str:
    who = _noted(folder) or "another process"
    return f"run {run} is in the hands of {who}: wait until it ends, or stop it there (Ctrl-C ends it after a round)"


def _noted(folder: Path) -> Holder | None:
    """What the holder wrote; None while it is still writing or has just gone."""
    try:
        return Holder(**json.loads((folder / _HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Holder:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), " ".join(sys.argv)[:300], since)
