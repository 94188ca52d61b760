"""From a source's columns to fedlora's: names, checked texts, labels as class ids."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from fedlora.config.schema import DataConfig
from fedlora.errors import DataError

log = logging.getLogger(__name__)

TEXTS = ("text", "text_pair", "prompt", "answer")
_NAMES = (*TEXTS, "label", "image")
_SHOWN = 5


def arrow_column(rows: Dataset, name: str) -> pyarrow.ChunkedArray:
    """A whole column as stored (images as bytes), without a Python object for each row."""
    return rows.with_format("arrow")[name]


def map_columns(rows: Dataset, config: DataConfig, split: str) -> Dataset:
    """Renames the configured columns to fedlora's names; the others keep theirs.

    A column that stands in the way of a new name is kept as `original_<name>`.
    Raises DataError if a configured column is missing or what a task needs is not there.
    """
    chosen = {name: column for name in _NAMES if (column := _column_for(name, rows, config))}
    missing = [f"data.{name}={column}" for name, column in chosen.items() if column not in rows.column_names]
    if missing:
        raise DataError(f"split {split!r} has no column for {' and '.join(missing)}; {_there_are(rows)}")
    if len(set(chosen.values())) < len(chosen):
        raise DataError(f"split {split!r}: one column is configured for two purposes: {chosen}")
    _require_inputs(chosen, rows, split)
    renamed = {column: name for name, column in chosen.items()}
    in_the_way = {name: f"original_{name}" for name in chosen if name in rows.column_names and name not in renamed}
    return rows.rename_columns(renamed | in_the_way)


def usable_rows(rows: Dataset, split: str) -> NDArray[np.int64]:
    """The numbers of the rows whose texts are not empty; how many are left out is logged.

    Raises DataError if a text column holds something else than texts, or nulls.
    """
    kept = np.ones(len(rows), dtype=bool)
    for name in TEXTS:
        if name in rows.column_names:
            kept &= _not_empty(rows, name, split)
    return np.flatnonzero(kept).astype(np.int64)


def encode_labels(splits: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], tuple[str, ...] | None]:
    """Replaces each split's label by its class id; returns the class names (index = id), None without labels.

    A `ClassLabel` column keeps its ids. Otherwise names are sorted, numbers by value, over all splits.
    Raises DataError for null labels, or values that are no classes.
    """
    if "label" not in splits["train"].column_names:
        return dict(splits), None
    values = {split: _label_values(rows, split) for split, rows in splits.items()}
    names = _class_names(splits["train"], values)
    ids = {name: i for i, name in enumerate(names)}
    feature = ClassLabel(names=names)
    encoded = {
        split: rows.remove_columns("label").add_column("label", [ids[v] for v in values[split]], feature=feature)
        for split, rows in splits.items()
    }
    return encoded, tuple(names)


def _column_for(name: str, rows: Dataset, config: DataConfig) -> str | None:
    """The column configured for `name`, or the one that is called so already."""
    return getattr(config, name) or (name if name in rows.column_names else None)


def _require_inputs(chosen: Mapping[str, str], rows: Dataset, split: str) -> None:
    """A task needs text and label, image and label, or prompt and answer."""
    needed = [{"prompt", "answer"}, {"text", "label"}, {"image", "label"}]
    if not any(names <= chosen.keys() for names in needed):
        raise DataError(
            f"split {split!r} lacks columns: name those for text and label (data.text=..., data.label=...), for image"
            f" and label, or for prompt and answer; {_there_are(rows)}"
        )


def _there_are(rows: Dataset) -> str:
    return f"there are: {', '.join(rows.column_names)}"


def _not_empty(rows: Dataset, name: str, split: str) -> NDArray[np.bool_]:
    column = arrow_column(rows, name)
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise DataError(f"split {split!r}: column {name!r} holds {column.type}, not text; choose another column")
    texts = column.to_pylist()
    _forbid([i for i, text in enumerate(texts) if text is None], f"null in column {name!r}", split)
    kept = np.fromiter((bool(text.strip()) for text in texts), dtype=bool, count=len(texts))
    if not kept.all():
        empty = np.flatnonzero(~kept)
        log.warning("split %r: %d rows with an empty %s are left out %s", split, len(empty), name, _where(empty))
    return kept


def _label_values(rows: Dataset, split: str) -> list[str]:
    """The label of each row as the name of its class: a ClassLabel's own names, else what was written."""
    feature = rows.features["label"]
    values = arrow_column(rows, "label").to_pylist()
    if isinstance(feature, ClassLabel):
        # The hub's unlabelled splits use -1.
        values = [None if v is None or v < 0 else feature.names[v] for v in values]
    _forbid([i for i, v in enumerate(values) if v is None or v == ""], "no label", split)
    return [_class_name(v, split) for v in values]


def _class_name(value: Any, split: str) -> str:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(whole, str | int):
        raise DataError(
            f"split {split!r}: labels must be names or whole numbers, but there is {value!r}; choose another column"
        )
    return str(whole)


def _class_names(train: Dataset, values: Mapping[str, list[str]]) -> list[str]:
    """All classes in the order of their ids: as declared, then the others, by value if all are numbers."""
    declared = list(getattr(train.features["label"], "names", []))
    others = {value for column in values.values() for value in column} - set(declared)
    numbers = all(re.fullmatch(r"-?[0-9]+", value) for value in others)
    return [*declared, *(sorted(others, key=int) if numbers else sorted(others))]


def _forbid(rows: list[int], what: str, split: str) -> None:
    if rows:
        raise DataError(
            f"split {split!r}: {len(rows)} rows have {what} {_where(rows)}. Correct them, or choose another column"
            " or split."
        )


def _where(rows: Any) -> str:
    shown = ", ".join(str(i) for i in rows[:_SHOWN])
    return f"(counted from 0: {shown}{', ...' if len(rows) > _SHOWN else ''})"
