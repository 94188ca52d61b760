"""Downloads the real packages. Row counts were counted in these very files."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from fedlora.config.schema import DataConfig
from fedlora.data.assets import fetch, verify
from fedlora.data.catalog import datasets, models
from fedlora.data.readers import read_asset
from fedlora.data.splits import load_splits

# (splits and rows as they are in the files, rows of train once repeats are dropped, classes)
COUNTS: dict[str, tuple[dict[str, int], int, int | None]] = {
    "trec": ({"train": 15452}, 5381, 6),
    "movie": ({"train": 10043}, 10041, 2),
    "sentiment_domains": ({"train": 19136}, 19089, 2),
    "sms_spam": ({"train": 4837}, 4512, 2),
    "newsgroups": ({"train": 11293, "test": 7528}, 11266, 20),
    "rotten_tomatoes": ({"train": 12808}, 12752, 2),
    "chatterbot": ({"train": 2026}, 898, None),
    "boolq": ({"train": 12697}, 12697, 2),
    "fashion_mnist": ({"train": 60000, "test": 10000}, 60000, 10),
}

pytestmark = pytest.mark.slow


def config(name: str, **keys: Any) -> DataConfig:
    return DataConfig.model_validate({"source": "asset", "name": name, "partition": {"name": "iid"}} | keys)


def test_every_data_asset_is_counted() -> None:
    assert set(COUNTS) == set(datasets())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_rows_classes_and_columns(name: str) -> None:
    asset = datasets()[name]
    assert asset.reader is not None
    published, unique, classes = COUNTS[name]
    folder = fetch(asset)
    assert verify(asset) == []
    raw = read_asset(asset.reader, folder)
    assert {split: len(rows) for split, rows in raw.items()} == published
    assert set(asset.columns) <= set(raw["train"].column_names)
    splits = load_splits(config(name, test_split="test" if "test" in published else None))
    kept_back = 0 if "test" in published else len(splits.test)
    assert len(splits.train) + len(splits.validation) + kept_back == unique
    assert (None if splits.labels is None else len(splits.labels)) == classes


def test_trec_is_what_was_asked() -> None:
    splits = load_splits(config("trec"))
    assert splits.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3875, 430, 1076)
    row = next(row for row in splits.train if row["fine_label"] == "NUM:dist")
    assert splits.labels[row["label"]] == "NUM"
    assert len(set(load_splits(config("trec", label="fine_label")).train["original_label"])) == 6


def test_four_domains_and_twenty_one_topics() -> None:
    assert Counter(load_splits(config("sentiment_domains")).train["domain"]).keys() == {
        "amazon",
        "movie",
        "nyt",
        "tweets",
    }
    folder = fetch(datasets()["chatterbot"])
    assert len(set(read_asset("chatterbot", folder)["train"]["topic"])) == 21


def test_fashion_mnist_pixels() -> None:
    """The first training image is an ankle boot whose pixels sum to what the published IDX file holds."""
    rows = read_asset("fashion_mnist", fetch(datasets()["fashion_mnist"]))["train"]
    pixels = np.asarray(rows[0]["image"])
    assert (pixels.shape, pixels.dtype, rows.features["label"].int2str(rows[0]["label"])) == (
        (28, 28),
        np.uint8,
        "Ankle boot",
    )
    assert int(pixels.sum()) == 76247
    assert set(Counter(rows["label"]).values()) == {6000}


def test_minilm_is_a_whole_model_folder() -> None:
    folder = fetch(models()["minilm"])
    assert verify(models()["minilm"]) == []
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    with safe_open(folder / "model.safetensors", "np") as weights:
        sizes = [np.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    assert 22.7e6 < sum(sizes) < 22.8e6


def test_smollm2_is_a_gguf_file() -> None:
    (name,) = models()["smollm2"].files
    with (fetch(models()["smollm2"]) / name).open("rb") as stream:
        assert stream.read(4) == b"GGUF"
