import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from fedlora.config.schema import DataConfig
from fedlora.data.columns import encode_labels, map_columns, usable_rows
from fedlora.data.sources import read_rows
from fedlora.errors import DataError

Local = Callable[..., DataConfig]


def config(**keys: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "local", "name": "mine", "partition": {"name": "iid"}} | keys)


def test_csv_keeps_texts_as_texts(local: Local) -> None:
    rows = read_rows(local('text,label\n007,1\n"two\nlines, and a comma",0\n,1\nNA,1\n'))["train"]
    assert rows["text"][:] == ["007", "two\nlines, and a comma", "", "NA"]
    assert rows["label"][:] == [1, 0, 1, 1]
    assert rows.cache_files == []


def test_a_configured_text_column_of_numbers_is_text(local: Local) -> None:
    assert read_rows(local("body,label\n0012,a\n34,b\n", text="body"))["train"]["body"][:] == ["0012", "34"]


def test_tab_separated(local: Local) -> None:
    assert read_rows(local("text\tlabel\na, b\tx\n", file="rows.tsv"))["train"][0] == {"text": "a, b", "label": "x"}


def test_jsonl_with_a_line_of_more_than_a_megabyte(local: Local) -> None:
    lines = [json.dumps({"text": "long " * 300_000, "label": "a"}), json.dumps({"text": "short", "label": "b"})]
    rows = read_rows(local("\n".join(lines), file="rows.jsonl"))["train"]
    assert (len(rows), len(rows[0]["text"])) == (2, 1_500_000)


def test_parquet_keeps_declared_classes(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "rows.parquet")
    rows = read_rows(config(path=tmp_path / "rows.parquet"))["train"]
    assert rows.features["label"].names == ["no", "yes"]


def test_saved_folders(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a"], "label": ["x"]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert list(read_rows(config(path=tmp_path / "one"))) == ["train"]
    assert sorted(read_rows(config(path=tmp_path / "two"))) == ["test", "train"]


def test_a_folder_with_one_file_a_split(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{split},1\n")
    (tmp_path / "README.md").write_text("not data")
    assert {k: v["text"][:] for k, v in read_rows(config(path=tmp_path)).items()} == {
        "dev": ["dev"],
        "train": ["train"],
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rows.xlsx", "x", r"ending '\.xlsx'; \.csv, \.jsonl, \.parquet"),
        ("rows.csv", "text,label\na,b,c\n", "cannot read .*Expected 2 columns, got 3"),
        ("rows.jsonl", "{not json}", "cannot read .*JSON"),
        ("rows.parquet", "not parquet", "cannot read .*[Pp]arquet"),
    ],
)
def test_unreadable_files(local: Local, file: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(local(text, file=file))


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs data\.path"):
        read_rows(config())
    with pytest.raises(DataError, match="does not exist"):
        read_rows(config(path=tmp_path / "absent"))
    with pytest.raises(DataError, match="neither a saved"):
        read_rows(config(path=tmp_path))
    (tmp_path / "test.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match="no split called train, only test"):
        read_rows(config(path=tmp_path))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot read the saved data set"):
        read_rows(config(path=tmp_path))


def test_an_unreachable_hub_names_the_ways_out() -> None:
    """In a process of its own: `datasets` reads the offline switch when it is imported."""
    code = """
from fedlora.config.schema import DataConfig
from fedlora.data.sources import read_rows
from fedlora.errors import DataError
try:
    read_rows(DataConfig(source="hub", name="no-such-owner/no-such-data", partition={"name": "iid"}))
except DataError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "cannot load no-such-owner/no-such-data from the hub" in done.stdout, done.stderr
    assert "fedlora ls data" in done.stdout


def test_columns_are_renamed_and_the_one_in_the_way_is_kept() -> None:
    rows = Dataset.from_dict({"sentence": ["a"], "text": ["b"], "label": ["c"], "fine": ["d"], "site": ["e"]})
    mapped = map_columns(rows, config(text="sentence", label="fine"), "train")
    assert mapped[0] == {"text": "a", "original_text": "b", "original_label": "c", "label": "d", "site": "e"}


def test_columns_can_be_swapped() -> None:
    rows = Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
    assert map_columns(rows, config(prompt="answer", answer="prompt"), "train")[0] == {"prompt": "b", "answer": "a"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": "body"}, r"data\.text=body; there are: title, label"),
        ({}, r"data\.text=\.\.\..*there are: title, label"),
        ({"text": "title", "label": "title"}, "two purposes"),
    ],
)
def test_missing_columns_list_those_there_are(keys: dict[str, str], message: str) -> None:
    rows = Dataset.from_dict({"title": ["a"], "label": ["b"]})
    with pytest.raises(DataError, match=message):
        map_columns(rows, config(**keys), "train")


def test_empty_texts_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"text": ["a", " \n", "b", ""], "label": [0, 1, 0, 1]})
    assert usable_rows(rows, "train").tolist() == [0, 2]
    assert "2 rows with an empty text are left out (counted from 0: 1, 3)" in caplog.text


def test_null_and_other_types_are_no_texts() -> None:
    with pytest.raises(DataError, match=r"2 rows have null in column 'text' \(counted from 0: 1, 2\)"):
        usable_rows(Dataset.from_dict({"text": ["a", None, None]}), "train")
    with pytest.raises(DataError, match="'text' holds int64"):
        usable_rows(Dataset.from_dict({"text": [1, 2]}), "train")


def labelled(**splits: list[Any]) -> tuple[dict[str, list[int]], tuple[str, ...] | None]:
    rows = {
        split: Dataset.from_dict({"text": ["t"] * len(values), "label": values}) for split, values in splits.items()
    }
    encoded, names = encode_labels(rows)
    return {split: rows["label"][:] for split, rows in encoded.items()}, names


def test_labels_are_sorted_and_shared_by_all_splits() -> None:
    assert labelled(train=["pos", "neg"], test=["odd"]) == ({"train": [2, 0], "test": [1]}, ("neg", "odd", "pos"))
    assert labelled(train=[10, 2], test=["2", "-1"]) == ({"train": [2, 1], "test": [1, 0]}, ("-1", "2", "10"))
    assert labelled(train=[True, False]) == ({"train": [1, 0]}, ("False", "True"))
    assert labelled(train=[3.0, 1.0]) == ({"train": [1, 0]}, ("1", "3"))


def test_declared_classes_keep_their_ids() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ape", "unused"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    encoded, names = encode_labels({"train": rows})
    assert (encoded["train"]["label"][:], names) == ([0, 1], ("zebra", "ape", "unused"))


def test_rows_without_a_label() -> None:
    with pytest.raises(DataError, match=r"7 rows have no label \(counted from 0: 1, 2, 3, 4, 5, \.\.\.\)"):
        labelled(train=["a", *[None] * 6, ""])
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a"])})
    unlabelled = Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    with pytest.raises(DataError, match="1 rows have no label"):
        encode_labels({"train": unlabelled})


def test_labels_that_are_no_classes() -> None:
    with pytest.raises(DataError, match=r"there is 0\.5"):
        labelled(train=[0.5, 1.0])


def test_images_pass_untouched() -> None:
    from PIL import Image as Pillow

    rows = Dataset.from_dict(
        {"picture": [Pillow.new("L", (2, 2), 7)], "label": ["a"]},
        features=Features({"picture": Image(), "label": Value("string")}),
    )
    mapped = map_columns(rows, config(image="picture"), "train")
    assert mapped[0]["image"].getpixel((0, 0)) == 7
