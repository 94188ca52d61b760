"""Runs beside each other, and checkpoints."""

import csv
import io
import math
from types import ModuleType

import pytest

from fedlora.server import checkpoint
from fedlora.server.records import RoundRecord, RunInfo, RunStatus
from fedlora.server.store import RunStore
from tests.server.samples import config
from tests.server.views.making import committed, configured, quiet_views, row


def finished(store: RunStore, seed: int, accuracy: float, strategy: str = "fedavg") -> RunInfo:
    run = store.create(config(seed=seed, strategy={"name": strategy}), name=f"{strategy}-{seed}")
    for number in range(3):
        store.commit_round(run, RoundRecord(number, {"validation_accuracy": accuracy + number / 10}, ()))
    return store.finish(run, RunStatus.FINISHED, {"test_accuracy": accuracy, "seconds": 1.0})


def test_seeds_become_mean_and_deviation(store: RunStore) -> None:
    one, two, other = finished(store, 1, 0.5), finished(store, 2, 0.7), finished(store, 1, 0.4, "ffa_lora")
    found = quiet_views(store).compare([two.id, one.id, other.id, one.id])
    assert [found_row.id for found_row in found.rows] == [two.id, one.id, other.id]
    first, second = found.groups
    assert (first.label, first.seeds, first.runs) == ("fedavg", [1, 2], [one.id, two.id])
    accuracy = first.figures["test_accuracy"]
    assert (accuracy.mean, accuracy.n) == (pytest.approx(0.6), 2)
    assert accuracy.sd == pytest.approx(math.sqrt(0.02))
    assert second.figures["test_accuracy"].sd is None
    assert first.curve.round == [0, 1, 2]
    assert first.curve.mean == pytest.approx([0.6, 0.7, 0.8])
    assert second.curve.sd == [None, None, None]
    assert (found.metric, found.figures) == ("validation_accuracy", ["test_accuracy", "seconds"])


def test_csv_has_a_line_for_each_run_and_round(store: RunStore) -> None:
    one, two = (
        finished(store, 1, 0.5),
        committed(store, store.create(configured(), name='n, "quoted"\nnext'), [[row(0)]]),
    )
    views = quiet_views(store)
    lines = list(csv.DictReader(io.StringIO(views.csv(views.compare([one.id, two.id])))))
    assert [(line["run"], line["round"]) for line in lines] == [
        *((one.id, str(number)) for number in range(3)),
        *((two.id, str(number)) for number in range(2)),
    ]
    assert lines[0]["train_loss"] == ""
    assert (lines[3]["name"], lines[4]["train_loss"]) == ('n, "quoted"\nnext', "2.0")


def test_nothing_to_compare(store: RunStore) -> None:
    found = quiet_views(store).compare([])
    assert (found.rows, found.groups, found.metric) == ([], [], "")


def test_checkpoints_that_are_on_the_disk(store: RunStore, run: RunInfo, samples: ModuleType) -> None:
    for number in range(3):
        checkpoint.commit(store, run, samples.checkpoint(number))
    views = quiet_views(store)
    found = views.checkpoints(run.id)
    assert [(one.round, one.metric) for one in found] == [(0, 0.5), (1, 0.51), (2, 0.52)]
    folder = checkpoint.round_folder(run.folder, 1)
    assert found[1].bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 0
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    (checkpoint.round_folder(run.folder, 9)).mkdir()
    assert [one.round for one in views.checkpoints(run.id)] == [0, 2]
