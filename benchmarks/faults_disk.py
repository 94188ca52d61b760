"""Disks that can be full: a small file system of their own where this user may mount one, else a limit on a process."""

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

FILLER = "filler"


class Disk(Protocol):
    """What one process writes to."""

    def fill(self) -> None:
        """From now on nothing more fits."""
        ...

    def free(self) -> None:
        """There is room again."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class SmallDisk:
    """A tmpfs at `folder`. Raises OSError if this user may not mount one."""

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = f"size={megabytes}m,mode=0700"
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True
            )
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise OSError(f"no tmpfs can be mounted at {folder}: {error}") from error

    def fill(self) -> None:
        """Writes until nothing more fits."""
        with (self.folder / FILLER).open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                block = bytes(size)
                try:
                    while file.write(block) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Takes the filler away."""
        (self.folder / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


class LimitedDisk:
    """Every write of a process to a file fails. process: the id of the process, as it is now."""

    def __init__(self, process: Callable[[], int | None]) -> None:
        self._process = process

    def fill(self) -> None:
        """Files may have no byte."""
        self._limit(0)

    def free(self) -> None:
        """Files may be as large as they like."""
        self._limit(None)

    def close(self) -> None:
        """Nothing is to be done."""

    def _limit(self, size: int | None) -> None:
        process = self._process()
        if process is None:
            return
        hard = resource.prlimit(process, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def small_disk(folder: Path) -> SmallDisk | None:
    """A file system of its own at `folder`; None where this user may not mount one."""
    try:
        return SmallDisk(folder) if os.geteuid() == 0 else None
    except OSError:
        return None
