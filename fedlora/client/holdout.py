"""A client's rows: those that it trains on, and those that it only measures with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import DataError
from fedlora.seeding import stream


@dataclass(frozen=True)
class ClientRows:
    """A client's rows of the training split: those it trains on and those it only measures with (may be none)."""

    train: NDArray[np.int64]
    holdout: NDArray[np.int64]


def split_holdout(rows: NDArray[np.int64], fraction: float, seed: int, client: int) -> ClientRows:
    """`rows` in two: a `fraction` of the distinct ones (rounded down) is held out, the others train.

    Raises DataError if no row is left to train on.
    """
    if not fraction and len(rows):
        return ClientRows(train=rows, holdout=rows[:0])
    distinct = np.unique(rows)
    count = int(len(distinct) * fraction)
    held = stream(seed, "holdout", client).permutation(distinct)[:count]
    train = rows[~np.isin(rows, held)]
    if not len(train):
        raise DataError(f"client {client} has {len(rows)} rows, none of them left to train on: lower eval.holdout")
    return ClientRows(train=train, holdout=np.sort(held))
