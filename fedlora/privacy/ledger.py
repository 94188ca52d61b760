"""What a data owner has spent of the privacy of one body of data, and what is left: the owner's, not a server's.

A run's whole schedule is reserved before it begins. A round is noted as begun before its first noised step: from then
on it is spent. It is noted as released, with the digest of the bytes, before they leave; a retry sends those bytes
again. Only a round of which no byte left can be made void. Closing a run gives back the rounds that never began.
Whatever dies in between, the ledger counts at least what was spent.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release
from fedlora.privacy.filter import Ceiling, divergence
from fedlora.privacy.journal import Head, Journal


class CeilingReachedError(PrivacyError):
    """What is asked for would pass the owner's ceiling; nothing was reserved."""


@dataclass(frozen=True)
class Schedule:
    """What a run asks for: `release` in each of at most `participations` rounds."""

    run: str
    server: str
    release: Release
    participations: int


class Ledger:
    """The ledger of one data set, by its stable name, in a folder of its own.

    Data sets that may hold the same people belong in one ledger.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        first = journal.entries[0]
        self.identity = str(first["ledger"])
        self.data = str(first["data"])
        self.ceiling = Ceiling(float(first["epsilon"]), float(first["delta"]), float(first["order"]))

    @property
    def head(self) -> Head:
        """Where the ledger stands: what a server signs a receipt for."""
        return self._journal.head

    def reserve(self, schedule: Schedule) -> None:
        """Sets aside all that `schedule` can spend.

        Raises CeilingReachedError, saying how much is left, if that is more than is left; PrivacyError if the run has a
        reservation already, or asks for nothing.
        """
        if schedule.run in self._runs():
            raise PrivacyError(
                f"run {schedule.run!r} has a reservation in this ledger already: a run is asked for once"
            )
        if schedule.participations < 1:
            raise PrivacyError(f"run {schedule.run!r} asks for {schedule.participations} rounds: at least 1 is needed")
        asked = schedule.participations * self._cost(schedule.release)
        together = self._spent() + asked
        if together > self.ceiling.budget:
            raise CeilingReachedError(
                f"run {schedule.run!r} may spend up to epsilon {self.ceiling.epsilon_of(asked):.3g}, with what is spent"
                f" and reserved {self.ceiling.epsilon_of(together):.3g}; the ceiling of {self.data!r} is"
                f" {self.ceiling.epsilon:g} at delta {self.ceiling.delta:g}"
            )
        self._note("reserved", **asdict(schedule))

    def begin(self, run: str, round_number: int) -> None:
        """Notes, before its first step, that a round is being trained: it counts from now on, even if nothing follows.

        Raises PrivacyError if the run has no open reservation, the round began before, or its rounds are used up.
        """
        begun = self._open(run).rounds
        if round_number in begun:
            raise PrivacyError(
                f"round {round_number} of run {run!r} began before: send its stored bytes again, never a second noise"
            )
        if len(begun) >= self._runs()[run].participations:
            raise PrivacyError(
                f"run {run!r} has used all {self._runs()[run].participations} rounds that it had announced"
            )
        self._note("begun", run=run, round=round_number)

    def release(self, run: str, round_number: int, digest: str) -> None:
        """Notes, before they leave, the SHA-256 of the bytes that a round releases.

        Raises PrivacyError if the round did not begin, or other bytes were noted for it.
        """
        state = self._open(run).rounds.get(round_number)
        if state is None:
            raise PrivacyError(f"round {round_number} of run {run!r} did not begin: nothing of it may leave")
        if state.digest == digest:
            return
        if state.digest is not None:
            raise PrivacyError(
                f"round {round_number} of run {run!r} released other bytes before: those alone may leave"
            )
        self._note("released", run=run, round=round_number, digest=digest)

    def void(self, run: str, round_number: int) -> None:
        """Takes back a round that began and of which no byte left.

        Raises PrivacyError if the round did not begin or was released.
        """
        state = self._open(run).rounds.get(round_number)
        if state is None or state.digest is not None:
            raise PrivacyError(
                f"round {round_number} of run {run!r} cannot be made void: it "
                + ("did not begin" if state is None else "was released")
            )
        self._note("void", run=run, round=round_number)

    def close(self, run: str) -> None:
        """Ends a run: what it had reserved and not begun is free again. Raises PrivacyError if it is not open."""
        self._open(run)
        self._note("closed", run=run)

    def released(self, run: str, round_number: int) -> str | None:
        """The digest of the bytes that a round released; None if it released none yet."""
        entry = self._runs().get(run)
        state = None if entry is None else entry.rounds.get(round_number)
        return None if state is None else state.digest

    def spent(self) -> float:
        """The ε at the ceiling's δ of all that began or may still begin."""
        return self.ceiling.epsilon_of(self._spent())

    def check(self, receipt: Head) -> None:
        """Raises PrivacyError if this ledger never stood where `receipt` says: it is an older copy, or a clone."""
        if not self._journal.holds(receipt):
            raise PrivacyError(
                f"the ledger of {self.data!r} does not hold what a server has a receipt for (entry {receipt.length}):"
                " it is an older copy, or another host went on with a clone. Nothing may be spent on it; restore the"
                " newest"
            )

    def _spent(self) -> float:
        return sum(run.rounds_counted() * self._cost(run.release) for run in self._runs().values())

    def _cost(self, release: Release) -> float:
        return divergence([release], self.ceiling.order)

    def _open(self, run: str) -> "_Run":
        found = self._runs().get(run)
        if found is None or found.closed:
            raise PrivacyError(f"run {run!r} has no open reservation in the ledger of {self.data!r}")
        return found

    def _runs(self) -> dict[str, "_Run"]:
        runs: dict[str, _Run] = {}
        for entry in self._journal.entries[1:]:
            _APPLY[str(entry["kind"])](runs, entry)
        return runs

    def _note(self, kind: str, **facts: Any) -> None:
        self._journal.append({"kind": kind, "time": time.time(), **facts})


