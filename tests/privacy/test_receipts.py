"""A server's receipt shows whatever was done to a ledger since; no one else can make one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import PrivacyError, StoreError
from fedlora.privacy.accounting import Release
from fedlora.privacy.journal import GENESIS, Head
from fedlora.privacy.ledger import Schedule, create_ledger, open_ledger
from fedlora.privacy.receipts import Receipt, ReceiptFile, ServerKey, verify

HEAD = Head(7, "ab" * 32)


@pytest.fixture
def key(tmp_path: Path) -> ServerKey:
    return ServerKey.load_or_create(tmp_path / "server" / "key.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ledger"
    create_ledger(place, "patients", 3.0, 1e-5)
    return place


def spend(folder: Path, key: ServerKey, run: str, rounds: int = 2) -> Receipt:
    """A run, and the receipt for it, which the ledger does not see yet."""
    with open_ledger(folder) as ledger:
        ledger.reserve(Schedule(run, "server.example", (Release(2.0, 0.05, 10),), rounds))
        for number in range(1, rounds + 1):
            ledger.begin(run, number)
            ledger.release(run, number, f"digest of {run} {number}")
        return key.sign(ledger.identity, ledger.head)


def show(folder: Path, receipt: Receipt) -> None:
    with open_ledger(folder) as ledger:
        ledger.check(receipt)


def test_a_key_stays_the_same_and_is_its_owners(tmp_path: Path, key: ServerKey) -> None:
    path = tmp_path / "server" / "key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key.pem"]
    again = ServerKey.load_or_create(path)
    assert again.public == key.public
    assert again.sign("l", HEAD) == key.sign("l", HEAD)
    assert ServerKey.load_or_create(tmp_path / "other.pem").public != key.public


def test_keys_that_cannot_be_used(tmp_path: Path, key: ServerKey) -> None:
    path = tmp_path / "server" / "key.pem"
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match="can be read by others"):
        ServerKey.load_or_create(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(PrivacyError, match="no private key that can be read"):
        ServerKey.load_or_create(path)
    other = Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(other)
    with pytest.raises(PrivacyError, match="another kind of key"):
        ServerKey.load_or_create(path)
    with pytest.raises(StoreError, match="the server's key"):
        ServerKey.load_or_create(path / "below a file")


def test_a_signature_holds_for_what_was_signed_alone(tmp_path: Path, key: ServerKey) -> None:
    receipt = key.sign("ledger", HEAD)
    verify(receipt, key.public)
    other = ServerKey.load_or_create(tmp_path / "other.pem")
    for forged in (
        replace(receipt, ledger="another"),
        replace(receipt, length=6),
        replace(receipt, digest="ac" * 32),
        replace(receipt, signature=other.sign("ledger", HEAD).signature),
        replace(receipt, signature="00" * 64),
        replace(receipt, signature="no digits"),
    ):
        with pytest.raises(PrivacyError, match="does not bear the signature"):
            verify(forged, key.public)
    with pytest.raises(PrivacyError, match="which is expected"):
        verify(other.sign("ledger", HEAD), key.public)
    with pytest.raises(PrivacyError, match="does not bear the signature"):
        verify(replace(other.sign("ledger", HEAD), key=key.public), key.public)


@given(ledger=st.text(max_size=40), length=st.integers(0, 2**40))
def test_receipts_survive_their_text(ledger: str, length: int) -> None:
    receipt = Receipt(ledger, length, "0a" * 32, "0b" * 32, "0c" * 64)
    assert Receipt.from_json(receipt.to_json()) == receipt


GOOD = json.loads(Receipt("l", 1, "0a" * 32, "0b" * 32, "0c" * 64).to_json())


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "key"},
        {**GOOD, "length": -1},
        {**GOOD, "length": True},
        {**GOOD, "length": "1"},
        {**GOOD, "ledger": None},
        {**GOOD, "ledger": "x" * 5000},
        {**GOOD, "digest": "0A" * 32},
        {**GOOD, "key": "0b" * 31},
        {**GOOD, "key": "0b" * 32 + "\n"},
        {**GOOD, "signature": 12},
    ],
)
def test_what_is_no_receipt(found: Any) -> None:
    with pytest.raises(PrivacyError, match="this is no receipt"):
        Receipt.from_json(json.dumps(found))


@pytest.mark.parametrize("text", ["", "{", "[" * 4000])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(PrivacyError, match="a receipt must be JSON"):
        Receipt.from_json(text)


@given(text=st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_whatever_a_server_sends_is_a_receipt_or_a_privacy_error(text: str) -> None:
    with pytest.raises(PrivacyError):
        Receipt.from_json(text)


def test_the_newest_receipt_of_each_key_is_kept(tmp_path: Path, folder: Path, key: ServerKey) -> None:
    other = ServerKey.load_or_create(tmp_path / "other.pem")
    first = spend(folder, key, "a")
    second = spend(folder, key, "b")
    show(folder, second)
    show(folder, first)  # an older one is right, but never replaces a newer
    assert ReceiptFile(folder).receipts == (second,)
    with open_ledger(folder) as ledger:
        of_other = other.sign(ledger.identity, first.head)
        ledger.check(of_other)
    assert set(ReceiptFile(folder).receipts) == {second, of_other}


def test_an_older_copy_is_refused(tmp_path: Path, folder: Path, key: ServerKey) -> None:
    spend(folder, key, "a")
    shutil.copytree(folder, tmp_path / "backup")
    receipt = spend(folder, key, "b")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)  # whole and consistent, but not the newest
    with pytest.raises(PrivacyError, match="an older copy, or another host"):
        show(folder, receipt)
    with open_ledger(folder) as ledger:  # a receipt that is refused is not kept
        assert "b" not in ledger.runs


def test_a_clone_that_went_its_own_way_is_refused(tmp_path: Path, folder: Path, key: ServerKey) -> None:
    first = spend(folder, key, "a")
    shutil.copytree(folder, tmp_path / "clone")
    receipt = spend(folder, key, "b")
    spend(tmp_path / "clone", key, "c", 9)
    show(tmp_path / "clone", first)
    with pytest.raises(PrivacyError, match="another host went on with a clone"):
        show(tmp_path / "clone", receipt)
    show(folder, receipt)


def test_a_new_ledger_in_the_place_of_one_is_refused(tmp_path: Path, folder: Path, key: ServerKey) -> None:
    receipt = spend(folder, key, "a")
    shutil.rmtree(folder)
    create_ledger(folder, "patients", 3.0, 1e-5)
    with pytest.raises(PrivacyError, match="a different ledger took this one's place"):
        show(folder, receipt)


def test_a_forged_receipt_is_refused_and_not_kept(tmp_path: Path, folder: Path, key: ServerKey) -> None:
    receipt = spend(folder, key, "a")
    for forged in (replace(receipt, length=1, digest=GENESIS), replace(receipt, signature="00" * 64)):
        with pytest.raises(PrivacyError, match="does not bear the signature"):
            show(folder, forged)
    assert ReceiptFile(folder).receipts == ()


def note_of(lines: list[str]) -> str:
    return json.dumps({"length": len(lines), "digest": json.loads(lines[-1])["digest"]})


def cut(folder: Path) -> None:
    """What a careful hand does: the newest entries are gone, and the note of the length with them."""
    lines = (folder / "journal.jsonl").read_text().splitlines()[:-2]
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "head.json").write_text(note_of(lines))


def renew(folder: Path) -> None:
    """Another ledger, beside the receipts of the first."""
    for name in ("journal.jsonl", "head.json"):
        (folder / name).unlink()
    create_ledger(folder, "patients", 3.0, 1e-5)


def edit(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        path = folder / "receipts.json"
        receipts = json.loads(path.read_text())
        change(receipts)
        path.write_text(json.dumps(receipts))

    return edited


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (cut, "an older copy"),
        (renew, "a different ledger took"),
        (edit(lambda receipts: receipts[0].update(length=1)), "does not bear the signature"),
        (edit(lambda receipts: receipts[0].update(ledger="x")), "does not bear the signature"),
        (edit(lambda receipts: receipts[0].pop("key")), "does not hold receipts"),
        (edit(lambda receipts: receipts.append(1)), "does not hold receipts"),
        (lambda folder: (folder / "receipts.json").write_text(""), "does not hold receipts"),
        (lambda folder: (folder / "receipts.json").write_bytes(b"\xff"), "does not hold receipts"),
        (lambda folder: (folder / "receipts.json").write_text("1"), "does not hold receipts"),
    ],
)
def test_kept_receipts_are_compared_when_the_ledger_is_opened(
    folder: Path, key: ServerKey, harm: Callable[[Path], object], text: str
) -> None:
    show(folder, spend(folder, key, "a"))
    harm(folder)
    with pytest.raises(PrivacyError, match=text), open_ledger(folder):
        pass


def test_without_a_receipt_a_careful_cut_would_not_show(folder: Path, key: ServerKey) -> None:
    """The negative control: it is the receipt, and nothing else, that tells."""
    receipt = spend(folder, key, "a")
    cut(folder)
    with open_ledger(folder) as ledger:
        assert ledger.released("a", 2) is None
    with pytest.raises(PrivacyError, match="an older copy"):
        show(folder, receipt)
