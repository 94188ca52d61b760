"""What MLflow's own client finds, in a database beside the store and at a tracking URI."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")

from mlflow.tracking import MlflowClient

from fedlora.server.events import Listener
from fedlora.server.store import RunStore
from fedlora.trackers.tracking import tracking
from tests.trackers.stories import EXPECTED, SECRET, SITES, Story, settings, story

# MLflow 3.17 asks SQLAlchemy 2.1 for a way of loading that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning")


def listeners(**more: Any) -> Sequence[Listener]:
    return tracking(settings("mlflow", **more))


def whole(store: RunStore, privacy: str = "none", **more: Any) -> Story:
    tale = story(store, privacy)
    tale.emit(listeners(**more), lambda emit: (tale.begin(emit), tale.rounds(emit, *range(6)), tale.finish(emit))[0])
    return tale


class Found:
    """The runs of a project."""

    def __init__(self, uri: str, project: str = "fedlora") -> None:
        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(project)
        assert experiment is not None
        self.runs = list(self.client.search_runs([experiment.experiment_id]))

    def points(self, metric: str, number: int = 0) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.runs[number].info.run_id, metric)
        return sorted((point.step, round(point.value, 4)) for point in history)


def beside(store: RunStore) -> str:
    return f"sqlite:///{store.folder / 'mlflow.db'}"


def test_a_run(store: RunStore) -> None:
    tale = whole(store)
    found = Found(beside(store))
    (run,) = found.runs
    assert (run.info.status, run.data.tags["fedlora.run"]) == ("FINISHED", tale.run.id)
    assert run.info.run_name == f"first {tale.run.id}"
    assert found.points("validation_accuracy") == list(EXPECTED.items())
    assert found.points("test_accuracy") == [(5, 0.75)]
    assert (run.data.params["strategy.name"], run.data.params["federation.rounds"]) == ("fed_sb", "5")
    assert not any(private in str(run.data.to_dictionary()) for private in (SECRET, *SITES))
    assert not Path("mlruns").exists()


def test_a_stopped_run_goes_on_in_the_same_one(store: RunStore) -> None:
    tale = story(store)
    tale.emit(listeners(), lambda emit: (tale.begin(emit), tale.rounds(emit, 0, 1, 2), tale.stop(emit, 2))[0])
    (before,) = Found(beside(store)).runs
    assert before.info.status == "KILLED"
    tale.emit(listeners(), lambda emit: (tale.resume(emit, 2), tale.rounds(emit, 3, 4, 5), tale.finish(emit))[0])
    found = Found(beside(store))
    assert [run.info.run_id for run in found.runs] == [before.info.run_id]
    assert found.runs[0].info.status == "FINISHED"
    assert found.points("validation_accuracy") == list(EXPECTED.items())


def test_void_rounds_are_in_no_run_that_is_shown(store: RunStore) -> None:
    tale = story(store)
    tale.interrupted(listeners)
    found = Found(beside(store))
    assert len(found.runs) == 1
    assert found.points("validation_accuracy") == list(EXPECTED.items())


def test_a_failed_run_and_one_of_another_project(store: RunStore, tmp_path: Path) -> None:
    uri, tale = f"sqlite:///{tmp_path}/elsewhere.db", story(store)
    tale.emit(
        listeners(mlflow=uri, project="wards"),
        lambda emit: (tale.begin(emit), tale.rounds(emit, 0), tale.fail(emit, 0))[0],
    )
    (run,) = Found(uri, "wards").runs
    assert run.info.status == "FAILED"
    assert not (store.folder / "mlflow.db").exists()


def test_the_environment_names_the_server(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/environment.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    whole(store)
    assert len(Found(uri).runs) == 1


def test_under_central_dp_only_what_is_released_is_there(store: RunStore) -> None:
    whole(store, "central")
    (run,) = Found(beside(store)).runs
    assert set(run.data.metrics) == {"validation_accuracy", "train_loss", "test_accuracy"}


def test_a_server_that_is_away_costs_the_run_nothing(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    whole(store, mlflow="http://127.0.0.1:9")
    assert len([record for record in caplog.records if "mlflow gets no more figures" in record.message]) == 1
