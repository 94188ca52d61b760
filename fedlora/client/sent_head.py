"""How long the record of what left is, and the hash of its newest line: a small file beside it.

The record's lines hold each other; that the newest were cut off, only this shows. It is written after the line, so
that a crash between the two leaves a record which is longer than its head says: that is no fault, and mended.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlora.client.own_files import write_own
from fedlora.errors import StoreError
from fedlora.privacy.journal import GENESIS
from fedlora.server.durable import explained

NAME = "sent.head.json"


@dataclass(frozen=True)
class Head:
    """count: lines of the record. digest: hash of the last one."""

    count: int
    digest: str


EMPTY = Head(0, GENESIS)
"""Of a record without a line."""


def beside(record: Path) -> Path:
    """Where the head of a record is."""
    return record.with_name(NAME)


def read_head(record: Path) -> Head | None:
    """The head of a record; None if there is none. Raises StoreError if it cannot be read or is none."""
    path = beside(record)
    with explained("read", path):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        found = Head(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} does not say how long the record is: it was edited; restore it from a copy"
        ) from error
    if type(found.count) is not int or found.count < 0 or type(found.digest) is not str:
        raise StoreError(f"{path} does not say how long the record is: it was edited; restore it from a copy")
    return found


def write_head(record: Path, head: Head) -> None:
    """Notes the length of a record; on return the disk has it. Raises StoreError."""
    with explained("note the length of the record in", beside(record)):
        write_own(beside(record), json.dumps(asdict(head)).encode())


def check_head(record: Path, head: Head | None, digests: Sequence[str]) -> None:
    """Compares a head with the hashes of the record's lines. Raises StoreError if lines are missing at its end."""
    if head is None:
        if digests:
            raise StoreError(
                f"{beside(record)} is missing, so nobody knows whether lines were cut off the end of {record}: restore"
                " both from a copy"
            )
        return
    if head.count > len(digests):
        raise StoreError(
            f"{record} has {len(digests)} whole lines, but had {head.count}: the newest were cut off; restore the"
            " record from a copy, or compare the privacy ledger and the server's receipts"
        )
    if (GENESIS, *digests)[head.count] != head.digest:
        raise StoreError(
            f"{record} is not the record that {beside(record)} belongs to: line {head.count} is another one; restore"
            " both from one copy"
        )
