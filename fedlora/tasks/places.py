"""At which positions of a batch's rows something is read: a record's token for a stock head, the answers' tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.tasks.base import Batch
from fedlora.tasks.packing import LENGTHS, OWNERS


@dataclass(frozen=True)
class Places:
    """P positions in each of m rows. real: which of them are wanted; a row that needs fewer repeats one of its own.

    positions: int64 [m, P]. real: bool [m, P].
    """

    positions: Tensor
    real: Tensor

    @classmethod
    def of(cls, wanted: Tensor) -> "Places":
        """Those where `wanted`, bool [m, T], in their order; P is the most of a row, and at least 1."""
        counts = wanted.sum(dim=1, keepdim=True)
        most = max(1, int(counts.max()))
        positions = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        real = torch.arange(most, device=wanted.device) < counts
        return cls(torch.where(real, positions, positions[:, :1]), real)

    def read(self, values: Tensor, fill: int) -> Tensor:
        """`values` [m, T] at the positions, `fill` where nothing is wanted: [m, P]."""
        return values.gather(1, self.positions).masked_fill(~self.real, fill)

    def by_record(self, found: Tensor, owners: Tensor) -> Tensor:
        """What was `found` [m, P, …] where each record has one place, by record: [n, …]. owners: as `read` gives."""
        order = owners[self.real].argsort()
        return found.flatten(0, 1).index_select(0, self.real.flatten().nonzero().squeeze(-1)[order])


def pooled(batch: Batch, *, last: bool, padding: int) -> tuple[Places, Tensor]:
    """The token of each record that a stock classification head reads, and whose each place is, [m, P].

    last: the record's last token that is not `padding` (by its id, as transformers goes; its first if there is none),
    else its first. Rows may be padded or packed.
    """
    ids = batch["input_ids"]
    owners, firsts = _owners(batch)
    counted = firsts | ((ids != padding) & (owners < _records(batch))) if last else firsts
    mine = owners[counted]  # row by row, so a record's tokens are neighbours
    ends = torch.ones_like(mine, dtype=torch.bool)
    ends[:-1] = mine[1:] != mine[:-1]
    places = Places.of(torch.zeros_like(counted).masked_scatter(counted, ends))
    return places, places.read(owners, _records(batch))


def _owners(batch: Batch) -> tuple[Tensor, Tensor]:
    """Whose each token is, and which are a record's first: both [m, T]."""
    ids, owners = batch["input_ids"], batch.get(OWNERS)
    if owners is not None:
        return owners, (batch["position_ids"] == 0) & (owners < _records(batch))
    firsts = torch.zeros_like(ids, dtype=torch.bool)
    firsts[:, 0] = True
    return torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids), firsts


def _records(batch: Batch) -> int:
    """How many records the batch has; in a packed one, that number as owner means padding."""
    return len(batch[LENGTHS]) if OWNERS in batch else len(batch["input_ids"])
