"""Several short texts in one row, without padding and without seeing each other.

A training batch of questions is nearly half padding. Packed, its texts lie one behind the other in few rows of about
equal length; a block-diagonal attention mask keeps each to itself, and position ids start anew with each. Every linear
layer then computes real tokens almost alone. The result is the padded one up to rounding (a test holds it, for the
gradients too).

It needs a model that takes position ids and a ready-made attention mask: SIGHT lists the architectures that were
checked. A record is no longer a row of the batch, so per-record gradients (DP-SGD) must use padded batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlora.errors import ModelError
from fedlora.tasks.base import Batch
from fedlora.tasks.rows import TokenRows

SIGHT: Mapping[str, bool] = {"bert": False, "gpt2": True, "llama": True}
"""`model_type`s whose outputs and gradients were compared, packed and padded → whether a token sees none after it."""

ROW_TOKENS = 64
"""Tokens of a packed row, or of the longest text; then, times _TRIED, where that leaves fewer gaps."""

_TRIED = (1.0, 1.5, 2.0, 3.0)
_ATTENTION = 512
"""Tokens of a row whose attention costs as much as all else."""

_COPIED = 0.05
"""Of a token's cost, that of a gap which is copied for attention and else not computed."""

OWNERS, LENGTHS = "owners", "lengths"
"""A packed batch's keys: whose each token is, [m, W] (n for padding), and each record's number of tokens, [n]."""


@dataclass(frozen=True)
class PackedTokenRows(TokenRows):
    """Tokenised rows whose training batches are packed. gap: what a gap costs beside attention, of a token's cost."""

    gap: float = 1.0

    def with_free_gaps(self) -> "PackedTokenRows":
        """The same, for a model whose layers leave gaps out: rows are as attention alone likes them best."""
        return replace(self, gap=_COPIED)

    def compact(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The rows packed into m rows of W tokens: ids, positions, owners [m, W], lengths [n]; see `model_inputs`."""
        return self.dealt([rows])[0]

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> tuple[dict[str, Tensor], Sequence[int]]:
        """See `fedlora.tasks.base.Encoded`: each part is packed into rows of its own, all of the same width."""
        lengths = [self.lengths[np.asarray(part, np.int64)].tolist() for part in parts]
        least = ROW_TOKENS if self.gap == 1 else 0
        arranged, width = arrange(lengths, max(least, *map(max, lengths)), self.gap)
        counts = [rows_of(places) for places in arranged]
        counts = [max(counts)] * len(counts) if level else counts  # what is missing are rows of padding
        firsts = [sum(counts[:part]) for part in range(len(counts))]
        places = [(first + row, start) for first, mine in zip(firsts, arranged, strict=True) for row, start in mine]
        return self._packed([row for part in parts for row in part], places, sum(counts), width), counts

    def _packed(
        self, rows: Sequence[int], places: Sequence[tuple[int, int]], count: int, width: int
    ) -> dict[str, Tensor]:
        lengths = self.lengths[np.asarray(rows, np.int64)]
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
        packed["position_ids"] = torch.from_numpy(positions)
        packed[OWNERS] = torch.from_numpy(np.where(owners < 0, len(rows), owners))
        packed[LENGTHS] = torch.from_numpy(lengths)
        picked = np.asarray(rows, np.int64)
        return packed | {name: torch.from_numpy(values[picked]) for name, values in self.scalars.items()}


def token_rows(model_type: str | None, **parts: Any) -> TokenRows:
    """Rows with these `parts` (see `TokenRows`), packed where `model_type` allows it; None: never."""
    return (PackedTokenRows if model_type in SIGHT else TokenRows)(**parts)


def model_inputs(model: Any, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """What of a batch goes to the model: those of `names` that are there, and for packed rows the mask [m, 1, W, W].

    The mask is made where the batch is: on a GPU, sending it would take longer than all else. It is additive: 0 from a
    token to those of its text that it sees, the lowest float elsewhere.

    Raises ModelError for packed rows and a model of which that is not known.
    """
    inputs = {name: batch[name] for name in names if name in batch}
    if OWNERS in batch:
        if getattr(getattr(model, "config", None), "model_type", None) not in SIGHT:
            raise ModelError(
                f"a {type(model).__name__} cannot be given packed rows: whether its tokens see those after them is not"
                " known; set train.packing=false"
            )
        inputs["attention_mask"] = _mask(
            batch[OWNERS], SIGHT[model.config.model_type], torch.promote_types(model.dtype, torch.float32)
        )
    return inputs


Places = list[tuple[int, int]]
"""Where each text is: (row, first token)."""


def arrange(parts: Sequence[Sequence[int]], capacity: int, gap: float = 1.0) -> tuple[list[Places], int]:
    """What costs least of all parts' texts in rows of their own: each part's places, and the width of all rows.

    parts: the lengths of each part's texts. Tried are few rows for a part, which hold its tokens at about `capacity`
    each, up to one row for each text; and of their widths, each as that of all. gap: see `row_cost`.
    """
    ways = [[_filled(lengths, count) for count in _counts(lengths, capacity)] for lengths in parts]
    widths = sorted({width for mine in ways for _, width in mine})
    found = [(places, width) for width in widths if (places := _fitting(ways, width)) is not None]
    return min(found, key=lambda one: sum(map(rows_of, one[0])) * row_cost(one[1], gap))


def _counts(lengths: Sequence[int], capacity: int) -> list[int]:
    few = {math.ceil(sum(lengths) / (capacity * times)) for times in _TRIED}
    return sorted({min(count, len(lengths)) for count in few | {count + 1 for count in few} | {len(lengths)}})


def _fitting(ways: Sequence[Sequence[tuple[Places, int]]], width: int) -> list[Places] | None:
    """Of each part's ways the one with the fewest rows that are no wider; None if a part has none."""
    chosen = [next((places for places, own in mine if own <= width), None) for mine in ways]
    return None if any(places is None for places in chosen) else [places for places in chosen if places is not None]


def rows_of(places: Places) -> int:
    """How many rows the texts are in."""
    return 1 + max(row for row, _ in places)


def row_cost(width: float, gap: float = 1.0) -> float:
    """Of a row of `width` tokens: of linear layers by tokens, and of attention by tokens that each of them sees.

    gap: what a place costs that has no token, without attention; what tokens cost is then the same however they lie.
    """
    return width * (gap + width / _ATTENTION)


def _filled(lengths: Sequence[int], rows: int) -> tuple[Places, int]:
    """Longest first into the emptiest row, which keeps rows nearly equal: at most the mean row and the longest text."""
    filled = [0] * rows
    places = [(0, 0)] * len(lengths)
    for record in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        row = filled.index(min(filled))
        places[record] = (row, filled[row])
        filled[row] += lengths[record]
    return places, max(filled)


def _mask(owners: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    same = owners.unsqueeze(2) == owners.unsqueeze(1)
    seen = same.tril() if causal else same
    zeros = torch.zeros(same.shape, dtype=dtype, device=owners.device)
    return zeros.masked_fill_(~seen, torch.finfo(torch.float32).min).unsqueeze(1)


def mean_of_records(values: Tensor, owners: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each record's values: [m, W, …] → [n, …]. lengths [n]: of how many, by record.

    A sum by owner, and no product with a matrix of zeros and weights: there, a record that is not finite would spoil
    the others.
    """
    sums = values.new_zeros(len(lengths) + 1, *values.shape[2:])
    sums = sums.index_add(0, owners.flatten(), values.flatten(0, 1))
    return sums[:-1] / lengths.to(values.dtype).view(-1, *[1] * (values.ndim - 2))
