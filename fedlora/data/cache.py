"""The cache on disk: where it is, who may write, whether there is room."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from fedlora.errors import AssetError

log = logging.getLogger(__name__)

CACHE_VARIABLE = "FEDLORA_CACHE"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_dir() -> Path:
    """The folder of downloads: `$FEDLORA_CACHE`, or `fedlora` in the user's cache folder. It may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("fedlora", appauthor=False)


def no_room(path: Path, needed: int) -> AssetError:
    """The error for a disk without room for `needed` bytes at `path`."""
    try:
        free = f"{shutil.disk_usage(_existing(path)).free:,}"
    except OSError:
        free = "an unknown number of"
    return AssetError(
        f"no room at {path}: {needed:,} bytes are needed, {free} are free (or a quota or a limit on file sizes is in"
        f" the way). Free some space, or set {CACHE_VARIABLE} to a folder on another disk."
    )


def require_room(path: Path, needed: int) -> None:
    """Raises AssetError if fewer than `needed` bytes are free where `path` is or will be."""
    if shutil.disk_usage(_existing(path)).free < needed:
        raise no_room(path, needed)


@contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turns what the operating system says about writing at `path` into an AssetError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise no_room(path, needed) from error
        raise AssetError(
            f"cannot use the cache at {path}: {error}. Make it writable, or set {CACHE_VARIABLE} to another folder."
        ) from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; says so once if another process has it, and waits until that one is done or dead."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is filling the cache (lock %s): waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sync(path: Path) -> None:
    """Makes a file's or folder's contents outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing(path: Path) -> Path:
    """`path` or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())
