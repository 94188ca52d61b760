"""Writes what a simulation deals to its virtual clients as files, one for each: the data of sites, for trying out.

The rows are those of the training split, in the partition's order, with the schema's column names and label names.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Features, Value
from datasets.table import embed_table_storage
from numpy.typing import NDArray
from pyarrow import parquet

from fedlora.config.schema import RunConfig
from fedlora.data.base import Splits
from fedlora.data.partition import make_partition
from fedlora.data.splits import load_splits
from fedlora.errors import DataError
from fedlora.server.durable import explained

LABELS = "labels.json"
_OWN_FILE = 0o600
_PLAIN = ("string", "large_string", "bool", "int", "uint", "float")


@dataclass(frozen=True)
class Dealt:
    """One client's file. counts: rows of each label, by name; empty for data without labels."""

    client: int
    path: Path
    rows: int
    counts: Mapping[str, int]


def deal(config: RunConfig, folder: Path) -> list[Dealt]:
    """Writes `folder`/client-00000.jsonl … and `folder`/labels.json (a list of names, or null); returns what is there.

    Parquet where a column is no text, number or truth value (images). Files have the mode 0600. A row that a bootstrap
    gives a client twice is there twice. All of it appears at once, or nothing.

    Raises DataError if `folder` holds anything, or the data cannot be dealt; AssetError; StoreError if the disk fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already and is not overwritten: name a new folder, or remove it")
    splits = load_splits(config.data)
    partition = make_partition(splits.train, config.data.partition, config.federation.clients, config.seed)
    with explained("write the clients' files to", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            dealt = [_client(splits, partition.rows(client), draft, client) for client in range(len(partition))]
            _write(draft / LABELS, json.dumps(splits.labels, ensure_ascii=False) + "\n")
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return [Dealt(each.client, folder / each.path.name, each.rows, each.counts) for each in dealt]


def _client(splits: Splits, rows: NDArray[np.int64], folder: Path, client: int) -> Dealt:
    held = with_names(splits.train.select(rows.tolist(), keep_in_memory=True), splits.labels)
    plain = _is_plain(splits.train.features)
    path = folder / f"client-{client:05d}.{'jsonl' if plain else 'parquet'}"
    if plain:
        _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held.to_pylist()))
    else:
        _write_parquet(path, held)
    counts = {} if splits.labels is None else Counter(held.column("label").to_pylist())
    return Dealt(client, path, len(rows), {name: counts[name] for name in splits.labels or () if counts[name]})


def with_names(rows: Dataset, labels: Sequence[str] | None) -> pyarrow.Table:
    """All of `rows`, with the names of labels in the place of class ids."""
    table: pyarrow.Table = rows.with_format("arrow")[:]
    if labels is None:
        return table
    ids = table.column("label").to_pylist()
    named = table.set_column(table.column_names.index("label"), "label", [[labels[number] for number in ids]])
    features = Features({**rows.features, "label": Value("string")})
    return named.select(list(features)).cast(features.arrow_schema)


def _is_plain(features: Features) -> bool:
    """Whether all columns are texts, numbers and truth values, which JSON has; class ids become texts."""
    kinds = (kind for kind in features.values() if not isinstance(kind, ClassLabel))
    return all(isinstance(kind, Value) and kind.dtype.startswith(_PLAIN) for kind in kinds)


def _write(path: Path, text: str) -> None:
    path.touch(_OWN_FILE)
    path.write_text(text, encoding="utf-8")


def _write_parquet(path: Path, rows: pyarrow.Table) -> None:
    """With the images themselves, wherever they are stored now."""
    path.touch(_OWN_FILE)
    parquet.write_table(embed_table_storage(rows), path)
