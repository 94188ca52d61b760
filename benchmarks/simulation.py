"""Clients a second of a simulation, beside Flower's (Ray) and pfl-research's, on one workload in one go.

    python -m benchmarks simulation                          # W, ragged texts, small clients: each side in turn, twice
    python -m benchmarks simulation --workload W --repeats 3 --json
    python -m benchmarks simulation --only fedlora
    python -m benchmarks simulation --workload W --side fedlora --side "pfl, tuned" --repeats 4    # speeds drift
    python -m benchmarks simulation --device cuda --here     # peers are in this environment, and share the GPU

Peers run in environments of their own, made at the first call in the user's cache (they borrow torch, transformers and
peft from this one), at their defaults and tuned: plain attention, the faster exact matrix products, one model kept from
client to client, padding to the longest text of a batch, memory kept by the C library in large pages. fedlora runs as
`fedlora simulate` does, with its store and events. Rounds are timed from the end of one to the end of the next, without
the first; printed are medians. A quiet
machine is needed: what else runs on it slows sides by chance.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.peers.workload import Settings, Shape, Workload

ROOT = Path(__file__).resolve().parents[1]
PEERS: Mapping[str, Sequence[str]] = {
    "flower": ("ray==2.55.1",),
    "pfl": ("pfl>=0.6,<0.7",),
    "blazefl": ("--no-deps", "--ignore-requires-python", "blazefl==3.0.0"),
}
WORKLOADS: Mapping[str, Shape] = {
    "W": Shape(),
    "ragged": Shape(ragged=True),
    "small": Shape(batch=2, tokens=16),
}
TUNED = Settings(attention="eager", matmul="medium")


@dataclass(frozen=True)
class Side:
    """peer: "" is fedlora, with `overrides`. base: in which precision the frozen base computes. workers: processes of a
    peer; None: one a core."""

    name: str
    peer: str = ""
    settings: Settings = field(default_factory=Settings)
    overrides: Sequence[str] = ()
    base: str = "float32"
    workers: int | None = None


HALF = replace(TUNED, half=True)
KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=2147483647"
    ":glibc.malloc.mmap_threshold=33554432:glibc.malloc.top_pad=67108864"
}
"""For tuned peers: what `fedlora simulate` sets for itself (`fedlora.training.heap`), in the C library's own words."""
EXACT, ROUNDED = "float32", "bfloat16"

SIDES = (
    Side("fedlora"),
    Side("fedlora, train.matmul=medium", overrides=("train.matmul=medium",)),
    Side("fedlora, all tokens in the last layer", overrides=("model.head=mean",)),
    Side("Flower, new model a client", "flower", Settings(fresh=True)),
    Side("Flower, model kept", "flower"),
    Side("Flower, tuned", "flower", TUNED),
    Side("pfl, two processes", "pfl"),
    Side("pfl, tuned", "pfl", TUNED),
    Side("fedlora, bfloat16", overrides=("train.precision=bfloat16",), base=ROUNDED),
    Side("Flower, bfloat16", "flower", HALF, base=ROUNDED),
    Side("pfl, bfloat16", "pfl", HALF, base=ROUNDED),
)

FAST = Settings(matmul="high")

ON_CUDA = (
    Side("fedlora"),
    Side("fedlora, train.matmul=high", overrides=("train.matmul=high",)),
    Side("fedlora, one client in a pass", overrides=("engine.group=1",)),
    Side("Flower, 4 actors", "flower", workers=4),
    Side("Flower, tuned (12 actors, TF32)", "flower", FAST, workers=12),
    Side("pfl", "pfl"),
    Side("pfl, tuned (TF32)", "pfl", FAST),
    Side("fedlora, bfloat16", overrides=("train.precision=bfloat16",), base=ROUNDED),
    Side("Flower, bfloat16 (12 actors)", "flower", replace(FAST, half=True), base=ROUNDED, workers=12),
    Side("pfl, bfloat16", "pfl", replace(FAST, half=True), base=ROUNDED),
)
"""On one GPU. Attention is what transformers takes there by itself, which is the fast one."""


@dataclass(frozen=True)
class Machine:
    """device: as torch calls it. here: peers are installed in this environment."""

    device: str = "cpu"
    here: bool = False


THIS = Machine()


def python_of(peer: str, here: bool = False) -> Path:
    """The Python of the peer's environment, which is made if need be. here: this one, which has the peer."""
    if here:
        return Path(sys.executable)
    from platformdirs import user_cache_path

    folder = user_cache_path("fedlora") / "benchmarks" / peer
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
        (folder / "made").touch()
    return python


