"""Result folders that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import ModelError
from fedlora.server.durable import explained, sync_folder


@contextmanager
def whole_folder(target: Path, mark: str) -> Iterator[Path]:
    """A new folder beside `target`, to be filled; it takes `target`'s place when the block ends without an error.

    A folder that is there already is replaced if it is empty or has the file `mark`: then it is an earlier result.

    Raises ModelError for any other `target` that exists, StoreError if the disk does not play along.
    """
    target = target.absolute()
    _require_replaceable(target, mark)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with explained("write", target):
        draft.mkdir(parents=True)
        try:
            yield draft
            _sync(draft)
            _swap(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _require_replaceable(target: Path, mark: str) -> None:
    if not target.exists() or (target.is_dir() and (not any(target.iterdir()) or (target / mark).is_file())):
        return
    raise ModelError(f"{str(target)!r} exists and holds something else (no {mark}): choose another --output or move it")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _swap(draft: Path, target: Path) -> None:
    old = draft.with_name(f"{draft.name}.old")
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)
