"""What a client-round costs beside its training: clients that train nothing, here and in other simulators, in one go.

    python -m benchmarks overhead                       # 20 and 1,000 clients a round, 26 tensors (298 kB) each way
    python -m benchmarks overhead --cohort 20 --only fedlora --json

fedlora runs whole, as `fedlora simulate` does: messages, admission gate, fold, checkpoints, database and events; only
its worker's `train` returns at once, having added a little to each tensor, as all peers' clients do: that alone takes
some hundredths of a millisecond, so there is a row without it. No round but the last is measured (eval.every). Peers
run in environments of their own, made at the first call; BlazeFL is made for Python 3.14, and is left out where it
cannot be installed.
Figures are of the median round, without the first ones; processor time is that of all processes together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.peers.idle import Settings
from benchmarks.peers.workload import Shape, Workload
from benchmarks.simulation import ROOT, python_of, surroundings

COHORTS = (20, 1000)
Rounds = list[tuple[float, float]]
"""Seconds of each round: by the clock, and of processors."""

GENERIC = (
    ("def process_tensors_in_object[T](", "def process_tensors_in_object("),
    ("def reconstruct_from_shared_memory[T](", "def reconstruct_from_shared_memory("),
    (": T", ": object"),
    ("-> T:", "-> object:"),
)
"""What Python below 3.12 cannot read of BlazeFL, and what it can."""


@dataclass(frozen=True)
class Side:
    """module: what is run. peer: its environment, "" is this one. arguments: before the settings. adds: see
    `Settings`."""

    name: str
    module: str
    peer: str = ""
    arguments: Sequence[str] = ()
    adds: bool = True


SIDES = (
    Side("fedlora, sequential", "benchmarks.overhead_fedlora", arguments=("engine=sequential",)),
    Side(
        "fedlora, sequential, nothing added",
        "benchmarks.overhead_fedlora",
        arguments=("engine=sequential",),
        adds=False,
    ),
    Side("fedlora, processes", "benchmarks.overhead_fedlora", arguments=("engine=processes",)),
    Side("Flower (Ray)", "benchmarks.peers.idle_flower", "flower"),
    Side("pfl", "benchmarks.peers.idle_pfl", "pfl"),
    Side("BlazeFL, threads", "benchmarks.peers.idle_blazefl", "blazefl"),
)


def python_for(side: Side) -> Path | None:
    """The interpreter of a side; None if its peer cannot be installed here, and why is said."""
    if not side.peer:
        return Path(sys.executable)
    try:
        python = python_of(side.peer)
        if side.peer == "blazefl":
            make_readable(python)
    except (subprocess.CalledProcessError, StopIteration, OSError) as error:
        print(f"{side.name} is left out: it does not install here ({error})", file=sys.stderr)
        return None
    return python


def make_readable(python: Path) -> None:
    """Rewrites the signatures of BlazeFL that an older Python cannot read."""
    path = next(python.parents[1].glob("lib/python*/site-packages/blazefl/core/utils.py"))
    text = path.read_text()
    if sys.version_info < (3, 12) and "object[T]" in text:
        for before, after in GENERIC:
            text = text.replace(before, after)
        path.write_text(text)


def rounds_of(side: Side, settings: Settings, workload: Workload) -> Rounds:
    """Runs a side once; nothing if its peer is not to be had."""
    python = python_for(side)
    if python is None:
        return []
    given = [*side.arguments, str(workload.folder)] if not side.peer else []
    told = json.dumps(asdict(replace(settings, adds=side.adds)))
    command = [str(python), "-m", side.module, *given, told]
    done = subprocess.run(command, cwd=ROOT, env=surroundings(), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{side.name} gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return [(wall, cpu) for wall, cpu in json.loads(lines[0][7:])]


def measured(settings: Settings, sides: Sequence[Side], repeats: int) -> dict[str, Rounds]:
    """By side: its rounds. Each repeat has all sides, in an order that turns."""
    taken: dict[str, Rounds] = {side.name: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="fedlora-overhead-") as folder:
        shape = Shape(clients=settings.cohort, steps=4, batch=2, tokens=16)
        workload = Workload.build(Path(folder) / "workload", shape)
        for number in range(repeats):
            for side in [*sides[number:], *sides[:number]]:
                found = rounds_of(side, settings, workload)
                taken[side.name] += found
                print(f"{settings.cohort}: {side.name}: {figures(found, settings.cohort)}", file=sys.stderr, flush=True)
    return taken


def figures(rounds: Rounds, cohort: int) -> tuple[float, float]:
    """Milliseconds of a client-round: by the clock, and of processors; of the median round."""
    wall, cpu = (1e3 * statistics.median(part) / cohort for part in zip(*rounds, strict=True)) if rounds else (0.0, 0.0)
    return round(wall, 3), round(cpu, 3)


def table(cohort: int, taken: Mapping[str, Rounds]) -> str:
    """Markdown: milliseconds of a client-round, and beside the better of fedlora's engines."""
    rows = {side: figures(rounds, cohort) for side, rounds in taken.items() if rounds}
    best = min((wall for side, (wall, _) in rows.items() if side.startswith("fedlora")), default=float("nan"))
    lines = [f"| {side} | {wall:.2f} | {cpu:.2f} | {wall / best:.2f} × |" for side, (wall, cpu) in rows.items()]
    head = f"| {cohort} clients a round | ms by the clock | ms of processors | beside fedlora's best |"
    return "\n".join([head, "| --- | --- | --- | --- |", *lines])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=int, default=0, help="clients of a round; 0: 20, then 1000")
    parser.add_argument("--only", default="", help="sides with this text in their name")
    parser.add_argument(
        "--rounds", type=int, default=0, help="that are timed, of each repeat; 0: 20, or 4 of 1000 clients"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sides = [side for side in SIDES if asked.only in side.name]
    print(f"load average {os.getloadavg()}", file=sys.stderr)
    taken = {}
    for cohort in [asked.cohort] if asked.cohort else COHORTS:
        settings = Settings(cohort, asked.rounds or (20 if cohort < 200 else 4))
        taken[cohort] = measured(replace(settings, workers=os.cpu_count() or 1), sides, asked.repeats)
    print(json.dumps(taken) if asked.json else "\n\n".join(table(*each) for each in taken.items()))


if __name__ == "__main__":
    main()
