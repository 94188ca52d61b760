"""The files of a run without what was erased of it. A crash at any instant leaves each of them whole.

Every function may be repeated, and changes nothing where nothing is left to do. Callers hold `exclusive` where the
docstring says so. Deleted bytes are gone from the files; the disk may keep them in blocks that are free now.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedlora.link.inbox import FOLDER as INCOMING
from fedlora.link.inbox import Inbox
from fedlora.server import checkpoint, events
from fedlora.server.durable import explained, replace_synced, sync_files, sync_folder
from fedlora.server.receipts import BOOK
from fedlora.server.records import RosterRow, RoundRecord, RunHistory
from fedlora.server.scrub import Erasures, Sieve

ROSTER, METRICS = "roster.json", "metrics.json"
REPORT = "report.html"
"""As in `fedlora.simulations.results`, which would load torch."""

_RECORD = TypeAdapter(RoundRecord)
_ROSTER = TypeAdapter(tuple[RosterRow, ...])


def last_trace(run_folder: Path) -> int:
    """The last round of which a checkpoint or an event tells, committed or not; -1 if there is none."""
    lines = (_fields(line) for line in _read(run_folder / events.FILE).split(b"\n"))
    rounds = [number for fields in lines if isinstance(number := fields.get("round"), int)]
    return max([*checkpoint.saved_rounds(run_folder), *rounds], default=-1)


def scrub_events(run_folder: Path, erased: Erasures) -> None:
    """Puts spaces where a line of the event log goes: readers who follow the log count lines and bytes.

    What comes after the last whole line goes too: a crash left it. Under `exclusive`.
    """
    path, sieve = run_folder / events.FILE, Sieve()
    before = _read(path)
    lines = before.split(b"\n")[:-1]
    after = b"".join((sieve.sift(line, erased) or b"").ljust(len(line)) + b"\n" for line in lines)
    if after != before:
        _replace(path, after)


def scrub_checkpoints(run_folder: Path, erased: Erasures) -> None:
    """Rewrites the records of saved rounds, and removes what a process that died has left of one. Under `exclusive`."""
    for number in checkpoint.saved_rounds(run_folder):
        folder = checkpoint.round_folder(run_folder, number)
        with explained("erase from", folder):
            _scrub_checkpoint(folder, erased)
    for draft in (run_folder / checkpoint.FOLDER).glob(".round-*.tmp"):
        with explained("remove", draft):
            shutil.rmtree(draft)


def scrub_incoming(run_folder: Path, works: Iterable[str], *, over: bool) -> None:
    """Deletes the answers to `works`; of a run that is over, all."""
    folder = run_folder / INCOMING
    if not folder.is_dir():
        return
    with explained("delete updates in", folder):
        inbox = Inbox(run_folder)
        if over:
            inbox.clear()
        else:
            inbox.forget(works)
        sync_folder(folder)


def scrub_report(history: RunHistory, *, over: bool) -> None:
    """Writes the run's report again, from its cleaned history; that of a run which goes on is removed: it is old."""
    path = history.run.folder / REPORT
    if not path.exists():
        return
    draft = path.with_name(f".{REPORT}.tmp")
    with explained("erase from", path):
        try:
            if over:
                from fedlora.simulations.report import write_report  # here: it loads matplotlib

                write_report(history, draft)
                sync_files([draft])
                draft.replace(path)
        finally:
            if not over or draft.exists():  # without a new report the old one must not stay
                path.unlink(missing_ok=True)
                draft.unlink(missing_ok=True)
        sync_folder(path.parent)


def scrub_receipts(run_folder: Path, erased: Erasures) -> None:
    """Forgets the receipts for ledgers of erased clients, of a run that is over. Retention keeps them."""
    path = run_folder / BOOK
    held = _fields(_read(path))
    gone = {str(client) for client in erased.clients}
    kept = {client: receipt for client, receipt in held.items() if client not in gone}
    if kept != held:
        _replace(path, json.dumps(kept, separators=(",", ":")).encode())


def _scrub_checkpoint(folder: Path, erased: Erasures) -> None:
    """`complete.json` first allows the new files beside those that are there, and these no more when the new are."""
    path, before = folder / checkpoint.COMPLETE, {name: _read(folder / name) for name in (ROSTER, METRICS)}
    after, seal = _cleaned(before, erased), _fields(_read(path))
    listed = [name for name in before if _listed(seal, name, before[name])]  # a damaged file must not become a good one
    if after != before and listed:
        meanwhile = _with_files(seal, {name: _digest(before[name]) for name in listed})
        _replace(path, _json(meanwhile | {checkpoint.BECOMING: {name: _digest(after[name]) for name in listed}}))
    for name, data in after.items():
        if data != before[name]:
            _replace(folder / name, data)
    final = _with_files(seal, {name: _digest(after[name]) for name in listed})
    if final != seal:
        _replace(path, _json(final))


def _cleaned(files: Mapping[str, bytes], erased: Erasures) -> Mapping[str, bytes]:
    """The two files of a record, cleaned. What cannot be read is emptied: it could not be loaded either."""
    try:
        roster = _ROSTER.validate_json(files[ROSTER])
        record = _RECORD.validate_python(_fields(files[METRICS]) | {"roster": roster})
    except ValidationError:
        return dict.fromkeys(files, b"")
    clean = erased.record(record)
    if clean is record:
        return files
    return {
        ROSTER: _ROSTER.dump_json(tuple(clean.roster)),
        METRICS: _RECORD.dump_json(clean, exclude={"roster"}),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _listed(seal: Mapping[str, Any], name: str, data: bytes) -> bool:
    """Whether `data` is what the seal says that the file is, or is about to be."""
    told = (seal.get(part) for part in ("files", checkpoint.BECOMING))
    return _digest(data) in [files.get(name) for files in told if isinstance(files, dict)]


def _with_files(seal: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The seal with some digests replaced, and nothing about to be."""
    kept = {key: value for key, value in seal.items() if key != checkpoint.BECOMING}
    return kept | {"files": {**kept["files"], **digests}} if digests else kept


def _fields(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; an empty one if there is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _read(path: Path) -> bytes:
    """The file's bytes; none if there is no such file."""
    with explained("read", path):
        return path.read_bytes() if path.exists() else b""


def _replace(path: Path, data: bytes) -> None:
    """As `replace_synced`; the file's mode stays."""
    with explained("erase from", path, needed=len(data)):
        mode = path.stat().st_mode & 0o777
        replace_synced(path, data)
        path.chmod(mode)
