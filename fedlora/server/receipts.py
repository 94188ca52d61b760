"""The server's receipts for clients' privacy ledgers: signed once a round is committed, shown with the next task."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedlora.errors import StoreError
from fedlora.privacy.journal import Head
from fedlora.privacy.receipts import Receipt, ServerKey
from fedlora.server.durable import explained, replace_synced
from fedlora.wire import LedgerHead

KEY, BOOK = "receipt.key", "receipts.json"
_BOOK = TypeAdapter(dict[int, Receipt])


class ReceiptBook:
    """The newest receipt for each client of one run, in the run's folder, and the key that signs them.

    key: its file; None: one of the run's own, in the folder.

    Raises StoreError or PrivacyError if what is there cannot be read.
    """

    def __init__(self, folder: Path, key: Path | None = None) -> None:
        self._path = folder / BOOK
        self._key = ServerKey.load_or_create(key or folder / KEY)
        self._newest = self._read()
        self._pending: dict[int, LedgerHead] = {}

    def newest(self, client: int) -> str:
        """The receipt for `client`, as JSON; "" if there is none yet."""
        receipt = self._newest.get(client)
        return "" if receipt is None else receipt.to_json()

    def note(self, client: int, head: LedgerHead) -> None:
        """Remembers where a client's ledger stood when it answered; not acknowledged before the round is durable."""
        self._pending[client] = head

    def acknowledge(self) -> None:
        """Signs what was noted: the rounds behind it are committed. Raises StoreError if the disk does not take it."""
        signed = {
            client: self._key.sign(head.ledger, Head(head.length, head.digest))
            for client, head in self._pending.items()
        }
        if signed:
            self._write({**self._newest, **signed})
        self._pending = {}

    def _write(self, receipts: Mapping[int, Receipt]) -> None:
        with explained("store receipts in", self._path):
            replace_synced(self._path, _BOOK.dump_json(dict(receipts)))
        self._newest = dict(receipts)

    def _read(self) -> dict[int, Receipt]:
        if not self._path.exists():
            return {}
        try:
            with explained("read", self._path):
                return _BOOK.validate_json(self._path.read_bytes())
        except ValidationError as error:
            raise StoreError(f"{self._path} does not hold receipts: it was edited; restore it from a copy") from error
