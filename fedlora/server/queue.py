"""The runs that wait for a server daemon: submitted, taken one after another, stopped, resumed.

The queue is the store itself: runs that are QUEUED, oldest first. One daemon uses a store's queue; its threads may
call everything here at the same time.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError, FedloraError, RunError, UnknownRunError
from fedlora.server.durable import explained, replace_synced, sync_folder
from fedlora.server.records import RunInfo, RunStatus
from fedlora.server.store import RunStore
from fedlora.server.store.folders import CONFIG
from fedlora.server.store.names import check_id, new_id

log = logging.getLogger(__name__)

STOP = "stop.requested"
"""An empty file in a run's folder: somebody asked the run to stop. It outlives the daemon."""

_SUBMITTED = ".submitted"
_LEFTOVERS = {CONFIG, f".{CONFIG}.tmp"}
_LOOK = 1.0  # seconds after which the driver looks at the store again, whether or not it was woken
_RETRY = 10.0  # seconds before it asks again a store that could not be used

Stop = Callable[[], bool]


class RunQueue:
    """What waits in `store`. Every method raises StoreError as the store does."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._turn = threading.Lock()  # one change of a run's status at a time
        self._wake = threading.Condition()  # on a lock that a signal handler may take where its thread has it
        self._closing = False
        self.driven: str | None = None
        """The run that the daemon drives now. How it stands may change until it is another one."""

    @property
    def closing(self) -> bool:
        """Whether the daemon is about to end: no further run begins."""
        return self._closing

    def submit(self, config: RunConfig, name: str, submit_key: str | None = None) -> RunInfo:
        """A new run, QUEUED, with its folder in the store, wherever `config` says that it should be.

        submit_key: a text of the submitter's; the same one gives the same run, however often it is submitted and
        whatever the configuration, so that a submission whose answer was lost can be repeated.
        """
        config = config.model_copy(update={"name": name, "store": self.store.folder, "output": None})
        with self._turn:
            run_id = None if submit_key is None else self._reserved(submit_key, config.strategy.name)
            run = self._find(run_id) or self.store.create(config, name=name, run_id=run_id, status=RunStatus.QUEUED)
        self.wake()
        return run

    def next(self) -> RunInfo | None:
        """Takes the run whose turn it is, now RUNNING; None if there is nothing to do.

        Runs that their server died in come first, then the queued ones, oldest first. To be asked only while no run
        taken from here is being driven. A stop that was asked for before its server died is carried out here.
        """
        with self._turn:
            for run in reversed(self.store.list(status=RunStatus.RUNNING)):
                if self.store.holder(run) is not None:
                    continue
                if not self.stop_requested(run.id):
                    return run
                self.store.finish(run, RunStatus.STOPPED, reason=_stopped_after(run))
            queued = self.store.list(status=RunStatus.QUEUED)
            return self.store.mark_running(queued[-1]) if queued else None

    def stop(self, run_id: str) -> RunInfo:
        """Stops a queued run at once, and asks a running one to stop after its round.

        Raises UnknownRunError; RunError for a run that has finished or failed.
        """
        with self._turn:
            run = self.store.get(run_id)
            if run.status is RunStatus.QUEUED:
                return self.store.finish(run, RunStatus.STOPPED, reason=_stopped_after(run))
            if run.status is RunStatus.RUNNING:
                with explained("ask for a stop in", run.folder):
                    replace_synced(run.folder / STOP, b"")
            elif run.status is not RunStatus.STOPPED:
                raise RunError(f"run {run_id} cannot be stopped: it has {run.status}")
            return run

    def stop_requested(self, run_id: str) -> bool:
        """Whether the run was asked to stop since it was last submitted or resumed. Raises UnknownRunError."""
        return (self.store.get(run_id).folder / STOP).exists()

    def resume(self, run_id: str, rounds: int | None = None) -> RunInfo:
        """Puts a run that was stopped or failed back into the queue, for `rounds` rounds in all if that is given.

        A finished run can get more rounds. Raises UnknownRunError; RunError for a run that cannot be resumed;
        ConfigError for too few rounds, and for any change of them under DP.
        """
        with self._turn:
            run = self.store.get(run_id)
            _check_resumable(run, rounds)
            with explained("remove the request to stop in", run.folder):
                (run.folder / STOP).unlink(missing_ok=True)
            run = self.store.reopen(run, rounds, status=RunStatus.QUEUED)
        self.wake()
        return run

    def put_back(self, run_id: str) -> None:
        """Queues a run again that was stopped because the daemon ends, not because somebody asked for it."""
        with self._turn:
            run = self.store.get(run_id)
            if run.status is RunStatus.STOPPED and not self.stop_requested(run_id):
                self.store.reopen(run, status=RunStatus.QUEUED)

    def close(self) -> None:
        """Lets no further run begin, and asks the one under way to stop after its round. May be called by a signal."""
        self._closing = True
        self.wake()

    def wake(self) -> None:
        """Ends a `wait`."""
        with self._wake:
            self._wake.notify_all()

    def wait(self, seconds: float) -> None:
        """Waits until something happens to the queue, `seconds` at most."""
        with self._wake:
            if not self._closing:
                self._wake.wait(seconds)

    def _find(self, run_id: str | None) -> RunInfo | None:
        """The run of that id, if it was made; what a crash left of making it goes."""
        if run_id is None:
            return None
        try:
            return self.store.get(run_id)
        except UnknownRunError:
            _clear(self.store.folder / run_id)
            return None

    def _reserved(self, submit_key: str, strategy: str) -> str:
        """The id of the key's run. It is on the disk before the run is made, so that no crash can make two of one."""
        path = self.store.folder / _SUBMITTED / hashlib.sha256(submit_key.encode()).hexdigest()
        with explained("look for an earlier submission at", path):
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700)
                sync_folder(self.store.folder)
            if path.exists():
                return check_id(path.read_text(encoding="ascii"))
            run_id = self._free_id(strategy)
            replace_synced(path, run_id.encode())
        return run_id

    def _free_id(self, strategy: str) -> str:
        taken = {run.id for run in self.store.list(strategy=strategy)}
        while (run_id := new_id(strategy, datetime.now(UTC))) in taken or (self.store.folder / run_id).exists():
            pass
        return run_id


