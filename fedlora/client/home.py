"""A site's home: the one folder in which a data owner's client keeps everything, and which one daemon has at a time."""

import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from filelock import FileLock, Timeout

from fedlora.client.address import normal_address
from fedlora.client.own_files import FILE_MODE, make_own_folder, write_own
from fedlora.errors import IdentityError, StoreError
from fedlora.server.durable import explained

KEY_BYTES = 32
_PATIENCE = 1.0  # seconds: longer than a look at the lock by `fedlora client status` takes


@dataclass(frozen=True)
class SiteHome:
    """The places inside the home folder. Making one of these touches no disk."""

    folder: Path

    @property
    def policy(self) -> Path:
        """What the owner allows; the owner edits it."""
        return self.folder / "policy.yaml"

    @property
    def identity(self) -> Path:
        """The folder with what the client proves its name with."""
        return self.folder / "identity"

    @property
    def client_key(self) -> Path:
        """The private key: never leaves."""
        return self.identity / "client.key"

    @property
    def client_certificate(self) -> Path:
        """What the server made of the client's name and public key."""
        return self.identity / "client.crt"

    @property
    def authority(self) -> Path:
        """The certificate that servers are recognised by."""
        return self.identity / "ca.crt"

    @property
    def server(self) -> Path:
        """Which server was joined: see `joined`."""
        return self.identity / "server.json"

    @property
    def ledgers(self) -> Path:
        """The folder with a ledger for each budget group."""
        return self.folder / "ledgers"

    def ledger(self, budget: str) -> Path:
        """The ledger's folder of a budget group, as the policy names it."""
        return self.ledgers / budget

    @property
    def state(self) -> Path:
        """The folder with what the client keeps between rounds."""
        return self.folder / "state"

    @property
    def sent(self) -> Path:
        """The record of what left."""
        return self.folder / "sent.jsonl"

    @property
    def log(self) -> Path:
        """The folder with the site's own log."""
        return self.folder / "log"

    @property
    def controls(self) -> Path:
        """The folder with what the owner told the daemon."""
        return self.folder / "controls"

    @property
    def status(self) -> Path:
        """What the daemon says of itself."""
        return self.folder / "status.json"

    @property
    def results(self) -> Path:
        """The folder with what is for the owner's eyes alone."""
        return self.folder / "results"

    @property
    def fingerprint_key(self) -> Path:
        """The secret under which data sets are fingerprinted."""
        return self.folder / "fingerprint.key"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that a home has from the start."""
        return (self.identity, self.ledgers, self.state, self.log, self.controls, self.results)

    @classmethod
    def create(cls, folder: Path) -> "SiteHome":
        """Makes a home in `folder`: mode 0700, a policy that allows nothing yet, a new secret.

        What a crash left of an earlier try is completed. Raises StoreError if something else is in the folder, or it
        cannot be made.
        """
        home = cls(folder)
        _check_free(home)
        with explained("make a site's home in", folder):
            for place in (folder, *home.folders):
                make_own_folder(place)
            if not home.fingerprint_key.exists():
                write_own(home.fingerprint_key, secrets.token_bytes(KEY_BYTES))
            write_own(home.policy, policy_template().encode())  # last: a home is one once it has a policy
        return home

    @classmethod
    def open(cls, folder: Path) -> "SiteHome":
        """The home in `folder`. Raises StoreError if there is none."""
        home = cls(folder)
        if not home.policy.is_file():
            raise StoreError(
                f"{folder} is no site's home, for it has no policy.yaml: `fedlora client init {folder}` makes one;"
                " --home or FEDLORA_SITE names another folder"
            )
        return home


@dataclass(frozen=True)
class Holder:
    """The process that has a home: its id, host, command line, and since when (UTC, ISO 8601)."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


def policy_template() -> str:
    """The commented policy that a new home gets: it is valid and allows nothing."""
    return (files("fedlora.client") / "policy_template.yaml").read_text(encoding="utf-8")


def fingerprint_key(home: SiteHome) -> bytes:
    """The secret under which this site fingerprints its data sets.

    Raises IdentityError if it is missing, damaged, or can be read by others, StoreError if it cannot be read.
    """
    path = home.fingerprint_key
    if not path.is_file():
        raise IdentityError(f"{path} is gone: restore it; with a new one the server would take the data for other data")
    with explained("read", path):
        if path.stat().st_mode & 0o077:
            raise IdentityError(f"{path} can be read by others, who could guess at the data: chmod 600 {path}")
        found = path.read_bytes()
    if len(found) != KEY_BYTES:
        raise IdentityError(f"{path} has {len(found)} bytes, not {KEY_BYTES}: it is damaged; restore it")
    return found


def note_joined(home: SiteHome, address: str) -> None:
    """Notes the server that was joined. Raises ValueError unless it is "host:port", StoreError if the disk fails."""
    with explained("write", home.server):
        write_own(home.server, json.dumps({"address": normal_address(address)}).encode())


def joined(home: SiteHome) -> str | None:
    """The address of the server that was joined; None if none was. Raises IdentityError if the note is damaged."""
    if not home.server.is_file():
        return None
    try:
        with explained("read", home.server):
            return normal_address(str(json.loads(home.server.read_bytes())["address"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IdentityError(f"{home.server} names no server's address: it was edited; join anew") from error


@contextmanager
def locked(home: SiteHome) -> Iterator[None]:
    """Holds the home for the block: two daemons would spend one budget and answer under one name.

    Raises StoreError, naming the process that holds it, if another one does, and if the folder cannot be written.
    """
    lock = _lock(home)
    with explained("lock", home.folder):
        home.folder.stat()  # FileLock would make a folder that is missing
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:  # an OSError too
            raise StoreError(_taken(home)) from error
    try:
        with explained("write", _note(home)):
            write_own(_note(home), json.dumps(asdict(_this_process())).encode())
        yield
    finally:
        _note(home).unlink(missing_ok=True)
        lock.release()


def holder(home: SiteHome) -> Holder | None:
    """The process that holds the home now, or None. Only the lock counts: what a dead process noted is not believed."""
    if not (home.folder / ".lock").exists():
        return None
    lock = _lock(home)
    with explained("look at the lock of", home.folder):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return _noted(home) or Holder(0, "an unknown host", "it has left no note", "an unknown time")
    lock.release()
    return None


def _check_free(home: SiteHome) -> None:
    """Raises StoreError if there is a home, or anything that `create` did not make."""
    if home.policy.exists():
        raise StoreError(f"{home.folder} is a site's home already: nothing was changed; choose another folder")
    with explained("look into", home.folder):
        found = {path.name for path in home.folder.iterdir()} if home.folder.exists() else set()
    own = {path.name for path in (*home.folders, home.fingerprint_key)}
    others = sorted(name for name in found - own if not name.endswith(".tmp"))
    if others:
        raise StoreError(
            f"{home.folder} is not empty (it has {', '.join(others[:5])}): a site's home needs a folder of its own"
        )


def _lock(home: SiteHome) -> FileLock:
    return FileLock(home.folder / ".lock", mode=FILE_MODE, thread_local=False)


def _note(home: SiteHome) -> Path:
    return home.folder / ".holder.json"


def _taken(home: SiteHome) -> str:
    who = _noted(home) or "another process"
    return f"the home {home.folder} is in the hands of {who}: stop it first, one daemon at a time may have a home"


def _noted(home: SiteHome) -> Holder | None:
    """What the holder wrote; None while it is still writing or has just gone."""
    try:
        return Holder(**json.loads(_note(home).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Holder:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), " ".join(sys.argv)[:300], since)
