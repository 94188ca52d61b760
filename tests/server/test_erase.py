"""What a server deletes of a site that asks for it, and what it leaves."""

import json
import shutil
import stat
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.errors import IdentityError, StoreError
from fedlora.identity.records import ClientStatus
from fedlora.identity.registry import Registry
from fedlora.link.v1.link_pb2 import ErasedRun
from fedlora.server import checkpoint, erase, scrub_files
from fedlora.server.erase import erase_client, finish_erasures
from fedlora.server.events import (
    FILE,
    ClientReported,
    EventLog,
    RoundCommitted,
    RoundRetried,
    RunFailed,
    read_events,
)
from fedlora.server.operator.stream import Tail
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.scrub import Erasures, erasures, note
from fedlora.server.store import RunStore
from tests.server.traces import (
    LOSS,
    REFUSED,
    Small,
    found,
    is_blank,
    lines,
    registry_of,
    small_run,
    status_of,
)


@pytest.fixture
def small(store: RunStore, samples: ModuleType) -> Small:
    return partial(small_run, store, samples)


@pytest.fixture
def registry(store: RunStore) -> Registry:
    return registry_of(store)


def test_a_refused_client_loses_its_reasons_too(store: RunStore, small: Small, registry: Registry) -> None:
    """Also in the message with which a run ended. The others' stay."""
    reason = "RunError: round 3: 0 of 2 updates were admitted, fewer than federation.min_reports=1 ({})"
    told = "client 0: it has no time (client 1: not me); client 1: its norm 1e9 is over the bound 10"
    info = small(status=RunStatus.FAILED, reason=reason.format(told))
    with EventLog(info.folder / FILE) as log:
        log.append(RoundRetried(run=info.id, round=3, attempt=1, wait=1.0, reason=reason.format(told)))
        log.append(RunFailed(run=info.id, round=2, rounds=9, error="RunError", reason=reason.format(told), seconds=1.0))
    reply = erase_client(store, registry, "site-1", leave=False)
    assert list(reply.runs) == [ErasedRun(run=info.id, rounds=[], restart_after=2)]
    assert found(store.folder, {REFUSED}) == set()
    expected = reason.format("client 0: it has no time (client 1: not me); client 1: erased")
    assert store.get(info.id).reason == expected
    ends = [event for event in read_events(info.folder / FILE) if isinstance(event, RunFailed | RoundRetried)]
    assert [event.reason for event in ends] == [expected, expected]
    assert found(store.folder, {LOSS}) != set()


def test_figures_of_a_lone_reporter_go_with_it(store: RunStore, small: Small, registry: Registry) -> None:
    """`train_loss` of a round is then the site's own; what was measured of the global model stays."""
    info = small()
    assert erase_client(store, registry, "site-0", leave=False).runs[0].rounds == [1, 2]
    records = [*store.history(info).rounds, *(checkpoint.load(info.folder, number).record for number in range(3))]
    told = [event for event in read_events(info.folder / FILE) if isinstance(event, RoundCommitted)]
    for each in (*records, *told):
        names = {"validation_accuracy"} if each.round else {"validation_accuracy", "train_loss"}
        assert set(each.metrics) == names, each
    assert found(store.folder, {LOSS}) == set()
    assert found(store.folder, {REFUSED}) != set()


def test_the_next_commit_leaves_a_lone_reporters_figures_out(
    store: RunStore, small: Small, registry: Registry, samples: ModuleType
) -> None:
    info = small(status=RunStatus.RUNNING)
    point = samples.checkpoint(3)
    with EventLog(info.folder / FILE) as log:
        log.append(ClientReported(run=info.id, round=3, row=point.record.roster[0]))
        erase_client(store, registry, "site-0", leave=False)
        checkpoint.commit(store, info, point)
        log.append(RoundCommitted.of(info.id, point.record, rounds=9))
    assert found(store.folder, {LOSS}) == set()
    *_, last = (event for event in read_events(info.folder / FILE) if isinstance(event, RoundCommitted))
    assert (last.round, set(last.metrics)) == (3, {"validation_accuracy"})
    assert store.history(info).rounds[-1].roster == checkpoint.load(info.folder, 3).record.roster


def test_a_run_that_fails_after_an_erasure_does_not_tell(store: RunStore, small: Small, registry: Registry) -> None:
    info = small(status=RunStatus.RUNNING)
    erase_client(store, registry, "site-1", leave=True)
    reason = "round 4: 1 of 2 updates were admitted (client 1: its norm 1e9 is over the bound 10)"
    ended = store.finish(info, RunStatus.FAILED, reason=reason)
    assert ended.reason == "round 4: 1 of 2 updates were admitted (client 1: erased)"


