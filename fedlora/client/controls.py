"""What the owner tells the daemon, and the daemon the owner: small files in the home folder, no socket.

Each file is written in one step, so that both sides may look at any time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlora.client.home import SiteHome
from fedlora.client.own_files import make_own_folder, write_own
from fedlora.errors import StoreError, UnknownRunError
from fedlora.privacy.outbox import check_run
from fedlora.server.durable import explained

MOST_REASON = 200
"""Characters of the reason of a pause: the server sees it."""

MOST_WAITING = 100
"""Runs that wait at most: of more, those that came first are forgotten, and noted again when they ask again."""

_LARGEST = 64 * 1024  # bytes of a summary that is shown to the owner
_WAITING, _APPROVED = "waiting", "approved"
_UNREADABLE = "paused; its note cannot be read"


@dataclass(frozen=True)
class Waiting:
    """A run that waits for the owner: what it asks, as the daemon puts it, and since when (UTC, ISO 8601)."""

    run: str
    since: str
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Status:
    """What the daemon says of itself. since, updated_at: UTC, ISO 8601. work: in hand, or "". last_error: or "".

    told: what the server was told when the client connected last (`Introduction.shown`). `last_error` may tell of rows:
    it is for the owner's eyes.
    """

    pid: int
    since: str
    server: str
    connected: bool
    work: str
    last_error: str
    updated_at: str
    told: Mapping[str, Any] = field(default_factory=dict)


def pause(home: SiteHome, reason: str = "") -> None:
    """Lets the daemon take no more work; what it has in hand it finishes. The server is told the reason.

    Raises StoreError if the note cannot be written.
    """
    text = "".join(char if char.isprintable() else " " for char in reason).strip()[:MOST_REASON]
    _write(_paused(home), {"reason": text or "paused by the owner", "since": _now()})


def resume(home: SiteHome) -> bool:
    """Ends a pause. Returns whether there was one."""
    was = _paused(home).exists()
    with explained("remove", _paused(home)):
        _paused(home).unlink(missing_ok=True)
    return was


def paused(home: SiteHome) -> str | None:
    """The reason of the pause, None if there is none. A note that cannot be read is a pause."""
    path = _paused(home)
    if not path.exists():
        return None
    try:
        return str(_read(path)["reason"])
    except (StoreError, KeyError, TypeError):
        return _UNREADABLE


def note_waiting(home: SiteHome, run: str, summary: Mapping[str, Any]) -> None:
    """Notes that `run` waits for the owner. summary: JSON values, what the owner needs to decide.

    Raises PrivacyError if `run` is no run's id, StoreError if the summary is too large or cannot be written.
    """
    path = _place(home, _WAITING, run)
    before = _read(path) if path.exists() else {}
    if before.get("summary") != _plain(summary):
        _write(path, {"run": run, "since": _now(), "summary": summary})
        for each in waiting(home)[:-MOST_WAITING]:
            forget_waiting(home, each.run)


def forget_waiting(home: SiteHome, run: str) -> None:
    """Takes `run` from those that wait, if it is there. Raises PrivacyError if `run` is no run's id."""
    path = _place(home, _WAITING, run)
    with explained("remove", path):
        path.unlink(missing_ok=True)


def waiting(home: SiteHome) -> list[Waiting]:
    """The runs that wait for the owner, the first that came first. Raises StoreError if a note cannot be read."""
    paths = sorted((home.controls / _WAITING).glob("[!.]*.json"))
    found = [Waiting(path.stem, str(note.get("since")), dict(note.get("summary", {}))) for path, note in _notes(paths)]
    return sorted(found, key=lambda each: (each.since, each.run))


def approve(home: SiteHome, run: str) -> Waiting:
    """Approves a run that waits, as it was shown: if it later asks for something else, it waits again.

    Raises UnknownRunError if no run of that id waits, StoreError if the approval cannot be written.
    """
    found = next((each for each in waiting(home) if each.run == run), None)
    if found is None:
        names = ", ".join(each.run for each in waiting(home)) or "none"
        raise UnknownRunError(f"no run {run!r} waits for approval; waiting: {names}")
    _write(_place(home, _APPROVED, run), {"run": run, "since": _now(), "summary": found.summary})
    forget_waiting(home, run)
    return found


def approved(home: SiteHome, run: str, summary: Mapping[str, Any] | None = None) -> bool:
    """Whether the owner approved `run`. summary: what it asks now; if that is not what was approved, it is not.

    Raises PrivacyError if `run` is no run's id, StoreError if the approval cannot be read.
    """
    path = _place(home, _APPROVED, run)
    if not path.exists():
        return False
    return summary is None or _read(path).get("summary") == _plain(summary)


def write_status(home: SiteHome, status: Status) -> None:
    """Says how the daemon is. Raises StoreError if it cannot be written."""
    _write(home.status, asdict(status))


def read_status(home: SiteHome) -> Status | None:
    """What the daemon said last; None if it never did. `fedlora.client.home.holder` tells whether it still runs.

    Raises StoreError if the file is damaged.
    """
    if not home.status.exists():
        return None
    try:
        return Status(**_read(home.status))
    except TypeError as error:
        raise StoreError(f"{home.status} is no status of this version: delete it, the daemon writes it anew") from error


def _notes(paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What is in `paths`; those that go away meanwhile are left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            path.stat()
            yield path, _read(path)


def _paused(home: SiteHome) -> Path:
    return home.controls / "paused.json"


def _place(home: SiteHome, kind: str, run: str) -> Path:
    check_run(run)  # it came over the network and becomes a file's name
    return home.controls / kind / f"{run}.json"


def _write(path: Path, note: Mapping[str, Any]) -> None:
    data = json.dumps(note, ensure_ascii=False, indent=2).encode()
    if len(data) > _LARGEST:
        raise StoreError(f"{path} would have {len(data):,} bytes, at most {_LARGEST:,} are shown to an owner")
    with explained("write", path):
        if not path.parent.is_dir():
            make_own_folder(path.parent)
        write_own(path, data)


def _read(path: Path) -> dict[str, Any]:
    with explained("read", path):
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no JSON: it was edited or damaged; delete it") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is no JSON object: it was edited or damaged; delete it")
    return found


def _plain(summary: Mapping[str, Any]) -> Any:
    """The summary as it comes back from a file."""
    return json.loads(json.dumps(summary))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
