"""Run stores of any size for the dashboard's tests: recorded, not trained."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedlora.config.schema import RunConfig
from fedlora.server.events import FILE as LOG
from fedlora.server.events import EventLog, RoundCommitted, to_json
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo, RunStatus
from fedlora.server.store import RunStore
from tests.server.samples import config

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"
"""As a name, a reason or a key: it must come out as text."""
HOSTILE_KEY = "validation_<svg/onload=alert(3)>"
OUTCOMES = [
    (Outcome.REJECTED, "its norm 1e9 is over the bound 10"),
    (Outcome.DECLINED, "its owner has paused it"),
    (Outcome.FAILED, "the client met an error: out of memory"),
    (Outcome.LOST, "no answer before the round's deadline of 60 s"),
    (Outcome.LATE, "the others had given the round what it needed"),
]


def settings(clients: int, rounds: int, sites: bool = True, **changes: object) -> RunConfig:
    """A configuration with named sites, or with virtual clients."""
    names = [f"hospital-{number:03d}" for number in range(clients)] if sites else []
    federation = {"clients": clients, "cohort": clients, "rounds": rounds, "sites": names}
    return config(federation=federation, **changes)


def roster(clients: int, number: int, chance: random.Random, reason: str = "") -> list[RosterRow]:
    """One in ten answers does not count."""
    rows = []
    for client in range(clients):
        outcome, why = chance.choice(OUTCOMES) if chance.random() < 0.1 else (Outcome.REPORTED, "")
        metrics = {"loss": 1 / (1 + number) + chance.random() / 10} if outcome is Outcome.REPORTED else {}
        rows.append(RosterRow(client, outcome, why and (reason or why), 100, 5_000, 5_000, chance.random(), metrics))
    return rows


def make_run(
    store: RunStore,
    clients: int = 3,
    rounds: int = 5,
    *,
    done: int | None = None,
    name: str = "tiny",
    reason: str = "",
    metrics: dict[str, float] | None = None,
    status: RunStatus | None = RunStatus.FINISHED,
    sites: bool = True,
    **changes: object,
) -> RunInfo:
    """A run with `done` committed rounds. status: how it ended; None: it is running, as far as the store knows."""
    run = store.create(settings(clients, rounds, sites, **changes), name=name)
    chance = random.Random(7)  # noqa: S311
    began = datetime.now(UTC) - timedelta(seconds=4 * rounds)
    with EventLog(run.folder / LOG) as log:
        lines = []
        for number in range((rounds if done is None else done) + 1):
            figures = {"validation_accuracy": 1 - 0.9 / (number + 1), "validation_loss": 2 / (number + 1)}
            figures |= {"aggregation_error": 0.2 / (number + 1), "train_loss": 1.8 / (number + 1)} | (metrics or {})
            record = RoundRecord(
                round=number,
                metrics=figures,
                roster=roster(clients, number, chance, reason) if number else (),
                bytes_up=5_000 * clients * bool(number),
                bytes_down=5_000 * clients * bool(number),
                seconds=3.0,
                committed_at=began + timedelta(seconds=4 * number),
            )
            record = store.commit_round(run, record)
            lines.append(to_json(RoundCommitted.of(run.id, record, rounds=rounds)))
        log.path.write_text("\n".join(lines) + "\n")
    return run if status is None else store.finish(run, status, {"test_accuracy": 0.81} if not reason else {}, reason)


def open_store(folder: Path) -> RunStore:
    """A new store."""
    return RunStore.open(folder)
