"""What a tracker gets to see, and that nothing it does or fails to do reaches the run."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedlora.config.compose import compose
from fedlora.config.schema import RunConfig
from fedlora.config.track import TrackConfig, missing
from fedlora.errors import ConfigError
from fedlora.server.events import Emitter, RoundCommitted
from fedlora.server.records import RoundRecord
from fedlora.server.store import RunStore
from fedlora.trackers import seen, tracking
from fedlora.trackers.base import End, Figures, Opening, Point
from fedlora.trackers.tracking import Tracking
from fedlora.wire_work import travelling
from tests.trackers.stories import EXPECTED, SECRET, SITES, Story, settings, story


class Recorder:
    """A tracker that remembers, fails in `failing`, or waits in it for `go`."""

    def __init__(self, failing: str = "", go: threading.Event | None = None) -> None:
        self.failing, self.go = failing, go
        self.opened: Opening | None = None
        self.points: list[Point] = []
        self.closed: list[tuple[End, dict[str, float], int]] = []
        self.thread = ""

    def _at(self, place: str) -> None:
        self.thread = threading.current_thread().name
        if place == self.failing and self.go is not None:
            self.go.wait(30)
        elif place == self.failing:
            raise OSError(f"no tracker in {place}")

    def open(self, opening: Opening) -> None:
        self._at("open")
        self.opened = opening
        self.points = list(opening.history)

    def add(self, point: Point) -> None:
        self._at("add")
        self.points.append(point)

    def close(self, end: End, summary: Figures, last: int) -> None:
        self.closed.append((end, dict(summary), last))
        self._at("close")


def whole(tale: Story) -> Callable[[Emitter], None]:
    def tell(emit: Emitter) -> None:
        tale.begin(emit)
        tale.rounds(emit, *range(6))
        tale.finish(emit)

    return tell


def told(tale: Story, tracker: Recorder, patience: float = 10.0) -> Recorder:
    tale.emit([Tracking("recorder", lambda: tracker, settings(), patience)], whole(tale))
    return tracker


def accuracies(points: list[Point]) -> list[tuple[int, float]]:
    return [(point.round, point.figures["validation_accuracy"]) for point in points]


def test_a_tracker_gets_every_committed_round_and_the_end(store: RunStore) -> None:
    tale = story(store)
    tracker = told(tale, Recorder())
    assert tracker.opened is not None
    assert (tracker.opened.run, tracker.opened.name, tracker.opened.folder) == (tale.run.id, "first", tale.run.folder)
    assert accuracies(tracker.points) == list(EXPECTED.items())
    assert tracker.points[1].figures == {
        "validation_accuracy": 0.51,
        "train_loss": 0.5,
        "clients_reported": 1,
        "clients_refused": 1,
        "bytes_up": 200,
        "bytes_down": 400,
        "bytes_once": 7,
        "round_seconds": 1.5,
    }
    assert tracker.closed == [(End.FINISHED, {"test_accuracy": 0.75, "bytes_up": 1000.0, "seconds": 9.0}, 5)]
    assert tracker.thread == "track-recorder"


def test_under_central_dp_only_what_is_released_goes_out(store: RunStore) -> None:
    tracker = told(story(store, "central"), Recorder())
    assert [set(point.figures) for point in tracker.points] == [{"validation_accuracy", "train_loss"}] * 6
    assert tracker.closed == [(End.FINISHED, {"test_accuracy": 0.75}, 5)]


@pytest.mark.parametrize("privacy", ["none", "central"])
def test_params_are_the_configuration_without_places_and_names_of_sites(store: RunStore, privacy: str) -> None:
    opened = told(story(store, privacy), Recorder()).opened
    assert opened is not None
    assert (opened.params["strategy.name"], opened.params["federation.rounds"]) == ("fed_sb", "5")
    assert opened.params["privacy.name"] == privacy
    assert opened.params["adapter.targets"] == "null"
    everything = json.dumps(dict(opened.params))
    for private in (SECRET, str(store.folder), *SITES):
        assert private not in everything
    assert all(isinstance(value, str) for value in opened.params.values())


def test_a_resumed_run_has_each_round_once(store: RunStore) -> None:
    tale, tracker = story(store), Recorder()
    tale.interrupted(lambda: [Tracking("recorder", lambda: tracker, settings())])
    assert tracker.opened is not None
    assert [point.round for point in tracker.opened.history] == [0, 1, 2]
    assert accuracies(tracker.points) == list(EXPECTED.items())
    assert [end for end, _, _ in tracker.closed] == [End.STOPPED, End.FINISHED]


def test_a_round_that_was_committed_and_not_told_comes_from_its_checkpoint(store: RunStore) -> None:
    tale = story(store)
    folder = tale.run.folder / "checkpoints" / "round-0001"
    folder.mkdir(parents=True)
    saved = {"round": 1, "metrics": {"validation_accuracy": 0.51, "train_loss": "nan"}, "bytes_up": 7, "seconds": 2.5}
    (folder / "metrics.json").write_text(json.dumps(saved))
    tale.emit((), lambda emit: (tale.begin(emit), tale.rounds(emit, 0))[0])
    config = seen.config_of(tale.run.folder)
    points = seen.history(tale.run.folder, config, 1)
    assert [point.round for point in points] == [0, 1]
    assert points[1].figures["bytes_up"] == 7
    assert points[1].figures["train_loss"] != points[1].figures["train_loss"]
    central = config.model_copy(update={"privacy": config.privacy.model_copy(update={"name": "central"})})
    assert set(seen.history(tale.run.folder, central, 1)[1].figures) == {"validation_accuracy", "train_loss"}


@pytest.mark.parametrize("place", ["open", "add", "close"])
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    store: RunStore, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    tracker = told(story(store), Recorder(place))
    assert time.monotonic() - began < 5
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"OSError: no tracker in {place}" in warnings[0]
    assert len(tracker.points) == (6 if place == "close" else 0)
    assert len(tracker.closed) == 1  # it may tidy up


def test_a_tracker_that_cannot_be_made_is_told_once(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Recorder:
        raise ImportError("no such library")

    tale = story(store)
    tale.emit([Tracking("recorder", make, settings())], whole(tale))
    assert len([record for record in caplog.records if "no such library" in record.message]) == 1


def test_a_tracker_that_hangs_holds_up_the_run_only_so_long(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    began = time.monotonic()
    tracker = told(story(store), Recorder("add", go), patience=0.3)
    assert time.monotonic() - began < 5
    assert "has not written all of run" in caplog.text
    go.set()
    ends = time.monotonic() + 10
    while not tracker.closed and time.monotonic() < ends:
        time.sleep(0.01)
    assert accuracies(tracker.points) == list(EXPECTED.items())


def test_a_failure_does_not_reach_the_next_run(store: RunStore) -> None:
    trackers = [Recorder("add"), Recorder()]
    listener = Tracking("recorder", iter(trackers).__next__, settings())
    for _ in range(2):
        tale = story(store)
        tale.emit([listener], whole(tale))
    assert [len(tracker.points) for tracker in trackers] == [0, 6]


def test_one_tracker_does_not_hinder_the_other(store: RunStore) -> None:
    tale, good = story(store), Recorder()
    bad = Recorder("open")
    tale.emit([Tracking("bad", lambda: bad, settings()), Tracking("good", lambda: good, settings())], whole(tale))
    assert len(good.points) == 6


def test_figures_of_a_round_that_are_not_finite_pass(store: RunStore) -> None:
    config = seen.config_of(story(store).run.folder)
    record = RoundRecord(1, {"loss": float("nan")}, (), committed_at=datetime.now(UTC))
    figures = seen.point(RoundCommitted.of("x", record, rounds=1), config).figures
    assert figures["loss"] != figures["loss"]


# What is not installed, and who is told of trackers


def test_what_is_not_installed_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.config.track.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlora\[mlflow\]'"):
        tracking.tracking(settings("mlflow"))
    with pytest.raises(ConfigError) as caught:
        compose(["track.to=[mlflow,wandb]", "federation.cohort=99"])
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "override 'track.to=[mlflow,wandb]': track.to names mlflow, and mlflow is not installed" in told
    assert "pip install 'fedlora[wandb]'" in told


def test_nothing_heavy_is_loaded_to_say_so() -> None:
    code = (
        "import sys\nfrom fedlora.config.compose import compose\nfrom fedlora.trackers.tracking import tracking\n"
        "tracking(compose(['track.to=[tensorboard]']).track)\n"
        "print([m for m in ('torch', 'tensorboard', 'mlflow', 'wandb', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_that_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nowhere_else").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert [name for name, _ in missing(["nowhere_else"])] == ["nowhere_else"]
    assert not list(missing([]))


def test_by_default_nothing_is_tracked() -> None:
    assert tracking.tracking(compose([]).track) == []


@pytest.mark.parametrize("to", ["[nowhere]", "[tensorboard,tensorboard]", "mlflow"])
def test_trackers_that_cannot_be(to: str) -> None:
    with pytest.raises(ConfigError):
        compose([f"track.to={to}"])


def test_a_password_in_a_tracking_uri_is_refused() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        compose(["track.mlflow='https://me:geheim@mlflow.example.org'"])
    assert compose(["track.mlflow='https://mlflow.example.org'"]).track.mlflow == "https://mlflow.example.org"


def test_clients_are_not_told_of_trackers(store: RunStore) -> None:
    config = RunConfig.model_validate_json(story(store).run.config)
    tracked = config.model_copy(update={"track": settings("mlflow", mlflow="https://mlflow.example.org")})
    virtual = tracked.model_copy(update={"federation": config.federation.model_copy(update={"sites": ()})})
    for found in (travelling(tracked), travelling(virtual)):
        assert found.track == TrackConfig()
    assert travelling(tracked) == travelling(config)  # the same work, and so the same bytes from an outbox
