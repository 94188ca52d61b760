"""From a run's events to a tracker, beside the run: a tracker that fails, or hangs, costs it nothing."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from fedlora.config.schema import RunConfig
from fedlora.config.track import TrackConfig, missing
from fedlora.errors import ConfigError
from fedlora.server.events import (
    Event,
    Listener,
    RoundCommitted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
)
from fedlora.trackers import seen
from fedlora.trackers.base import End, Tracker

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds for which a run waits for a tracker: when it is opened, and when it is closed. Never between."""


def tracking(settings: TrackConfig) -> Sequence[Listener]:
    """A listener for each tracker of `settings`, for any number of runs one after another. Nothing is loaded yet.

    Raises ConfigError for trackers that are not installed.
    """
    problems = [f"track: {problem}" for _, problem in missing(settings.to)]
    if problems:
        raise ConfigError(problems)
    return [Tracking(name, MAKE[name], settings) for name in settings.to]


def _tensorboard() -> Tracker:
    from fedlora.trackers.tensorboard import TensorBoard

    return TensorBoard()


def _mlflow() -> Tracker:
    # It would tell its makers who uses it, and an absent server would hold the run's end up for minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from fedlora.trackers.mlflow import MlFlow

    return MlFlow()


def _wandb() -> Tracker:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send its own errors to its makers
    logging.getLogger("wandb").setLevel(logging.WARNING)
    from fedlora.trackers.wandb import WeightsAndBiases

    return WeightsAndBiases()


MAKE: Mapping[str, Callable[[], Tracker]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
"""By the names of `track.to`: what loads the library and gives the tracker."""


class Tracking:
    """A listener that has one tracker write in a thread of its own. It raises nothing.

    make: loads the library; called when a run begins, by the thread of the run, before the run forks workers: a library
    that another thread is loading at that moment would never be loaded in them.
    """

    def __init__(
        self, name: str, make: Callable[[], Tracker], settings: TrackConfig, patience: float = PATIENCE
    ) -> None:
        self._name, self._make, self._settings, self._patience = name, make, settings, patience
        self._writer: _Writer | None = None
        self._config: RunConfig | None = None
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            RunStarted: self._open,
            RunResumed: self._open,
            RoundCommitted: self._add,
            RunFinished: lambda event: self._close(End.FINISHED, event),
            RunStopped: lambda event: self._close(End.STOPPED, event),
            RunFailed: lambda event: self._close(End.FAILED, event),
        }

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is None:
            return
        try:
            handler(event)
        except Exception as error:  # noqa: BLE001 - a tracker must never end a run
            self._writer = None
            _tell(self._name, event.run, error)

    def _open(self, event: RunStarted | RunResumed) -> None:
        opened = seen.opening(event, self._settings)
        self._config = seen.config_of(opened.folder)
        self._writer = _Writer(self._name, event.run, self._make())
        self._writer.do(lambda tracker: tracker.open(opened))
        self._writer.wait(self._patience)

    def _add(self, event: RoundCommitted) -> None:
        if self._writer is not None and self._config is not None:
            found = seen.point(event, self._config)
            self._writer.do(lambda tracker: tracker.add(found))

    def _close(self, end: End, event: RunFinished | RunStopped | RunFailed) -> None:
        writer, self._writer = self._writer, None
        if writer is None or self._config is None:
            return
        summary = seen.released(event.summary, self._config) if isinstance(event, RunFinished) else {}
        writer.end(lambda tracker: tracker.close(end, summary, event.round), self._patience)


Job = Callable[[Tracker], None]


class _Writer:
    """A thread that does one job after another with a tracker. After the first failure it does none but the last."""

    def __init__(self, name: str, run: str, tracker: Tracker) -> None:
        self._name, self._run, self._tracker = name, run, tracker
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def do(self, job: Job) -> None:
        """Has `job` done after those before it."""
        self._jobs.put(partial(self._try, job))

    def wait(self, seconds: float) -> None:
        """Returns when all jobs so far are done, or after `seconds`."""
        done = threading.Event()
        self._jobs.put(done.set)
        if not done.wait(seconds) and not self._failed:
            log.warning("%s takes long to open run %s: the run goes on meanwhile", self._name, self._run)

    def end(self, last: Job, seconds: float) -> None:
        """Has `last` done, even after a failure, and waits for it, `seconds` at most."""
        self._jobs.put(partial(self._tidy, last))
        self._jobs.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._failed:
            log.warning("%s has not written all of run %s within %g s", self._name, self._run, seconds)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()

    def _tidy(self, last: Job) -> None:
        if not self._failed:
            self._try(last)
            return
        with contextlib.suppress(Exception):  # it was told; what can be tidied up is
            last(self._tracker)

    def _try(self, job: Job) -> None:
        if self._failed:
            return
        try:
            job(self._tracker)
        except Exception as error:  # noqa: BLE001 - a tracker must never end a run
            self._failed = True
            _tell(self._name, self._run, error)


def _tell(name: str, run: str, error: Exception) -> None:
    log.warning(
        "%s gets no more figures of run %s, which goes on without it (%s: %s); resume the run, or see its report",
        name,
        run,
        type(error).__name__,
        error,
    )
