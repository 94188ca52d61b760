"""What a server acknowledges to have received, signed: proof, later, that a ledger is the newest and not a copy.

A receipt names a ledger and where it stood, and is signed with the server's Ed25519 key (RFC 8032). The id of a key is
its public half, in hexadecimal digits. Which keys a client trusts is the client's affair: see `verify`.
"""

import contextlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlora.errors import PrivacyError
from fedlora.privacy.journal import Head, canonical
from fedlora.server.durable import explained, replace_synced, sync_folder

_CONTEXT = b"fedlora ledger receipt 1\n"
"""Before what is signed: a signature made for anything else with the same key is no receipt."""

_LARGEST = 4096
_DIGITS = {"digest": 64, "key": 64, "signature": 128}


@dataclass(frozen=True)
class Receipt:
    """A server's word that it has what the ledger of that id noted, up to the entry `length` with the hash `digest`."""

    ledger: str
    length: int
    digest: str
    key: str
    signature: str

    @property
    def head(self) -> Head:
        """Where the ledger stood."""
        return Head(self.length, self.digest)

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Raises PrivacyError unless `text` is what `to_json` gives for some receipt. The signature is not checked."""
        try:
            found: Any = json.loads(text) if len(text) <= _LARGEST else None
        except (ValueError, RecursionError) as error:
            raise PrivacyError(f"a receipt must be JSON, not {text[:40]!r}: ask the server for a new one") from error
        problem = _problem(found)
        if problem:
            raise PrivacyError(f"this is no receipt: {problem}; ask the server for a new one")
        return cls(**found)


def _problem(found: Any) -> str | None:
    """What is wrong with a receipt that was read; None if it has the right form."""
    names = set(Receipt.__dataclass_fields__)
    if not isinstance(found, dict) or set(found) != names:
        return f"it must be a small JSON object with {', '.join(sorted(names))}, and nothing else"
    if not isinstance(found["ledger"], str):
        return "'ledger' must be a text"
    if type(found["length"]) is not int or found["length"] < 0:
        return f"'length' must be a count of entries, not {found['length']!r}"
    bad = [name for name, digits in _DIGITS.items() if not re.fullmatch(f"[0-9a-f]{{{digits}}}", str(found[name]))]
    return f"{bad[0]!r} must be {_DIGITS[bad[0]]} hexadecimal digits" if bad else None


def verify(receipt: Receipt, public: str) -> None:
    """Raises PrivacyError unless `receipt` is signed by the key of the id `public`.

    A caller who trusts one server names that server's key; `receipt.key` only shows that the receipt was not edited.
    """
    if receipt.key != public:
        raise PrivacyError(
            f"a receipt is signed by the server key {receipt.key[:16]}…, not by {public[:16]}…, which is expected: it"
            " is another server's, or the server lost its key"
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(receipt.signature), _signed(receipt.ledger, receipt.head, public))
    except (InvalidSignature, ValueError) as error:
        raise PrivacyError(
            f"a receipt for entry {receipt.length} does not bear the signature of the server key {public[:16]}…: it was"
            " forged or damaged. Nothing may be spent on its word"
        ) from error


def _signed(ledger: str, head: Head, key: str) -> bytes:
    return _CONTEXT + canonical({"ledger": ledger, "length": head.length, "digest": head.digest, "key": key}).encode()


class ServerKey:
    """A server's Ed25519 key: it outlives runs, so that clients know the server again."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def load_or_create(cls, path: Path) -> "ServerKey":
        """The key in the file `path` (PKCS #8, PEM, mode 0600), made if there is none.

        Raises PrivacyError if the file holds no Ed25519 key or others may read it, StoreError if it cannot be used.
        """
        with explained("read or make the server's key", path):
            if not path.exists():
                _create(path)
            if path.stat().st_mode & 0o077:
                raise PrivacyError(f"{path} can be read by others, who could sign receipts: chmod 600 {path}")
            return cls(_parsed(path))

    def sign(self, ledger: str, head: Head) -> Receipt:
        """Acknowledges that the server has what the ledger of that id released up to `head`."""
        signature = self._private.sign(_signed(ledger, head, self.public)).hex()
        return Receipt(ledger, head.length, head.digest, self.public, signature)


def _create(path: Path) -> None:
    """Whole or not at all, and never over a key that another process made meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def _parsed(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PrivacyError(f"{path} holds no private key that can be read: restore it from a copy") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PrivacyError(f"{path} holds another kind of key than Ed25519: name another file")
    return key


class ReceiptFile:
    """The newest receipt of each server key, in one file beside a journal."""

    def __init__(self, folder: Path) -> None:
        """Raises PrivacyError if the file in `folder` was edited: also if a signature in it is wrong."""
        self._path = folder / "receipts.json"
        self._newest: dict[str, Receipt] = {}
        for receipt in self._read():
            verify(receipt, receipt.key)
            self._newest[receipt.key] = receipt

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """One of each key."""
        return tuple(self._newest.values())

    def keep(self, receipt: Receipt) -> None:
        """Keeps `receipt`, durably, unless there is one of the same key that is as new or newer."""
        before = self._newest.get(receipt.key)
        if before is not None and before.length >= receipt.length:
            return
        newest = {**self._newest, receipt.key: receipt}
        with explained("store a receipt in", self._path):
            replace_synced(self._path, canonical([asdict(each) for each in newest.values()]).encode())
        self._newest = newest

    def _read(self) -> list[Receipt]:
        if not self._path.exists():
            return []
        try:
            with explained("read", self._path):
                found = json.loads(self._path.read_bytes())
            return [Receipt.from_json(canonical(each)) for each in found]
        except (ValueError, TypeError, RecursionError, PrivacyError) as error:
            raise PrivacyError(
                f"{self._path} does not hold receipts: it was edited; restore the newest copy"
            ) from error
