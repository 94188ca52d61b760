"""A folder as a zip file: written on the way out, a piece at a time; and taken apart without trusting it."""

import secrets
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedlora.errors import RunError, StoreError
from fedlora.server.durable import explained
from fedlora.server.records import RunInfo, RunStatus

ADAPTER = "adapter"
"""The exported adapter in a run's folder (as in `fedlora.simulations.results`, which would load torch)."""

_PIECE = 1 << 18


def adapter_files(run: RunInfo) -> list[Path]:
    """The files of the run's exported adapter. Links are left out: they could lead out of the folder.

    Raises RunError if there is none yet.
    """
    folder = run.folder / ADAPTER
    if run.status is not RunStatus.FINISHED or not folder.is_dir():
        raise RunError(f"run {run.id} is {run.status} and has no adapter: it is exported after the last round")
    with explained("list", folder):
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    inside = folder.resolve()
    return [path for path in found if path.resolve() == inside / path.relative_to(folder)]


def zipped(files: list[Path], folder: Path) -> Iterator[bytes]:
    """A zip file of `files`, named from `folder` on; not compressed, as weights cannot be."""
    out = _Pieces()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, path.relative_to(folder).as_posix(), strict_timestamps=False)
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield out.taken()
    yield out.taken()


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Writes the files of a zip file into the new `folder` and returns them.

    Raises StoreError: a name that would lie outside, a link, no zip file, `folder` has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is there already and not empty: choose another folder with --out")
    draft = folder.absolute().parent / f".{folder.name}.{secrets.token_hex(4)}"
    with explained("write to", folder):
        try:
            with zipfile.ZipFile(archive) as opened:
                names = [_checked(entry) for entry in opened.infolist()]
                draft.mkdir(parents=True)
                opened.extractall(draft)
            draft.replace(folder)
        except zipfile.BadZipFile as error:
            raise StoreError(f"what was downloaded is no whole zip file ({error}): try again") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return [folder / name for name in names]


def _checked(entry: zipfile.ZipInfo) -> PurePosixPath:
    name = PurePosixPath(entry.filename)
    link = stat.S_ISLNK(entry.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or not name.parts or link:
        raise StoreError(f"the download has a file {entry.filename!r} that could be written elsewhere: nothing was")
    return name


class _Pieces:
    """A file for `zipfile` to write to that keeps only what was not taken yet."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        return len(data)

    def flush(self) -> None:
        """Part of what `zipfile` expects of a file; nothing is kept back here."""

    def close(self) -> None:
        """As `flush`."""

    def taken(self) -> bytes:
        data, self._waiting = bytes(self._waiting), bytearray()
        return data
