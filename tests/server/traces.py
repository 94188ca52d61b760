"""What tells of a site in a server's store, and small runs that have such traces."""

import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from fedlora.identity.records import ClientStatus
from fedlora.identity.registry import Registry
from fedlora.link.inbox import Inbox
from fedlora.server import checkpoint
from fedlora.server.events import (
    FILE,
    ClientRefused,
    ClientReported,
    EventLog,
    RoundCommitted,
)
from fedlora.server.records import Outcome, RosterRow, RunHistory, RunInfo, RunStatus
from fedlora.server.scrub import ERASED, EXPIRED
from fedlora.server.store import RunStore

NAMES = ("site-0", "site-1", "site-2")
Small = Callable[..., RunInfo]
REFUSED = b"its norm 1e9 is over the bound 10"
LOSS = repr(0.1 + 0.2).encode()
"""What tells of site 1 and of site 0 in a small run."""


def traces(rows: list[RosterRow]) -> set[bytes]:
    """How the rows' figures and reasons would look in a file or a database.

    Left out is what may well be the same by chance: counts, and shares of a few rows.
    """
    figures = [(name, value) for row in rows for name, value in row.metrics.items()]
    numbers = [value for name, value in figures if "accuracy" not in name] + [row.seconds for row in rows]
    numbers = [value for value in numbers if len(repr(value)) > 7]
    texts = [row.reason for row in rows if row.reason not in ("", ERASED, EXPIRED)]
    return (
        {repr(value).encode() for value in numbers}
        | {struct.pack(">d", value) for value in numbers}
        | {text.encode() for text in texts}
    )


def found(folder: Path, wanted: set[bytes]) -> set[tuple[str, bytes]]:
    """Where something wanted is, in any file under `folder` (SQLite's log and free pages too)."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    reader = sqlite3.connect(folder / "fedlora.db")
    files["dump"] = "\n".join(reader.iterdump()).encode()
    reader.close()
    return {(name, each) for name, data in files.items() for each in wanted if each in data}


def found_in(folder: Path, wanted: set[bytes]) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and any(w in path.read_bytes() for w in wanted)}


def rows_of(history: RunHistory, client: int) -> list[RosterRow]:
    return [row for record in history.rounds for row in record.roster if row.client == client]


def is_blank(row: RosterRow, mark: str = ERASED) -> bool:
    return row == RosterRow(row.client, row.outcome, reason=mark)


def lines(folder: Path) -> list[bytes]:
    return (folder / FILE).read_bytes().split(b"\n")


def loads(folder: Path) -> list[int]:
    """Loads every checkpoint; gives their rounds."""
    saved = checkpoint.saved_rounds(folder)
    assert [checkpoint.load(folder, number).round for number in saved] == saved
    return saved


def registry_of(store: RunStore) -> Registry:
    registry = Registry(store._database)
    for name in NAMES:
        registry.invite(name)
    return registry


def status_of(registry: Registry, name: str) -> ClientStatus:
    return next(record.status for record in registry.clients() if record.name == name)


def small_run(
    store: RunStore, samples: ModuleType, rounds: int = 3, status: RunStatus = RunStatus.FINISHED, reason: str = ""
) -> RunInfo:
    """A run of three sites with some committed rounds, their events, and answers that came in.

    In each round site 0 reports, and site 1 is refused.
    """
    sites = {"clients": 3, "cohort": 2, "rounds": 9, "sites": NAMES}
    info = store.create(samples.config(federation=sites), name="small")
    with EventLog(info.folder / FILE) as log:
        for number in range(rounds):
            point = samples.checkpoint(number)
            for row in point.record.roster:
                kind = ClientReported if row.outcome is Outcome.REPORTED else ClientRefused
                log.append(kind(run=info.id, round=number, row=row))
            checkpoint.commit(store, info, point)
            log.append(RoundCommitted.of(info.id, point.record, rounds=9))
    inbox = Inbox(info.folder)
    for work in ("a" * 64, "b" * 64):
        (info.folder / "incoming" / f"{work}.answer").write_bytes(b"an update")
        (info.folder / "incoming" / f"{work}-1234.part").write_bytes(b"half of one")
    assert inbox.answer("a" * 64)
    return info if status is RunStatus.RUNNING else store.finish(info, status, reason=reason)
