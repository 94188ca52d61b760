"""Real runs on a tiny model, with trackers: nothing of the run changes, and a resumed one goes on."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedlora.config.schema import RunConfig
from fedlora.errors import ConfigError
from fedlora.server.records import RunHistory, RunStatus
from fedlora.server.store import RunStore
from fedlora.simulations.simulate import Watch, resume, run
from tests.simulations.test_simulate import adapter_of, stopping_after
from tests.tiny import tiny_config

# MLflow 3.17 asks SQLAlchemy 2.1 for a way of loading that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning")

INSTALLED = [name for name in ("tensorboard", "mlflow", "wandb") if find_spec(name) is not None]


@pytest.fixture
def make(tiny_bert: Path, tiny_text_csv: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    def config(store: str = "runs", **updates: object) -> RunConfig:
        return tiny_config(tiny_bert, tiny_text_csv, store=tmp_path / store, **updates)

    return config


def losses(history: RunHistory) -> list[tuple[int, float]]:
    found = EventAccumulator(str(history.run.folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("validation_loss")]


def recorded(history: RunHistory) -> list[tuple[int, float]]:
    return [(record.round, pytest.approx(record.metrics["validation_loss"], rel=1e-6)) for record in history.rounds]


def test_all_trackers_at_once_beside_worker_processes(make: Callable[..., RunConfig]) -> None:
    engine = {"name": "processes", "workers": 2}
    plain = run(make("plain", engine=engine), Watch())
    tracked = run(make("tracked", engine=engine, track={"to": INSTALLED}), Watch())
    assert tracked.run.status is RunStatus.FINISHED
    assert adapter_of(tracked) == adapter_of(plain)
    assert losses(tracked) == recorded(tracked)
    assert "mlflow" not in INSTALLED or (tracked.run.folder.parent / "mlflow.db").is_file()
    assert "wandb" not in INSTALLED or len(list((tracked.run.folder / "wandb").glob("offline-run-*"))) == 1


def test_a_run_that_was_stopped_goes_on(make: Callable[..., RunConfig]) -> None:
    config = make(track={"to": ["tensorboard"]}, federation={"rounds": 3})
    assert run(config, stopping_after(1)).run.rounds_done == 1
    with RunStore.open(config.store) as store:
        resumed = resume(store, store.find("latest"), Watch())
    assert [number for number, _ in losses(resumed)] == [0, 1, 2, 3]
    assert losses(resumed) == recorded(resumed)


def test_a_tracker_that_is_not_installed_leaves_no_run_behind(
    make: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(track={"to": ["mlflow"]})
    monkeypatch.setattr("fedlora.config.track.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlora\[mlflow\]'"):
        run(config, Watch())
    assert not config.store.exists()
