"""Checkpoints: one folder for each committed round, whole or not there.

A round is written to a temporary folder, synced, renamed, and only then entered in the database. So a process that dies
at any instant leaves either the round before or the whole new one, and the database says which of them counts.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from fedlora.adapters.manifest import Delivery, Manifest, Tensors
from fedlora.errors import StoreError
from fedlora.server import tensor_files
from fedlora.server.durable import explained, sync_files, sync_folder
from fedlora.server.records import RosterRow, RoundRecord, RunInfo
from fedlora.server.scrub import erasures, exclusive
from fedlora.server.store import RunStore
from fedlora.strategies.base import State

STEPS = ("begun", "tensors-written", "files-synced", "renamed", "folder-synced", "row-committed")
"""The named instants of a commit, in order. Before "row-committed" the round before is the one that counts."""

FOLDER = "checkpoints"
COMPLETE = "complete.json"
BECOMING = "becoming"
"""In `COMPLETE` while files are rewritten: file → the SHA-256 that it has now or is about to get."""

_FORMAT = 1
_FILES = ("adapter.safetensors", "server.safetensors", "manifest.json", "rng.json", "roster.json", "metrics.json")
_CLIENT = re.compile(r"clients/(\d+)\.safetensors")
_RECORD = TypeAdapter(RoundRecord)
_ROSTER = TypeAdapter(tuple[RosterRow, ...])


def passed(step: str) -> None:
    """Called at each of STEPS. It does nothing: tests put a function here that kills the process."""
    del step


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after `round`.

    clients: what clients keep for themselves (`Delivery.LOCAL`), client → tensors. rng: what the random streams
    need, e.g. `{"seed": 0}`; anything that JSON holds. record: the round as the database has it.
    """

    round: int
    state: State
    record: RoundRecord
    clients: Mapping[int, Tensors] = field(default_factory=dict)
    rng: Mapping[str, Any] = field(default_factory=dict)


def round_folder(run_folder: Path, round_number: int) -> Path:
    """Where the checkpoint of a round is."""
    return run_folder / FOLDER / f"round-{round_number:04d}"


def saved_rounds(run_folder: Path) -> list[int]:
    """The rounds whose folders are there, committed or not, oldest first."""
    found = (run_folder / FOLDER).glob("round-*")
    return sorted(int(path.name.removeprefix("round-")) for path in found if path.name[6:].isdigit())


def commit(store: RunStore, run: RunInfo, checkpoint: Checkpoint) -> Path:
    """Saves the checkpoint, then enters its round in the database; returns the checkpoint's folder.

    The caller holds `store.lock(run)`. Raises StoreError if either fails; the rounds before stay as they are.
    """
    record = checkpoint.record
    if record.committed_at is None:
        record = replace(record, committed_at=datetime.now(UTC))
    with exclusive(run.folder):
        record = erasures(run.folder).record(record)  # of a round that was under way when a site erased
        folder = save(run.folder, replace(checkpoint, record=record))
        store.commit_round(run, record)
    passed("row-committed")
    return folder


