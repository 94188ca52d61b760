"""LoRA's update of a layer's output in few, well-shaped products: y + s·x·Aᵀ·(Rᵀ·)Bᵀ.

PEFT computes the same in more passes over memory: it scales and adds all of the output, and autograd forms products
with a few columns, for which BLAS libraries are slow. Here those are formed as few rows, and scaling and adding are
part of the last product: two to three times less time for what adapters cost, the same numbers up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from fedlora.adapters.prepacked import Blocks, times, usable_blocks


def few_columns(x: Tensor, w: Tensor) -> Tensor:
    """x·Wᵀ, x [n, …, k], W [r, k] → [n, …, r], for an r that is small beside n: formed as W·xᵀ."""
    found = (w @ x.reshape(-1, x.shape[-1]).t()).t()
    return found.view(*x.shape[:-1], w.shape[0])


class Update(torch.autograd.Function):
    """y + s·x·W₁ᵀ·…·Wₘᵀ, in the factors' type; the result has y's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scaling: float, *factors: Tensor) -> Tensor:
        """x [n, …, k], y [n, …, d], factors [r, k], …, [d, r] → [n, …, d]."""
        last = factors[-1]
        inputs = [x.reshape(-1, x.shape[-1]).to(last.dtype)]
        for factor in factors[:-1]:
            inputs.append(few_columns(inputs[-1], factor))
        ctx.save_for_backward(*inputs, *factors)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        flat = y.reshape(-1, y.shape[-1]).to(last.dtype)
        return torch.addmm(flat, inputs[-1], last.t(), alpha=scaling).view_as(y).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, of_y, _, *wanted = ctx.needs_input_grad
        (g,) = grads
        h, of_factors = _through_factors(ctx, g.reshape(-1, g.shape[-1]), wanted)
        of_input = (h @ ctx.saved_tensors[len(wanted)]).view(ctx.shape).to(ctx.dtype) if of_x else None
        return of_input, (g if of_y else None), None, *of_factors


class AdaptedProduct(torch.autograd.Function):
    """x·Wᵀ + c + s·x·W₁ᵀ·…·Wₘᵀ with frozen W and c, all of one type: no pass over memory for adding the two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks, bias: Tensor | None, scaling: float, *factors: Tensor) -> Tensor:
        """x [n, …, k], blocks of W [d, k], bias [d], factors [r, k], …, [d, r] → [n, …, d]."""
        inputs = [x.reshape(-1, x.shape[-1])]
        y = times(inputs[0], blocks.forward, bias)
        for factor in factors[:-1]:
            inputs.append(few_columns(inputs[-1], factor))
        ctx.save_for_backward(*inputs, *factors)
        ctx.scaling, ctx.blocks = scaling, blocks
        return y.addmm_(inputs[-1], factors[-1].t(), alpha=scaling).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_x, _, _, _, *wanted = ctx.needs_input_grad
        g = grads[0].reshape(-1, grads[0].shape[-1])
        h, of_factors = _through_factors(ctx, g, wanted)
        found = times(g, ctx.blocks.backward).addmm_(h, ctx.saved_tensors[len(wanted)]) if of_x else None
        of_input = None if found is None else found.view(*grads[0].shape[:-1], -1)
        return of_input, None, None, None, *of_factors


def _through_factors(ctx: Any, g: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """What reaches the first factor's output, s·g·Wₘ·…·W₂ [n, r], and the factors' gradients; g [n, d]."""
    inputs, factors = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]
    of_factors: list[Tensor | None] = [None] * len(wanted)
    h, of_factors[-1] = _back(g.to(factors[-1].dtype), inputs[-1], factors[-1], wanted[-1])
    h.mul_(ctx.scaling)  # few numbers
    if wanted[-1]:
        of_factors[-1].mul_(ctx.scaling)  # type: ignore[union-attr]
    for place in range(len(wanted) - 2, 0, -1):
        h, of_factors[place] = _back(h, inputs[place], factors[place], wanted[place])
    if wanted[0]:
        of_factors[0] = outer(h, inputs[0])
    return h, of_factors


def _back(g: Tensor, x: Tensor, factor: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of the factor, if that is wanted, for x·factorᵀ."""
    return few_columns(g, factor.t()), (outer(g, x) if wanted else None)


def outer(g: Tensor, x: Tensor) -> Tensor:
    """gᵀ·x, g [(K,) n, out], x [(K,) n, in] → [(K,) out, in], the smaller side's columns as rows."""
    return g.mT @ x if g.shape[-1] <= x.shape[-1] else (x.mT @ g).mT


class _Short:
    """The forward pass of PEFT's layer, in fewer passes; the layer's own where it would do anything else."""

    def __init__(self, layer: Linear, name: str) -> None:
        self._layer: Any = layer
        self._name = name

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, name = self._layer, self._name
        if args or kwargs or not self._plain(x):
            own: Tensor = Linear.forward(layer, x, *args, **kwargs)
            return own
        b = layer.lora_B[name]  # LoRA-SB's has two layers, R and then B
        factors = [one.weight for one in (layer.lora_A[name], *(list(b.children()) or [b]))]
        base, scaling = layer.base_layer, layer.scaling[name]
        blocks = usable_blocks(base, x)
        found: Tensor = (
            Update.apply(x, base(x), scaling, *factors)  # type: ignore[no-untyped-call]
            if blocks is None or any(factor.dtype != x.dtype for factor in factors)
            else AdaptedProduct.apply(x, blocks, base.bias, scaling, *factors)  # type: ignore[no-untyped-call]
        )
        return found

    def _plain(self, x: Tensor) -> bool:
        layer = self._layer
        dropout = layer.lora_dropout[self._name]  # it is switched on by itself, not with the layer
        drops = dropout.training and not isinstance(dropout, nn.Identity)
        others = layer.disable_adapters or layer.merged or layer.active_adapters != [self._name]
        return not (drops or others or torch.is_autocast_enabled(x.device.type))


def shorten(layer: LoraLayer, name: str) -> None:
    """Gives PEFT's linear layer that forward pass; others keep their own. name: the adapter's."""
    if type(layer) is Linear:
        layer.forward = _Short(layer, name)


def lengthen(layer: LoraLayer) -> None:
    """Gives the layer PEFT's own forward pass back, for whatever hooks into the layers inside it (Opacus, say)."""
    vars(layer).pop("forward", None)
