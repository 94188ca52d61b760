"""A client's own copies of its last answers, on its disk: who asks for the same work again gets the same bytes."""

from pathlib import Path

from fedlora.server.durable import explained, replace_synced

KEPT = 4
"""Answers that are kept: the newest, and a few before, which a server that was set back may ask for."""


class AnswerBox:
    """Answers by the ids of their works, in a folder for this user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with explained("make the folder for answers", folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, work: str) -> bytes | None:
        """The answer to `work`; None if it was never given, or is no longer kept."""
        path = self._path(work)
        return path.read_bytes() if path.is_file() else None

    def store(self, work: str, data: bytes) -> None:
        """Keeps an answer; on return the disk has it. Older ones go."""
        with explained("store an answer in", self._folder, needed=len(data)):
            replace_synced(self._path(work), data)
        by_age = sorted(self._folder.glob("*.answer"), key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[:-KEPT]:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all."""
        for path in self._folder.glob("*.answer"):
            path.unlink(missing_ok=True)

    def _path(self, work: str) -> Path:
        return self._folder / f"{work}.answer"
