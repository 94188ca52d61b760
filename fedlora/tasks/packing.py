"""Several short texts in one row, without padding and without seeing each other.

A training batch of questions is nearly half padding. Packed, its texts lie one behind the other in few rows of about
equal length; a block-diagonal attention mask keeps each to itself, and position ids start anew with each. Every linear
layer then computes real tokens almost alone. The result is the padded one up to rounding (a test holds it, for the
gradients too).

It needs a model that takes position ids and a ready-made attention mask: PACKABLE lists the architectures that were
checked. A record is no longer a row of the batch, so per-record gradients (DP-SGD) must use padded batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.tasks.rows import TokenRows

PACKABLE = frozenset({"bert"})
"""`model_type`s whose outputs and gradients were compared, packed and padded."""

ROW_TOKENS = 64
"""Tokens of a packed row, about. Attention grows with its square, and is small up to here."""

MEMBERSHIP = "membership"
"""The batch's key for the weights [n, m·W] with which each record's logits are the mean of its tokens' logits."""


@dataclass(frozen=True)
class PackedTokenRows(TokenRows):
    """Tokenised rows whose training batches are packed."""

    def compact(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The rows packed into m rows of W tokens: ids and positions [m, W], mask [m, 1, W, W], membership [n, m·W]."""
        lengths = self.lengths[np.asarray(rows, np.int64)]
        places, width = arrange(lengths.tolist(), ROW_TOKENS)
        count = 1 + max(row for row, _ in places)
        batch = {name: np.full((count, width), self.fills[name], np.int64) for name in self.columns}
        positions = np.zeros((count, width), np.int64)
        owners = np.full((count, width), -1, np.int64)
        for record, (row, start) in enumerate(places):
            span = slice(start, start + int(lengths[record]))
            for name, column in self.columns.items():
                batch[name][row, span] = column.row(rows[record])
            positions[row, span] = np.arange(lengths[record])
            owners[row, span] = record
        packed = {name: torch.from_numpy(values) for name, values in batch.items()}
        packed |= {"position_ids": torch.from_numpy(positions), "attention_mask": _mask(owners)}
        packed[MEMBERSHIP] = _membership(owners, lengths)
        picked = np.asarray(rows, np.int64)
        return packed | {name: torch.from_numpy(values[picked]) for name, values in self.scalars.items()}


def arrange(lengths: Sequence[int], capacity: int) -> tuple[list[tuple[int, int]], int]:
    """Where each text goes: (row, first token) in the order of `lengths`, and the width of the rows.

    As many rows as hold all tokens at `capacity` each; longest first into the emptiest row, which keeps rows nearly
    equal. The width is at most the mean row and the longest text together.
    """
    filled = [0] * math.ceil(sum(lengths) / capacity)
    places = [(0, 0)] * len(lengths)
    for record in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        row = filled.index(min(filled))
        places[record] = (row, filled[row])
        filled[row] += lengths[record]
    return places, max(filled)


def _mask(owners: NDArray[np.int64]) -> Tensor:
    """Additive attention mask [m, 1, W, W]: 0 between tokens of one text, the lowest float elsewhere."""
    same = torch.from_numpy(owners[:, :, None] == owners[:, None, :])
    return torch.zeros(same.shape).masked_fill_(~same, torch.finfo(torch.float32).min).unsqueeze(1)


def _membership(owners: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
    mine = owners.reshape(1, -1) == np.arange(len(lengths)).reshape(-1, 1)
    return torch.from_numpy((mine / lengths.reshape(-1, 1)).astype(np.float32))
