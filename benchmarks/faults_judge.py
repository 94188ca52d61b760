"""One fault in one run: carried out, and judged by what is left: status, bits, rosters, records of what was sent."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.faults_world import Lost, World, read_lines
from fedlora.client.home import SiteHome
from fedlora.client.sent import read

REPORTED = "reported"
_COUNTED = re.compile(r"run (\S+), round (\d+): the update was counted")
Rounds = Sequence[dict[str, Any]]


def nothing(*_: Any) -> str:
    """What is done where nothing is to be done."""
    return ""


@dataclass(frozen=True)
class Case:
    """A fault.

    hurt: given a run that was just submitted, does it, sees that it was done, and says what was seen. before: what
    comes before the run is submitted. after: what must hold when the run has ended; raises AssertionError. missing:
    clients without which some rounds may be; all others must be in every round. must_miss: at least one is missed.
    private: under local DP, where noise makes equal bits impossible.
    """

    row: str
    name: str
    hurt: Callable[[World, str], str]
    overrides: tuple[str, ...] = ()
    before: Callable[[World], object] = nothing
    after: Callable[[World, str], object] = nothing
    missing: frozenset[int] = frozenset()
    must_miss: bool = False
    private: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    same: whether the bits are those of a simulation of the clients that reported; None: there are none to compare.
    problem: why it did not end as it must, "" if it did. miscounted: what was counted twice or lost, or left without a
    record. said: what roster and logs say.
    """

    case: Case
    problem: str
    same: bool | None
    miscounted: Sequence[str]
    said: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether all is as it must be."""
        return not self.problem and self.same is not False and not self.miscounted


def carry_out(case: Case, world: World) -> Verdict:
    """Makes the federation whole, submits a run, hurts it, and judges what came of it."""
    began = time.monotonic()
    try:
        world.mend()
        case.before(world)
        run = world.submit(*case.overrides)
        noted = case.hurt(world, run)
        shown = world.over(run)
        case.after(world, run)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the row's, not the table's end
        return Verdict(case, f"{type(error).__name__}: {error}"[:4000], False, [], "", time.monotonic() - began)
    return _judged(case, world, run, shown, noted, began)


def _judged(case: Case, world: World, run: str, shown: dict[str, Any], noted: str, began: float) -> Verdict:
    seconds = time.monotonic() - began
    rounds = shown["rounds_list"]
    lost = frozenset(
        (found["round"], row["client"]) for found in rounds for row in found["roster"] if row["outcome"] != REPORTED
    )
    problem = "; ".join(_problems(case, world, shown, lost))
    said = "; ".join(filter(None, (noted, roster_text(rounds))))
    same = None if case.private else _same(case, world, shown, lost)
    return Verdict(case, problem, same, list(miscounted(world, run, rounds)), said, seconds)


def _same(case: Case, world: World, shown: dict[str, Any], lost: Lost) -> bool:
    return shown["status"] == "finished" and world.adapter(shown["id"]) == world.simulate(case.overrides, lost)


def _problems(case: Case, world: World, shown: dict[str, Any], lost: Lost) -> Iterator[str]:
    if shown["status"] != "finished":
        yield f"the run has {shown['status']}: {shown['reason']}"
    missed = {client for _, client in lost}
    if missed - case.missing:
        yield f"clients {sorted(missed - case.missing)} are missing: {roster_text(shown['rounds_list'])}"
    if case.must_miss and not missed:
        yield "nobody was missed: the fault was not felt"
    if not world.holds_soon(lambda: not any((world.home / "runs" / shown["id"] / "incoming").iterdir())):
        yield "single updates are left on the server's disk"


def roster_text(rounds: Rounds) -> str:
    """Who was missing how often, and why, as the rosters have it."""
    reasons = Counter(
        f"{row['outcome']}: {short(row['reason'])}"
        for found in rounds
        for row in found["roster"]
        if row["outcome"] != REPORTED
    )
    return "; ".join(f"{count} × {text}" for text, count in reasons.items()) or "all reported"


def short(text: str) -> str:
    """A text's beginning, its numbers aside, so that like texts are one."""
    return re.sub(r"\d+ s", "… s", text)[:110]


def miscounted(world: World, run: str, rounds: Rounds) -> Iterator[str]:
    """Updates that were counted twice, or lost, or of which there are two."""
    if [found["round"] for found in rounds] != list(range(len(rounds))):
        yield f"the rounds are {[found['round'] for found in rounds]}"
    reported: dict[int, set[int]] = defaultdict(set)
    for found in rounds[1:]:
        clients = [row["client"] for row in found["roster"]]
        if sorted(clients) != list(range(world.sites)):
            yield f"round {found['round']} has the clients {clients}"
        for row in found["roster"]:
            if row["outcome"] == REPORTED:
                reported[row["client"]].add(found["round"])
    for client in range(world.sites):
        yield from _of_site(world, run, client, reported[client])


def _of_site(world: World, run: str, client: int, reported: set[int]) -> Iterator[str]:
    """What a site's own record and log say, against the rosters. A copy of its home is the site too."""
    homes = sorted(world.folder.glob(f"site-{client}*"))
    digests: dict[int, set[str]] = defaultdict(set)
    for entry in (entry for home in homes for entry in read(SiteHome(home)) if entry.run == run):
        digests[entry.round].add(entry.sha256)
    for number, found in digests.items():
        if len(found) > 1:
            yield f"client {client} has sent {len(found)} different updates of round {number}"
    for number in sorted(reported - set(digests)):
        yield f"client {client} has no record of the update of round {number}, which was counted"
    told = {
        int(match[2])
        for home in homes
        for line in read_lines(home / "log" / "client.jsonl")
        if (match := _COUNTED.search(line["said"])) and match[1] == run
    }
    for number in sorted(told - reported):
        yield f"client {client} was told that round {number} counts it, and it does not"
