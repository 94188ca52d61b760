"""Linear maps whose backward pass leaves one gradient for each record, not their sum.

The first dimension of every input is the record; what lies between it and the last (tokens, patches) is summed within
the record. The products of g (the gradient of the output) and the inputs are formed by one batched matrix product a
factor, straight into the buffer's columns. Parameters get no ordinary gradient, so nothing that was not clipped exists.
"""

from typing import Any

import torch
from torch import Tensor

from fedlora.adapters.low_rank import few_columns, outer
from fedlora.privacy.rows import GradientRows


def compute_dtype(x: Tensor, parameter: Tensor) -> torch.dtype:
    """The type in which a layer computes: autocast's where it is on, else the parameter's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


class LowRank(torch.autograd.Function):
    """y = s·x·Aᵀ·Bᵀ (LoRA, Hu et al., arXiv 2106.09685, §4.1). Gradients of A and B are kept where they are trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float, rows: GradientRows) -> Tensor:
        """x [n, …, k], a [r, k], b [d, r] → [n, …, d]."""
        dtype = compute_dtype(x, a)
        ctx.parameters, ctx.scaling, ctx.rows = (a, b), scaling, rows
        with torch.autocast(x.device.type, enabled=False):
            x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
            u = few_columns(x, a).mul_(scaling)
            ctx.save_for_backward(x, a, b, u)
            return u @ b.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, a, b, u = ctx.saved_tensors
        g = grads[0].to(u.dtype)
        factor_a, factor_b = ctx.parameters
        keep_gradient(ctx.rows, factor_b, g, u)
        h = None
        if ctx.needs_input_grad[0] or ctx.rows.holds(factor_a):
            h = few_columns(g, b.t()).mul_(ctx.scaling)
            keep_gradient(ctx.rows, factor_a, h, x)
        return (h @ a if h is not None and ctx.needs_input_grad[0] else None), None, None, None, None


class LowRankProduct(torch.autograd.Function):
    """y = s·x·Aᵀ·Rᵀ·Bᵀ (LoRA-SB, Ponkshe et al., arXiv 2411.19557). Gradients of A, R and B where they are trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, r: Tensor, b: Tensor, scaling: float, rows: GradientRows) -> Tensor:
        """x [n, …, k], a [r, k], r [r, r], b [d, r] → [n, …, d]."""
        dtype = compute_dtype(x, r)
        ctx.parameters, ctx.scaling, ctx.rows = (a, r, b), scaling, rows
        with torch.autocast(x.device.type, enabled=False):
            x, a, r, b = x.to(dtype), a.to(dtype), r.to(dtype), b.to(dtype)
            u = few_columns(x, a).mul_(scaling)
            v = u @ r.t()
            # Only a trained A needs x itself: without it, x is not kept alive.
            ctx.save_for_backward(x if rows.holds(ctx.parameters[0]) else u, a, r, b, u, v)
            return v @ b.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, a, r, b, u, v = ctx.saved_tensors
        g = grads[0].to(u.dtype)
        factor_a, product, factor_b = ctx.parameters
        keep_gradient(ctx.rows, factor_b, g, v)
        h = few_columns(g, b.t())
        keep_gradient(ctx.rows, product, h, u)
        down = None
        if ctx.needs_input_grad[0] or ctx.rows.holds(factor_a):
            down = (h @ r).mul_(ctx.scaling)
            keep_gradient(ctx.rows, factor_a, down, x)
        return (down @ a if down is not None and ctx.needs_input_grad[0] else None), None, None, None, None, None


class Affine(torch.autograd.Function):
    """y = x·Wᵀ + c: a linear head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: GradientRows) -> Tensor:
        """x [n, …, k], weight [d, k], bias [d] or None → [n, …, d]."""
        dtype = compute_dtype(x, weight)
        ctx.parameters, ctx.rows = (weight, bias), rows
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.to(dtype), weight.to(dtype)
            ctx.save_for_backward(x, weight)
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w = ctx.saved_tensors
        g = grads[0].to(w.dtype)
        weight, bias = ctx.parameters
        keep_gradient(ctx.rows, weight, g, x)
        keep_bias_gradient(ctx.rows, bias, g)
        return (g @ w if ctx.needs_input_grad[0] else None), None, None, None


def low_rank(x: Tensor, a: Tensor, b: Tensor, scaling: float, rows: GradientRows) -> Tensor:
    """See `LowRank`."""
    y: Tensor = LowRank.apply(x, a, b, scaling, rows)  # type: ignore[no-untyped-call]
    return y


def low_rank_product(x: Tensor, a: Tensor, r: Tensor, b: Tensor, scaling: float, rows: GradientRows) -> Tensor:
    """See `LowRankProduct`."""
    y: Tensor = LowRankProduct.apply(x, a, r, b, scaling, rows)  # type: ignore[no-untyped-call]
    return y


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, rows: GradientRows) -> Tensor:
    """See `Affine`."""
    y: Tensor = Affine.apply(x, weight, bias, rows)  # type: ignore[no-untyped-call]
    return y


def keep_gradient(rows: GradientRows, parameter: Tensor, g: Tensor, x: Tensor) -> None:
    """Leaves g_iᵀ·x_i, summed over the tokens of record i, in the columns of `parameter`, if it is trained."""
    if not rows.holds(parameter):
        return
    slot = rows.slot(parameter)
    left, right = _tokens(g), _tokens(x)
    if slot.dtype is left.dtype and g.shape[-1] <= x.shape[-1]:
        torch.bmm(left.mT, right, out=slot)
    else:  # of another type, or formed the other way round
        slot.copy_(outer(left, right))


def keep_bias_gradient(rows: GradientRows, bias: Tensor | None, g: Tensor) -> None:
    """Leaves g_i, summed over the tokens of record i, in the columns of `bias`, if there is one and it is trained."""
    if bias is not None and rows.holds(bias):
        torch.sum(_tokens(g).to(bias.dtype), dim=1, out=rows.slot(bias))


def _tokens(x: Tensor) -> Tensor:
    """[n, …, k] → [n, tokens, k]; a record without tokens' dimension has one."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
