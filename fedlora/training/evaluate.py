"""What a model is worth on a set of rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlora.adapters.adapted import AdaptedModel
from fedlora.errors import DataError
from fedlora.tasks.base import Encoded, Task, move

Rows = Sequence[int] | NDArray[np.int64]


def evaluate(model: AdaptedModel | nn.Module, task: Task, encoded: Encoded, rows: Rows, batch: int) -> dict[str, float]:
    """The mean of each of the task's metrics over `rows`, in float64; always has "loss".

    Raises DataError if there are no rows.
    """
    return means([record_values(model, task, encoded, rows, batch)])


def means(shards: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, float]:
    """The mean of each metric from the shards' values, the same bits however many shards there were.

    shards: what `record_values` gives for each `Shard` of the same rows; the first has a batch at least.
    """
    found: dict[str, float] = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards if name in shard]
        whole = parts[0]
        for part in parts[1:]:
            whole = np.where(np.isnan(whole), part, whole)
        found[name] = float(whole.mean())
    return found


@dataclass(frozen=True)
class Shard:
    """Every `count`-th evaluation batch, beginning with number `index`: one process's part of an evaluation."""

    index: int = 0
    count: int = 1


WHOLE = Shard()


@torch.no_grad()
def record_values(
    model: AdaptedModel | nn.Module, task: Task, encoded: Encoded, rows: Rows, batch: int, shard: Shard = WHOLE
) -> dict[str, NDArray[np.float64]]:
    """Each of the task's metrics for each of `rows`, in the order of `rows`: shape [len(rows)], float64.

    Leaves the model in eval mode. Rows of like length share a batch where `encoded` knows lengths (less padding).
    shard: which of the batches are measured; the values of the rows in the others are NaN.

    Raises DataError if there are no rows.
    """
    if len(rows) == 0:
        raise DataError("there are no rows to evaluate on: give the split at least one")
    module = model.model if isinstance(model, AdaptedModel) else model
    module.eval()
    device = next(module.parameters()).device
    places = np.asarray(rows)
    values: dict[str, NDArray[np.float64]] = {}
    for positions in islice(_batches(encoded, places, batch), shard.index, None, shard.count):
        found = task.evaluate(module, move(encoded.compact(places[positions].tolist()), device))
        _store(values, found, positions, len(places))
    return values


def _store(
    values: dict[str, NDArray[np.float64]],
    found: Mapping[str, torch.Tensor],
    positions: NDArray[np.int64],
    total: int,
) -> None:
    for name, part in found.items():
        values.setdefault(name, np.full(total, np.nan))[positions] = part.double().cpu().numpy()


def _batches(encoded: Encoded, places: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Positions in `places`, `size` at a time, longest rows first where `encoded.lengths` (one per row) exists."""
    lengths = getattr(encoded, "lengths", None)
    order = np.arange(len(places))
    if lengths is not None:
        order = np.argsort(-np.asarray(lengths)[places], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
