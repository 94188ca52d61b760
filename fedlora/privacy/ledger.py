"""What a data owner has spent of the privacy of one body of data, and what is left: the owner's, not a server's.

A run's whole schedule is reserved before it begins. A round is noted as begun before its first noised step: from then
on it is spent. It is noted as released, with the digest of the bytes, before they leave; a retry sends those bytes
again. A round that is not noted as released released nothing: it can be made void, and after a crash it may begin
anew. Closing a run gives back the rounds that never began. Whatever dies in between, the ledger counts at least what
was spent.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from fedlora.errors import PrivacyError
from fedlora.privacy.declined import CeilingReachedError, DeclinedError, ParticipationsUsedError
from fedlora.privacy.filter import Ceiling, Limits
from fedlora.privacy.journal import Head, Journal
from fedlora.privacy.ledger_state import Run, Schedule, State
from fedlora.privacy.outbox import Outbox, sweep
from fedlora.privacy.receipts import Receipt, ReceiptFile, verify
from fedlora.server.durable import explained

__all__ = ["CeilingReachedError", "Ledger", "Run", "Schedule", "create_ledger", "open_ledger"]


class Ledger:
    """The ledger of one data set, by its stable name, in a folder of its own.

    Data sets that may hold the same people belong in one ledger.
    """

    def __init__(self, journal: Journal, folder: Path, now: Callable[[], float] = time.time) -> None:
        """now: seconds since 1970. Raises PrivacyError if the journal's entries, or the receipts, make no ledger."""
        self._journal, self._folder, self._now = journal, folder, now
        self._state = State(journal.entries)
        self._began_here: set[tuple[str, int]] = set()
        self._receipts = ReceiptFile(folder)
        for receipt in self._receipts.receipts:
            self._compare(receipt)

    @property
    def identity(self) -> str:
        """Drawn when the ledger was made: another ledger has another, even for the same data."""
        return self._state.identity

    @property
    def data(self) -> str:
        """The name of the data set."""
        return self._state.data

    @property
    def ceiling(self) -> Ceiling:
        """What all runs together may spend."""
        return self._state.limits.total

    @property
    def limits(self) -> Limits:
        """The ceiling, and what one run and the runs of one month may spend."""
        return self._state.limits

    @property
    def versions(self) -> tuple[str, ...]:
        """The fingerprints that the data set has had, in the order in which they were noted."""
        return tuple(self._state.versions)

    @property
    def runs(self) -> Mapping[str, Run]:
        """What each run announced and did, by its id. To read, not to change."""
        return MappingProxyType(self._state.runs)

    @property
    def head(self) -> Head:
        """Where the ledger stands: what a server signs a receipt for."""
        return self._journal.head

    def reserve(self, schedule: Schedule) -> None:
        """Sets aside all that `schedule` can spend, in the present month.

        Raises CeilingReachedError if that is more than a limit leaves; PrivacyError if the run has a reservation
        already.
        """
        if schedule.run in self.runs:
            raise PrivacyError(
                f"run {schedule.run!r} has a reservation in this ledger already: a run is asked for once"
            )
        moment = self._now()
        run = Run.of(schedule, moment, self.ceiling.order)
        self._check_limits(run, run.counted(), Run.counted)
        self._note("reserved", time=moment, **schedule.facts())

    def begin(self, run: str, round_number: int) -> None:
        """Notes, before its first step, that a round is being trained: it counts from now on, even if nothing follows.

        Round 0 is what the schedule releases `once`. A round that began when the ledger was open before, and was not
        released, died there: it is made void and begins anew.

        Raises PrivacyError if the run has no open reservation or not that round, or the round began in this opening or
        was released; ParticipationsUsedError; CeilingReachedError if a limit was lowered meanwhile.
        """
        found = self._open(run)
        self._check_round(found, round_number)
        self._check_limits(found, found.begun_with(round_number), Run.begun)
        if round_number in found.rounds:
            self._note("void", run=run, round=round_number)
        self._note("begun", run=run, round=round_number)
        self._began_here.add((run, round_number))

    def release(self, run: str, round_number: int, digest: str) -> None:
        """Notes, before they leave, the SHA-256 of the bytes that a round releases.

        Raises PrivacyError if the round did not begin, or other bytes were noted for it.
        """
        rounds = self._open(run).rounds
        if round_number not in rounds:
            raise PrivacyError(f"round {round_number} of run {run!r} did not begin: nothing of it may leave")
        if rounds[round_number] == digest:
            return
        if rounds[round_number] is not None:
            raise PrivacyError(
                f"round {round_number} of run {run!r} released other bytes before: those alone may leave"
            )
        self._note("released", run=run, round=round_number, digest=digest)

    def void(self, run: str, round_number: int) -> None:
        """Takes back a round that began and of which no byte left.

        Raises PrivacyError if the round did not begin or was released.
        """
        rounds = self._open(run).rounds
        if rounds.get(round_number, "") is not None:
            raise PrivacyError(
                f"round {round_number} of run {run!r} cannot be made void: it "
                + ("was released" if round_number in rounds else "did not begin")
            )
        self._note("void", run=run, round=round_number)
        self._began_here.discard((run, round_number))

    def close(self, run: str) -> None:
        """Ends a run: what it had reserved and not begun is free again, and its stored bytes are removed.

        Raises PrivacyError if it is not open.
        """
        self._open(run)
        self._note("closed", run=run)
        Outbox(self._folder, run).clear()

    def released(self, run: str, round_number: int) -> str | None:
        """The digest of the bytes that a round released; None if it released none yet."""
        found = self.runs.get(run)
        return None if found is None else found.rounds.get(round_number)

    def note_version(self, fingerprint: str) -> None:
        """Notes the fingerprint of the data set if it is new. Whatever was spent before is spent of the new version."""
        if fingerprint not in self._state.versions:
            self._note("version", fingerprint=fingerprint)

    def set_limits(self, epsilon: float, *, run_epsilon: float | None, month_epsilon: float | None) -> None:
        """Sets all limits anew, at the ledger's δ and order; None: no such limit. Only the owner may call this.

        Nothing that a server sends may lead here. Lower limits hold at once: runs that are open go on only as far as
        what began fits. After a raise, what holds is the highest ceiling that there ever was.

        Raises PrivacyError for an ε that the ledger's order cannot keep.
        """
        Limits.of(self.ceiling.at(epsilon, "epsilon"), run_epsilon, month_epsilon)
        self._note("limits", epsilon=epsilon, run_epsilon=run_epsilon, month_epsilon=month_epsilon)

    def spent(self, *, month: str | None = None) -> float:
        """The ε at the ceiling's δ of all that began or may still begin, or of the runs of a month ("2031-05")."""
        return self.ceiling.epsilon_of(self._state.total(Run.counted, month=month))

    def check(self, receipt: Receipt) -> None:
        """Compares with what a server has a receipt for, and keeps the receipt if it is the newest of its key.

        Raises PrivacyError if its signature is wrong, or this ledger never stood there: it is another, an older copy,
        or a clone.
        """
        verify(receipt, receipt.key)
        self._compare(receipt)
        self._receipts.keep(receipt)

    def _compare(self, receipt: Receipt) -> None:
        if receipt.ledger != self.identity:
            raise PrivacyError(
                f"a server has a receipt for the ledger {receipt.ledger}, but the one of {self.data!r} is"
                f" {self.identity}: a different ledger took this one's place. Nothing may be spent on it; restore the"
                " first"
            )
        if not self._journal.holds(receipt.head):
            raise PrivacyError(
                f"the ledger of {self.data!r} does not hold what a server has a receipt for (entry {receipt.length}):"
                " it is an older copy, or another host went on with a clone. Nothing may be spent on it; restore the"
                " newest"
            )

    def _check_round(self, run: Run, number: int) -> None:
        name = run.schedule.run
        if type(number) is not int or number < 0 or (number == 0 and not run.schedule.once):
            raise DeclinedError(f"run {name!r} announced no round {number!r}: rounds count from 1")
        if run.rounds.get(number) is not None:
            raise PrivacyError(
                f"round {number} of run {name!r} was released: send its stored bytes again, never a second noise"
            )
        if (name, number) in self._began_here:
            raise PrivacyError(f"round {number} of run {name!r} began before: release it, or make it void first")
        if number and number not in run.rounds and run.participated() >= run.schedule.participations:
            raise ParticipationsUsedError(
                f"run {name!r} has used all {run.schedule.participations} rounds that it had announced"
            )

    def _check_limits(self, run: Run, asked: float, cost: Callable[[Run], float]) -> None:
        """Raises CeilingReachedError if `asked` for a run, with the `cost` of the others, is above a limit."""
        name, limits = run.schedule.run, self.limits
        others = self._state.total(cost, without=name)
        others_of_month = self._state.total(cost, month=run.month, without=name)
        for limit, together, what in (
            (limits.run, asked, "one run"),
            (limits.month, others_of_month + asked, "all runs of a month"),
            (limits.total, others + asked, "all runs together"),
        ):
            if limit is not None and not together <= limit.budget:
                raise CeilingReachedError(
                    f"run {name!r} asks for more than the data's owner lets {what} spend",
                    f"run {name!r} may spend up to epsilon {limit.epsilon_of(asked):.3g}; what counts for {what} would"
                    f" be {limit.epsilon_of(together):.3g}; the ceiling of {self.data!r} for that is"
                    f" {limit.epsilon:g} at delta {limit.delta:g}",
                )

    def _open(self, run: str) -> Run:
        found = self.runs.get(run)
        if found is None or found.closed:
            raise PrivacyError(f"run {run!r} has no open reservation in the ledger of {self.data!r}")
        return found

    def _note(self, kind: str, **facts: Any) -> None:
        self._journal.append({"kind": kind, "time": self._now(), **facts})
        self._state.apply(self._journal.entries[-1])


