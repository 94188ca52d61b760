"""What was erased of a run, noted in its folder, and how records, texts and events look without it.

Whoever writes to the run reads the note first, under `exclusive`: so nothing that was under way brings back what is
gone.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedlora.errors import StoreError
from fedlora.server.durable import explained, replace_synced
from fedlora.server.records import Numbers, Outcome, RosterRow, RoundRecord

FILE = "erased.json"
"""The name of the note in a run's folder."""

ERASED = "erased at the site's request"
EXPIRED = "deleted when the server's retention time was over"
"""What the roster says instead of a reason."""

_GONE = "erased"
_NAMED_ROUND = re.compile(r"\bround (\d+): ")
_REASON = re.compile(r"(?<=[(; ])client (\d+): .*?(?=; client \d+: |\)$|$)", re.DOTALL)


@dataclass(frozen=True)
class Erasures:
    """What was erased of a run, and stays so.

    clients: client → the last round of which nothing is kept; None: of every round, those to come too. everyone: that
    round for all clients; -1: none. complete: whether nothing was left to do when the note was written.
    """

    clients: Mapping[int, int | None] = field(default_factory=dict)
    everyone: int = -1
    complete: bool = True

    def with_client(self, client: int, last: int | None) -> "Erasures":
        """These, with `client` erased up to the round `last`, or for ever; not complete, unless they are the same."""
        before = self.clients.get(client, -1)
        bound = None if last is None or before is None else max(before, last)
        clients = {**self.clients, client: bound}
        return self if clients == self.clients else replace(self, clients=clients, complete=False)

    def with_everyone(self, last: int) -> "Erasures":
        """These, with all clients erased up to the round `last`; not complete, unless they are the same."""
        return self if last <= self.everyone else replace(self, everyone=last, complete=False)

    def mark(self, client: int, number: int) -> str | None:
        """What the roster says of `client` in the round instead of a reason; None if nothing of it is erased."""
        if client in self.clients:
            last = self.clients[client]
            if last is None or number <= last:
                return ERASED
        return EXPIRED if number <= self.everyone else None

    def record(self, record: RoundRecord) -> RoundRecord:
        """The record without what is erased; the same object if nothing of it is.

        Of a row its client and outcome stay. The round's own figures are put together from all clients and stay, unless
        one client alone reported: then `train_loss` and `clients_…` are that client's.
        """
        roster = tuple(self._row(row, record.round) for row in record.roster)
        changed = any(new is not old for new, old in zip(roster, record.roster, strict=True))
        reporters = [row.client for row in roster if row.outcome is Outcome.REPORTED]
        alone = len(reporters) == 1 and self.mark(reporters[0], record.round) is not None
        metrics = _shared(record.metrics) if alone else record.metrics
        return replace(record, roster=roster, metrics=metrics) if changed or metrics != record.metrics else record

    def text(self, text: str) -> str:
        """An error's message, as the round loop words it, without the reasons of erased clients."""
        found = _NAMED_ROUND.search(text)
        number = int(found[1]) if found else 0

        def replaced(match: re.Match[str]) -> str:
            return f"client {match[1]}: {_GONE}" if self.mark(int(match[1]), number) else match[0]

        return _REASON.sub(replaced, text)

    def _row(self, row: RosterRow, number: int) -> RosterRow:
        mark = self.mark(row.client, number)
        if mark is None:
            return row
        reason = row.reason if row.reason in (ERASED, EXPIRED) else mark
        blank = RosterRow(row.client, row.outcome, reason=reason)
        return row if row == blank else blank


_CODEC = TypeAdapter(Erasures)


def erasures(folder: Path) -> Erasures:
    """What was erased of the run in `folder`.

    Raises StoreError if the note cannot be read: nothing may be written to the run then, as it could bring back what
    was erased.
    """
    path = folder / FILE
    try:
        return _CODEC.validate_json(path.read_bytes())
    except FileNotFoundError:
        return Erasures()
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"{path} does not say what was erased of the run ({error}): restore it from a copy, or remove it and let"
            " the sites erase again"
        ) from error


def note(folder: Path, found: Erasures) -> None:
    """Notes in `folder` what is erased; on return the disk has it. The caller holds `exclusive`."""
    with explained("note an erasure in", folder):
        replace_synced(folder / FILE, _CODEC.dump_json(found))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds off whoever else commits a round, writes an event or erases in the run's `folder`, for the block.

    It waits for its turn. Not to be nested. A dead process's turn ends by itself. A folder that is gone is not locked.
    """
    descriptor = _opened(folder)
    if descriptor is None:
        yield
        return
    try:
        with explained("lock", folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker that was forked meanwhile has the descriptor too
        os.close(descriptor)


def _opened(folder: Path) -> int | None:
    with explained("lock", folder):
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None


class Sieve:
    """Takes what is erased out of the lines of an event log, given oldest first."""

    def __init__(self) -> None:
        self._reporter = (-1, -1)  # round and client of the last report: of a round's only one, if it had one

    def sift(self, line: bytes, erased: Erasures) -> bytes | None:
        """The line as it may stand in the log; None for one that goes. Without its end."""
        event = _parsed(line)
        kind, number, client = event.get("event"), event.get("round"), _client(event)
        if client is not None and isinstance(number, int):
            if kind == "client_reported":
                self._reporter = (number, client)
            return line if erased.mark(client, number) is None else None
        if kind == "round_committed" and event.get("reported") == 1 and number == self._reporter[0]:
            alone = erased.mark(self._reporter[1], self._reporter[0]) is not None
            return _changed(line, event, metrics=_shared(event.get("metrics", {}))) if alone else line
        reason = event.get("reason")  # of a round or a run that failed: it may hold what clients said
        if isinstance(reason, str):
            return _changed(line, event, reason=erased.text(reason))
        return line if event else None


def _client(event: Mapping[str, Any]) -> int | None:
    """Whose row an event has; None if it has none."""
    row = event.get("row")
    client = row.get("client") if isinstance(row, dict) else None
    return client if isinstance(client, int) else None


def _parsed(line: bytes) -> Mapping[str, Any]:
    """The line's object; an empty one for a line that is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _changed(line: bytes, event: Mapping[str, Any], **changes: Any) -> bytes:
    new = {**event, **changes}
    return line if new == event else json.dumps(new, separators=(",", ":"), ensure_ascii=False).encode()


def _shared(metrics: Numbers) -> Numbers:
    """A round's metrics without those that clients measured."""
    return {name: value for name, value in metrics.items() if name != "train_loss" and not name.startswith("clients_")}
