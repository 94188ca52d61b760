import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlora.errors import ExitCode, StoreError, UnknownRunError
from fedlora.server.records import Outcome, RosterRow, RoundRecord, RunInfo, RunStatus
from fedlora.server.store import RunStore, Traffic
from fedlora.server.store.names import new_id
from tests.postgres import BOTH

pytestmark = BOTH


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
SIZES = st.integers(0, 2**62)
NUMBERS = st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3)
ROWS = st.builds(
    RosterRow,
    client=st.integers(0, 2**40),
    outcome=st.sampled_from(Outcome),
    reason=TEXT,
    samples=SIZES,
    bytes_up=SIZES,
    bytes_down=SIZES,
    seconds=st.floats(0, 1e9),
    metrics=NUMBERS,
)
ROSTERS = st.lists(ROWS, unique_by=lambda row: row.client, max_size=4).map(
    lambda rows: tuple(sorted(rows, key=lambda row: row.client))
)
RECORDS = st.builds(
    RoundRecord,
    round=st.just(0),
    metrics=NUMBERS,
    roster=ROSTERS,
    bytes_up=SIZES,
    bytes_down=SIZES,
    bytes_once=SIZES,
    bytes_up_head=SIZES,
    bytes_down_head=SIZES,
    seconds=st.floats(0, 1e9),
    committed_at=st.datetimes(timezones=st.just(UTC)),
)


def test_a_new_run_is_running_and_has_its_configuration(store: RunStore, samples: ModuleType) -> None:
    config = samples.config(seed=2**62)
    run = store.create(config, name="first", sweep="s1")
    assert run.folder == store.folder / run.id
    assert (run.status, run.rounds, run.rounds_done, run.seed) == (RunStatus.RUNNING, 5, 0, 2**62)
    assert (run.folder / "config.json").read_text() == run.config
    assert type(config).model_validate_json(run.config) == config
    assert store.get(run.id) == run == store.find("first")


def test_ids_sort_by_time_and_do_not_repeat(store: RunStore, samples: ModuleType) -> None:
    early = new_id("fed_sb", datetime(2026, 11, 21, 23, 15, tzinfo=UTC))
    assert early.startswith("20261121-231500-fed_sb-")
    assert early < new_id("fed_sb", datetime(2026, 11, 21, 23, 15, 1, tzinfo=UTC))
    runs = [store.create(samples.config(), name="same") for _ in range(40)]
    assert len({run.id for run in runs}) == 40


def test_an_id_is_drawn_again_if_it_is_taken(
    store: RunStore, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["20260101-000000-x-0000", "20260101-000000-x-0000", "20260101-000000-x-0001"])
    monkeypatch.setattr("fedlora.server.store.names.new_id", lambda *_: next(drawn))
    assert store.create(samples.config(), name="a").id.endswith("0000")
    assert store.create(samples.config(), name="b").id.endswith("0001")


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "latest", "-x", "a b", "x" * 101])
def test_bad_ids_are_refused(store: RunStore, samples: ModuleType, bad: str) -> None:
    with pytest.raises(StoreError, match="cannot be a run's id"):
        store.create(samples.config(), name="n", run_id=bad)
    assert list(store.list()) == []


