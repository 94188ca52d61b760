"""The queue of a daemon: order, stops, resumption, repeated submissions, crashes; and the loop that empties it."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from fedlora.errors import ConfigError, RunError, StoreError, UnknownRunError
from fedlora.server.queue import STOP, Driver, RunQueue, Stop
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore


@pytest.fixture
def queue(store: RunStore) -> RunQueue:
    return RunQueue(store)


@pytest.fixture
def submit(queue: RunQueue, samples: ModuleType) -> Callable[..., RunInfo]:
    def make(name: str = "tiny", key: str | None = None, **changes: object) -> RunInfo:
        return queue.submit(samples.config(**changes), name, key)

    return make


Submit = Callable[..., RunInfo]


def names(queue: RunQueue) -> list[str]:
    """What `next` gives until there is nothing, each run ended as it comes."""
    found = []
    while (run := queue.next()) is not None:
        found.append(run.name)
        queue.store.finish(run, RunStatus.FINISHED)
    return found


def test_a_submitted_run_waits_with_its_folder_in_the_store(
    queue: RunQueue, submit: Submit, store: RunStore, tmp_path: Path
) -> None:
    run = submit("first", output=str(tmp_path / "elsewhere"), store=str(tmp_path / "other"))
    assert (run.status, run.name, run.folder) == (RunStatus.QUEUED, "first", store.folder / run.id)
    assert not (tmp_path / "elsewhere").exists()
    assert f'"store": "{store.folder}"' in (run.folder / "config.json").read_text()
    assert store.get(run.id) == run


def test_the_oldest_comes_first_and_is_taken_once(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    first, _ = submit("first"), submit("second")
    taken = queue.next()
    assert taken is not None
    assert (taken.id, taken.status) == (first.id, RunStatus.RUNNING)
    with store.lock(taken):
        assert names(queue) == ["second"]


def test_runs_whose_server_died_come_before_queued_ones(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    for name in ("queued", "died", "died later"):
        submit(name)
    for name in ("died", "died later"):
        store.mark_running(store.find(name))
    assert names(queue) == ["died", "died later", "queued"]


def test_a_run_in_another_process_is_left_alone(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run = store.mark_running(submit("elsewhere"))
    code = (
        "import sys, pathlib; from fedlora.server.store.locks import held\n"
        "with held(pathlib.Path(sys.argv[1]), 'r'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        assert queue.next() is None
        process.kill()
    taken = queue.next()
    assert taken is not None
    assert taken.id == run.id


def test_stopping_a_queued_run(queue: RunQueue, submit: Submit) -> None:
    stopped = queue.stop(submit("a").id)
    assert (stopped.status, stopped.reason) == (RunStatus.STOPPED, "stopped before it began")
    assert queue.stop(stopped.id) == stopped
    assert queue.next() is None


def test_stopping_a_running_run_is_a_request(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run = submit()
    taken = queue.next()
    assert taken is not None
    assert not queue.stop_requested(run.id)
    with store.lock(taken):
        assert queue.stop(run.id).status is RunStatus.RUNNING
        assert queue.stop_requested(run.id)
        assert RunQueue(store).stop_requested(run.id)


def test_a_stop_survives_the_server(queue: RunQueue, submit: Submit, store: RunStore, samples: ModuleType) -> None:
    run = submit()
    queue.next()
    store.commit_round(run, samples.record(0))
    store.commit_round(run, samples.record(1))
    queue.stop(run.id)
    assert RunQueue(store).next() is None
    stopped = store.get(run.id)
    assert (stopped.status, stopped.reason) == (RunStatus.STOPPED, "stopped on request after round 1")


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.FAILED])
def test_what_has_ended_cannot_be_stopped(queue: RunQueue, submit: Submit, store: RunStore, status: RunStatus) -> None:
    run = store.finish(submit(), status)
    with pytest.raises(RunError, match=f"cannot be stopped: it has {status}"):
        queue.stop(run.id)
    assert not (run.folder / STOP).exists()


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED])
def test_resuming(queue: RunQueue, submit: Submit, store: RunStore, status: RunStatus) -> None:
    run = submit()
    queue.next()
    queue.stop(run.id)
    store.finish(run, status, reason="why")
    again = queue.resume(run.id)
    assert (again.status, again.reason, again.rounds) == (RunStatus.QUEUED, "", 5)
    assert not queue.stop_requested(run.id)
    assert names(queue) == ["tiny"]


def test_resuming_for_more_rounds(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run = store.finish(submit(), RunStatus.FINISHED)
    with pytest.raises(RunError, match="is finished: all 5 rounds are done"):
        queue.resume(run.id)
    again = queue.resume(run.id, 9)
    assert (again.status, again.rounds) == (RunStatus.QUEUED, 9)
    assert '"rounds": 9' in (run.folder / "config.json").read_text()


def test_what_cannot_be_resumed(queue: RunQueue, submit: Submit, store: RunStore, samples: ModuleType) -> None:
    run = submit()
    with pytest.raises(RunError, match="is queued: only a run that was stopped or has failed"):
        queue.resume(run.id)
    for number in range(4):
        store.commit_round(run, samples.record(number))
    store.finish(run, RunStatus.FAILED)
    with pytest.raises(ConfigError, match=r"rounds = 2: run .* has done 3"):
        queue.resume(run.id, 2)
    private = submit("private", privacy={"name": "central", "noise_multiplier": 1.0})
    queue.stop(private.id)
    with pytest.raises(ConfigError, match="the noise of this run was made for 5 rounds"):
        queue.resume(private.id, 6)
    assert store.get(private.id).status is RunStatus.STOPPED
    with pytest.raises(UnknownRunError):
        queue.resume("nothing")


def test_the_same_key_gives_the_same_run(submit: Submit, store: RunStore, samples: ModuleType) -> None:
    first = submit("a", "key 1")
    assert submit("b", "key 1", strategy={"name": "fedavg"}) == first
    assert RunQueue(store).submit(samples.config(), "c", "key 1") == first
    assert submit("a", "key 2").id != first.id
    assert submit("a").id != submit("a").id
    assert len(store.list()) == 4


def test_the_same_key_at_the_same_time(submit: Submit, store: RunStore) -> None:
    found: list[RunInfo] = []
    threads = [threading.Thread(target=lambda: found.append(submit("a", "key"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.id for run in found} == {store.list()[0].id}
    assert len(store.list()) == 1


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", ".config.json.tmp")])
def test_a_crash_while_a_run_is_made_does_not_spoil_its_key(
    submit: Submit, store: RunStore, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "create", dies)
    with pytest.raises(KeyboardInterrupt):
        submit("a", "key")
    monkeypatch.undo()
    run_id = (store.folder / ".submitted" / hashlib.sha256(b"key").hexdigest()).read_text()
    if left:
        (store.folder / run_id).mkdir()
    for name in left:
        (store.folder / run_id / name).write_text("half")
    run = submit("a", "key")
    assert (run.id, run.status) == (run_id, RunStatus.QUEUED)
    assert [entry.name for entry in run.folder.iterdir()] == ["config.json"]


def test_a_foreign_file_is_never_cleared(submit: Submit, store: RunStore) -> None:
    run_id = "20260101-000000-fed_sb-abcd"
    key = store.folder / ".submitted" / hashlib.sha256(b"key").hexdigest()
    key.parent.mkdir()
    key.write_text(run_id)
    (store.folder / run_id).mkdir()
    (store.folder / run_id / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="not empty"):
        submit("a", "key")
    assert (store.folder / run_id / "thesis.tex").read_text() == "x"


@contextmanager
def driving(queue: RunQueue, start: Callable[[RunInfo, Stop], None]) -> Iterator[threading.Thread]:
    driver = Driver(queue, start)
    thread = threading.Thread(target=driver.run)
    thread.start()
    try:
        yield thread
    finally:
        driver.close()
        thread.join(10)
        assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


def test_the_driver_runs_what_comes(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    def start(run: RunInfo, stop: Stop) -> None:
        assert not stop()
        assert queue.driven == run.id
        store.finish(run, RunStatus.FINISHED)

    early = submit("early")
    with driving(queue, start):
        until(lambda: store.get(early.id).status is RunStatus.FINISHED)
        began = time.monotonic()
        late = submit("late")
        until(lambda: store.get(late.id).status is RunStatus.FINISHED)
        assert time.monotonic() - began < 0.8, "it was woken, not found by looking again"
    assert queue.driven is None


def test_a_failing_run_does_not_end_the_driver(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    """Neither one that fedlora explains, nor a bug, nor one that ends without a word."""
    ends = {"explained": RunError("too few"), "a bug": ZeroDivisionError("oh"), "silent": None, "good": None}

    def start(run: RunInfo, stop: Stop) -> None:
        error = ends[run.name]
        if error is not None:
            raise error
        if run.name == "good":
            store.finish(run, RunStatus.FINISHED)

    runs = [submit(name) for name in ends]
    with driving(queue, start):
        until(lambda: store.get(runs[-1].id).status is RunStatus.FINISHED)
    reasons = [store.get(run.id).reason for run in runs]
    assert reasons[:2] == ["RunError: too few", "ZeroDivisionError: oh"]
    assert reasons[2].startswith("RunError: the server ended it without saying how")
    assert [str(store.get(run.id).status) for run in runs] == ["failed"] * 3 + ["finished"]


def test_what_the_run_itself_has_said_stands(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    def start(run: RunInfo, stop: Stop) -> None:
        store.finish(run, RunStatus.FAILED, reason="RunError: its own words")
        raise RunError("other words")

    run = submit()
    with driving(queue, start):
        until(lambda: store.get(run.id).status is RunStatus.FAILED)
    assert store.get(run.id).reason == "RunError: its own words"


def waits_for_stop(store: RunStore, began: threading.Event) -> Callable[[RunInfo, Stop], None]:
    def start(run: RunInfo, stop: Stop) -> None:
        with store.lock(run):
            began.set()
            until(stop)
            store.finish(run, RunStatus.STOPPED, reason="stopped on request after round 0")

    return start


def test_the_driver_passes_a_stop_on(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run, began = submit(), threading.Event()
    with driving(queue, waits_for_stop(store, began)):
        assert began.wait(10)
        queue.stop(run.id)
        until(lambda: store.get(run.id).status is RunStatus.STOPPED)
    assert store.get(run.id).status is RunStatus.STOPPED


def test_a_daemon_that_ends_puts_its_run_back(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run, began = submit(), threading.Event()
    waiting = submit("waiting")
    with driving(queue, waits_for_stop(store, began)) as thread:
        assert began.wait(10)
        queue.close()
        thread.join(10)
    assert store.get(run.id).status is RunStatus.QUEUED
    assert names(RunQueue(store)) == [run.name, waiting.name]


def test_a_run_that_was_asked_to_stop_is_not_put_back(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    run, began = submit(), threading.Event()
    with driving(queue, waits_for_stop(store, began)) as thread:
        assert began.wait(10)
        (run.folder / STOP).touch()
        queue.close()
        thread.join(10)
    assert store.get(run.id).status is RunStatus.STOPPED


def test_ctrl_c_ends_the_driver_and_keeps_the_run(queue: RunQueue, submit: Submit, store: RunStore) -> None:
    def start(run: RunInfo, stop: Stop) -> None:
        store.finish(run, RunStatus.STOPPED, reason="interrupted in the middle of a round")
        raise KeyboardInterrupt

    run = submit()
    with pytest.raises(KeyboardInterrupt):
        Driver(queue, start).run()
    assert store.get(run.id).status is RunStatus.QUEUED
    assert queue.driven is None


def test_a_store_that_cannot_be_used_is_asked_again(
    queue: RunQueue, submit: Submit, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.queue._RETRY", 0.01)
    listed, faults = store.list, iter([StoreError("the disk is full")])

    def sometimes(**wanted: object) -> object:
        for fault in faults:
            raise fault
        return listed(**wanted)

    run = submit()
    monkeypatch.setattr(store, "list", sometimes)
    with driving(queue, lambda run, stop: store.finish(run, RunStatus.FINISHED)):
        until(lambda: store.get(run.id).status is RunStatus.FINISHED)
    assert next(faults, None) is None