def create_ledger(
    folder: Path,
    data: str,
    epsilon: float,
    delta: float,
    *,
    run_epsilon: float | None = None,
    month_epsilon: float | None = None,
) -> None:
    """Opens a new ledger for the data set of that name: with its ceiling, and limits of one run and of one month (UTC).

    Raises PrivacyError if the folder has one, or for limits that cannot be kept.
    """
    limits = Limits.of(Ceiling.of(epsilon, delta), run_epsilon, month_epsilon)
    facts = {**asdict(limits.total), "run_epsilon": run_epsilon, "month_epsilon": month_epsilon}
    with explained("make a folder for a ledger at", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        opened = {"kind": "opened", "time": time.time(), "ledger": secrets.token_hex(16), "data": data, **facts}
        Journal.create(folder, opened)


@contextmanager
def open_ledger(folder: Path, *, now: Callable[[], float] = time.time) -> Iterator[Ledger]:
    """The ledger in `folder`, for this process alone while the block lasts. now: the clock, in seconds since 1970.

    Raises PrivacyError if it is missing, was edited, cut or replaced by an older copy, or is open elsewhere.
    """
    if not folder.is_dir():
        raise PrivacyError(f"there is no ledger at {folder}: the owner of the data makes one before any run")
    with _locked(folder):
        journal = Journal.open(folder)
        if not journal.entries or journal.entries[0].get("kind") != "opened":
            raise PrivacyError(f"{folder} holds no ledger: its first entry does not open one")
        ledger = Ledger(journal, folder, now)
        sweep(folder, {name for name, run in ledger.runs.items() if run.closed})
        yield ledger


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    with explained("lock", folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise PrivacyError(f"the ledger in {folder} is open in another process: one at a time may spend") from error
    try:
        yield
    finally:
        lock.release()
