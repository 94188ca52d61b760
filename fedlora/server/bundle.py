"""A tar file with the SHA-256 of everything in it: written while files grow, and taken apart without trusting it."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

from pydantic import BaseModel, ConfigDict, Field

from fedlora.errors import StoreError
from fedlora.server.durable import explained, free_bytes, sync_files

FACTS = "backup.json"
"""The last file in a bundle: what the others are."""

_PIECE = 1 << 20
_MOST_FACTS = 64 << 20  # bytes of FACTS: enough for so many files
_MOST_FILES, _MOST_FOLDERS = 300_000, 12
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


class FileFacts(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Writer:
    """Adds files to a new bundle at `path` (mode 0600). `files` has those that are in it."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError if there is something at `path`, or it cannot be written."""
        self.path = path
        self.files: dict[str, FileFacts] = {}
        with explained("write", path):
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, source: Path) -> str:
        """Adds a file as long as it is now; returns its SHA-256. What is added to its end meanwhile is left out.

        Raises StoreError if it is a link or no file, or becomes shorter meanwhile; FileNotFoundError if it is gone.
        """
        with _opened(source) as file, explained("copy", source):
            return self._put(name, file, os.fstat(file.fileno()).st_size)

    def put(self, name: str, data: bytes) -> str:
        """Adds a file with these bytes; returns its SHA-256."""
        return self._put(name, io.BytesIO(data), len(data))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Adds FACTS: `facts`, and `files`. On return the disk has all of it. Raises StoreError."""
        listed = {name: found.model_dump() for name, found in sorted(self.files.items())}
        self.put(FACTS, json.dumps({**facts, "files": listed}, indent=1, ensure_ascii=False).encode())
        with explained("write", self.path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _put(self, name: str, file: BinaryIO, size: int) -> str:
        if name in self.files:
            raise StoreError(f"{name} would be twice in {self.path}")
        check_name(name)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o600
        summed = _Summed(file)
        with explained("write", self.path, needed=size):
            self._tar.addfile(entry, summed)
        self.files[name] = FileFacts(size=size, sha256=summed.sum.hexdigest())
        return self.files[name].sha256


def unpack(path: Path, folder: Path) -> bytes:
    """Writes the files of the bundle at `path` into `folder` (files with mode 0600, folders 0700); returns its FACTS.

    Nothing is written outside, and no more bytes than the bundle has. The caller compares what is in `folder` with
    the facts (`check_files`). Raises StoreError: it is damaged or cut off, or holds anything but plain files.
    """
    with explained("read", path):
        size = path.stat().st_size
    if size > free_bytes(folder):
        raise StoreError(
            f"{path} has {size:,} bytes, and {free_bytes(folder):,} are free for {folder}: free some space"
        )
    facts: bytes | None = None
    seen: set[str] = set()
    with _reading(path) as tar:
        for entry in _members(tar):
            _check_entry(entry, facts is not None, seen)
            if entry.name == FACTS:
                facts = _facts(tar, entry)
            else:
                _write(tar, entry, folder)
    if facts is None:
        raise StoreError(f"{path} is cut off, or no copy of a server's home: it has no {FACTS} at its end")
    return facts


def check_files(folder: Path, files: Mapping[str, FileFacts]) -> None:
    """Returns, once the disk has them, if exactly `files` are in `folder`. Raises StoreError with what differs."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted(found.keys() ^ files.keys()):
        raise StoreError(f"the copy is not whole: {name} {'is missing' if name in files else 'does not belong to it'}")
    for name, path in found.items():
        if _sum(path) != files[name]:
            raise StoreError(f"the copy is damaged: the size or SHA-256 of {name} is not the one that was noted")
    with explained("write", folder):
        sync_files(found.values())


def check_name(name: str) -> None:
    """Raises StoreError unless `name` is a relative path, in one spelling, that stays inside."""
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and "\\" not in name and "/".join(parts) == name and 0 < len(parts) <= _MOST_FOLDERS
    if not plain or ".." in parts or name.startswith("/") or any(len(part.encode()) > 255 for part in parts):
        raise StoreError(f"a copy cannot have a file {name[:200]!r}: it would lie outside, or its name is none")


def _check_entry(entry: tarfile.TarInfo, ended: bool, seen: set[str]) -> None:
    check_name(entry.name)
    if entry.type not in _PLAIN or entry.issparse():
        raise StoreError(f"the copy has {entry.name[:200]!r}, which is no plain file: it was not made by fedlora")
    if ended or entry.name in seen or len(seen) >= _MOST_FILES:
        raise StoreError(f"the copy has {entry.name[:200]!r} twice, or after its end: it was not made by fedlora")
    seen.add(entry.name)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The entries; each lies after the one before it, or older versions of `tarfile` would read on for ever."""
    last = -1
    while (entry := tar.next()) is not None:
        if entry.offset_data <= last or entry.size < 0:
            raise StoreError("the copy is damaged: its entries overlap")
        last = entry.offset_data
        yield entry


def _facts(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if entry.size > _MOST_FACTS:
        raise StoreError(f"the copy's {FACTS} has {entry.size:,} bytes: it was not made by fedlora")
    return b"".join(_pieces(tar, entry))


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    target = folder / entry.name
    with explained("write", target, needed=entry.size):
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
            for piece in _pieces(tar, entry):
                file.write(piece)


def _pieces(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    source = tar.extractfile(entry)
    while source is not None and (piece := source.read(_PIECE)):
        yield piece


@contextmanager
def _reading(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with _Careful(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise StoreError(f"{path} is damaged, cut off, or no copy of a server's home ({error})") from error
    except OSError as error:
        with explained("read", path):
            raise error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file; never what a link points to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot copy {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"cannot copy {path}: it is no plain file")
        yield file


def _sum(path: Path) -> FileFacts:
    with explained("read", path), path.open("rb") as file:
        return FileFacts(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class _Summed(io.RawIOBase):
    """A file to read, whose SHA-256 becomes known meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._source, self.sum = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size)
        self.sum.update(piece)
        return piece


class _Careful(io.BufferedReader):
    """A tar file to read. A header that says it is large would be read into memory at once: it is refused."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _PIECE:
            raise StoreError("the copy has a header of more than 1 MiB: it was not made by fedlora")
        return super().read(size)
