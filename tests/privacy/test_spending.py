"""A client's round: spent once, sent as often as asked for, and refused in words that say nothing of the owner's."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import PrivacyError, StoreError
from fedlora.privacy.accounting import Release
from fedlora.privacy.ledger import Schedule, create_ledger, open_ledger
from fedlora.privacy.receipts import Receipt, ServerKey
from fedlora.privacy.spending import (
    BytesLostError,
    CeilingReachedError,
    DeclinedError,
    ParticipationsUsedError,
    RoundClosedError,
    ScheduleChangedError,
    Spent,
    spend,
)

SCHEDULE = Schedule("run-1", "server.example", (Release(2.0, 0.05, 10),), 3, (Release(8.0, 1.0, 1),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "owner" / "ledger"
    create_ledger(place, "patients", 3.0, 1e-5)
    return place


def ask(
    folder: Path,
    number: int,
    *,
    schedule: Schedule = SCHEDULE,
    make: Callable[[], bytes] = lambda: os.urandom(16),
    still_open: Callable[[], bool] = lambda: True,
    receipt: Receipt | None = None,
    fingerprint: str = "f1",
) -> Spent:
    return spend(folder, schedule, number, fingerprint=fingerprint, receipt=receipt, still_open=still_open, make=make)


def never() -> bytes:
    raise AssertionError("nothing may be trained")


def participated(folder: Path, run: str = "run-1") -> int:
    with open_ledger(folder) as ledger:
        return ledger.runs[run].participated()


def test_a_run_of_a_sketch_and_three_rounds(folder: Path) -> None:
    for number in range(4):
        spent = ask(folder, number, fingerprint=f"f{number // 2}")
        with open_ledger(folder) as ledger:
            assert (spent.ledger, spent.head) == (ledger.identity, ledger.head)
            assert ledger.released("run-1", number) == hashlib.sha256(spent.content).hexdigest()
    with pytest.raises(ParticipationsUsedError, match="has used all 3 rounds"):
        ask(folder, 4, make=never)
    with open_ledger(folder) as ledger:
        assert ledger.versions == ("f0", "f1")
        assert ledger.runs["run-1"].schedule == SCHEDULE


def test_a_retry_gets_the_same_bytes_and_costs_nothing(folder: Path) -> None:
    first, second = ask(folder, 1), ask(folder, 2)
    assert ask(folder, 2, make=never).content == second.content
    assert ask(folder, 1, make=never, still_open=lambda: False).content == first.content
    assert first.content != second.content
    assert participated(folder) == 2


def test_lost_bytes_are_never_noised_again(folder: Path) -> None:
    longer = replace(SCHEDULE, participations=5)
    for number in (1, 2, 3, 4, 5):
        ask(folder, number, schedule=longer)
    (folder / "outbox" / "run-1" / "5.bin").write_bytes(b"damaged")
    for number in (1, 5):  # four rounds older, and damaged
        with pytest.raises(BytesLostError, match="is not noised a second time") as lost:
            ask(folder, number, schedule=longer, make=never)
        assert str(folder) not in str(lost.value)
    assert participated(folder) == 5


def test_a_round_that_failed_or_came_too_late_costs_nothing(folder: Path) -> None:
    for error in (RuntimeError("out of memory"), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> bytes:
            raise error

        with pytest.raises(type(error)):
            ask(folder, 1, make=fail)
        assert participated(folder) == 0
    with pytest.raises(RoundClosedError, match="ended before this client was ready"):
        ask(folder, 1, still_open=lambda: False)
    assert participated(folder) == 0
    assert not list((folder / "outbox" / "run-1").iterdir())
    ask(folder, 1)
    assert participated(folder) == 1


def test_whether_the_round_is_open_is_asked_when_the_bytes_are_there(folder: Path) -> None:
    order = []

    def make() -> bytes:
        order.append("made")
        return b"noised"

    def still_open() -> bool:
        assert (folder / "outbox" / "run-1" / "1.bin").read_bytes() == b"noised"
        assert b'"released"' not in (folder / "journal.jsonl").read_bytes()
        order.append("asked")
        return True

    ask(folder, 1, make=make, still_open=still_open)
    assert order == ["made", "asked"]


def test_a_disk_that_is_full_leaves_a_void_round(folder: Path) -> None:
    (folder / "outbox").write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        ask(folder, 1)
    assert participated(folder) == 0


def test_what_the_owner_declines(folder: Path) -> None:
    too_much = replace(SCHEDULE, run="big", participations=10_000)
    for _ in range(2):
        with pytest.raises(CeilingReachedError, match="more than the data's owner lets all runs together spend"):
            ask(folder, 1, schedule=too_much, make=never)
    ask(folder, 1)
    changes = ({"participations": 2}, {"server": "other"}, {"once": ()}, {"releases": (Release(2.1, 0.05, 10),)})
    for change in changes:
        with pytest.raises(ScheduleChangedError, match="that needs a run of its own"):
            ask(folder, 2, schedule=replace(SCHEDULE, **change), make=never)  # type: ignore[arg-type]
    for number in (-1, 1.5):
        with pytest.raises(DeclinedError, match="announced no round"):
            ask(folder, number, make=never)  # type: ignore[arg-type]
    with pytest.raises(DeclinedError, match="announced no round 0"):
        ask(folder, 0, schedule=replace(SCHEDULE, run="plain", once=()), make=never)
    with open_ledger(folder) as ledger:
        ledger.close("run-1")
    for number in (1, 2):
        with pytest.raises(DeclinedError, match="was closed by the data's owner"):
            ask(folder, number, make=never)


def test_what_may_travel_to_a_server_says_nothing_of_the_owners(folder: Path) -> None:
    """The texts name the run, the round and what the server itself announced; no path, no data set, no ε, no count."""
    texts = []
    ask(folder, 1)
    (folder / "outbox" / "run-1" / "1.bin").unlink()
    for number, change in ((1, {}), (2, {"participations": 9}), (1, {"run": "big", "participations": 7_777}), (-1, {})):
        with pytest.raises(DeclinedError) as declined:
            ask(folder, number, schedule=replace(SCHEDULE, **change), make=never)  # type: ignore[arg-type]
        texts.append(str(declined.value))
    with pytest.raises(DeclinedError) as declined:
        ask(folder, 2, still_open=lambda: False)
    texts.append(str(declined.value))
    assert len(texts) == 5
    for text in texts:
        assert not any(private in text for private in (str(folder), "owner/", "patients", "epsilon", ".bin", "%"))


def test_a_ledger_that_is_missing_or_broken_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(PrivacyError, match="there is no ledger at") as refused:
        ask(tmp_path / "none", 1, make=never)
    assert not isinstance(refused.value, DeclinedError)  # it names a path: it may not travel
    ask(folder, 1)
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"noise_multiplier": 2.0', '"noise_multiplier": 9.0'))
    with pytest.raises(PrivacyError, match="does not follow") as refused:
        ask(folder, 2, make=never)
    assert not isinstance(refused.value, DeclinedError)


def test_a_receipt_is_checked_before_anything_is_noted(tmp_path: Path, folder: Path) -> None:
    key = ServerKey.load_or_create(tmp_path / "key.pem")
    spent = ask(folder, 1)
    receipt = key.sign(spent.ledger, spent.head)
    length = ask(folder, 2, receipt=receipt).head.length
    for wrong in (
        key.sign(spent.ledger, replace(spent.head, length=length + 5)),
        key.sign("another", spent.head),
        replace(receipt, length=1),
    ):
        with pytest.raises(PrivacyError):
            ask(folder, 3, receipt=wrong, make=never, fingerprint="f2")
    with open_ledger(folder) as ledger:
        assert (ledger.head.length, ledger.versions) == (length, ("f1",))


FATES = st.sampled_from(["sent", "failed", "late", "died"])


class DiedError(BaseException):
    """Stands for a kill: the ledger is abandoned as it is."""


@settings(max_examples=20)
@given(asked=st.lists(st.tuples(st.integers(0, 5), FATES), max_size=12))
def test_whatever_is_asked_for_each_round_has_one_content_and_counts_once(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("asked")
    create_ledger(folder, "patients", 8.0, 1e-5)
    sent: dict[int, bytes] = {}
    died: set[int] = set()
    for number, fate in asked:

        def make(fate: str = fate, number: int = number) -> bytes:
            if fate == "died":
                raise DiedError((folder / "journal.jsonl").read_bytes(), (folder / "head.json").read_bytes())
            if fate == "failed":
                raise ValueError("no memory")
            return os.urandom(16)

        try:
            content = ask(folder, number, make=make, still_open=lambda fate=fate: fate != "late").content
            assert sent.setdefault(number, content) == content
        except DiedError as killed:  # the void that followed is undone: it never happened
            (folder / "journal.jsonl").write_bytes(killed.args[0])
            (folder / "head.json").write_bytes(killed.args[1])
            died.add(number)
        except (DeclinedError, ValueError):
            pass
        with open_ledger(folder) as ledger:
            began = set(ledger.runs["run-1"].rounds)
            assert sent.keys() <= began <= sent.keys() | died
            assert len(began - {0}) <= SCHEDULE.participations
