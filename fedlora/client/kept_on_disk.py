"""What a site keeps of a run between rounds, on its disk: it outlives restarts, and a server that goes back a little.

A run's folder has `fixed.bin`, the tensors that were sent once, and `local-<round>.bin`, the site's own tensors as the
round's training left them. A round begins with the newest that are older than itself.
"""

import shutil
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict

from fedlora.client.kept import FIXED, KEPT, LOCAL
from fedlora.errors import StoreError
from fedlora.link import content
from fedlora.privacy.outbox import check_run
from fedlora.server.durable import explained, replace_synced, sync_folder
from fedlora.wire import WireError

ROUNDS = 4
"""Rounds whose own tensors are kept: as many as answers are."""

_FIXED = "fixed.bin"


class KeptOnDisk:
    """The states of all runs that a site takes part in, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, run: str, round_number: int) -> RecordDict:
        """The state from which `round_number` begins; empty if the site has not taken part in the run.

        Raises StoreError if a file cannot be read.
        """
        place = self._place(run)
        files = [place / _FIXED] if (place / _FIXED).is_file() else []
        before = [number for number in _rounds(place) if number < round_number]
        files += [_local(place, number) for number in before[-1:]]
        with explained("read", place):
            parts = [path.read_bytes() for path in files]
        try:
            found = content.records(*map(content.parse, parts))
        except WireError as error:
            raise StoreError(f"what {place} keeps of run {run} is damaged ({error}): remove that folder") from error
        if KEPT in found and LOCAL not in found:
            found[LOCAL] = ArrayRecord()  # of a method whose clients keep nothing of their own
        return found

    def save(self, run: str, round_number: int, state: RecordDict) -> None:
        """Keeps the state that the round's training left; on return the disk has it."""
        place = self._place(run)
        with explained("store a run's state in", place):
            if not place.is_dir():
                place.mkdir(mode=0o700, parents=True)
                sync_folder(place.parent)
            self._write(place / _FIXED, _part(state, FIXED, KEPT))
            if state.array_records.get(LOCAL):
                self._write(_local(place, round_number), _part(state, LOCAL))
            for number in _rounds(place)[:-ROUNDS]:
                _local(place, number).unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Removes what is kept of a run."""
        shutil.rmtree(self._place(run), ignore_errors=True)

    def runs(self) -> list[str]:
        """The runs of which something is kept."""
        return sorted(path.name for path in self._folder.glob("*") if path.is_dir())

    def _write(self, path: Path, data: bytes) -> None:
        if not path.is_file() or path.read_bytes() != data:
            replace_synced(path, data)

    def _place(self, run: str) -> Path:
        check_run(run)
        return self._folder / run


def _part(state: RecordDict, *names: str) -> bytes:
    return content.serialised(content.whole(RecordDict({name: state[name] for name in names if name in state})))


def _local(place: Path, round_number: int) -> Path:
    return place / f"local-{round_number}.bin"


def _rounds(place: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("local-")) for path in place.glob("local-*.bin"))
