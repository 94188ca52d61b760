import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlora.config.schema import DataConfig
from fedlora.data.base import Splits
from fedlora.data.splits import load_splits
from fedlora.errors import DataError

Local = Callable[..., DataConfig]
ROLES = ("train", "validation", "test")


def config(path: Path, **keys: Any) -> DataConfig:
    base = {"source": "local", "name": "mine", "path": path, "partition": {"name": "iid"}}
    return DataConfig.model_validate(base | keys)


def table(count: int, labels: str = "ab") -> str:
    """A CSV file of `count` different rows."""
    return "text,label\n" + "".join(f"row {i},{labels[i % len(labels)]}\n" for i in range(count))


def saved(folder: Path, **splits: dict[str, list[Any]]) -> Path:
    DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()}).save_to_disk(folder)
    return folder


def texts(splits: Splits) -> dict[str, list[str]]:
    return {role: getattr(splits, role)["text"][:] for role in ROLES}


def test_fractions_and_stratification(local: Local) -> None:
    splits = load_splits(local(table(1000, labels="aaab")))
    assert {role: len(getattr(splits, role)) for role in ROLES} == {"train": 720, "validation": 80, "test": 200}
    assert splits.labels == ("a", "b")
    assert {role: Counter(getattr(splits, role)["label"])[1] for role in ROLES} == {
        "train": 180,
        "validation": 20,
        "test": 50,
    }


def test_the_split_depends_on_its_seed_alone(local: Local) -> None:
    first, again, other = (load_splits(local(table(60), split_seed=seed)) for seed in (0, 0, 1))
    assert texts(first) == texts(again)
    assert set(texts(first)["test"]) != set(texts(other)["test"])


