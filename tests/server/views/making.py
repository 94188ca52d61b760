"""Small runs for the tests of the views, as the store and the log have them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo
from fedlora.server.store import RunStore
from fedlora.server.views import Views
from tests.server.samples import config

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NORTH, SOUTH, WEST = SITES = ("north", "south", "west")


@dataclass
class Clock:
    """A time that tests move."""

    moment: datetime = START

    def __call__(self) -> datetime:
        return self.moment

    def after(self, seconds: float) -> None:
        """Seconds pass."""
        self.moment += timedelta(seconds=seconds)


def configured(sites: Sequence[str] = SITES, privacy: str = "none", **federation: Any) -> RunConfig:
    """A configuration of a run of these sites."""
    number = len(sites) or 3
    plain = {"clients": number, "cohort": number, "rounds": 5, "sites": list(sites)} | federation
    kept = {"name": privacy} if privacy == "none" else {"name": privacy, "noise_multiplier": 1.0}
    return config(federation=plain, privacy=kept, strategy={"name": "fedavg"})


def row(client: int, outcome: Outcome = Outcome.REPORTED, reason: str = "", **fields: Any) -> RosterRow:
    """A line of a roster."""
    return RosterRow(client, outcome, reason, **({"bytes_up": 10, "bytes_down": 20, "samples": 5} | fields))


def committed(
    store: RunStore, run: RunInfo, rosters: Sequence[Sequence[RosterRow]], *, seconds: float = 10.0
) -> RunInfo:
    """Commits round 0 and one for each roster, `seconds` apart from START on."""
    for number, roster in enumerate(((), *rosters)):
        record = RoundRecord(
            round=number,
            metrics={"validation_accuracy": 0.5 + number / 100, "validation_loss": 1.0, "train_loss": 2.0},
            roster=roster,
            bytes_up=sum(each.bytes_up for each in roster),
            bytes_down=sum(each.bytes_down for each in roster),
            seconds=seconds,
            committed_at=START + timedelta(seconds=seconds * number),
        )
        store.commit_round(run, record)
    return store.get(run.id)


def promised(
    run: RunInfo, epsilon: float = 3.0, participations: int = 5, spent: Mapping[int, Any] | None = None
) -> None:
    """A privacy.json as a run writes it."""
    figures = {"epsilon": epsilon, "seen": epsilon, "delta": 1e-5, "participations": participations}
    said = {"holds": True, "headline": f"announced ε = {epsilon:g} at δ = 1e-05", "figures": figures}
    sites = spent and {
        "sites": {str(client): site for client, site in spent.items()},
        "largest_epsilon": max(site["epsilon"] for site in spent.values()),
    }
    (run.folder / "privacy.json").write_text(json.dumps({"promise": said, "spent": sites}))


@dataclass
class Talk:
    """What a client says of itself."""

    paused: bool = False
    reason: str = ""
    work: str = ""


@dataclass
class There:
    """A `Presence`, as far as views look at it. since: of `time.monotonic`."""

    connection: object | None
    since: float
    state: Talk = field(default_factory=Talk)
    version: str = "1.0"
    data: Sequence[str] = ()
    device: str = ""
    policy: Sequence[str] = ()


def quiet_views(store: RunStore, clock: Clock | None = None, **others: Any) -> Views:
    """Views that work nothing out."""
    return Views(store, now=clock or Clock(), **({"work": None} | others))


def log_lines(folder: Path, *events: Mapping[str, Any]) -> None:
    """Adds events to a run's log."""
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        for event in events:
            whole = {"event": event["event"], "run": folder.name, "time": START.isoformat(), **event}
            file.write(json.dumps(whole, separators=(",", ":")) + "\n")
