"""A file of whole lines that grows, at a path where somebody else may put another one."""

import os
from pathlib import Path

from fedlora.server.durable import sync_folder

_CHUNK = 1 << 16


def open_lines(path: Path) -> int:
    """The file at `path`, made if there is none, to read and to append to; an unfinished last line is cut off.

    Raises OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    os.ftruncate(file, _whole(file))
    sync_folder(path.parent)
    return file


def is_at(file: int, path: Path) -> bool:
    """Whether the open `file` is still the one at `path`. Raises OSError."""
    here = os.fstat(file)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def append_line(file: int, line: bytes) -> None:
    """Adds one line, which ends with its end. Raises OSError if it cannot be written whole; the file is then as before.

    A full disk takes a part of the data at first and says so only when asked for the rest.
    """
    end = os.fstat(file).st_size
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        os.ftruncate(file, end)
        raise


def _whole(file: int) -> int:
    """The length of the file up to the end of its last whole line."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _CHUNK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
