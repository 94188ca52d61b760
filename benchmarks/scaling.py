"""100,000 virtual clients, 1,000 a round: start-up, memory and seconds a client, beside those of 100 virtual clients.

    python -m benchmarks scaling
    python -m benchmarks scaling --rounds 2 --engine sequential --json

A scheduling test: each client draws a few rows (the bootstrap partitioner) and takes a few steps with tiny batches, on
a BERT of MiniLM's size with random values. So that clients alone differ, 100 and 100,000 are compared with 100 asked in
each round; 100,000 then have rounds of 1,000. Start-up is from the first line of `fedlora simulate`'s process to its
first round; memory is PSS, of all processes together, looked at five times a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.peers.workload import Shape, Workload
from benchmarks.simulation import ROOT, surroundings

SHAPE = Shape(clients=64, steps=4, batch=2, tokens=16)
"""Of the files: 512 rows, from which any number of clients draw."""


@dataclass(frozen=True)
class Scale:
    """clients: that there are. cohort: of them in a round."""

    clients: int
    cohort: int


SCALES = (Scale(100, 100), Scale(100_000, 100), Scale(100_000, 1_000))


@dataclass(frozen=True)
class Found:
    """start, total: seconds, to the first round and of the whole command. client: seconds a client of the median round.

    peak_mb: PSS of all processes. end: seconds from the last round to the command's end.
    """

    start: float
    client: float
    end: float
    total: float
    peak_mb: float


class Memory(threading.Thread):
    """Looks at a process and all below it until it ends."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._root, self.peak = psutil.Process(process), 0

    def run(self) -> None:
        """Notes the peak."""
        while self._root.is_running() and self._root.status() != psutil.STATUS_ZOMBIE:
            self.peak = max(self.peak, self._now())
            time.sleep(0.2)

    def _now(self) -> int:
        total = 0
        for process in [self._root, *_below(self._root)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total


def _below(root: psutil.Process) -> list[psutil.Process]:
    try:
        return list(root.children(recursive=True))
    except psutil.Error:
        return []


def overrides(workload: Workload, scale: Scale, rounds: int, store: Path) -> list[str]:
    """The experiment."""
    model, data = workload.folder / "model", workload.folder / "texts.csv"
    return [
        *("model=local", "model.name=w", f"model.path={model}", f"task.max_length={SHAPE.tokens}"),
        *("data=local", "data.name=w", f"data.path={data}", "data.text=text", "data.label=label"),
        *("data/partition=bootstrap", "data.partition.rows=4", "adapter.targets=[query,value]", "train.optimizer=sgd"),
        *("train.lr=0.01", "train.steps=2", "train.batch=2", f"federation.clients={scale.clients}"),
        *(f"federation.cohort={scale.cohort}", f"federation.rounds={rounds}", f"store={store}"),
        *("eval.every=1000", "eval.test=false"),
    ]


def found_of(scale: Scale, workload: Workload, rounds: int, more: Sequence[str], store: Path) -> Found:
    """One run."""
    command = [sys.executable, "-m", "fedlora.cli", "simulate", "--quiet"]
    given = [*overrides(workload, scale, rounds, store), *more]
    began = time.time()
    with (store.with_suffix(".err")).open("w+") as errors:
        process = subprocess.Popen([*command, *given], cwd=ROOT, env=surroundings(), stdout=errors, stderr=errors)
        memory = Memory(process.pid)
        memory.start()
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{scale} ended with {process.returncode}:\n{errors.read()[-3000:]}")
    ended = time.time()
    lines = [json.loads(line) for line in next(store.glob("*/events.jsonl")).read_text().splitlines()]
    moments = {
        kind: [datetime.fromisoformat(each["time"]).timestamp() for each in lines if each["event"] == kind]
        for kind in ("round_started", "round_committed")
    }
    committed = moments["round_committed"]
    seconds = [after - before for before, after in pairwise(committed[1:])] or [committed[-1] - committed[0]]
    return Found(
        start=round(moments["round_started"][0] - began, 2),
        client=round(statistics.median(seconds) / scale.cohort, 5),
        end=round(ended - committed[-1], 2),
        total=round(ended - began, 2),
        peak_mb=round(memory.peak / 2**20),
    )


def table(rows: Sequence[tuple[Scale, Found]]) -> str:
    """Markdown."""
    lines = [
        f"| {scale.clients:,} | {scale.cohort:,} | {found.start:.1f} | {found.client:.4f} | {found.end:.1f} |"
        f" {found.peak_mb:.0f} |"
        for scale, found in rows
    ]
    head = "| clients | a round | start-up, s | s a client | from the last round to the end, s | peak PSS, MB |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *lines])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=["auto", "sequential", "processes"], default="auto")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedlora-scaling-") as folder:
        workload = Workload.build(Path(folder) / "workload", SHAPE)
        for number, scale in enumerate(SCALES):
            store = Path(folder) / f"store-{number}"
            rows.append((scale, found_of(scale, workload, asked.rounds, [f"engine={asked.engine}"], store)))
            print(*rows[-1], file=sys.stderr, flush=True)
    print(json.dumps([asdict(scale) | asdict(found) for scale, found in rows]) if asked.json else table(rows))


if __name__ == "__main__":
    main()
