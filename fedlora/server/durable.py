"""Files that are still whole after a crash or a power cut, and errors about them that say what to do."""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import StoreError

_SYNCS = 8  # files that are synced at a time
_QUICK = 0.001  # seconds for which a file is waited for without asking for others meanwhile
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDIES = {
    errno.EACCES: "give this user write permission there, or choose another folder",
    errno.EPERM: "give this user write permission there, or choose another folder",
    errno.EROFS: "the file system is read-only: remount it, or choose another folder",
    errno.EIO: "the disk reports a fault: look at the system's log before anything else",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or choose another folder",
}


def write_synced(path: Path, data: bytes) -> None:
    """Writes `data` to `path` and returns when the disk has it. The name itself needs `sync_folder` of the parent."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_files(paths: Iterable[Path]) -> None:
    """Returns when the disk has the contents of all `paths`.

    On a disk that takes its time they are asked for side by side: a journaling file system then writes many of them at
    once. A fast one has them before the threads for that have begun.
    """
    waiting = iter(paths)
    for path in waiting:
        began = time.perf_counter()
        _sync_file(path)
        if time.perf_counter() - began > _QUICK:
            break
    left = list(waiting)
    if left:
        with ThreadPoolExecutor(min(_SYNCS, len(left))) as pool:
            for _ in pool.map(_sync_file, left):
                pass  # to raise what a thread raised


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Returns when the disk has the names in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_synced(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: a crash leaves the old file or the new one, whole."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write_synced(draft, data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def explained(doing: str, path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError of the body into a StoreError: what was done, where, why it failed, and the remedy.

    needed: the bytes that were to be written, for the message about a full disk.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing} {path}: {_reason(error, path, needed)}") from error


def _reason(error: OSError, path: Path, needed: int | None) -> str:
    if error.errno in _NO_SPACE:
        return _no_space(error, path, needed)
    remedy = _REMEDIES.get(error.errno or 0, "check that the folder exists and can be written")
    return f"{error.strerror or error}; {remedy}"


def _no_space(error: OSError, path: Path, needed: int | None) -> str:
    free = f"{free_bytes(path):,} bytes are free"
    wanted = f"about {needed:,} bytes are needed and {free}" if needed is not None else free
    return f"{error.strerror} ({wanted}); free some space or raise the quota, then resume the run"


def free_bytes(path: Path) -> int:
    """Bytes that are free on the file system of `path`, or of its nearest folder that exists."""
    folder = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(folder).free
