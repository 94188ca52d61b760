"""What a client does in each round: it spends, or says why not. Everything in the order that survives a crash.

begun → made → stored → noted as released → sent. Before the note nothing has left, so whatever dies there may begin
anew; after it the stored bytes are sent, again and again if need be.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import PrivacyError
from fedlora.privacy.declined import (
    BytesLostError,
    CeilingReachedError,
    DeclinedError,
    ParticipationsUsedError,
    RoundClosedError,
    ScheduleChangedError,
)
from fedlora.privacy.journal import Head
from fedlora.privacy.ledger import Ledger, Schedule, open_ledger
from fedlora.privacy.outbox import Outbox
from fedlora.privacy.receipts import Receipt

__all__ = [
    "BytesLostError",
    "CeilingReachedError",
    "DeclinedError",
    "ParticipationsUsedError",
    "RoundClosedError",
    "ScheduleChangedError",
    "Spent",
    "spend",
]


@dataclass(frozen=True)
class Spent:
    """What may be sent now, and where the ledger of that id stands: the server signs a receipt for it."""

    content: bytes
    ledger: str
    head: Head


def spend(
    folder: Path,
    schedule: Schedule,
    round_number: int,
    *,
    fingerprint: str,
    receipt: Receipt | None,
    still_open: Callable[[], bool],
    make: Callable[[], bytes],
) -> Spent:
    """The bytes of a round, noted in the ledger in `folder`; those of the first time if it was released before.

    fingerprint: of the data set as it is now. receipt: the newest that the server has of this ledger. still_open:
    whether the server still takes the round; asked when the bytes are made. make: trains and noises; if it raises, the
    round is void and the error goes on. The ledger is this process's alone meanwhile.

    Raises DeclinedError, of which alone the text may travel to a server; PrivacyError if the ledger is missing, broken,
    open elsewhere, or not what the receipt says; StoreError if the disk fails.
    """
    with open_ledger(folder) as ledger:
        if receipt is not None:
            ledger.check(receipt)
        ledger.note_version(fingerprint)
        _reserve(ledger, schedule)
        outbox = Outbox(folder, schedule.run)
        digest = ledger.released(schedule.run, round_number)
        if digest is None:
            content = _release(ledger, outbox, schedule.run, round_number, still_open, make)
        else:
            content = _again(outbox, schedule.run, round_number, digest)
        return Spent(content, ledger.identity, ledger.head)


def _reserve(ledger: Ledger, schedule: Schedule) -> None:
    found = ledger.runs.get(schedule.run)
    if found is None:
        ledger.reserve(schedule)
    elif found.schedule != schedule:
        raise ScheduleChangedError(
            f"run {schedule.run!r} asks for something else than what it had announced: that needs a run of its own"
        )
    elif found.closed:
        raise DeclinedError(f"run {schedule.run!r} was closed by the data's owner: start another run")


def _again(outbox: Outbox, run: str, round_number: int, digest: str) -> bytes:
    try:
        return outbox.read(round_number, digest)
    except PrivacyError as error:
        raise BytesLostError(
            f"round {round_number} of run {run!r} was released before, and its bytes are lost: its ε is spent, and it"
            " is not noised a second time. Go on with the next round"
        ) from error


def _release(
    ledger: Ledger,
    outbox: Outbox,
    run: str,
    round_number: int,
    still_open: Callable[[], bool],
    make: Callable[[], bytes],
) -> bytes:
    ledger.begin(run, round_number)
    try:
        content = make()
        digest = outbox.store(round_number, content)
        if not still_open():
            raise RoundClosedError(f"round {round_number} of run {run!r} ended before this client was ready")
    except BaseException:
        ledger.void(run, round_number)
        outbox.discard(round_number)
        raise
    ledger.release(run, round_number, digest)
    return content
