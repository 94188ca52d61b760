"""What the rest of fedlora knows about data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of rows and, for classification, the label names (index = class id).

    Columns have the schema's names whatever they were called in the source: `text` (and `text_pair`), `label` (int),
    `image`, `prompt`, `answer`; further columns (for a natural partition) keep their own names.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...] | None


class Partition(Protocol):
    """Who holds which rows of the training split. Indices, not objects, so that 100,000 clients cost nothing."""

    def __len__(self) -> int:
        """The number of clients."""
        ...

    def rows(self, client: int) -> NDArray[np.int64]:
        """The row numbers of `client` (0-based), in a fixed order; never empty."""
        ...


@dataclass(frozen=True)
class IndexPartition:
    """A partition that is written out: one array of row numbers a client."""

    indices: Sequence[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, client: int) -> NDArray[np.int64]:
        return self.indices[client]