def test_repeats_are_dropped_before_the_split(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(40) + "".join(f"row  {i} ,{'ab'[i % 2]}\n" for i in range(40)) + "row 0,b\n"
    with caplog.at_level(logging.INFO):
        splits = load_splits(local(rows))
    together = [text for column in texts(splits).values() for text in column]
    assert sorted(together) == sorted(f"row {i}" for i in range(40))
    assert "41 of 81 rows are repeats and left out; 1 of them have another label than the first" in caplog.text


def test_kept_repeats_stay_in_one_split(local: Local) -> None:
    splits = load_splits(local(table(40) + table(40).removeprefix("text,label\n"), deduplicate=False))
    sets = [set(column) for column in texts(splits).values()]
    assert sum(len(column) for column in texts(splits).values()) == 80
    assert sum(map(len, sets)) == len(set.union(*sets)) == 40


def test_pairs_are_repeats_only_together(local: Local) -> None:
    rows = [{"text": f"q{i % 5}", "text_pair": f"p{i // 5}", "label": i % 2} for i in range(40)]
    splits = load_splits(local("\n".join(map(json.dumps, rows)), file="rows.jsonl"))
    assert sum(len(getattr(splits, role)) for role in ROLES) == 40


def test_answers_to_one_prompt_stay_in_one_split(local: Local) -> None:
    rows = [{"prompt": f"p{i % 20}", "answer": f"a{i}"} for i in range(60)]
    splits = load_splits(local("\n".join(map(json.dumps, [*rows, rows[0]])), file="rows.jsonl"))
    prompts = [set(getattr(splits, role)["prompt"]) for role in ROLES]
    assert splits.labels is None
    assert sum(len(getattr(splits, role)) for role in ROLES) == 60
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 20


def test_published_splits_are_kept_whole_and_their_texts_leave_train(tmp_path: Path) -> None:
    def part(texts: list[str]) -> dict[str, list[Any]]:
        return {"text": texts, "label": ["a"] * len(texts)}

    folder = saved(
        tmp_path / "d",
        train=part(["1", "2", "3", "4", "5", "6"]),
        dev=part(["2", "2", "7", "3"]),
        final=part([" 3", "8", "8"]),
    )
    splits = load_splits(config(folder, test_split="final", validation_split="dev"))
    assert {role: sorted(column) for role, column in texts(splits).items()} == {
        "train": ["1", "4", "5", "6"],
        "validation": ["2", "2", "7"],
        "test": [" 3", "8", "8"],
    }


def test_a_published_validation_with_a_held_out_test(tmp_path: Path) -> None:
    rows = {"text": [str(i) for i in range(30)], "label": [i % 2 for i in range(30)]}
    splits = load_splits(
        config(saved(tmp_path / "d", train=rows, dev={"text": ["0", "x"], "label": [0, 1]}), validation_split="dev")
    )
    assert sorted(texts(splits)["validation"]) == ["0", "x"]
    assert len(splits.test) == 6
    assert sorted(texts(splits)["train"] + texts(splits)["test"]) == sorted(str(i) for i in range(1, 30))


def test_a_smaller_limit_is_part_of_a_larger_one_and_trains_on_every_label(local: Local) -> None:
    rows = table(300, labels="aaaaaaaaab")
    small, large = (load_splits(local(rows, limit=limit)) for limit in (5, 20))
    for role in ROLES:
        assert len(getattr(small, role)) == 5
        assert set(texts(small)[role]) < set(texts(large)[role])
    assert set(small.train["label"]) == {0, 1}


def test_a_label_with_one_row_stays_in_train(local: Local) -> None:
    for seed in range(10):
        splits = load_splits(local(table(20, labels="a") + "rare,b\n", split_seed=seed))
        assert "rare" in texts(splits)["train"]


def test_a_label_missing_from_train_is_named(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "d",
        train={"text": [str(i) for i in range(9)], "label": ["a", "b", "c"] * 3},
        test={"text": ["x", "y"], "label": ["a", "strange"]},
    )
    with pytest.raises(DataError, match=r"a label missing from train: test has strange\."):
        load_splits(config(folder, test_split="test"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test_split": "absent"}, r"data\.test_split=absent: there is no such split"),
        ({"test_split": "train"}, "must be different splits"),
        ({"test_fraction": 0.9}, "4 different rows, too few to hold out 4 for test"),
        ({"test_fraction": 0.5, "validation_fraction": 0.9}, "2 different rows, too few to hold out 2 for validation"),
    ],
)
def test_splits_that_cannot_be_made(local: Local, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_splits(local(table(4), **keys))


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    rows = {"text": ["a", "b"], "label": [0, 1]}
    with pytest.raises(DataError, match="0 different rows, too few to hold out 1"):
        load_splits(config(saved(tmp_path / "d", train=rows, test=rows), test_split="test"))


def test_equal_images_are_repeats(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    shades = [Pillow.new("L", (3, 3), shade) for shade in range(30)]
    features = Features({"image": Image(), "label": Value("int64")})
    rows = Dataset.from_dict({"image": shades * 2, "label": [i % 2 for i in range(30)] * 2}, features=features)
    rows.save_to_disk(tmp_path / "d")
    splits = load_splits(config(tmp_path / "d"))
    shown = [image.getpixel((0, 0)) for role in ROLES for image in getattr(splits, role)["image"]]
    assert sorted(shown) == list(range(30))


def test_labels_are_class_ids(local: Local) -> None:
    splits = load_splits(local(table(30)))
    assert isinstance(splits.train.features["label"], ClassLabel)
    row = splits.train[0]
    assert splits.labels is not None
    assert splits.labels[row["label"]] == "ab"[int(row["text"].split()[1]) % 2]


rows_of_few_texts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=12, max_size=80)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(rows=rows_of_few_texts, seed=st.integers(0, 5), deduplicate=st.booleans(), limit=st.none() | st.integers(3, 20))
def test_no_text_is_in_two_splits(rows: list[tuple[int, int]], seed: int, deduplicate: bool, limit: int | None) -> None:
    written = "text,label\n" + "".join(f"t{text},{label}\n" for text, label in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_text(written)
        keys = {"split_seed": seed, "deduplicate": deduplicate, "limit": limit}
        try:
            splits = load_splits(config(path, **keys))
        except DataError as error:
            assert "too few" in str(error) or "label missing" in str(error)  # noqa: PT017
            return
    sets = [set(column) for column in texts(splits).values()]
    assert sum(map(len, sets)) == len(set.union(*sets))
    if limit is None:
        assert set.union(*sets) == {f"t{text}" for text, _ in rows}
    if deduplicate:
        assert all(len(set(column)) == len(column) for column in texts(splits).values())
    assert set(np.unique(splits.test["label"])) <= set(splits.train["label"])
