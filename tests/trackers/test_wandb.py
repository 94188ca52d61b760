"""What is in the run's folder for `wandb sync`: its file, read with wandb's own messages."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb", reason="the extra `wandb` is not installed")

from wandb.proto.wandb_internal_pb2 import Record

from fedlora.server.events import Listener
from fedlora.server.store import RunStore
from fedlora.trackers.tracking import tracking
from tests.trackers.stories import EXPECTED, SECRET, SITES, Story, settings, story

BLOCK, FILE_HEADER, HEADER = 32768, 7, 7
"""The file is LevelDB's log: blocks of records, each with CRC (4 bytes), length (2) and kind (1) before it."""


def payloads(data: bytes) -> Iterator[bytes]:
    place, parts = FILE_HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + HEADER + length > len(data):
            return  # it is being written
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


class Found:
    """The offline run in a run's folder; wandb's own process may write the end of it after `finish` has returned."""

    def __init__(self, folder: Path) -> None:
        (self.place,) = (folder / "wandb").glob("offline-run-*")
        (self.file,) = self.place.glob("*.wandb")
        ends = time.monotonic() + 20
        while not any(record.HasField("exit") for record in self._read()):
            assert time.monotonic() < ends, "wandb has not written the end of the run"
            time.sleep(0.05)
        self.records = self._read()

    def _read(self) -> list[Any]:
        return [Record.FromString(payload) for payload in payloads(self.file.read_bytes())]

    def kinds(self) -> set[str]:
        return {str(record.WhichOneof("record_type")) for record in self.records}

    def history(self, name: str) -> list[tuple[int, Any]]:
        rows = [_items(record.history.item) for record in self.records if record.HasField("history")]
        return [(row["_step"], row[name]) for row in rows if name in row]

    def figures(self) -> set[str]:
        rows = [_items(record.history.item) for record in self.records if record.HasField("history")]
        return {name for row in rows for name in row if not name.startswith("_")}

    def summary(self) -> dict[str, Any]:
        rows = [_items(record.summary.update) for record in self.records if record.HasField("summary")]
        return {name: value for row in rows for name, value in row.items()}

    def run(self) -> Any:
        return next(record.run for record in self.records if record.HasField("run"))


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def listeners() -> Sequence[Listener]:
    return tracking(settings("wandb", project="wards"))


def whole(store: RunStore, privacy: str = "none") -> Story:
    tale = story(store, privacy)
    tale.emit(listeners(), lambda emit: (tale.begin(emit), tale.rounds(emit, *range(6)), tale.finish(emit))[0])
    return tale


def test_a_run(store: RunStore) -> None:
    tale = whole(store)
    found = Found(tale.run.folder)
    assert (found.run().run_id, found.run().project) == (tale.run.id, "wards")
    assert found.history("validation_accuracy") == list(EXPECTED.items())
    assert (found.summary()["test_accuracy"], found.summary()["status"]) == (0.75, "finished")
    config = _items(found.run().config.update)
    assert config["federation.rounds"] == "5"


def test_nothing_else_goes_out(store: RunStore) -> None:
    """No host, no user, no paths, no packages, no console, no measurements of this machine."""
    tale = whole(store)
    found = Found(tale.run.folder)
    data = found.file.read_bytes()
    for private in (SECRET, *SITES, str(tale.run.folder), str(Path(__file__).parent)):
        assert private.encode() not in data, private
    assert not found.kinds() & {"stats", "output", "output_raw", "artifact", "environment"}
    assert (found.run().host, found.run().git.remote_url) == ("", "")
    assert not [path.name for path in (found.place / "files").glob("*") if path.name != "config.yaml"]


def test_a_resumed_run_is_there_once_and_whole(store: RunStore) -> None:
    tale = story(store)
    tale.interrupted(listeners)
    assert Found(tale.run.folder).history("validation_accuracy") == list(EXPECTED.items())


def test_under_central_dp_only_what_is_released_is_there(store: RunStore) -> None:
    assert Found(whole(store, "central").run.folder).figures() == {"validation_accuracy", "train_loss"}


def test_online_without_a_key_is_told_and_costs_the_run_nothing(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    tale = story(store)
    online = tracking(settings("wandb", wandb="online"))
    tale.emit(online, lambda emit: (tale.begin(emit), tale.rounds(emit, 0), tale.finish(emit))[0])
    assert caplog.text.count("track.wandb=online needs a key") == 1
    assert not list((tale.run.folder / "wandb").glob("*run-*"))
