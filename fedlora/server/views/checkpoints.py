"""Which rounds' checkpoints are on the disk, and how large they are."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlora.server.durable import explained
from fedlora.server.records import RoundRecord, RunInfo
from fedlora.server.views.metrics import finite
from fedlora.server.views.model import CheckpointRow


class Sizes:
    """Bytes of checkpoints by folder; a checkpoint's files keep their sizes."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, int]] = {}
        self._lock = threading.Lock()

    def of(self, run: RunInfo) -> Mapping[int, int]:
        """Round → bytes, of all that are there, committed or not."""
        from fedlora.server.checkpoint import round_folder, saved_rounds  # loads numpy, which lists of runs do not need

        there = saved_rounds(run.folder)
        with self._lock:
            known = self._known.get(run.id, {})
        sizes = {number: known.get(number) or _bytes(round_folder(run.folder, number)) for number in there}
        with self._lock:
            self._known[run.id] = sizes
        return sizes


def checkpoints(records: Sequence[RoundRecord], sizes: Mapping[int, int], metric: str) -> Sequence[CheckpointRow]:
    """The committed ones, oldest first."""
    return [
        CheckpointRow(record.round, record.committed_at, sizes[record.round], finite(record.metrics.get(metric)))
        for record in records
        if record.round in sizes
    ]


def _bytes(folder: Path) -> int:
    with explained("look at", folder):
        return sum((Path(place) / name).stat().st_size for place, _, names in os.walk(folder) for name in names)
