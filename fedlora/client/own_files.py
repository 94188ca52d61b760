"""Files and folders that only their owner may read: 0600 and 0700 from the first instant, whatever the umask is."""

import os
import secrets
from pathlib import Path

from fedlora.server.durable import sync_folder

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def open_own(path: str, flags: int) -> int:
    """An `opener` for `open`: a file that it makes has the mode 0600."""
    return os.open(path, flags, FILE_MODE)


def write_own(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step, mode 0600: a crash leaves the old file or the new one, whole.

    Two processes may do it at once: one of them is last. Raises OSError if the disk does not take it.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb", opener=open_own) as file:  # Path.open takes no opener
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_own_folder(path: Path) -> None:
    """Makes the folder `path`, mode 0700, and those above it that are missing. One that is there gets that mode.

    Raises OSError if it cannot be made.
    """
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    path.chmod(FOLDER_MODE)
    sync_folder(path.parent)