@pytest.mark.parametrize(
    ("status", "left"),
    [(RunStatus.FINISHED, 0), (RunStatus.FAILED, 0), (RunStatus.STOPPED, 0), (RunStatus.RUNNING, 2)],
)
def test_answers(store: RunStore, small: Small, registry: Registry, status: RunStatus, left: int) -> None:
    """Of a run that is over all go; of one that goes on those that are the site's."""
    info = small(status=status)
    asked: list[tuple[str, str]] = []

    def works_of(each: RunInfo, name: str) -> list[str]:
        asked.append((each.id, name))
        return ["a" * 64]

    erase_client(store, registry, "site-1", leave=False, works_of=works_of)
    files = sorted(path.name for path in (info.folder / "incoming").iterdir())
    assert len(files) == left
    assert all(name.startswith("b") for name in files)
    assert asked == ([(info.id, "site-1")] if left else [])


def test_a_report_of_a_run_that_goes_on_is_removed(store: RunStore, small: Small, registry: Registry) -> None:
    """It is of an earlier end, and is written anew at the next."""
    info = small(status=RunStatus.RUNNING)
    (info.folder / "report.html").write_bytes(REFUSED)
    erase_client(store, registry, "site-1", leave=False)
    assert not (info.folder / "report.html").exists()


def test_receipts_of_a_run_that_is_over(store: RunStore, small: Small, registry: Registry) -> None:
    info = small()
    (info.folder / "receipts.json").write_text('{"0":{"ledger":"x"},"1":{"ledger":"y"}}')
    erase_client(store, registry, "site-1", leave=False)
    assert json.loads((info.folder / "receipts.json").read_text()) == {"0": {"ledger": "x"}}


def test_only_runs_with_the_site_are_touched(store: RunStore, samples: ModuleType, registry: Registry) -> None:
    virtual = store.create(samples.config(), name="virtual")
    other = {"clients": 3, "cohort": 2, "rounds": 5, "sites": ("site-7", "site-8", "site-9")}
    another = store.create(samples.config(federation=other), name="another")
    for info in (virtual, another):
        for number in range(2):
            checkpoint.commit(store, info, samples.checkpoint(number))
    before = samples.tree(virtual.folder) | samples.tree(another.folder)
    assert list(erase_client(store, registry, "site-1", leave=False).runs) == []
    assert samples.tree(virtual.folder) | samples.tree(another.folder) == before


def test_the_number_is_the_sites_place_in_each_run(store: RunStore, samples: ModuleType, registry: Registry) -> None:
    infos = []
    for names in (("site-1", "site-0", "site-2"), ("site-0", "site-1", "site-2")):
        sites = {"clients": 3, "cohort": 2, "rounds": 5, "sites": names}
        infos.append(store.create(samples.config(federation=sites), name="run"))
        for number in range(2):
            checkpoint.commit(store, infos[-1], samples.checkpoint(number))
        store.finish(infos[-1], RunStatus.FINISHED)
    reply = erase_client(store, registry, "site-1", leave=False)
    assert {each.run: list(each.rounds) for each in reply.runs} == {infos[0].id: [1], infos[1].id: []}
    assert [is_blank(row) for row in store.history(infos[0]).rounds[1].roster] == [True, False]
    assert [is_blank(row) for row in store.history(infos[1]).rounds[1].roster] == [False, True]


def test_files_keep_their_modes(store: RunStore, small: Small, registry: Registry) -> None:
    info = small()
    kept = [info.folder / FILE, *(info.folder / "checkpoints" / "round-0001").glob("*.json")]
    for path in kept:
        path.chmod(0o600)
    erase_client(store, registry, "site-0", leave=False)
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_a_run_whose_folder_is_gone(store: RunStore, small: Small, registry: Registry) -> None:
    info = small()
    shutil.rmtree(info.folder)
    (erased,) = erase_client(store, registry, "site-0", leave=False).runs
    assert (list(erased.rounds), erased.restart_after) == ([1, 2], -1)
    assert found(store.folder, {LOSS}) == set()
    assert not info.folder.exists()


def test_restart_is_after_the_last_checkpoint_without_the_site(
    store: RunStore, small: Small, registry: Registry
) -> None:
    info = small()
    shutil.rmtree(info.folder / "checkpoints" / "round-0000")
    assert erase_client(store, registry, "site-0", leave=False).runs[0].restart_after == -1


