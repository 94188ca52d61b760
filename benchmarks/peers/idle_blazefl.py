"""BlazeFL's threads with clients that train nothing: `python -m benchmarks.peers.idle_blazefl SETTINGS`.

Below Python 3.14, for which it is made, two of its signatures are rewritten (`benchmarks.overhead` does that), and its
threads share one interpreter lock. It has no message format, no admission, no store and no events.
"""

import sys
import threading
from dataclasses import dataclass
from typing import Any

import torch
from blazefl.core import ThreadPoolClientTrainer

from benchmarks.peers.idle import STEP, WARM, Stopwatch, arrays, settings_of


@dataclass
class Package:
    """What travels."""

    parameters: dict[str, torch.Tensor]


class Trainer(ThreadPoolClientTrainer):  # type: ignore[misc]
    """Calls clients in threads."""

    def __init__(self, workers: int) -> None:
        self.num_parallels, self.device, self.device_count = workers, "cpu", 0
        self.cache: list[Package] = []
        self.stop_event = threading.Event()

    def worker(self, cid: int, device: str, payload: Package, stop_event: Any) -> Package:
        """One client."""
        del cid, device, stop_event
        return Package({name: value + STEP for name, value in payload.parameters.items()})

    def uplink_package(self) -> list[Package]:
        """What came, once."""
        found, self.cache = self.cache, []
        return found


def main() -> None:
    """All rounds; the mean is taken over stacked tensors, as in BlazeFL's examples."""
    torch.set_num_threads(1)
    settings, watch = settings_of(sys.argv), Stopwatch()
    trainer = Trainer(settings.workers)
    package = Package({name: torch.from_numpy(array) for name, array in arrays().items()})
    watch.mark()
    for _ in range(settings.rounds + WARM):
        trainer.local_process(package, list(range(settings.cohort)))
        found = trainer.uplink_package()
        names = package.parameters
        package = Package({name: torch.stack([each.parameters[name] for each in found]).mean(0) for name in names})
        watch.mark()
    watch.tell()


if __name__ == "__main__":
    main()
