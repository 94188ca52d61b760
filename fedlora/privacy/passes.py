"""Which sampled units go through the model together: those of like length, so that little is computed for padding.

A record's gradient depends on no other record of its pass (up to rounding), so neither does what is released. Texts are
not packed into shared rows here: there an attention mask alone keeps them apart, and a record that is not finite, which
must cost nobody but itself, would spoil its neighbours.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.tasks.base import Encoded
from fedlora.tasks.packing import row_cost

Unit = NDArray[np.int64]
"""The rows of one privacy unit."""

_PASS = 96
"""Tokens that cost about as much as beginning one more pass: an estimate for 6 layers of width 384 on one core."""


def passes(owned: Sequence[Sequence[Unit]], encoded: Encoded, size: int) -> Iterator[list[list[Unit]]]:
    """Deals the units of several clients out: pass by pass, each client's units in it, of which there may be none.

    owned: each client's units. size: rows of a pass, at most (or one unit's). Of all ways to cut the units, sorted by
    their longest rows, it is the one that costs least.
    """
    owners = [client for client, units in enumerate(owned) for _ in units]
    units = [unit for mine in owned for unit in mine]
    longest = longest_rows(units, encoded)
    order = np.argsort(longest, kind="stable")
    rows = np.array([len(unit) for unit in units], np.int64)
    for part in np.split(order, cuts(rows[order], longest[order], size)):
        dealt: list[list[Unit]] = [[] for _ in owned]
        for place in part.tolist():
            dealt[owners[place]].append(units[place])
        if len(part):
            yield dealt


def cuts(rows: NDArray[np.int64], longest: NDArray[np.int64], size: int) -> list[int]:
    """The places at which to cut units, sorted by length, so that computing them costs least.

    rows, longest: how many rows each unit has, and tokens its longest. size: rows between two cuts, at most (or one
    unit's).
    """
    before = np.concatenate([[0], np.cumsum(rows)])
    least, cut = np.zeros(len(before)), np.zeros(len(before), np.int64)
    for end in range(1, len(before)):
        together = before[end] - before[:end]
        width = float(longest[end - 1])
        costs = least[:end] + _PASS + together * row_cost(width)
        costs[:-1][together[:-1] > size] = np.inf
        cut[end] = int(np.argmin(costs))
        least[end] = costs[cut[end]]
    return _traced(cut)


def _traced(cut: NDArray[np.int64]) -> list[int]:
    found: list[int] = []
    end = int(cut[-1])
    while end > 0:
        found.append(end)
        end = int(cut[end])
    return found[::-1]


def longest_rows(units: Sequence[Unit], encoded: Encoded) -> NDArray[np.int64]:
    """Tokens of each unit's longest row; 1 where rows have no length."""
    lengths = getattr(encoded, "lengths", None)
    if lengths is None:
        return np.ones(len(units), np.int64)
    return np.array([np.asarray(lengths)[unit].max() for unit in units], np.int64)
