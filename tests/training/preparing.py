"""A real tiny task, ready for training and evaluation."""

import csv
from pathlib import Path
from typing import Any

from datasets import Dataset

from fedlora.adapters.adapted import AdaptedModel
from fedlora.config.schema import RunConfig
from fedlora.tasks.base import Encoded, Task
from tests.adapters.making import adapted_task, random_tensors
from tests.tiny import LABELS, tiny_config

Prepared = tuple[Task, AdaptedModel, Encoded, RunConfig]


def prepare(model: Path, data: Path, method: str = "lora", dropout: float = 0.0, **updates: Any) -> Prepared:
    """Task, adapted model holding random factors, encoded rows, configuration."""
    config = tiny_config(model, data, **updates)
    task, adapted = adapted_task(config, method, dropout=dropout)
    adapted.load(random_tensors(adapted.manifest, size=0.1))
    with data.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    columns = {"text": [row["text"] for row in lines], "label": [LABELS.index(row["label"]) for row in lines]}
    return task, adapted, task.encode(Dataset.from_dict(columns)), config
