"""Where a server puts answers until their round is committed: durable before they are acknowledged, then deleted.

Single updates are personal data: files are for this user alone.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedlora.link import limits
from fedlora.link.v1.link_pb2 import Chunk
from fedlora.server.durable import explained, sync_folder

FOLDER = "incoming"
_PART, _ANSWER = ".part", ".answer"
_ID = 64  # characters of a work's id, with which the names of its files begin


class UploadError(Exception):
    """A client's upload is not what it announced; the text says how."""


@dataclass(frozen=True)
class Announced:
    """What a client says that it is about to send."""

    work: str
    size: int
    sha256: bytes

    @property
    def part(self) -> str:
        """The file's name while it grows: another content begins a file of its own."""
        return f"{self.work}-{self.sha256.hex()[:16]}{_PART}"


class Inbox:
    """The answers of one run, in `folder`/incoming."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        with explained("make the folder for updates", self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(stat.S_IRWXU)
            self._parts = {path.name[:_ID]: path.name for path in self._folder.glob(f"*{_PART}")}

    def answer(self, work: str) -> Path | None:
        """The file with the whole answer to `work`, if it is there."""
        path = self._folder / f"{work}{_ANSWER}"
        return path if path.is_file() else None

    def receive(self, announced: Announced) -> "Receiving":
        """Begins an upload, or goes on with one that broke off. Raises StoreError if the disk does not take it."""
        path = self._folder / announced.part
        earlier = self._parts.get(announced.work, path.name)
        if earlier != path.name:  # a try with another content
            (self._folder / earlier).unlink(missing_ok=True)
        self._parts[announced.work] = path.name
        return Receiving(path, announced)

    def keep(self, path: Path, work: str) -> Path:
        """Makes a whole, checked upload the answer to `work`; on return the disk has it."""
        target = self._folder / f"{work}{_ANSWER}"
        with explained("store an update at", target):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target)
            sync_folder(self._folder)
        return target

    def forget(self, works: Iterable[str]) -> None:
        """Deletes the answers to `works`, and what came of them."""
        over = set(works)
        for path in self._folder.iterdir():  # once: looking for each work's files takes a cohort's square
            if path.name[:_ID] in over:
                path.unlink(missing_ok=True)
        for work in over:
            self._parts.pop(work, None)

    def keep_only(self, works: Collection[str]) -> None:
        """Deletes all but the answers to `works` and what came of them."""
        self.forget({path.name[:_ID] for path in self._folder.iterdir()} - set(works))

    def clear(self) -> None:
        """Deletes everything: the run has ended, or its rounds are committed."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)


class Receiving:
    """One upload, growing. `offset` is how much is there."""

    def __init__(self, path: Path, announced: Announced) -> None:
        self.path, self.announced = path, announced
        self._hash = hashlib.sha256()
        with explained("store an update at", path, needed=announced.size):
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            self.offset = self._begun()

    def _begun(self) -> int:
        """Reads what an earlier connection left, so that the hash goes on from there."""
        while block := self._file.read(1 << 20):
            self._hash.update(block)
        return self._file.tell()

    def needs(self, chunk: Chunk) -> bool:
        """Whether this is a chunk as a client cuts them: of full length, or the last one."""
        whole = len(chunk.data) == limits.CHUNK or chunk.offset + len(chunk.data) == self.announced.size
        return whole and chunk.work == self.announced.work and chunk.offset == self.offset

    def add(self, offset: int, data: bytes) -> None:
        """The next chunk. Raises UploadError if it is not the next, or more than was announced."""
        if offset != self.offset:
            raise UploadError(f"a chunk begins at {offset}, but {self.offset} bytes are there")
        if not data or self.offset + len(data) > self.announced.size:
            raise UploadError(f"a chunk of {len(data)} bytes does not fit into the {self.announced.size} announced")
        with explained("store an update at", self.path, needed=self.announced.size):
            self._file.write(data)
            self._file.flush()
        self._hash.update(data)
        self.offset += len(data)

    @property
    def whole(self) -> bool:
        """Whether all is there."""
        return self.offset >= self.announced.size

    def check(self) -> None:
        """Closes the file. Raises UploadError, and forgets the bytes, if they are not those that were announced."""
        self.close()
        if self.offset != self.announced.size or self._hash.digest() != self.announced.sha256:
            self.path.unlink(missing_ok=True)
            raise UploadError("the bytes that came do not have the SHA-256 that was announced: send them again")

    def close(self) -> None:
        """Closes the file; what is there stays, for when the client comes back."""
        self._file.close()
