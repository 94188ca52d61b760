"""What record-level DP-SGD costs of a group's throughput: the same clients trained with and without it, in pairs.

    python -m benchmarks dp_cohort                            # W, ragged texts, small clients; groups of 4
    python -m benchmarks dp_cohort --workload W --group 8 --pairs 20 --matmul highest --json

One process, one thread. Each pair asks a group of clients for one round without privacy and for one with it, in turn
the one and the other first; both go the whole way from task to answer (`fedlora.client.group`), which with DP has the
clients' ledgers in it and noise from the operating system. Steps are as many, and a Poisson sample's mean is the batch
without privacy. Since samples vary, a pair's ratio is of the processor's time a record that was in fact trained on.
Printed are the median with its 95 % interval (bootstrap over pairs); and, under "a round", the ratio of all time, which
has the chance of the samples in it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cohort import Cohort, Counted, spent
from benchmarks.dp_step import summary
from benchmarks.peers.workload import Shape, Workload
from benchmarks.simulation import WORKLOADS

TARGET = 1.10
WARM = 2
CLOCKS = {"cpu": 0, "wall": 1}


@dataclass
class Side:
    """One of the two. records: counts what is trained on."""

    cohort: Cohort
    records: Counted

    @classmethod
    def of(cls, workload: Workload, store: Path, overrides: Sequence[str]) -> "Side":
        """The workload's clients, with rows that are counted."""
        cohort = Cohort.of(workload, store, overrides)
        return cls(cohort, cohort.counted())

    def round(self, clients: int, clock: int) -> tuple[float, int]:
        """Seconds of a round, and the records that it trained on."""
        self.records.records = 0
        seconds = spent(lambda: self.cohort.answer(clients))[clock]
        return seconds, self.records.records


def sides(workload: Workload, folder: Path, asked: argparse.Namespace) -> dict[str, Side]:
    """Without and with DP, of the same mean sample: rate = batch · clients / rows."""
    common = [f"train.matmul={asked.matmul}", "train.threads=1"]
    plain = Side.of(workload, folder / "open", common)
    worker, shape = plain.cohort.worker, workload.shape
    rows = sum(len(worker.rows(client).train) for client in range(asked.group))
    rate = min(1.0, shape.batch * asked.group / rows)
    privacy = ["privacy=dp", "privacy.epsilon=null", "privacy.noise_multiplier=1", f"privacy.rate={rate}"]
    return {"open": plain, "private": Side.of(workload, folder / "private", [*common, *privacy])}


def measured(shape: Shape, asked: argparse.Namespace) -> dict[str, Any]:
    """The pairs, and what is made of them."""
    taken: dict[str, list[tuple[float, int]]] = {"open": [], "private": []}
    with tempfile.TemporaryDirectory(prefix="fedlora-dp-cohort-") as folder:
        both = sides(Workload.build(Path(folder) / "workload", shape), Path(folder), asked)
        for number in range(-WARM, asked.pairs):
            for name in sorted(both, reverse=number % 2 == 1):
                found = both[name].round(asked.group, CLOCKS[asked.clock])
                if number >= 0:
                    taken[name].append(found)
        if asked.profile:
            print(profile(both["private"], asked.group), file=sys.stderr)
    return result(taken)


def result(taken: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, Any]:
    """taken: (seconds, records) of each pair's rounds."""
    each = {name: [seconds / records for seconds, records in rounds] for name, rounds in taken.items()}
    whole = {name: [seconds for seconds, _ in rounds] for name, rounds in taken.items()}
    return {
        "a record": summary(each["private"], each["open"]),
        "a round": summary(whole["private"], whole["open"]),
        "records": {name: sum(records for _, records in rounds) for name, rounds in taken.items()},
    }


def profile(side: Side, clients: int) -> str:
    """Where a private round goes, by functions: their own time first."""
    import cProfile
    import io
    import pstats

    kept, out = cProfile.Profile(), io.StringIO()
    kept.runcall(side.cohort.answer, clients)
    pstats.Stats(kept, stream=out).strip_dirs().sort_stats("tottime").print_stats(20)
    return out.getvalue()


def told(name: str, found: Mapping[str, Any]) -> str:
    """A row of the table."""
    record, whole = found["a record"], found["a round"]
    verdict = "yes" if record["high"] <= TARGET else "no"
    return (
        f"| {name} | {record['ratio']:.3f} | {record['low']:.3f} – {record['high']:.3f} | {whole['ratio']:.3f}"
        f" | {whole['low']:.3f} – {whole['high']:.3f} | {verdict} |"
    )


def main() -> None:
    """The command."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--matmul", choices=["highest", "high", "medium"], default="medium")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="wall: on a quiet machine")
    parser.add_argument("--profile", action="store_true", help="the private round by functions, to stderr")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = list(WORKLOADS) if asked.workload == "all" else [asked.workload]
    found = {name: measured(WORKLOADS[name], asked) for name in names}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"| groups of {asked.group} | DP's cost, a record | 95 % interval | a round | 95 % interval | ≤ {TARGET:.2f} |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(told(name, row) for name, row in found.items()))


if __name__ == "__main__":
    main()
