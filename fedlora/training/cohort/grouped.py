"""Linear maps in which each client's rows meet that client's weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlora.errors import RunError


@dataclass
class Deal:
    """Which rows of the batch that is under way are whose: client k's are `rows[k]` consecutive ones, client by client.

    One object for a model: its layers read what was written for the batch.
    """

    rows: Sequence[int] = ()

    def begin(self, rows: Sequence[int]) -> None:
        """A batch of sum(rows) rows comes."""
        self.rows = tuple(rows)

    def check(self, found: int, module: str) -> None:
        """Raises RunError unless a module that was given `found` rows saw all rows of the batch, and no others."""
        if found != sum(self.rows):
            raise RunError(
                f"module {module!r} was given {found} rows for a batch of {sum(self.rows)}: this model regroups its"
                " rows, so whose they are cannot be told; train the clients one at a time (engine.group=1), or leave"
                " that module out of adapter.targets"
            )

    @property
    def equal(self) -> bool:
        """Whether all clients have the same number of rows."""
        return len(set(self.rows)) == 1


Keep = Callable[[Tensor, Tensor], None]
"""Takes the gradient of a map's output, [n, …, out], and its input, [n, …, in], in place of the gradient of weights."""


class Grouped(torch.autograd.Function):
    """y_i = x_i·W_kᵀ + c_k for the rows i of client k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, deal: Deal, keep: Keep | None) -> Tensor:
        """x [n, …, in], weight [K, out, in], bias [K, out] or None → [n, …, out]."""
        ctx.save_for_backward(x, weight)
        ctx.deal, ctx.keep = Deal(deal.rows), keep
        y = _times(x, weight.transpose(1, 2), ctx.deal)
        if bias is not None:
            for into, mine in zip(torch.split(y, list(deal.rows)), bias, strict=True):
                into += mine
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        g, deal = grads[0], ctx.deal
        of_x = _times(g, weight, deal) if ctx.needs_input_grad[0] else None
        if ctx.keep is not None:
            ctx.keep(g, x)
            return of_x, None, None, None, None
        of_weight = _outer(g, x, weight, deal) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, (_sums(g, deal) if ctx.needs_input_grad[2] else None), None, None


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, deal: Deal, keep: Keep | None = None) -> Tensor:
    """See `Grouped`. keep: where the backward pass leaves its factors; weight and bias then get no gradient."""
    y: Tensor = Grouped.apply(x, weight, bias, deal, keep)  # type: ignore[no-untyped-call]
    return y


def _times(x: Tensor, factors: Tensor, deal: Deal) -> Tensor:
    """x [n, …, a], factors [K, a, b] → [n, …, b]."""
    if deal.equal:
        flat = torch.bmm(x.reshape(len(deal.rows), -1, x.shape[-1]), factors)
        return flat.view(*x.shape[:-1], factors.shape[-1])
    out = x.new_empty(*x.shape[:-1], factors.shape[-1])
    for into, mine, factor in zip(
        torch.split(out, list(deal.rows)), torch.split(x, list(deal.rows)), factors, strict=True
    ):
        torch.mm(mine.reshape(-1, x.shape[-1]), factor, out=into.view(-1, factors.shape[-1]))
    return out


def _outer(g: Tensor, x: Tensor, weight: Tensor, deal: Deal) -> Tensor:
    """Σ_i g_iᵀ·x_i over each client's rows: g [n, …, out], x [n, …, in] → [K, out, in]."""
    if deal.equal:
        clients = len(deal.rows)
        return torch.bmm(g.reshape(clients, -1, g.shape[-1]).transpose(1, 2), x.reshape(clients, -1, x.shape[-1]))
    out = torch.empty_like(weight)
    for into, left, right in zip(out, torch.split(g, list(deal.rows)), torch.split(x, list(deal.rows)), strict=True):
        torch.mm(left.reshape(-1, g.shape[-1]).t(), right.reshape(-1, x.shape[-1]), out=into)
    return out


def _sums(g: Tensor, deal: Deal) -> Tensor:
    """Σ_i g_i over each client's rows and their tokens: [n, …, out] → [K, out]."""
    return torch.stack([mine.reshape(-1, g.shape[-1]).sum(dim=0) for mine in torch.split(g, list(deal.rows))])
