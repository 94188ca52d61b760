"""Linear maps in which each client's rows meet that client's weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fedlora.adapters.low_rank import few_columns, outer
from fedlora.errors import RunError

Parts = tuple[int, ...]
"""How many consecutive rows each client has, client by client."""


@dataclass
class Deal:
    """Which rows of the batch that is under way are whose: client k's are `rows[k]` consecutive ones, client by client.

    others: the same of modules that are given something else in place of rows: one for each record, where a row of the
    batch holds several, or one for each token. One object for a model: its layers read what was written for the batch.
    """

    rows: Parts = ()
    others: Sequence[Parts] = ()

    def begin(self, rows: Sequence[int], *others: Sequence[int]) -> None:
        """A batch of sum(rows) rows comes, and of so many of anything else.

        Raises RunError if two sums are equal and the parts are not: then a module's rows could be either's.
        """
        self.rows, self.others = tuple(rows), [tuple(parts) for parts in others]
        for one, other in combinations((self.rows, *self.others), 2):
            if sum(one) == sum(other) and one != other:
                raise RunError(
                    f"a batch has {sum(one)} rows, {one} of the clients, and as many records or tokens, but {other} of"
                    " the clients, so whose a row is cannot be told; set train.packing=false"
                )

    def parts(self, found: int, module: str) -> Parts:
        """How many each client has of the `found` rows that a module was given.

        Raises RunError unless these are all rows, all records, or all tokens, of the batch, and no others.
        """
        for parts in (self.rows, *self.others):
            if found == sum(parts):
                return parts
        raise RunError(
            f"module {module!r} was given {found} rows for a batch of {sum(self.rows)} rows with"
            f" {' or '.join(str(sum(parts)) for parts in self.others) or 'no other number of'} records or tokens: this"
            " model regroups its rows, so whose they are cannot be told; train the clients one at a time"
            " (engine.group=1), or leave that module out of adapter.targets"
        )


Keep = Callable[[Tensor, Tensor], None]
"""Takes the gradient of a map's output, [n, …, out], and its input, [n, …, in], in place of the gradient of weights."""


class Grouped(torch.autograd.Function):
    """y_i = x_i·W_kᵀ + c_k for the rows i of client k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: Parts, keep: Keep | None) -> Tensor:
        """x [n, …, in], weight [K, out, in], bias [K, out] or None → [n, …, out]."""
        ctx.save_for_backward(x, weight)
        ctx.parts, ctx.keep = parts, keep
        y = _times(x, weight.transpose(1, 2), parts)
        if bias is not None and _equal(parts):
            y.view(len(parts), -1, y.shape[-1]).add_(bias.unsqueeze(1))
        elif bias is not None:
            for into, mine in zip(torch.split(y, list(parts)), bias, strict=True):
                into += mine
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        g, parts = grads[0], ctx.parts
        of_x = _times(g, weight, parts) if ctx.needs_input_grad[0] else None
        if ctx.keep is not None:
            ctx.keep(g, x)
            return of_x, None, None, None, None
        of_weight = _outer(g, x, weight, parts) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, (_sums(g, parts) if ctx.needs_input_grad[2] else None), None, None


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, parts: Parts, keep: Keep | None = None) -> Tensor:
    """See `Grouped`. keep: where the backward pass leaves its factors; weight and bias then get no gradient."""
    y: Tensor = Grouped.apply(x, weight, bias, parts, keep)  # type: ignore[no-untyped-call]
    return y


class GroupedUpdate(torch.autograd.Function):
    """y_i + s·x_i·W₁ₖᵀ·…·Wₘₖᵀ for the rows i of client k."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scaling: float, parts: Parts, keeps: Sequence[Keep | None], *factors: Tensor
    ) -> Tensor:
        """x [n, …, in], y [n, …, out], factors [K, r, in], …, [K, out, r]; keeps: of each factor, as in `grouped`."""
        inputs = [x.to(factors[0].dtype)]
        for factor in factors[:-1]:
            inputs.append(_times(inputs[-1], factor.transpose(1, 2), parts))
        ctx.save_for_backward(*inputs, *factors)
        ctx.scaling, ctx.parts, ctx.keeps, ctx.dtype = scaling, parts, keeps, x.dtype
        return _plus_times(y, inputs[-1], factors[-1].transpose(1, 2), parts, scaling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, of_y, _, _, _, *wanted = ctx.needs_input_grad
        inputs, factors = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]
        of_factors: list[Tensor | None] = [None] * len(wanted)
        h = grads[0].to(factors[-1].dtype)
        for place in reversed(range(len(wanted))):
            last = place == len(wanted) - 1
            x = inputs[place] * ctx.scaling if last else inputs[place]  # few numbers, and h has s from here on
            if ctx.keeps[place] is not None:
                ctx.keeps[place](h, x)
            elif wanted[place]:
                of_factors[place] = _outer(h, x, factors[place], ctx.parts)
            if place or of_x:
                h = _times(h, factors[place], ctx.parts)
                h = h.mul_(ctx.scaling) if last else h
        return (h.to(ctx.dtype) if of_x else None), (grads[0] if of_y else None), None, None, None, *of_factors


