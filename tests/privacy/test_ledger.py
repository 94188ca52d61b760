"""The ledger never counts less than was spent, and refuses whatever was done to it."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release, epsilon
from fedlora.privacy.filter import Ceiling, divergence
from fedlora.privacy.journal import GENESIS, Head, Journal
from fedlora.privacy.ledger import CeilingReachedError, Schedule, create_ledger, open_ledger

ROUND = Release(noise_multiplier=2.0, rate=0.05, steps=10)


def schedule(run: str = "a", participations: int = 3, release: Release = ROUND) -> Schedule:
    return Schedule(run, "server.example", release, participations)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "ledger"
    create_ledger(place, "patients", 3.0, 1e-5)
    return place


def test_a_run_from_reservation_to_close(folder: Path) -> None:
    with open_ledger(folder) as ledger:
        assert (ledger.data, ledger.spent()) == ("patients", 0.0)
        ledger.reserve(schedule())
        reserved = ledger.spent()
        ledger.begin("a", 4)
        ledger.release("a", 4, "d4")
        ledger.begin("a", 7)
        assert ledger.spent() == reserved  # what may still begin counts from the start
    with open_ledger(folder) as ledger:
        assert ledger.spent() == reserved
        assert ledger.released("a", 4) == "d4"
        assert ledger.released("a", 7) is None
        ledger.close("a")
        assert 0 < ledger.spent() < reserved  # two of three began
        assert ledger.spent() == ledger.ceiling.epsilon_of(2 * divergence([ROUND], ledger.ceiling.order))


def test_what_a_round_that_began_can_and_cannot_do(folder: Path) -> None:
    with open_ledger(folder) as ledger:
        ledger.reserve(schedule(participations=2))
        ledger.begin("a", 1)
        for call, text in (
            (lambda: ledger.begin("a", 1), "began before: send its stored bytes again"),
            (lambda: ledger.release("a", 2, "d"), "did not begin: nothing of it may leave"),
            (lambda: ledger.void("a", 2), "it did not begin"),
            (lambda: ledger.begin("b", 1), "has no open reservation"),
            (lambda: ledger.reserve(schedule()), "has a reservation in this ledger already"),
            (lambda: ledger.reserve(schedule("b", 0)), "at least 1 is needed"),
        ):
            with pytest.raises(PrivacyError, match=text):
                call()
        ledger.release("a", 1, "d")
        ledger.release("a", 1, "d")  # a retry
        length = ledger.head.length
        with pytest.raises(PrivacyError, match="released other bytes"):
            ledger.release("a", 1, "e")
        with pytest.raises(PrivacyError, match="it was released"):
            ledger.void("a", 1)
        assert ledger.head.length == length
        ledger.begin("a", 2)
        ledger.void("a", 2)
        ledger.begin("a", 3)  # the void round does not count
        with pytest.raises(PrivacyError, match="has used all 2 rounds"):
            ledger.begin("a", 4)


def test_the_ceiling_holds_for_all_runs_and_servers_together(folder: Path) -> None:
    with open_ledger(folder) as ledger:
        granted = 0
        with suppress(CeilingReachedError):
            for number in range(1000):
                ledger.reserve(Schedule(f"run{number}", f"server{number}", ROUND, 2))
                granted += 2
        assert granted > 4
        before = ledger.head
        with pytest.raises(CeilingReachedError, match=r"the ceiling of 'patients' is 3 at delta 1e-05"):
            ledger.reserve(schedule("big", 10_000))
        assert ledger.head == before
        assert ledger.spent() <= 3.0
        # What a fixed schedule of the same releases costs by the tightest accountant is below the ceiling, too.
        assert epsilon([ROUND] * granted, 1e-5) <= ledger.spent()
        assert ledger.spent() > 2.5


@pytest.mark.parametrize(("target", "delta"), [(0.5, 1e-5), (3.0, 1e-5), (8.0, 1e-6), (30.0, 1e-9)])
def test_a_ceiling_is_safe_and_not_wasteful_for_gaussian_noise(target: float, delta: float) -> None:
    ceiling = Ceiling.of(target, delta)
    assert ceiling.epsilon_of(ceiling.budget) == pytest.approx(target)
    steps = 1000
    noise = (ceiling.order * steps / (2 * ceiling.budget)) ** 0.5  # RDP of a Gaussian: α / 2σ²
    release = Release(noise, 1.0, steps)
    assert divergence([release], ceiling.order) == pytest.approx(ceiling.budget)
    assert 0.75 * target < epsilon([release], delta) <= target


@pytest.mark.parametrize(("target", "delta"), [(0.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0), (1e-4, 1e-5)])
def test_impossible_ceilings(tmp_path: Path, target: float, delta: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon = "):
        create_ledger(tmp_path / "new", "data", target, delta)
    assert not (tmp_path / "new" / "journal.jsonl").exists()


def spend(folder: Path, run: str = "a", rounds: int = 3) -> Head:
    with open_ledger(folder) as ledger:
        ledger.reserve(schedule(run, rounds))
        for number in range(rounds):
            ledger.begin(run, number)
            ledger.release(run, number, f"digest{number}")
        return ledger.head


def edit(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "journal.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def cheaper(lines: list[str]) -> list[str]:
    return [line.replace('"noise_multiplier": 2.0', '"noise_multiplier": 9.0') for line in lines]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda lines: lines[:-1], "was cut, or is an older copy"),
        (lambda lines: lines[:1], "was cut, or is an older copy"),
        (lambda _: [], "was cut, or is an older copy"),
        (lambda lines: lines[:3] + lines[4:], "does not follow from the entry before it"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "does not follow"),
        (cheaper, "does not follow"),
        (lambda lines: ["not JSON\n", *lines], "is no journal entry"),
        (lambda lines: ["é\n", *lines], "is no journal"),
    ],
)
def test_an_edited_ledger_is_refused(folder: Path, change: Callable[[list[str]], list[str]], text: str) -> None:
    spend(folder)
    edit(folder, change)
    with pytest.raises(PrivacyError, match=text), open_ledger(folder):
        pass


@pytest.mark.parametrize("lost", ["journal.jsonl", "head.json"])
def test_a_missing_ledger_is_refused(folder: Path, lost: str) -> None:
    spend(folder)
    (folder / lost).unlink()
    with pytest.raises(PrivacyError, match="nobody knows what was spent"), open_ledger(folder):
        pass


def test_a_new_ledger_does_not_take_the_place_of_one(folder: Path) -> None:
    spend(folder)
    with pytest.raises(PrivacyError, match="exists already"):
        create_ledger(folder, "patients", 3.0, 1e-5)


def test_an_older_copy_is_refused_by_the_receipt(folder: Path, tmp_path: Path) -> None:
    spend(folder)
    shutil.copytree(folder, tmp_path / "backup")
    receipt = spend(folder, "b", 2)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)  # whole and consistent, but not the newest
    with open_ledger(folder) as ledger, pytest.raises(PrivacyError, match="an older copy, or another host"):
        ledger.check(receipt)


def test_a_clone_that_went_its_own_way_is_refused_by_the_receipt(folder: Path, tmp_path: Path) -> None:
    first = spend(folder)
    shutil.copytree(folder, tmp_path / "clone")
    receipt = spend(folder, "b", 2)
    spend(tmp_path / "clone", "c", 9)
    with open_ledger(tmp_path / "clone") as ledger:
        ledger.check(first)
        with pytest.raises(PrivacyError, match="another host went on with a clone"):
            ledger.check(receipt)


def test_one_process_at_a_time(folder: Path) -> None:
    with open_ledger(folder), pytest.raises(PrivacyError, match="open in another process"), open_ledger(folder):
        pass
    with open_ledger(folder):
        pass


def test_a_line_that_a_crash_cut_off_is_taken_away(folder: Path) -> None:
    head = spend(folder)
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"before": "' + head.digest[:20])
    with open_ledger(folder) as ledger:
        assert ledger.head == head
        ledger.close("a")
    with open_ledger(folder) as ledger:
        assert ledger.head.length == head.length + 1


def test_a_crash_between_an_entry_and_its_note_is_made_good(folder: Path) -> None:
    note = (folder / "head.json").read_text()
    head = spend(folder)
    (folder / "head.json").write_text(note)
    with open_ledger(folder) as ledger:
        assert ledger.head == head
    assert json.loads((folder / "head.json").read_text())["length"] == head.length


def test_a_folder_of_something_else_holds_no_ledger(tmp_path: Path) -> None:
    Journal.create(tmp_path).append({"kind": "other"})
    with pytest.raises(PrivacyError, match="holds no ledger"), open_ledger(tmp_path):
        pass
    assert Journal.open(tmp_path).holds(Head(0, GENESIS))
    assert not Journal.open(tmp_path).holds(Head(0, "1" * 64))
    (tmp_path / "head.json").write_text("{}")
    with pytest.raises(PrivacyError, match="no note of a journal's length"):
        Journal.open(tmp_path)