@dataclass
class _Round:
    digest: str | None = None


@dataclass
class _Run:
    release: Release
    participations: int
    rounds: dict[int, _Round]
    voided: int = 0
    closed: bool = False

    def rounds_counted(self) -> int:
        """How many rounds count as spent: all that were announced, until the run is closed."""
        return len(self.rounds) if self.closed else self.participations


def _reserved(runs: dict[str, _Run], entry: Mapping[str, Any]) -> None:
    runs[entry["run"]] = _Run(Release(**entry["release"]), int(entry["participations"]), {})


def _begun(runs: dict[str, _Run], entry: Mapping[str, Any]) -> None:
    runs[entry["run"]].rounds[int(entry["round"])] = _Round()


def _released(runs: dict[str, _Run], entry: Mapping[str, Any]) -> None:
    runs[entry["run"]].rounds[int(entry["round"])].digest = str(entry["digest"])


def _void(runs: dict[str, _Run], entry: Mapping[str, Any]) -> None:
    del runs[entry["run"]].rounds[int(entry["round"])]


def _closed(runs: dict[str, _Run], entry: Mapping[str, Any]) -> None:
    runs[entry["run"]].closed = True


_APPLY = {"reserved": _reserved, "begun": _begun, "released": _released, "void": _void, "closed": _closed}


def create_ledger(folder: Path, data: str, epsilon: float, delta: float) -> None:
    """Opens a new ledger for the data set of that name, with its ceiling.

    Raises PrivacyError if the folder has one, or for an impossible ceiling.
    """
    ceiling = Ceiling.of(epsilon, delta)
    with _locked(folder):
        journal = Journal.create(folder)
        journal.append(
            {"kind": "opened", "time": time.time(), "ledger": secrets.token_hex(16), "data": data, **asdict(ceiling)}
        )


@contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger in `folder`, for this process alone while the block lasts.

    Raises PrivacyError if it is missing, was edited, cut or replaced by an older copy, or is open elsewhere.
    """
    with _locked(folder):
        journal = Journal.open(folder)
        if not journal.entries or journal.entries[0].get("kind") != "opened":
            raise PrivacyError(f"{folder} holds no ledger: its first entry does not open one")
        yield Ledger(journal)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PrivacyError(f"the ledger in {folder} is open in another process: one at a time may spend") from error
    try:
        yield
    finally:
        lock.release()
