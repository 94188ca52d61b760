"""Who holds what, as numbers for `plan` and the report."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.data.base import Partition


@dataclass(frozen=True)
class PartitionTable:
    """The holdings of the first `len(rows)` of `clients` clients.

    `rows` has shape [shown]; `counts` has shape [shown, labels] and `labels` names its columns, both None for data
    without labels.
    """

    clients: int
    rows: NDArray[np.int64]
    counts: NDArray[np.int64] | None
    labels: tuple[str, ...] | None


def describe(
    partition: Partition,
    label_column: NDArray[np.int64] | None,
    label_names: tuple[str, ...] | None,
    shown: int | None = None,
) -> PartitionTable:
    """Counts the rows, and the rows of each label, that each client holds.

    `label_column` is the class id of each training row, shape [rows of train]. `shown` limits the table to the first
    clients: a bootstrap of 100,000 clients draws only for those. None shows all.
    """
    count = len(partition) if shown is None else min(shown, len(partition))
    held = [partition.rows(client) for client in range(count)]
    sizes = np.array([len(rows) for rows in held], dtype=np.int64)
    if label_column is None or label_names is None:
        return PartitionTable(len(partition), sizes, None, None)
    counts = [np.bincount(label_column[rows], minlength=len(label_names)) for rows in held]
    return PartitionTable(len(partition), sizes, np.array(counts, dtype=np.int64), label_names)
