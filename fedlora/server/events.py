"""The events of a run: one stream, written by the round loop, read by progress display, dashboard and JSONL file.

`docs/run-store.md` lists every event and field; a test holds the two together.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, TypeAdapter, ValidationError

from fedlora.errors import StoreError
from fedlora.server.durable import explained
from fedlora.server.line_file import append_line, is_at, open_lines
from fedlora.server.records import Numbers, Outcome, RosterRow, RoundRecord
from fedlora.server.scrub import Sieve, erasures, exclusive

FILE = "events.jsonl"
"""The name of the log in a run's folder."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class _Base:
    """What every event has: its name, the run's id, and the time in UTC."""

    event: str
    run: str
    time: datetime = field(default_factory=_now)


@dataclass(frozen=True, kw_only=True)
class RunStarted(_Base):
    """A new run begins: `rounds` in all, `cohort` of `clients` asked in each. engine: what trains them, how."""

    event: Literal["run_started"] = "run_started"
    name: str
    strategy: str
    rounds: int
    clients: int
    cohort: int
    engine: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class RunResumed(_Base):
    """A run goes on after the committed `round`. What the stream says of later rounds before this line is void."""

    event: Literal["run_resumed"] = "run_resumed"
    name: str
    strategy: str
    round: int
    rounds: int
    clients: int
    cohort: int
    engine: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class RoundStarted(_Base):
    """The clients of `cohort` are asked."""

    event: Literal["round_started"] = "round_started"
    round: int
    rounds: int
    cohort: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClientReported(_Base):
    """A client's update was admitted; `row` is its line of the roster."""

    event: Literal["client_reported"] = "client_reported"
    round: int
    row: RosterRow


@dataclass(frozen=True, kw_only=True)
class ClientRefused(_Base):
    """A client does not count in this round: `row.outcome` and `row.reason` say why."""

    event: Literal["client_refused"] = "client_refused"
    round: int
    row: RosterRow


@dataclass(frozen=True, kw_only=True)
class RoundRetried(_Base):
    """Too few reported: the cohort is asked again in `wait` seconds. attempt: the number of the try that failed."""

    event: Literal["round_retried"] = "round_retried"
    round: int
    attempt: int
    wait: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundCommitted(_Base):
    """A round's checkpoint is on disk and its row in the database. Round 0 is the state before training.

    reported, refused: clients. eta_seconds: to the end of the run, None while nothing is known. Bytes and seconds are
    the round's own; `bytes_*_head` are parts of `bytes_*`; `bytes_once` is apart from `bytes_down`.
    """

    event: Literal["round_committed"] = "round_committed"
    round: int
    rounds: int
    metrics: Numbers
    reported: int
    refused: int
    bytes_up: int
    bytes_down: int
    bytes_once: int
    bytes_up_head: int
    bytes_down_head: int
    seconds: float
    eta_seconds: float | None = None

    @classmethod
    def of(cls, run: str, record: RoundRecord, *, rounds: int, eta_seconds: float | None = None) -> Self:
        """The event of a committed `record`."""
        reported = sum(row.outcome is Outcome.REPORTED for row in record.roster)
        return cls(
            run=run,
            round=record.round,
            rounds=rounds,
            metrics=record.metrics,
            reported=reported,
            refused=len(record.roster) - reported,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            bytes_once=record.bytes_once,
            bytes_up_head=record.bytes_up_head,
            bytes_down_head=record.bytes_down_head,
            seconds=record.seconds,
            eta_seconds=eta_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class RunFinished(_Base):
    """All rounds are done. summary: the final figures (`test_accuracy`, …). seconds: since this process began."""

    event: Literal["run_finished"] = "run_finished"
    round: int
    rounds: int
    summary: Numbers
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunStopped(_Base):
    """The run was asked to stop and did, after the committed `round`; it can be resumed."""

    event: Literal["run_stopped"] = "run_stopped"
    round: int
    rounds: int
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunFailed(_Base):
    """The run cannot go on; `round` is the last committed one. error: the error's class. reason: its message."""

    event: Literal["run_failed"] = "run_failed"
    round: int
    rounds: int
    error: str
    reason: str
    seconds: float


Event = (
    RunStarted
    | RunResumed
    | RoundStarted
    | ClientReported
    | ClientRefused
    | RoundRetried
    | RoundCommitted
    | RunFinished
    | RunStopped
    | RunFailed
)
EVENTS: tuple[type[Event], ...] = get_args(Event)
Listener = Callable[[Event], None]

_DURABLE = (RoundCommitted, RunFinished, RunStopped, RunFailed)
_CODEC: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def to_json(event: Event) -> str:
    """One line of strict JSON, without the line's end. Numbers that are not finite are "nan", "inf" and "-inf"."""
    return _CODEC.dump_json(event).decode()


def from_json(line: str | bytes) -> Event:
    """The event that `to_json` wrote. Raises ValueError for anything else."""
    return _CODEC.validate_json(line)


class EventLog:
    """A JSONL file that events are added to, one line each.

    Opening it cuts off a line that a crash left unfinished. Each line is one write, so a reader never sees lines mixed;
    a committed round and the end of a run are on the disk when `append` returns. What is erased of the run (see
    `fedlora.server.scrub`) is not added; an erasure puts another file at the path, and the log goes on in that one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sieve = Sieve()
        with explained("open the event log", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path.parent):
                self._file = open_lines(path)

    def append(self, event: Event) -> None:
        """Adds one line. Raises StoreError if it cannot be written whole; the file then ends before it."""
        self.extend([event])

    def extend(self, events: Sequence[Event]) -> None:
        """Adds a line for each event, in one write: as `append`, for all of them or none."""
        with exclusive(self.path.parent):
            erased = erasures(self.path.parent)
            sifted = (self._sieve.sift(to_json(event).encode(), erased) for event in events)
            if not (lines := b"".join(line + b"\n" for line in sifted if line is not None)):
                return
            with explained("write the event log", self.path, needed=len(lines)):
                self._follow()
                append_line(self._file, lines)
                if any(isinstance(event, _DURABLE) for event in events):
                    os.fsync(self._file)

    def _follow(self) -> None:
        """Goes over to the file that is at the path now, if that is another one."""
        if not is_at(self._file, self.path):
            before, self._file = self._file, open_lines(self.path)
            os.close(before)

    def close(self) -> None:
        """Closes the file; nothing can be added any more."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class Emitter:
    """Gives each event to the log, then to every listener in order. What a listener raises, the caller gets."""

    def __init__(self, log: EventLog | None = None, listeners: Sequence[Listener] = ()) -> None:
        self._log, self._listeners = log, tuple(listeners)

    def __call__(self, event: Event) -> None:
        self.many((event,))

    def many(self, events: Sequence[Event]) -> None:
        """Gives the log all of them at once, then the listeners one after another."""
        if self._log is not None:
            self._log.extend(events)
        for event in events:
            for listener in self._listeners:
                listener(event)


def read_events(path: Path) -> Iterator[Event]:
    """The events of a log, oldest first. A last line without its end is left out: it is not whole, or not yet;
    and lines of spaces, where something was erased.

    Raises StoreError if the file cannot be read, or a whole line is no event (with its number).
    """
    with explained("read the event log", path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not (line.isspace() and len(line) > 1):
                yield _parsed(line, path, number)


def _parsed(line: bytes, path: Path, number: int) -> Event:
    try:
        return from_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StoreError(
            f"line {number} of {path} is no event of this fedlora ({first['msg']}): it is damaged, or a newer fedlora"
            " wrote it; the database and the checkpoints do not depend on it"
        ) from error