def peer_rounds(side: Side, workload: Workload, rounds: int, machine: Machine = THIS) -> list[float]:
    """Seconds of a peer's rounds."""
    workers = side.workers or os.cpu_count() or 1
    settings = json.dumps(asdict(replace(side.settings, rounds=rounds, workers=workers, device=machine.device)))
    command = [
        str(python_of(side.peer, machine.here)),
        "-m",
        f"benchmarks.peers.{side.peer}",
        str(workload.folder),
        settings,
    ]
    around = {**surroundings(), **(KEPT_MEMORY if side.settings.matmul else {})}
    done = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{side.name} gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return list(json.loads(lines[0][7:]))


def surroundings() -> dict[str, str]:
    """One thread a process, and the repository to import from."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def overrides_of(workload: Workload, rounds: int, store: Path) -> list[str]:
    """The workload as `fedlora simulate` is told it, for `rounds` rounds."""
    shape, model, data = workload.shape, workload.folder / "model", workload.folder / "texts.csv"
    return [
        *("model=local", "model.name=w", f"model.path={model}", f"task.max_length={shape.tokens}"),
        *("data=local", "data.name=w", f"data.path={data}", "data.text=text", "data.label=label"),
        "model.head=stock",  # as the peers' model
        *("data/partition=natural", "data.partition.column=client"),
        *("adapter.targets=[query,value]", "train.optimizer=sgd", "train.lr=0.01", f"train.steps={shape.steps}"),
        *(f"train.batch={shape.batch}", f"federation.clients={shape.clients}", f"federation.cohort={shape.clients}"),
        *(f"federation.rounds={rounds}", "eval.every=1000", "eval.test=false", f"store={store}"),
    ]


def fedlora_rounds(side: Side, workload: Workload, rounds: int, store: Path, machine: Machine = THIS) -> list[float]:
    """Seconds from commit to commit, without the first round and the last one, which measures the model too."""
    overrides = [*overrides_of(workload, rounds + 2, store), f"train.device={machine.device}", *side.overrides]
    command = [sys.executable, "-m", "fedlora.cli", "simulate", "--quiet", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side.name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    newest = max(store.glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    moments = [datetime.fromisoformat(one["time"]).timestamp() for one in lines if one["event"] == "round_committed"]
    return [after - before for before, after in pairwise(moments[1:-1])]


def measured(name: str, sides: Sequence[Side], asked: argparse.Namespace) -> dict[str, list[float]]:
    """By side: seconds of rounds. Each repeat has all sides, in an order that turns."""
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    machine = Machine(asked.device, asked.here)
    with tempfile.TemporaryDirectory(prefix="fedlora-simulation-") as folder:
        workload = Workload.build(Path(folder) / "workload", WORKLOADS[name])
        for number in range(asked.repeats):
            for side in [*sides[number:], *sides[:number]]:
                store = Path(folder) / f"store-{number}-{sides.index(side)}"
                if side.peer:
                    found = peer_rounds(side, workload, asked.rounds, machine)
                else:
                    found = fedlora_rounds(side, workload, asked.rounds, store, machine)
                taken[side.name] += found
                print(f"{name}: {side.name}: {[round(each, 3) for each in found]}", file=sys.stderr, flush=True)
    return taken


def table(name: str, sides: Sequence[Side], taken: Mapping[str, Sequence[float]]) -> str:
    """Markdown: clients a second, and how many times as fast fedlora (its first side) is, for each precision."""
    rates = {side: WORKLOADS[name].clients / statistics.median(taken[side.name]) for side in sides}
    rows = [f"| {name} | clients/s | fedlora is | slowest and fastest round |", "| --- | --- | --- | --- |"]
    for base in (EXACT, ROUNDED):
        ours = next((rate for side, rate in rates.items() if side.base == base and not side.peer), float("nan"))
        for side, rate in rates.items():
            if side.base == base:
                spread = f"{max(taken[side.name]):.2f} s, {min(taken[side.name]):.2f} s"
                rows.append(f"| {side.name} | {rate:.2f} | {ours / rate:.2f} × | {spread} |")
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--only", default="", help="sides with this text in their name")
    parser.add_argument("--side", action="append", default=[], help="this side; may be given several times")
    parser.add_argument("--rounds", type=int, default=4, help="that are timed, of each repeat")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--here", action="store_true", help="peers are installed in this environment")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error(f"--rounds {asked.rounds}: at least 2: timed is from one's end to the next one's")
    known = [side for side in (SIDES if asked.device == "cpu" else ON_CUDA) if asked.only in side.name]
    strange = set(asked.side) - {side.name for side in known}
    if strange or not known:
        parser.error(f"no such side: {sorted(strange) or asked.only}; there are {[side.name for side in known]}")
    sides = [side for side in known if not asked.side or side.name in asked.side]
    names = list(WORKLOADS) if asked.workload == "all" else [asked.workload]
    print(f"load average {os.getloadavg()}", file=sys.stderr)
    taken = {name: measured(name, sides, asked) for name in names}
    print(json.dumps(taken) if asked.json else "\n\n".join(table(name, sides, found) for name, found in taken.items()))


if __name__ == "__main__":
    main()
