"""A copy of a server's home in one file, made while the server runs.

First comes the database, as it was at one moment; then, for each run that it knows, the checkpoints that it counts,
which nobody changes any more, and the run's small files. So whatever is committed meanwhile is left out, and what is
in the copy can be loaded. What never is in a copy: single updates (`incoming/`), drafts, ledgers of virtual clients (an
older one is refused anyway), the operator's token (made anew), and, unless they are asked for, keys.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import fedlora
from fedlora.errors import StoreError
from fedlora.identity.home import checked_database
from fedlora.identity.tls import server_files
from fedlora.server import checkpoint
from fedlora.server.bundle import Writer
from fedlora.server.durable import explained, sync_folder
from fedlora.server.records import RunStatus
from fedlora.server.scrub import FILE as ERASED
from fedlora.server.scrub import exclusive
from fedlora.server.settings import FILE as SETTINGS
from fedlora.server.store import urls
from fedlora.server.store.dump import Dump, DumpedRun, dump
from fedlora.server.store.run_store import DATABASE, sqlite_url

FORMAT = 1
POSTGRES_DUMP = "database.dump"
"""What the database is called in a copy where it is PostgreSQL; SQLite's has the place that it has in a home."""

_PUBLIC = ("server.crt", "ca/ca.crt")
_KEYS = ("server.key", "receipt.key", "ca/ca.key")
_OF_RUN = ("config.json", "privacy.json", "receipts.json", "stop.requested", "events.jsonl")
_OF_ROUNDS = "fixed.safetensors"
_OF_END = ("summary.json", "report.html", "adapter")
_SUBMITTED = ".submitted"


@dataclass
class Backup:
    """What was copied, as it was at `moment`.

    left_out: a sentence for each thing that was not; damaged: for each that is, or is gone.
    """

    path: Path
    moment: datetime
    runs: int = 0
    rounds: int = 0
    keys: bool = False
    left_out: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def back_up(home: Path, out: Path, *, keys: bool = False) -> Backup:
    """Copies the server's home into the new file `out` (tar, mode 0600); the server may run meanwhile.

    keys: with the keys of authority, server and receipts. Whoever has them can pose as the server and as any client.

    Raises IdentityError if it is no server's home, ConfigError for its settings; StoreError if something cannot be
    read or written, or is not what it was when it was saved: then the copy is there all the same.
    """
    out = Path(out).absolute()
    if out.exists():
        raise StoreError(f"{out} is there already: name a new file")
    text = checked_database(home)
    runs = server_files(home).runs.resolve()
    url = sqlite_url(runs) if text is None else urls.parse(text)
    done = Backup(out, datetime.now(UTC), keys=keys)
    with _draft(out) as draft:
        found = dump(url, runs, draft / "database")
        with Writer(draft / "copy") as writer:
            writer.add(POSTGRES_DUMP if found.kind == urls.POSTGRES else f"runs/{DATABASE}", draft / "database")
            _Copying(writer, done, home, runs).all_of(found)
            writer.finish(_facts(found, done))
        with explained("write", out):
            (draft / "copy").rename(out)
            sync_folder(out.parent)
    if done.damaged:
        raise StoreError(f"the copy is in {out}, but not all of it is good: {'; '.join(done.damaged)}")
    return done


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A folder for nobody else, on the disk where the copy will be."""
    with explained("write to", out.parent):
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with folder as name:
        yield Path(name)


def _facts(found: Dump, done: Backup) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fedlora": fedlora.__version__,
        "created_at": done.moment.isoformat(timespec="seconds"),
        "database": found.kind,
        "revision": found.revision,
        "keys": done.keys,
        "runs": done.runs,
        "rounds": done.rounds,
    }


@dataclass
class _Copying:
    """What is being copied, and where to."""

    writer: Writer
    done: Backup
    home: Path
    runs: Path

    def all_of(self, found: Dump) -> None:
        self._settings()
        for name in (*_PUBLIC, *(_KEYS if self.done.keys else ())):
            self._if_there(name, self.home / name)
        for path in sorted((self.runs / _SUBMITTED).glob("[!.]*")):
            self._if_there(f"runs/{_SUBMITTED}/{path.name}", path)
        for run in found.runs:
            self._run(run)

    def _settings(self) -> None:
        """Without the database's URL if it holds a password, unless keys were asked for, too."""
        path = self.home / SETTINGS
        if not path.exists():
            return
        with explained("read", path):
            data = path.read_bytes()
        plain = yaml.safe_load(data) or {}
        url = plain.get("database")
        if url and not self.done.keys and urls.has_secret(urls.parse(url)):
            data = yaml.safe_dump({key: value for key, value in plain.items() if key != "database"}).encode()
            self.done.left_out.append(f"`database` in {SETTINGS}, which holds a password")
        self.writer.put(SETTINGS, data)

    def _run(self, run: DumpedRun) -> None:
        folder = (self.runs / run.folder).resolve()
        if not folder.is_relative_to(self.runs):
            self.done.left_out.append(f"run {run.id}: its folder {folder} is elsewhere")
            return
        if not folder.is_dir():
            self.done.damaged.append(f"the folder {folder} of run {run.id} is gone")
            return
        self.done.runs += 1
        for number in run.rounds:
            self._round(run, folder, number)
        with exclusive(folder):
            # The note after the rounds: what is erased while those are copied is erased again after a restore.
            for name in (*self._names(run), ERASED):
                self._tree(f"{self._base(folder)}/{name}", folder / name)

    def _base(self, folder: Path) -> str:
        return f"runs/{folder.relative_to(self.runs).as_posix()}"

    def _names(self, run: DumpedRun) -> Iterator[str]:
        yield from _OF_RUN
        if run.rounds:
            yield _OF_ROUNDS
        if run.status == RunStatus.FINISHED:  # or they may be half written
            yield from _OF_END
        if self.done.keys:
            yield "receipt.key"

    def _round(self, run: DumpedRun, folder: Path, number: int) -> None:
        """One at a time, so that a run that commits meanwhile does not wait for long."""
        place = checkpoint.round_folder(folder, number)
        base = self._base(place)
        with exclusive(folder):
            self._tree(base, place)
        told = self._wrong(base, place)
        if told:
            self.done.damaged.append(f"round {number} of run {run.id}: {told}")
        self.done.rounds += 1

    def _wrong(self, base: str, place: Path) -> str:
        """What a checkpoint lacks, by its own list; "" if it is whole."""
        try:
            seal = json.loads((place / checkpoint.COMPLETE).read_bytes())
            listed = dict(seal["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{place / checkpoint.COMPLETE} is missing or damaged"
        becoming = dict(seal.get(checkpoint.BECOMING, {}))
        copied = {name: self.writer.files.get(f"{base}/{name}") for name in listed}
        wrong = [
            name
            for name, found in copied.items()
            if found is None or found.sha256 not in (listed[name], becoming.get(name))
        ]
        return f"{', '.join(wrong)} in {place} missing or damaged" if wrong else ""

    def _tree(self, name: str, path: Path) -> None:
        """A file, or a folder with all in it; no drafts, and nothing that a link leads to."""
        if path.is_symlink():
            self.done.left_out.append(f"{path}, a link")
        elif path.is_dir():
            for entry in sorted(path.iterdir()):
                if not entry.name.startswith("."):
                    self._tree(f"{name}/{entry.name}", entry)
        else:
            self._if_there(name, path)

    def _if_there(self, name: str, path: Path) -> None:
        try:
            self.writer.add(name, path)
        except FileNotFoundError:
            return
