"""Rows of the tiny data sets as tasks see them, and the three tasks on the tiny models."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from fedlora.tasks.registry import make_task
from tests.tiny import IMAGE_LABELS, LABELS, tiny_config


@pytest.fixture(scope="session")
def text_rows(tiny_text_csv: Path) -> Dataset:
    with tiny_text_csv.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return Dataset.from_dict(
        {"text": [line["text"] for line in lines], "label": [LABELS.index(line["label"]) for line in lines]}
    )


@pytest.fixture(scope="session")
def qa_rows(tiny_qa_jsonl: Path) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in tiny_qa_jsonl.read_text(encoding="utf-8").splitlines()])


@pytest.fixture(scope="session")
def image_rows(tiny_images: Path) -> Dataset:
    return load_from_disk(str(tiny_images))


@pytest.fixture(scope="session")
def cases(
    tiny_bert: Path,
    tiny_llama: Path,
    tiny_vit: Path,
    tiny_text_csv: Path,
    tiny_qa_jsonl: Path,
    tiny_images: Path,
    text_rows: Dataset,
    qa_rows: Dataset,
    image_rows: Dataset,
) -> dict[str, tuple[Any, Dataset]]:
    """Name → (task, rows): text classification with both heads, causal LM, image classification."""
    stock = {"model": {"head": "stock"}}
    return {
        "mean": (make_task(tiny_config(tiny_bert, tiny_text_csv), LABELS), text_rows),
        "stock": (make_task(tiny_config(tiny_bert, tiny_text_csv, **stock), LABELS), text_rows),
        "causal_lm": (make_task(tiny_config(tiny_llama, tiny_qa_jsonl), None), qa_rows),
        "image": (make_task(tiny_config(tiny_vit, tiny_images), IMAGE_LABELS), image_rows),
    }
