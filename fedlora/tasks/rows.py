"""Rows made ready once: token ids in flat arrays, padded only when a batch is asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from fedlora.errors import DataError

CHUNK = 1024  # rows that are handed to a tokenizer or image processor at a time, to bound what it holds in memory


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after another in `values`; row i is values[offsets[i]:offsets[i + 1]]."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | NDArray[np.int32]]) -> "Ragged":
        """The rows (at least one), copied into 32-bit integers."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.concatenate([np.asarray(row, np.int32) for row in rows]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> NDArray[np.int32]:
        """Row `index`."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def padded(self, rows: Sequence[int], fill: int) -> Tensor:
        """The rows as int64, shape [n, length of the longest], with `fill` after each shorter one."""
        picked = [self.row(row) for row in rows]
        padded = np.full((len(picked), max(map(len, picked))), fill, np.int64)
        for line, values in zip(padded, picked, strict=True):
            line[: len(values)] = values
        return torch.from_numpy(padded)


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows. A batch has `columns`, each padded with its `fills`, an `attention_mask` and `scalars`."""

    columns: Mapping[str, Ragged]
    fills: Mapping[str, int]
    scalars: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The rows as one batch: int64 tensors of shape [n, T], or [n] for scalars."""
        batch = {name: column.padded(rows, self.fills[name]) for name, column in self.columns.items()}
        batch["attention_mask"] = self._mask(rows)
        picked = np.asarray(rows, np.int64)
        return batch | {name: torch.from_numpy(values[picked]) for name, values in self.scalars.items()}

    def compact(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The same as `batch`."""
        return self.batch(rows)

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> tuple[dict[str, Tensor], Sequence[int]]:
        """See `fedlora.tasks.base.Encoded`: padded to the longest of all; a row is a record, so none are added."""
        del level
        return self.batch([row for part in parts for row in part]), [len(part) for part in parts]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row: evaluation puts rows of like length into one batch."""
        lengths: NDArray[np.int64] = np.diff(self.columns["input_ids"].offsets)
        return lengths

    def _mask(self, rows: Sequence[int]) -> Tensor:
        offsets, picked = self.columns["input_ids"].offsets, np.asarray(rows, np.int64)
        lengths = offsets[picked + 1] - offsets[picked]
        return torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))


def chunks(rows: Dataset) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """`rows` in pieces of at most CHUNK: (number of the first row, column → values)."""
    for start in range(0, len(rows), CHUNK):
        yield start, rows[start : start + CHUNK]


def require_columns(rows: Dataset, names: Iterable[str]) -> None:
    """Raises DataError if `rows` lacks one of the columns or has no row."""
    absent = [name for name in names if name not in rows.column_names]
    if absent:
        raise DataError(
            f"the data has no column {absent[0]!r} (it has {', '.join(rows.column_names)}); set data.{absent[0]} to the"
            " name of that column in the source"
        )
    if len(rows) == 0:
        raise DataError("the data has no row, so there is nothing to train on or to measure")


def texts(start: int, column: str, values: Sequence[Any]) -> list[str]:
    """`values`, if all are text; otherwise DataError names the first row that is not. `start`: number of the first."""
    for offset, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"row {start + offset} has {value!r} in column {column!r}, which is no text; drop or fill such rows"
            )
    return list(values)


def class_ids(rows: Dataset, labels: Sequence[str]) -> NDArray[np.int64]:
    """The column `label`, shape [rows]; DataError if one is no number from 0 to len(labels) − 1."""
    values = list(rows["label"])
    for row, value in enumerate(values):
        if not isinstance(value, int) or not 0 <= value < len(labels):
            raise DataError(
                f"row {row} has label {value!r}, but with the {len(labels)} labels {', '.join(labels[:5])}… it must be"
                f" a whole number from 0 to {len(labels) - 1}"
            )
    return np.asarray(values, np.int64)