class Driver:
    """What a daemon's main thread does: runs the queue's runs, one after another.

    start: drives a run to its end and returns, or raises, once the store knows how it ended; a run may have committed
    rounds already. It is given a function to ask between rounds, which says whether the run should stop.
    """

    def __init__(self, queue: RunQueue, start: Callable[[RunInfo, Stop], None]) -> None:
        self._queue = queue
        self._start = start

    def run(self) -> None:
        """Takes runs until `close`. A run that fails does not end it, nor does a store that cannot be used for now."""
        while not self._queue.closing:
            try:
                run = self._queue.next()
                if run is not None:
                    self._drive(run)
                else:
                    self._queue.wait(_LOOK)
            except FedloraError as error:
                log.error("the queue cannot be used, trying again in %g s: %s", _RETRY, error)
                self._queue.wait(_RETRY)

    def close(self) -> None:
        """Ends `run` after the round that is under way; its run goes on when a daemon starts again.

        May be called by a signal handler and by any thread.
        """
        self._queue.close()

    def _drive(self, run: RunInfo) -> None:
        log.info("run %s (%s) begins", run.id, run.name)
        self._queue.driven = run.id
        try:
            self._start_and_settle(run)
        finally:
            self._queue.driven = None

    def _start_and_settle(self, run: RunInfo) -> None:
        try:
            self._start(run, lambda: self._queue.closing or self._queue.stop_requested(run.id))
        except Exception as error:  # whatever a run dies of, the next ones have their turn
            log.error("run %s has failed: %s", run.id, error, exc_info=not isinstance(error, FedloraError))
            self._end_failed(run, error)
        except BaseException:  # Ctrl-C: the daemon ends
            self._queue.put_back(run.id)
            raise
        else:
            self._end_failed(run, RunError("the server ended it without saying how; this is a bug"))
        if self._queue.closing:
            self._queue.put_back(run.id)

    def _end_failed(self, run: RunInfo, error: Exception) -> None:
        """Marks a run failed that `start` has left RUNNING: it would be taken again and again."""
        now = self._queue.store.get(run.id)
        if now.status is RunStatus.RUNNING and not self._queue.closing:
            self._queue.store.finish(run, RunStatus.FAILED, reason=f"{type(error).__name__}: {error}")


def _stopped_after(run: RunInfo) -> str:
    return f"stopped on request after round {run.rounds_done}" if run.rounds_done else "stopped before it began"


def _clear(folder: Path) -> None:
    """Removes a run's folder that holds no more than what `RunStore.create` begins with."""
    with explained("remove what a crash left in", folder):
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= _LEFTOVERS:
            for entry in folder.iterdir():
                entry.unlink()
            folder.rmdir()


def _check_resumable(run: RunInfo, rounds: int | None) -> None:
    if run.status in (RunStatus.QUEUED, RunStatus.RUNNING):
        raise RunError(f"run {run.id} is {run.status}: only a run that was stopped or has failed can be resumed")
    if run.status is RunStatus.FINISHED and rounds in (None, run.rounds):
        raise RunError(f"run {run.id} is finished: all {run.rounds} rounds are done; ask for more with --rounds")
    if rounds is not None and rounds < max(run.rounds_done, 1):
        raise ConfigError([f"rounds = {rounds}: run {run.id} has done {run.rounds_done}: give at least as many"])
    config = RunConfig.model_validate_json(run.config)
    if rounds not in (None, run.rounds) and config.privacy.name != "none":
        from fedlora.simulations.ledgers import refuse_more_rounds  # here: it loads torch

        refuse_more_rounds(config)