def _equal(parts: Parts) -> bool:
    """Whether all clients have the same number of rows."""
    return len(set(parts)) == 1


def _times(x: Tensor, factors: Tensor, parts: Parts) -> Tensor:
    """x [n, …, a], factors [K, a, b] → [n, …, b]. A few columns are formed as rows, for which BLAS is faster."""
    if _equal(parts):
        flat = x.reshape(len(parts), -1, x.shape[-1])
        if factors.shape[2] < factors.shape[1]:
            found = torch.bmm(factors.transpose(1, 2), flat.transpose(1, 2)).transpose(1, 2)
        else:
            found = torch.bmm(flat, factors)
        return found.reshape(*x.shape[:-1], factors.shape[-1])
    out = x.new_empty(*x.shape[:-1], factors.shape[-1])
    for into, mine, factor in zip(torch.split(out, list(parts)), torch.split(x, list(parts)), factors, strict=True):
        flat, place = mine.reshape(-1, x.shape[-1]), into.view(-1, factors.shape[-1])
        if factor.shape[1] < factor.shape[0]:
            place.copy_(few_columns(flat, factor.t()))
        else:
            torch.mm(flat, factor, out=place)
    return out


def _plus_times(y: Tensor, x: Tensor, factors: Tensor, parts: Parts, scaling: float) -> Tensor:
    """y + s·x·factors, y [n, …, b], x [n, …, a], factors [K, a, b]."""
    if y.dtype is not x.dtype:
        return y.add(_times(x, factors, parts).to(y.dtype), alpha=scaling)
    if _equal(parts):
        into, flat = (each.reshape(len(parts), -1, each.shape[-1]) for each in (y, x))
        return torch.baddbmm(into, flat, factors, alpha=scaling).view_as(y)
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    pieces = (torch.split(each, list(parts)) for each in (out, y, x))
    for place, before, mine, factor in zip(*pieces, factors, strict=True):
        whole = place.view(-1, y.shape[-1])
        torch.addmm(before.reshape(whole.shape), mine.reshape(-1, x.shape[-1]), factor, alpha=scaling, out=whole)
    return out


def _outer(g: Tensor, x: Tensor, weight: Tensor, parts: Parts) -> Tensor:
    """Σ_i g_iᵀ·x_i over each client's rows: g [n, …, out], x [n, …, in] → [K, out, in]."""
    if _equal(parts):
        return outer(*(each.reshape(len(parts), -1, each.shape[-1]) for each in (g, x)))
    out = torch.empty_like(weight)
    for into, left, right in zip(out, torch.split(g, list(parts)), torch.split(x, list(parts)), strict=True):
        torch.mm(left.reshape(-1, g.shape[-1]).t(), right.reshape(-1, x.shape[-1]), out=into)
    return out


def _sums(g: Tensor, parts: Parts) -> Tensor:
    """Σ_i g_i over each client's rows and their tokens: [n, …, out] → [K, out]."""
    if _equal(parts):
        return g.reshape(len(parts), -1, g.shape[-1]).sum(dim=1)
    return torch.stack([mine.reshape(-1, g.shape[-1]).sum(dim=0) for mine in torch.split(g, list(parts))])