def save(run_folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes the checkpoint's files and returns their folder, once the disk has them all.

    `state.fixed` and `state.local`, which never change, are written by the first checkpoint of a run and only
    compared by later ones. Raises StoreError if the round is saved already, if one of those has changed, and if the
    disk refuses (full: with the bytes that are needed and that are free).
    """
    final = round_folder(run_folder, checkpoint.round)
    if checkpoint.record.round != checkpoint.round:
        raise StoreError(f"a checkpoint of round {checkpoint.round} has the record of round {checkpoint.record.round}")
    if final.exists():
        raise StoreError(
            f"round {checkpoint.round} is saved already, in {final}, and is never written over; resume the run"
        )
    draft = final.with_name(f".{final.name}.tmp")
    with explained("save the checkpoint", final, needed=_nbytes(checkpoint)):
        try:
            _write(draft, run_folder, checkpoint)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        passed("renamed")
        sync_folder(final.parent)
    passed("folder-synced")
    return final


def load(run_folder: Path, round_number: int) -> Checkpoint:
    """The checkpoint of a round, every file checked against its SHA-256.

    Raises StoreError, naming the damaged or missing file and the newest round that is good.
    """
    try:
        with suppress(_DamagedError):  # maybe only because its record is being rewritten at this moment
            return _read(run_folder, round_number)
        with exclusive(run_folder):
            return _read(run_folder, round_number)
    except _DamagedError as damage:
        raise StoreError(f"{damage}; {_way_out(run_folder, round_number)}") from damage


def last_committed(store: RunStore, run: RunInfo) -> Checkpoint | None:
    """What a resumed run goes on from: the last round that the database has; None if it has none.

    What a dead process left behind goes: temporary folders, and saved rounds after the last committed one. The caller
    holds `store.lock(run)`. Raises StoreError as `load` does.
    """
    last = store.last_round(run)
    with exclusive(run.folder):
        _tidy(run.folder, -1 if last is None else last)
    return None if last is None else load(run.folder, last)


class _DamagedError(Exception):
    """A file of a checkpoint is missing or not what was written."""


def _write(draft: Path, run_folder: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "clients").mkdir(parents=True)
    passed("begun")
    state = checkpoint.state
    constant = {**state.fixed, **state.local}
    fixed = tensor_files.keep_fixed(run_folder, constant, may_replace=not saved_rounds(run_folder))
    tensors = {"adapter.safetensors": state.shared, "server.safetensors": state.server} | {
        f"clients/{client}.safetensors": kept for client, kept in sorted(checkpoint.clients.items())
    }
    sums = {name: _put(draft / name, tensor_files.pack(content)) for name, content in tensors.items()}
    passed("tensors-written")
    sums |= {name: _put(draft / name, content) for name, content in _texts(checkpoint).items()}
    seal = {"format": _FORMAT, "round": checkpoint.round, "fixed": fixed, "files": sums}
    _put(draft / COMPLETE, _json(seal))
    sync_files(draft / name for name in (*sums, COMPLETE))
    for folder in (draft / "clients", draft, run_folder):
        sync_folder(folder)
    passed("files-synced")


def _put(path: Path, content: bytes) -> str:
    """Writes one file and returns its SHA-256. It is not on the disk before it is synced."""
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _texts(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {
        "manifest.json": checkpoint.state.manifest.to_json().encode(),
        "rng.json": _json(checkpoint.rng),
        "roster.json": _ROSTER.dump_json(tuple(checkpoint.record.roster)),
        "metrics.json": _RECORD.dump_json(checkpoint.record, exclude={"roster"}),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, no NaN; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _nbytes(checkpoint: Checkpoint) -> int:
    state = checkpoint.state
    groups = (state.shared, state.server, state.fixed, state.local, *checkpoint.clients.values())
    return sum(tensor_files.nbytes(tensors) for tensors in groups) + sum(map(len, _texts(checkpoint).values()))


def _read(run_folder: Path, round_number: int) -> Checkpoint:
    folder = round_folder(run_folder, round_number)
    seal = _seal(folder)
    content = {
        name: _checked(folder / name, digest, seal[BECOMING].get(name)) for name, digest in seal["files"].items()
    }
    try:
        return _parse(content, _fixed(run_folder, seal["fixed"]), round_number)
    except (ValidationError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"the checkpoint {folder} cannot be read ({error})") from error


def _parse(content: Mapping[str, bytes], fixed: Tensors, round_number: int) -> Checkpoint:
    adapter, server, manifest, rng, roster, metrics = (content[name] for name in _FILES)
    record = _RECORD.validate_python(json.loads(metrics) | {"roster": _ROSTER.validate_json(roster)})
    table = Manifest.from_json(manifest.decode())
    own = set(table.names(Delivery.LOCAL))
    state = State(
        manifest=table,
        shared=tensor_files.unpack(adapter),
        fixed={name: array for name, array in fixed.items() if name not in own},
        server=tensor_files.unpack(server),
        local={name: array for name, array in fixed.items() if name in own},
    )
    kept = {
        int(match[1]): tensor_files.unpack(data) for name, data in content.items() if (match := _CLIENT.match(name))
    }
    return Checkpoint(round=round_number, state=state, record=record, clients=kept, rng=json.loads(rng))


def _seal(folder: Path) -> dict[str, Any]:
    """What complete.json says; it alone names the files that are read."""
    path = folder / COMPLETE
    try:
        seal: dict[str, Any] = json.loads(_bytes(path))
        names = set(seal["files"])
        known = seal["format"] == _FORMAT and names >= set(_FILES) and "fixed" in seal
        strange = [name for name in names - set(_FILES) if not _CLIENT.fullmatch(name)]
        seal[BECOMING] = dict(seal.get(BECOMING, {}))
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{path} is damaged ({error})") from error
    if not known or strange:
        raise _DamagedError(f"{path} does not list the files of a checkpoint of format {_FORMAT}")
    return seal


def _checked(path: Path, *digests: str | None) -> bytes:
    data = _bytes(path)
    if hashlib.sha256(data).hexdigest() not in digests:
        raise _DamagedError(f"{path} is damaged: its SHA-256 is not the one in {COMPLETE}")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _DamagedError(f"{path} is missing") from error
    except OSError as error:
        raise _DamagedError(f"{path} cannot be read ({error.strerror or error})") from error


def _fixed(run_folder: Path, digest: str | None) -> Tensors:
    if digest is None:
        return {}
    path = run_folder / tensor_files.FIXED
    try:
        return tensor_files.read_fixed(_bytes(path), digest)
    except (ValueError, SafetensorError) as error:
        raise _DamagedError(f"{path} is damaged ({error})") from error


def _way_out(run_folder: Path, round_number: int) -> str:
    """The newest good round before a damaged one, in words."""
    for earlier in reversed(saved_rounds(run_folder)):
        if earlier < round_number and _is_good(run_folder, earlier):
            return f"the newest good round before it is round {earlier}: forget the later ones to resume from there"
    return "no earlier round is good: restore the folder from a backup, or start the run anew"


def _is_good(run_folder: Path, round_number: int) -> bool:
    try:
        _read(run_folder, round_number)
    except _DamagedError:
        return False
    return True


def _tidy(run_folder: Path, last: int) -> None:
    folder = run_folder / FOLDER
    stale = [round_folder(run_folder, number) for number in saved_rounds(run_folder) if number > last]
    with explained("tidy up", folder):
        for path in (*stale, *folder.glob(".round-*.tmp")):
            shutil.rmtree(path)
        if folder.exists():
            sync_folder(folder)
