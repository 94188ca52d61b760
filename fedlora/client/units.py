"""A client's privacy units: whose rows are whose, and which of them are held out."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fedlora.client.worker import Worker
from fedlora.data.columns import arrow_column
from fedlora.errors import DataError
from fedlora.privacy.dp_sgd import Units
from fedlora.privacy.randomness import RandomSource
from fedlora.seeding import stream_key

RECORD = "record"
"""`privacy.unit` where every row is a unit of its own."""


@dataclass(frozen=True)
class ClientUnits:
    """The units that a client trains on, and those that it only measures with."""

    train: Units
    holdout: Units


def client_units(worker: Worker, client: int, source: RandomSource) -> ClientUnits:
    """The units of `client`, each with at most `privacy.unit_rows` of its rows, drawn by `source`.

    Whether a unit is held out depends on the run's seed and the unit alone: one unit more or less moves no other. (So
    at a site a record is known by its content: its place in the file would move with the others.)

    Raises DataError if `privacy.unit` is no column of the data.
    """
    privacy = worker.config.privacy
    rows = worker.partition.rows(client)
    keys = unit_keys(worker, rows.tolist())
    names = worker.record_names(rows.tolist()) if privacy.unit == RECORD else keys
    held = np.array([is_held_out(worker, name) for name in names], dtype=bool)
    parts = [
        Units.by_key(
            rows[part], [key for key, chosen in zip(keys, part, strict=True) if chosen], privacy.unit_rows, source
        )
        for part in (~held, held)
    ]
    return ClientUnits(*parts)


def unit_keys(worker: Worker, rows: Sequence[int]) -> list[Hashable]:
    """Whose each of `rows` is: the value of the unit's column, or the row itself (a row that is there twice is one)."""
    unit = worker.config.privacy.unit
    if unit == RECORD:
        return list(rows)
    train = worker.splits.train
    if unit not in train.column_names:
        raise DataError(
            f"privacy.unit = {unit}: the data has no such column, only {', '.join(train.column_names)}; name the one"
            " that says whose a row is, or 'record'"
        )
    column = arrow_column(train, unit)
    return [column[row].as_py() for row in rows]


def is_held_out(worker: Worker, key: Hashable) -> bool:
    """Whether the unit `key` is among those that are measured with: with probability `eval.holdout`, by the seed."""
    draw = stream_key(worker.config.seed, "holdout", worker.config.privacy.unit, str(key)) / 2.0**128
    return draw < worker.config.eval.holdout
