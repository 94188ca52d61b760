"""What TensorBoard's own reader finds."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fedlora.server.store import RunStore
from fedlora.trackers.tracking import tracking
from tests.trackers.stories import EXPECTED, SECRET, SITES, Story, settings, story


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in found.Scalars(tag)]


def listeners() -> list[object]:
    return list(tracking(settings("tensorboard")))


def whole(store: RunStore, privacy: str = "none") -> Story:
    tale = story(store, privacy)
    tale.emit(listeners(), lambda emit: (tale.begin(emit), tale.rounds(emit, *range(6)), tale.finish(emit))[0])
    return tale


def test_a_run(store: RunStore) -> None:
    found = read(whole(store).run.folder / "tensorboard")
    assert scalars(found, "validation_accuracy") == list(EXPECTED.items())
    assert scalars(found, "bytes_up")[1] == (1, 200)
    assert scalars(found, "test_accuracy") == [(5, 0.75)]
    text = make_ndarray(found.Tensors("configuration/text_summary")[0].tensor_proto)[0].decode()
    params = json.loads(text)
    assert params["federation.rounds"] == "5"
    assert not any(private in text for private in (SECRET, *SITES))


def test_a_resumed_run_has_each_round_once(store: RunStore) -> None:
    tale = story(store)
    tale.interrupted(listeners)
    folder = tale.run.folder / "tensorboard"
    assert scalars(read(folder), "validation_accuracy") == list(EXPECTED.items())


def test_a_tensorboard_that_shows_the_run_meanwhile_forgets_what_is_void(store: RunStore) -> None:
    """Its reader has read the old file already when the new one comes."""
    tale = story(store)
    tale.emit(
        listeners(), lambda emit: (tale.begin(emit), tale.rounds(emit, 0, 1, 2, 3, shift=0.2), tale.stop(emit, 3))[0]
    )
    found = read(tale.run.folder / "tensorboard")
    assert len(found.Scalars("validation_accuracy")) == 4
    tale.emit(listeners(), lambda emit: (tale.resume(emit, 1), tale.rounds(emit, 2, 3, 4), tale.stop(emit, 4))[0])
    found.Reload()
    assert [event.step for event in found.Scalars("validation_accuracy")] == [0, 1, 2, 3, 4]


def test_under_central_dp_only_what_is_released_is_there(store: RunStore) -> None:
    found = read(whole(store, "central").run.folder / "tensorboard")
    assert set(found.Tags()["scalars"]) == {"validation_accuracy", "train_loss", "test_accuracy"}
