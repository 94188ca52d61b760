"""MLflow: one MLflow run for each run, in a database beside the store or at a tracking URI."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import TypeVar

from filelock import FileLock
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fedlora.trackers.base import End, Figures, Opening, Point

DATABASE = "mlflow.db"
"""In the store, where no tracking URI is given."""

RUN_TAG = "fedlora.run"
"""The tag by which a resumed run finds its MLflow run."""

_LONGEST_PARAM = 6000
_AT_ONCE = 100  # params, or metrics, in one request
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")
_STATUS = {End.FINISHED: "FINISHED", End.STOPPED: "KILLED", End.FAILED: "FAILED"}

T = TypeVar("T")


class MlFlow:
    """Metrics by round; the configuration as params."""

    def __init__(self) -> None:
        self._client: MlflowClient
        self._run: str | None = None
        self._has = -1

    def open(self, opening: Opening) -> None:
        """Goes on with the MLflow run of this run, if it holds no round that became void; else a new one is made."""
        uri = opening.settings.mlflow or os.environ.get("MLFLOW_TRACKING_URI")
        alone: AbstractContextManager[object] = nullcontext()
        if uri is None:  # two processes that make one database's tables at a time would both fail
            uri = f"sqlite:///{opening.store / DATABASE}"
            alone = FileLock(opening.store / f".{DATABASE}.lock", mode=0o600)
        with alone:
            self._client = MlflowClient(uri)
            experiment = self._experiment(opening)
            last = opening.history[-1].round if opening.history else -1
            found = self._found(experiment, opening.run, last)
            self._run = found or self._new(experiment, opening)
        if found:
            self._client.update_run(self._run, status="RUNNING")
        for point in opening.history:
            self.add(point)

    def add(self, point: Point) -> None:
        """One metric for each figure, unless this round is there already."""
        if point.round > self._has:
            self._write(point.figures, point.round, point.time)
            self._has = point.round

    def close(self, end: End, summary: Figures, last: int) -> None:
        """Final figures are metrics at the last round; a run that was stopped is KILLED, as MLflow calls it."""
        if self._run is not None:
            self._write(summary, last, datetime.now(UTC))
            self._client.set_terminated(self._run, status=_STATUS[end])

    def _experiment(self, opening: Opening) -> str:
        name = opening.settings.project
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another process made it just now
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _found(self, experiment: str, run: str, last: int) -> str | None:
        """The MLflow run of `run`; one that has points after round `last` is deleted: single points cannot be."""
        for found in self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'"):
            steps = self._steps(found)
            if max(steps, default=-1) <= last:
                self._has = max(steps, default=-1)
                return str(found.info.run_id)
            self._client.delete_run(found.info.run_id)
        return None

    def _steps(self, run: Run) -> set[int]:
        histories = (self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
        return {int(metric.step) for history in histories for metric in history}

    def _new(self, experiment: str, opening: Opening) -> str:
        tags = {RUN_TAG: opening.run, "fedlora.strategy": opening.strategy}
        made = self._client.create_run(experiment, run_name=f"{opening.name} {opening.run}", tags=tags)
        found = [Param(_named(key), value[:_LONGEST_PARAM]) for key, value in opening.params.items()]
        for some in _batches(found):
            self._client.log_batch(made.info.run_id, params=some)
        return str(made.info.run_id)

    def _write(self, figures: Figures, step: int, time: datetime) -> None:
        stamp = int(time.timestamp() * 1000)
        found = [Metric(_named(name), float(value), stamp, step) for name, value in figures.items()]
        for some in _batches(found):
            self._client.log_batch(self._run, metrics=some)


def _named(name: str) -> str:
    """`name` as MLflow takes it."""
    return _NOT_IN_A_NAME.sub("_", name)[:250]


def _batches(found: Sequence[T]) -> Iterator[Sequence[T]]:
    return (found[start : start + _AT_ONCE] for start in range(0, len(found), _AT_ONCE))
