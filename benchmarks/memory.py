"""Peak memory of a simulation, beside Flower's (Ray) and pfl-research's, and as the cohort grows.

    python -m benchmarks memory                      # W by engine and group, the peers, cohorts of 10, 40 and 160
    python -m benchmarks memory --only fedlora --cohorts 10 40 --json

Each side is a run of its own, as in `python -m benchmarks simulation`, from its start to its end. Several times a
second the proportional set size of all its processes is summed, which counts a page that several of them share once
(/proc/*/smaps_rollup, Linux). Given is the highest sum, without pages of mapped files (programs, libraries, weights
read in place) and with them: of those a part is missing if other programs of the machine have mapped the same files.
"""

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.workload import Shape, Workload
from benchmarks.simulation import SIDES, WORKLOADS, Side, fedlora_rounds, peer_rounds

EVERY = 0.2
"""Seconds between two looks."""

WORKERS = 2
GROUPS = (1, 2, 4, 8)
ENGINES = (
    Side("fedlora, sequential", overrides=("engine=sequential", "train.threads=1")),
    *(
        Side(
            f"fedlora, {WORKERS} processes, groups of {group}",
            overrides=("engine=processes", f"engine.workers={WORKERS}", f"engine.group={group}"),
        )
        for group in GROUPS
    ),
)
PEERS = tuple(side for side in SIDES if side.peer and not side.settings.half)


@dataclass(frozen=True)
class Sum:
    """MiB of all processes at one moment. own: without mapped files; all: with them."""

    own: float = 0.0
    all: float = 0.0
    processes: int = 0

    def highest(self, other: "Sum") -> "Sum":
        """Of each figure the higher."""
        return Sum(max(self.own, other.own), max(self.all, other.all), max(self.processes, other.processes))


class Watched:
    """Within the block, looks at all processes below this one, again and again; then `peak` is the highest sum."""

    def __init__(self) -> None:
        self.peak = Sum()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self.peak = self.peak.highest(summed())


def summed() -> Sum:
    """Of all processes below this one, now."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(OSError):  # it has ended meanwhile
            found.append(sizes(Path(f"/proc/{child.pid}/smaps_rollup").read_text()))
    own = sum(each["Pss_Anon"] + each["Pss_Shmem"] for each in found)
    return Sum(own / 1024, sum(each["Pss"] for each in found) / 1024, len(found))


def sizes(rollup: str) -> dict[str, int]:
    """The figures of one smaps_rollup, in kB."""
    lines = [line.split() for line in rollup.splitlines()[1:]]
    return {words[0].removesuffix(":"): int(words[1]) for words in lines}


def peak_of(work: Callable[[], object]) -> Sum:
    """The highest sum while `work` runs."""
    with Watched() as watched:
        work()
    return watched.peak


def measured(side: Side, workload: Workload, rounds: int, store: Path) -> Sum:
    """A whole run of one side."""
    if side.peer:
        return peak_of(lambda: peer_rounds(side, workload, rounds))
    return peak_of(lambda: fedlora_rounds(side, workload, rounds, store))


def cases(asked: argparse.Namespace) -> Iterator[tuple[Side, Shape]]:
    """All that is measured: every side on W, then the growing cohorts."""
    sides = [side for side in (*ENGINES, *PEERS) if asked.only in side.name]
    shape = WORKLOADS[asked.workload]
    yield from ((side, shape) for side in sides)
    growing = [side for side in sides if side in asked.growing]
    yield from ((side, replace(shape, clients=clients)) for side in growing for clients in asked.cohorts)


def rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each case."""
    found = []
    with tempfile.TemporaryDirectory(prefix="fedlora-memory-") as name:
        for number, (side, shape) in enumerate(cases(asked)):
            folder = Path(name) / f"workload-{shape.clients}"
            workload = Workload(folder, shape) if folder.exists() else Workload.build(folder, shape)
            peak = measured(side, workload, asked.rounds, Path(name) / f"store-{number}")
            found.append({"side": side.name, "clients": shape.clients, **asdict(peak)})
            print(told(found[-1]), file=sys.stderr, flush=True)
    return found


TITLE = "| side | clients in a round | MiB | MiB with mapped files | processes |\n| --- | --- | --- | --- | --- |"


def told(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    return f"| {row['side']} | {row['clients']} | {row['own']:.0f} | {row['all']:.0f} | {row['processes']} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="W")
    parser.add_argument("--only", default="", help="sides with this text in their name")
    parser.add_argument("--cohorts", type=int, nargs="*", default=[10, 40, 160], help="sizes of the growing cohort")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    # A round of a sequential engine has nothing that could grow beside these; peers: each model kept, at its defaults.
    asked.growing = [ENGINES[1], ENGINES[3], *(side for side in PEERS if side.settings == Side("").settings)]
    found = rows(asked)
    print(json.dumps(found, indent=2) if asked.json else "\n".join([TITLE, *map(told, found)]))


if __name__ == "__main__":
    main()