def test_a_folder_with_something_in_it_is_refused(store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("x")
    with pytest.raises(StoreError, match=r"thesis is not empty \(it has chapter1\.tex\)"):
        store.create(samples.config(), name="n", folder=foreign)
    assert [entry.name for entry in foreign.iterdir()] == ["chapter1.tex"]
    assert list(store.list()) == []


def test_a_run_can_have_its_folder_elsewhere(store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    run = store.create(samples.config(output=str(tmp_path / "out")), name="n")
    assert run.folder == tmp_path / "out"
    assert [entry.name for entry in run.folder.iterdir()] == ["config.json"]
    assert store.find(str(tmp_path / "out")) == run
    with pytest.raises(StoreError, match="is not empty"):
        store.create(samples.config(output=str(tmp_path / "out")), name="n")


def test_an_id_cannot_be_used_twice(store: RunStore, samples: ModuleType, tmp_path: Path) -> None:
    store.create(samples.config(), name="a", run_id="mine")
    with pytest.raises(StoreError, match="the store has run mine"):
        store.create(samples.config(), name="b", run_id="mine", folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_moved_store_finds_its_runs(
    store: RunStore, store_url: str | None, samples: ModuleType, tmp_path: Path
) -> None:
    inside = store.create(samples.config(), name="in")
    outside = store.create(samples.config(), name="out", folder=tmp_path / "out")
    store.close()
    moved = (tmp_path / "runs").rename(tmp_path / "archive")
    with RunStore.open(moved, url=store_url) as opened:
        assert opened.find("in").folder == moved / inside.id
        assert opened.find("out").folder == outside.folder


def test_finding_a_run(store: RunStore, samples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["20260101-100000-fedavg-aaaa", "20260101-110000-fedavg-bbbb", "20260102-100000-ffa_lora-cccc"]
    runs = [store.create(samples.config(), name=f"name{n}", run_id=run_id) for n, run_id in enumerate(ids)]
    assert store.find("latest") == runs[2]
    for run in runs:
        assert store.find(run.id) == store.find(run.name) == store.find(str(run.folder)) == run
    assert store.find("20260102") == runs[2]
    monkeypatch.chdir(store.folder.parent)
    assert store.find(f"runs/{ids[0]}/") == runs[0]
    with pytest.raises(
        UnknownRunError, match=r"means 2 runs[\s\S]*-aaaa[\s\S]*-bbbb|means 2 runs[\s\S]*-bbbb[\s\S]*-aaaa"
    ):
        store.find("20260101")
    with pytest.raises(UnknownRunError, match="did you mean 'name1' or"):
        store.find("nmae1")
    with pytest.raises(UnknownRunError) as caught:
        store.find("zzzzzzzzz")
    assert caught.value.exit_code is ExitCode.UNKNOWN_RUN


def test_an_empty_store_knows_no_run(store: RunStore) -> None:
    with pytest.raises(UnknownRunError, match="has no runs yet"):
        store.find("latest")


def test_listing_is_newest_first_and_filters(store: RunStore, samples: ModuleType) -> None:
    first = store.create(samples.config(), name="1", sweep="a")
    second = store.create(samples.config(strategy={"name": "fedavg"}), name="2", sweep="a")
    store.finish(first, RunStatus.FINISHED)
    assert [run.name for run in store.list()] == ["2", "1"]
    assert [run.name for run in store.list(status=RunStatus.FINISHED)] == ["1"]
    assert [run.name for run in store.list(strategy="fedavg", sweep="a")] == [second.name]
    assert list(store.list(sweep="b")) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS)
def test_every_record_survives_the_database(store: RunStore, samples: ModuleType, record: RoundRecord) -> None:
    run = store.create(samples.config(), name="any")
    assert store.commit_round(run, record) == record
    assert store.history(run).rounds == (record,)


def test_text_that_no_database_takes(store: RunStore, run: RunInfo) -> None:
    """A client chooses the reason for which it declines, and names of metrics: it must not be able to end a run."""
    reason, name = "nul \0 half \udc80 both \U0001f600", "m\0"
    store.commit_round(run, RoundRecord(0, {name: 1.0}, (RosterRow(1, Outcome.DECLINED, reason, metrics={name: 2.0}),)))
    (record,) = store.history(run).rounds
    (row,) = record.roster
    assert row.reason == "nul \ufffd half \ufffd both \U0001f600"
    assert (record.metrics, row.metrics) == ({name: 1.0}, {name: 2.0})
    with pytest.raises(UnknownRunError, match="no run"):
        store.get("nul\0")


def test_figures_that_are_not_finite_survive(store: RunStore, run: RunInfo) -> None:
    store.commit_round(run, RoundRecord(0, {"a": float("nan"), "b": float("inf"), "c": float("-inf")}, ()))
    found = store.history(run).rounds[0].metrics
    assert [str(found[name]) for name in "abc"] == ["nan", "inf", "-inf"]


def test_a_commit_moves_the_run_on(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    before = datetime.now(UTC)
    for number in range(3):
        stamped = store.commit_round(run, samples.record(number))
        assert stamped.committed_at is not None
        assert before <= stamped.committed_at <= datetime.now(UTC)
    history = store.history(run)
    assert history.run.rounds_done == 2
    assert [record.round for record in history.rounds] == [0, 1, 2]
    assert history.rounds[2].roster == samples.record(2).roster
    assert store.traffic() == {run.id: Traffic(up=400, down=800, once=14)}


@pytest.mark.parametrize(("have", "wrong"), [([], 2), ([0, 1], 1), ([0, 1], 3), ([0, 1], 0)])
def test_rounds_come_one_after_another(
    store: RunStore, run: RunInfo, samples: ModuleType, have: list[int], wrong: int
) -> None:
    for number in have:
        store.commit_round(run, samples.record(number))
    with pytest.raises(StoreError, match=f"cannot commit round {wrong}"):
        store.commit_round(run, samples.record(wrong))
    assert [record.round for record in store.history(run).rounds] == have


def test_a_client_is_on_a_roster_once(store: RunStore, run: RunInfo) -> None:
    row = RosterRow(4, Outcome.REPORTED)
    with pytest.raises(StoreError, match="client 4 is twice on the roster of round 0"):
        store.commit_round(run, RoundRecord(0, {}, (row, row)))
    assert store.last_round(run) is None


def test_a_failed_commit_leaves_nothing(store: RunStore, run: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round's row goes in first; an error after it takes it back."""

    def fails(*args: object, **kwargs: object) -> None:
        raise StoreError("the roster cannot be written")

    monkeypatch.setattr("fedlora.server.store.rows.roster_out", fails)
    with pytest.raises(StoreError, match="roster"):
        store.commit_round(run, RoundRecord(0, {}, (RosterRow(1, Outcome.LOST, "late"),)))
    assert store.last_round(run) is None


def test_rounds_can_be_forgotten(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    for number in range(4):
        store.commit_round(run, samples.record(number))
    assert store.discard_after(run, 1).rounds_done == 1
    assert [record.round for record in store.history(run).rounds] == [0, 1]
    with store._database.reads() as connection:
        assert connection.exec_driver_sql("SELECT max(round) FROM roster").scalar() == 1
    store.commit_round(run, samples.record(2))
    store.discard_after(run, -1)
    assert store.last_round(run) is None


def test_the_end_of_a_run_and_more_rounds(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    for number in range(3):
        store.commit_round(run, samples.record(number))
    ended = store.finish(run, RunStatus.STOPPED, {"test_accuracy": 0.5}, "Ctrl-C")
    assert (ended.status, ended.reason, ended.summary) == (RunStatus.STOPPED, "Ctrl-C", {"test_accuracy": 0.5})
    assert ended.finished_at is not None
    assert timedelta(0) <= datetime.now(UTC) - ended.finished_at < timedelta(minutes=1)
    with pytest.raises(StoreError, match="2 are committed"):
        store.reopen(run, 1)
    again = store.reopen(run, 9)
    assert (again.status, again.rounds, again.rounds_done) == (RunStatus.RUNNING, 9, 2)
    assert (again.finished_at, again.reason, again.summary) == (None, "", {})
    config = type(samples.config()).model_validate_json((run.folder / "config.json").read_text())
    assert config == type(config).model_validate_json(again.config)
    assert config.federation.rounds == 9
    assert config.model_copy(update={"federation": samples.config().federation}) == samples.config()
    assert store.reopen(run).config == again.config


def test_only_one_process_holds_a_run(store: RunStore, store_url: str | None, run: RunInfo) -> None:
    script = (
        "import sys; from pathlib import Path; from fedlora.server.store import RunStore\n"
        "store = RunStore.open(Path(sys.argv[1]), url=sys.argv[3] or None); run = store.get(sys.argv[2])\n"
        "with store.lock(run):\n    sys.stdout.write('held\\n'); sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(store.folder), run.id, store_url or ""]
    assert store.holder(run) is None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(StoreError, match=f"run {run.id} is in the hands of process {process.pid} on "),
            store.lock(run),
        ):
            pytest.fail("two processes hold one run")
        held = store.holder(run)
        assert held is not None
        assert held.pid == process.pid
        process.kill()
    assert store.holder(run) is None
    with store.lock(run):
        assert store.holder(run) is not None
        with pytest.raises(StoreError, match="is in the hands of"), store.lock(run):
            pytest.fail("one run is held twice")
    assert store.holder(run) is None
    assert not (run.folder / ".holder.json").exists()


def test_looking_at_a_lock_does_not_keep_others_out(store: RunStore, run: RunInfo) -> None:
    """A look (`runs ls`) holds the lock for an instant; a run that starts then waits, and does not give up."""
    look = FileLock(run.folder / ".lock", thread_local=False)
    look.acquire()
    threading.Timer(0.2, look.release).start()
    with store.lock(run):
        assert not look.is_locked


def test_readers_see_whole_rounds_while_a_process_writes(
    store: RunStore, store_url: str | None, run: RunInfo, samples: ModuleType
) -> None:
    last = 40
    seen: list[int] = []
    wrong: list[str] = []

    def read() -> None:
        with RunStore.open(store.folder, url=store_url) as mine:
            while not seen or seen[-1] < last:
                history = mine.history(run)
                done = history.run.rounds_done  # not seen[-1]: the other reader may have added to it by then
                seen.append(done)
                if [record.round for record in history.rounds] not in ([], list(range(done + 1))):
                    wrong.append(f"rounds {[record.round for record in history.rounds]} but {done} are done")
                if any(record.roster != samples.record(record.round).roster for record in history.rounds):
                    wrong.append("a round without its roster")

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(last + 1):
        store.commit_round(run, samples.record(number))
    for reader in readers:
        reader.join(timeout=30)
    assert seen[-1] == last
    assert wrong == []


def test_two_runs_write_at_the_same_time(store: RunStore, store_url: str | None, samples: ModuleType) -> None:
    runs = [store.create(samples.config(), name=str(n)) for n in range(3)]
    errors: list[BaseException] = []

    def write(run: RunInfo) -> None:
        try:
            with RunStore.open(store.folder, url=store_url) as mine:
                for number in range(15):
                    mine.commit_round(run, samples.record(number))
        except StoreError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(run,)) for run in runs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert [store.get(run.id).rounds_done for run in runs] == [14, 14, 14]


def test_a_run_that_is_not_there(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    gone = replace(run, id="gone")
    for ask in (store.history, lambda r: store.commit_round(r, samples.record(0)), store.reopen):
        with pytest.raises(UnknownRunError, match="no run 'gone'"):
            ask(gone)
