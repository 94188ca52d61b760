"""A site's file: all rows, their order, the run's labels; whatever the file calls things."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from fedlora.adapters.manifest import Form, Manifest
from fedlora.client.site_data import LocalData, LocalModel, SiteWorker, SiteWorkers
from fedlora.client.units import client_units
from fedlora.config.schema import RunConfig
from fedlora.errors import DataError
from fedlora.privacy.randomness import seeded_source
from fedlora.wire_work import Work
from tests.tiny import tiny_config

LABELS = ("tool", "animal", "food")
ROWS = [
    {"text": "dog", "label": "animal", "who": "b"},
    {"text": "pie", "label": "food", "who": "a"},
    {"text": "dog", "label": "animal", "who": "a"},
    {"text": "saw", "label": "tool", "who": "c"},
]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tiny_bert: Path, tiny_text_csv: Path) -> RunConfig:
    return tiny_config(tiny_bert, tiny_text_csv)


@pytest.fixture
def model(tiny_bert: Path) -> LocalModel:
    return LocalModel("local", "ours", tiny_bert)


def work(config: RunConfig, labels: tuple[str, ...] | None = LABELS, client: int = 2) -> Work:
    return Work(
        run="run", round=1, client=client, config=config, manifest=Manifest(Form.LORA, 2, 1.0, 0, {}), labels=labels
    )


def test_all_rows_train_in_the_order_of_the_file_repeats_and_all(
    config: RunConfig, model: LocalModel, tmp_path: Path
) -> None:
    worker = SiteWorker(work(config), LocalData(written(tmp_path / "own.jsonl", ROWS)), model)
    assert list(worker.splits.train["text"]) == ["dog", "pie", "dog", "saw"]
    assert list(worker.splits.train["label"]) == [1, 2, 1, 0]
    assert worker.splits.labels == LABELS
    assert (len(worker.splits.validation), len(worker.splits.test)) == (0, 0)
    assert worker.partition.rows(2).tolist() == [0, 1, 2, 3]
    assert worker.splits.train.column_names == ["text", "label"]  # and nobody's name is loaded


def test_a_file_may_call_things_otherwise(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    path = written(
        tmp_path / "own.jsonl", [{"note": row["text"], "class": row["label"].upper(), "text": 7} for row in ROWS]
    )
    names = {name.upper(): name for name in LABELS}
    data = LocalData(path, {"text": "note", "label": "class"}, names)
    worker = SiteWorker(work(config), data, model)
    assert list(worker.splits.train["text"]) == ["dog", "pie", "dog", "saw"]
    assert list(worker.splits.train["label"]) == [1, 2, 1, 0]


def test_numbers_can_be_labels_of_the_run(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", [{**row, "label": LABELS.index(str(row["label"]))} for row in ROWS])
    data = LocalData(path, labels={str(number): name for number, name in enumerate(LABELS)})
    assert list(SiteWorker(work(config), data, model).splits.train["label"]) == [1, 2, 1, 0]


def test_empty_texts_are_left_out(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", [ROWS[0], {**ROWS[1], "text": " "}, ROWS[3]])
    assert list(SiteWorker(work(config), LocalData(path), model).splits.train["text"]) == ["dog", "saw"]


def test_a_second_text_is_read_if_the_run_names_one(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", [{**row, "text_pair": "x"} for row in ROWS])
    pairs = config.model_copy(update={"data": config.data.model_copy(update={"text_pair": "passage"})})
    assert "text_pair" not in SiteWorker(work(config), LocalData(path), model).splits.train.column_names
    assert "text_pair" in SiteWorker(work(pairs), LocalData(path), model).splits.train.column_names


@pytest.mark.parametrize(
    ("rows", "data", "text"),
    [
        ([{**ROWS[0], "label": "fruit"}], {}, "labels fruit, which the run does not know"),
        ([{"text": "dog"}], {}, "no column 'label' for 'label'"),
        ([{**ROWS[0], "text": 7}], {}, "not text"),
        ([{**ROWS[0], "text": ""}], {}, "no row to train on"),
        (ROWS, {"columns": {"text": "label"}}, "one column is configured for two purposes"),
    ],
)
def test_what_cannot_be_used_is_named(
    config: RunConfig, model: LocalModel, tmp_path: Path, rows: list[dict[str, Any]], data: dict[str, Any], text: str
) -> None:
    worker = SiteWorker(work(config), LocalData(written(tmp_path / "own.jsonl", rows), **data), model)
    with pytest.raises(DataError, match=text):
        _ = worker.splits


def test_a_folder_of_files_is_one_data_set(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    written(tmp_path / "own" / "2024.jsonl", ROWS[2:])
    written(tmp_path / "own" / "2023.jsonl", ROWS[:2])
    worker = SiteWorker(work(config), LocalData(tmp_path / "own"), model)
    assert list(worker.splits.train["text"]) == ["dog", "pie", "dog", "saw"]
    assert list(worker.splits.train["label"]) == [1, 2, 1, 0]


def test_of_a_saved_data_set_one_split_must_be_named(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    both = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    both.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="has the splits test, train"):
        _ = SiteWorker(work(config), LocalData(tmp_path / "saved"), model).splits
    assert len(SiteWorker(work(config), LocalData(tmp_path / "saved" / "train"), model).splits.train) == len(ROWS)


def test_another_clients_rows_are_not_here(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    worker = SiteWorker(work(config), LocalData(written(tmp_path / "own.jsonl", ROWS)), model)
    with pytest.raises(DataError, match="client 2"):
        worker.partition.rows(0)


def with_privacy(config: RunConfig, holdout: float = 0.0, **privacy: Any) -> RunConfig:
    section = config.privacy.model_copy(update={"name": "dp", "noise_multiplier": 1.0, **privacy})
    return config.model_copy(update={"privacy": section, "eval": config.eval.model_copy(update={"holdout": holdout})})


def test_units_are_values_of_a_local_column(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", [{**row, "patient": "not this"} for row in ROWS])
    data = LocalData(path, {"patient": "who"})
    units = client_units(SiteWorker(work(with_privacy(config, unit="patient")), data, model), 2, seeded_source(0, "x"))
    assert [rows.tolist() for rows in units.train.rows] == [[0], [1, 2], [3]]
    with pytest.raises(DataError, match="no column 'ward' for 'ward'"):
        _ = SiteWorker(work(with_privacy(config, unit="ward")), data, model).splits


def test_one_record_more_moves_no_other_in_or_out_of_the_holdout(
    config: RunConfig, model: LocalModel, tmp_path: Path
) -> None:
    """Else one row would change the batches of others, and no noise is made for that."""
    rows = [{"text": f"row {number}", "label": "tool"} for number in range(40)]

    def held(name: str, kept: list[dict[str, Any]]) -> set[str]:
        asked = work(with_privacy(config, holdout=0.4))
        worker = SiteWorker(asked, LocalData(written(tmp_path / name, kept)), model)
        texts = list(worker.splits.train["text"])
        return {texts[row] for unit in client_units(worker, 2, seeded_source(0, "x")).holdout.rows for row in unit}

    whole = held("whole.jsonl", rows)
    assert 5 < len(whole) < 35
    assert held("fewer.jsonl", rows[1:]) == whole - {"row 0"}


def test_a_worker_stays_until_something_changes(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    workers, path = SiteWorkers(), written(tmp_path / "own.jsonl", ROWS)
    data = LocalData(path)
    first = workers.get(work(config), data, model)
    assert workers.get(work(config), data, model) is first
    fingerprint = first.fingerprint
    written(path, [*ROWS, ROWS[0]])
    second = workers.get(work(config), data, model)
    assert second is not first
    assert len(second.splits.train) == len(ROWS) + 1
    assert second.fingerprint != fingerprint
    assert workers.get(work(config, labels=LABELS[::-1]), data, model) is not second
    with pytest.raises(DataError, match="are not there"):
        workers.get(work(config), replace(data, path=tmp_path / "gone.jsonl"), model)


def test_the_servers_word_on_files_counts_for_nothing(config: RunConfig, model: LocalModel, tmp_path: Path) -> None:
    theirs = config.data.model_copy(update={"path": Path("theirs"), "text": "secret", "revision": "r", "subset": "s"})
    base = config.model.model_copy(update={"gguf": "../../theirs.gguf"})
    asked = work(config.model_copy(update={"data": theirs, "model": base}))
    worker = SiteWorker(asked, LocalData(written(tmp_path / "own.jsonl", ROWS)), model)
    assert list(worker.splits.train["text"]) == ["dog", "pie", "dog", "saw"]
    assert worker.config.model.gguf is None
    assert (worker.config.data.revision, worker.config.data.subset) == (None, None)
