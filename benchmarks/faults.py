"""What becomes of a run when something dies, sleeps, fills up or breaks: a table, one row a fault.

    make faults                                       # 50 kills of the server, and the rest: about half an hour
    make faults ARGS=--quick                          # one case or a few of each row
    make faults ARGS='--only server --kills 10 --seed 3'

A server and three clients as processes over mutual TLS, each client behind a proxy that can misbehave, train a tiny
model; each case is a run of its own. It must end; its adapter must have the bits of a simulation of the clients that
reported; no update may be counted twice or lost, which rosters and the clients' own records of what they sent tell.
Ends with 1 if one case is not as it must be.
"""

import argparse
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import faults_lines as lines
from benchmarks import faults_rows as rows
from benchmarks.faults_judge import Case, Verdict, carry_out, nothing
from benchmarks.faults_world import World

NOTHING = "nothing"
"""The row of a run that nobody hurts. Its seconds are those within which faults at random instants are drawn."""


@dataclass(frozen=True)
class Plan:
    """How much is tried. kills: of the server at random instants. repeats: of each other row that has instants."""

    kills: int
    repeats: int
    commits: tuple[int, ...]
    silence: float
    heartbeat: float
    seed: int


QUICK = Plan(kills=1, repeats=1, commits=(1,), silence=9.0, heartbeat=2.0, seed=0)
WHOLE = Plan(kills=50, repeats=5, commits=(1, 2, 3), silence=60.0, heartbeat=0.0, seed=0)


def unhurt() -> Case:
    """For comparison."""
    return Case(NOTHING, "an unhurt run", nothing, (f"federation.rounds={rows.ROUNDS}",))


def cases(plan: Plan, length: float) -> Iterator[Case]:
    """All cases, row by row. length: of an unhurt run, seconds."""
    yield from rows.server_random(plan.kills, plan.seed, length)
    yield from rows.server_steps(plan.commits)
    yield from rows.server_private(plan.repeats, plan.seed)
    yield from rows.asked_to_end()
    yield from rows.client_idle(plan.repeats)
    yield from rows.client_training(plan.repeats)
    yield from rows.client_uploading(plan.repeats)
    yield from lines.cuts(plan.repeats, plan.seed, length)
    yield from lines.away()
    yield from lines.silent(plan.silence)
    yield from lines.slow()
    yield from lines.spoilt(plan.repeats, plan.seed)
    yield from lines.server_full(2 * plan.repeats, plan.seed, length)
    yield from lines.client_full()
    yield from rows.clocks()
    yield from rows.twins()
    yield from rows.stopped(max(1, plan.repeats // 3))


@contextmanager
def world(folder: Path, heartbeat: float, *, mounts: bool = True) -> Iterator[World]:
    """A federation with a tiny model, set up and connected. mounts: whether small disks are mounted where they may."""
    from transformers.utils.logging import disable_progress_bar

    from tests.tiny import build_bert, build_text_csv

    disable_progress_bar()
    model, data = build_bert(folder / "bert"), build_text_csv(folder / "texts.csv")
    found = World(folder=folder, model=model, data=data, heartbeat=heartbeat, small=mounts)
    try:
        found.build()
        yield found
    finally:
        found.close()


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown, one row a fault."""
    head = ["fault", "cases", "ended as they must", "same bits", "twice or lost", "roster and log", "s a case"]
    body = [_row(list(group)) for group in _by_row(verdicts)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _by_row(verdicts: Sequence[Verdict]) -> Iterator[Iterator[Verdict]]:
    for name in dict.fromkeys(verdict.case.row for verdict in verdicts):
        yield (verdict for verdict in verdicts if verdict.case.row == name)


def _row(group: Sequence[Verdict]) -> list[str]:
    said = dict.fromkeys(verdict.said for verdict in group if verdict.said)
    return [
        group[0].case.row,
        str(len(group)),
        str(sum(not verdict.problem for verdict in group)),
        _of_those([verdict.same for verdict in group if verdict.same is not None]),
        str(sum(len(verdict.miscounted) for verdict in group)),
        " / ".join(list(said)[:3]).replace("|", "¦"),
        f"{statistics.median(verdict.seconds for verdict in group):.1f}",
    ]


def _of_those(same: Sequence[bool]) -> str:
    return str(sum(same)) if same else "–"


def tell(number: int, verdict: Verdict) -> None:
    """One line for a case, and more if it is not as it must be."""
    good = "good" if verdict.good else "NOT GOOD"
    text = f"[{number}] {verdict.case.row}: {verdict.case.name}: {good} in {verdict.seconds:.1f} s; {verdict.said}"
    print(text, flush=True)
    for line in (verdict.problem, *verdict.miscounted, *(("the bits are others",) if verdict.same is False else ())):
        if line:
            print(f"      {line}", flush=True)


def measured(plan: Plan, only: str, folder: Path, *, mounts: bool = True) -> list[Verdict]:
    """Carries out all cases whose row has `only` in its name, and before them an unhurt run."""
    with world(folder, plan.heartbeat, mounts=mounts) as found:
        verdicts = [carry_out(unhurt(), found)]
        tell(0, verdicts[0])
        length = verdicts[0].seconds
        for number, case in enumerate((case for case in cases(plan, length) if only in case.row), start=1):
            verdicts.append(carry_out(case, found))
            tell(number, verdicts[-1])
    return verdicts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case or a few of each row")
    parser.add_argument("--kills", type=int, help="of the server, at random instants")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    parser.add_argument("--only", default="", help="rows with this text in their name")
    parser.add_argument(
        "--no-mounts", action="store_true", help="limits in place of small disks, as for a user who may mount none"
    )
    parser.add_argument("--folder", type=Path, help="where everything goes, logs too; a temporary one otherwise")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plan = QUICK if asked.quick else WHOLE
    plan = Plan(**{**vars(plan), "seed": asked.seed, "kills": asked.kills or plan.kills})
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="fedlora-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"load average {os.getloadavg()}; logs in {folder}", flush=True)
    began = time.monotonic()
    verdicts = measured(plan, asked.only, folder, mounts=not asked.no_mounts)
    print(f"\n{table(verdicts)}\n\n{len(verdicts)} cases in {time.monotonic() - began:.0f} s", end="; ")
    print(f"load average {os.getloadavg()}")
    if not all(verdict.good for verdict in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