def test_a_damaged_checkpoint_does_not_become_a_good_one(store: RunStore, small: Small, registry: Registry) -> None:
    """And holds nothing of the site either."""
    info = small()
    rounds = info.folder / "checkpoints"
    whole = (rounds / "round-0001" / "roster.json").read_bytes()
    (rounds / "round-0001" / "roster.json").write_bytes(whole.replace(b"200", b"201"))
    (rounds / "round-0002" / "roster.json").write_bytes(whole[:-5])
    erase_client(store, registry, "site-0", leave=False)
    for number in (1, 2):
        with pytest.raises(StoreError, match="the newest good round before it is round 0"):
            checkpoint.load(info.folder, number)
    assert found(store.folder, {LOSS}) == set()


def test_lines_that_are_no_events_go(store: RunStore, small: Small, registry: Registry) -> None:
    """Nobody knows what they tell."""
    info = small()
    with (info.folder / FILE).open("ab") as log:
        log.write(b'torn {"row": ' + LOSS + b'\n{"event":"of_the_future","round":1}\nunfinished ' + LOSS)
    erase_client(store, registry, "site-0", leave=False)
    assert found(store.folder, {LOSS}) == set()
    assert lines(info.folder)[-2:] == [b'{"event":"of_the_future","round":1}', b""]


def test_an_unknown_site(store: RunStore, small: Small, registry: Registry) -> None:
    small()
    assert list(erase_client(store, registry, "nobody", leave=False).runs) == []
    with pytest.raises(IdentityError, match="no client 'nobody'"):
        erase_client(store, registry, "nobody", leave=True)


def test_what_fails_is_named_and_the_rest_is_done(
    store: RunStore, small: Small, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose traces are not all gone keeps its certificate: it can ask again."""
    broken, good = small(), small()
    scrub = scrub_files.scrub_events

    def fails(folder: Path, erased: Erasures) -> None:
        if folder == broken.folder:
            raise StoreError("the disk is broken")
        scrub(folder, erased)

    monkeypatch.setattr(scrub_files, "scrub_events", fails)
    with pytest.raises(StoreError, match=rf"client 'site-0'.*run {broken.id}: the disk is broken; repeat it"):
        erase_client(store, registry, "site-0", leave=True)
    assert status_of(registry, "site-0") is ClientStatus.INVITED
    assert found(good.folder.parent, {LOSS}) == {
        hit for hit in found(store.folder, {LOSS}) if hit[0].startswith(broken.id)
    }
    monkeypatch.undo()
    erase_client(store, registry, "site-0", leave=True)
    assert found(store.folder, {LOSS}) == set()
    assert status_of(registry, "site-0") is ClientStatus.REVOKED


def test_a_note_that_cannot_be_read_stops_the_run(store: RunStore, small: Small, samples: ModuleType) -> None:
    """Rather than bringing back what was erased."""
    info = small(status=RunStatus.RUNNING)
    (info.folder / "erased.json").write_text("{")
    with pytest.raises(StoreError, match=r"erased\.json does not say what was erased"):
        checkpoint.commit(store, info, samples.checkpoint(3))
    assert store.last_round(info) == 2


def test_a_run_that_has_just_ended_is_waited_for(
    store: RunStore, small: Small, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still write a report of what it read before."""
    info = small()
    written = threading.Event()

    def end_slowly() -> None:
        with store.lock(info):
            held.set()
            time.sleep(0.3)
            (info.folder / "report.html").write_bytes(LOSS)
            written.set()

    held = threading.Event()
    thread = threading.Thread(target=end_slowly)
    thread.start()
    held.wait()
    erase_client(store, registry, "site-0", leave=False)
    assert written.is_set()
    thread.join()
    assert found(store.folder, {LOSS}) == set()
    monkeypatch.setattr(erase, "_PATIENCE", 0.2)
    with store.lock(info), pytest.raises(StoreError, match="still writes to it"):
        erase_client(store, registry, "site-0", leave=False)


def test_who_follows_the_log_misses_nothing(store: RunStore, small: Small, registry: Registry) -> None:
    """Readers come back with the number of the last line that they have had, or with their place in the file."""
    info = small(status=RunStatus.RUNNING)
    whole = Tail(info.folder / FILE).read()
    tail = Tail(info.folder / FILE)
    tail._offset, tail._number = sum(len(line) + 1 for _, line in whole[:4]), 4
    erase_client(store, registry, "site-1", leave=False)
    assert [number for number, _ in tail.read()] == [number for number, _ in whole[4:]]
    for (_, before), (_, after) in zip(whole, Tail(info.folder / FILE).read(), strict=True):
        assert after in (before, b" " * len(before))


def test_an_interrupted_note_is_found_by_the_next_start(store: RunStore, small: Small) -> None:
    info = small()
    note(info.folder, Erasures({0: None}, complete=False))
    finish_erasures(store)
    assert found(store.folder, {LOSS}) == set()
    assert erasures(info.folder) == Erasures({0: None}, complete=True)
