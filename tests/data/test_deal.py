"""What a simulation deals, as files: the same rows, in the same order, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from fedlora.cli.__main__ import run
from fedlora.config.schema import RunConfig
from fedlora.data import deal as module
from fedlora.data.deal import deal
from fedlora.data.partition import make_partition
from fedlora.data.sources import SOURCES
from fedlora.data.splits import load_splits
from fedlora.errors import DataError
from tests.tiny import IMAGE_LABELS, LABELS, tiny_config


@pytest.fixture
def config(tiny_text_csv: Path) -> RunConfig:
    return tiny_config(Path("model"), tiny_text_csv, **{"data.partition": {"name": "dirichlet", "min_rows": 5}})


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_file_has_the_rows_of_a_client_in_their_order(config: RunConfig, tmp_path: Path) -> None:
    dealt = deal(config, tmp_path / "new" / "dealt")
    splits = load_splits(config.data)
    partition = make_partition(splits.train, config.data.partition, 4, config.seed)
    assert [each.path.name for each in dealt] == [f"client-0000{client}.jsonl" for client in range(4)]
    for each in dealt:
        held = splits.train.select(partition.rows(each.client).tolist())
        expected = [{**row, "label": LABELS[row["label"]]} for row in held]
        assert rows_of(each.path) == expected
        assert each.rows == len(expected)
        assert each.counts == {name: n for name in LABELS if (n := sum(r["label"] == name for r in expected))}
    assert json.loads((tmp_path / "new" / "dealt" / "labels.json").read_text()) == list(LABELS)


def test_only_the_owner_may_read_them(config: RunConfig, tmp_path: Path) -> None:
    dealt = deal(config, tmp_path / "dealt")
    assert (tmp_path / "dealt").stat().st_mode & 0o777 == 0o700
    assert {each.path.stat().st_mode & 0o777 for each in dealt} == {0o600}


def test_nothing_is_overwritten(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "dealt").mkdir()
    deal(config, tmp_path / "dealt")
    before = (tmp_path / "dealt" / "client-00000.jsonl").read_bytes()
    with pytest.raises(DataError, match="not overwritten"):
        deal(config.model_copy(update={"seed": 1}), tmp_path / "dealt")
    assert (tmp_path / "dealt" / "client-00000.jsonl").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not overwritten"):
        deal(config, tmp_path / "file")


def test_what_fails_half_way_leaves_nothing(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    real: Callable[[Path, str], None] = module._write

    def failing(path: Path, text: str) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        real(path, text)
        written.append(path)

    monkeypatch.setattr(module, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        deal(config, tmp_path / "dealt")
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_data_without_labels(tiny_qa_jsonl: Path, tmp_path: Path) -> None:
    dealt = deal(tiny_config(Path("model"), tiny_qa_jsonl), tmp_path / "dealt")
    assert set(rows_of(dealt[0].path)[0]) == {"prompt", "answer"}
    assert dealt[0].counts == {}
    assert json.loads((tmp_path / "dealt" / "labels.json").read_text()) is None


def test_images_are_in_the_files(tiny_images: Path, tmp_path: Path) -> None:
    config = tiny_config(Path("model"), tiny_images)
    dealt = deal(config, tmp_path / "dealt")
    splits = load_splits(config.data)
    partition = make_partition(splits.train, config.data.partition, 4, config.seed)
    read = SOURCES["local"](config.data.model_copy(update={"path": dealt[1].path}))["train"]
    held = splits.train.select(partition.rows(1).tolist())
    assert isinstance(read, Dataset)
    assert list(read["label"]) == [IMAGE_LABELS[label] for label in held["label"]]
    for one, other in zip(read["image"], held["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_the_command_shows_who_holds_what(
    tiny_text_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["data.source=local", "data.name=texts", f"data.path={tiny_text_csv}", "data/partition=iid"]
    said += ["federation.clients=3", "federation.cohort=3", "data.limit=30"]
    assert run(["data", "deal", *said, "--out", str(tmp_path / "one")]) == 0
    text = capsys.readouterr().out
    for word in ("client-00002.jsonl", "animal", "wrote 3 files and labels.json"):
        assert word in text
    assert run(["data", "deal", *said, "--out", str(tmp_path / "two"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["rows"] for each in found["files"]] == [10, 10, 10]
    assert sum(each["labels"]["food"] for each in found["files"]) == 10
    assert (tmp_path / "one" / "client-00000.jsonl").read_bytes() == Path(found["files"][0]["file"]).read_bytes()
    assert run(["data", "deal", *said, "--out", str(tmp_path / "one")]) == 10
