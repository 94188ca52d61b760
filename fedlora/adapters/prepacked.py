"""Frozen layers whose weights are laid out once as the processor's matrix kernels want them.

A product x·Wᵀ on the CPU begins by copying W into blocks. A frozen W is the same in every step, so oneDNN can be given
the blocks instead: the same float32 (or bfloat16) arithmetic, 1.1 to 1.2 times as fast where a batch has some hundred
tokens, more where it has few. It costs memory: W and Wᵀ, once each (forked workers share them).

torch's operators for it are those that its own compiler uses; what a torch does not have is not used.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Blocks:
    """A weight's two layouts, and what it was when they were made. forward, backward: of W and Wᵀ, in blocks."""

    forward: Tensor
    backward: Tensor
    source: tuple[int, int, torch.dtype]

    @classmethod
    def of(cls, weight: Tensor, outputs_by_inputs: Tensor) -> "Blocks":
        """outputs_by_inputs: the same values as [out, in]."""
        values = outputs_by_inputs.detach()
        return cls(blocked(values.contiguous()), blocked(values.t().contiguous()), _source(weight))


def blocked(weight: Tensor) -> Tensor:
    """W [out, in] in blocks, for `times`."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return found


def times(x: Tensor, blocks: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + c, x [n, …, in] → [n, …, out]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return found


@functools.cache
def possible() -> bool:
    """Whether this torch has the operators."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return there and all(hasattr(torch.ops.mkldnn, name) for name in names)


class _Product(torch.autograd.Function):
    """x·Wᵀ + c for frozen W and c."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks, bias: Tensor | None) -> Tensor:
        ctx.blocks = blocks
        return times(x, blocks.forward, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (times(grads[0], ctx.blocks.backward) if ctx.needs_input_grad[0] else None), None, None


class _Prepacked:
    """A layer's forward pass. Weights that have changed since are laid out anew; other types go the plain way."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer: Any = layer
        self.blocks = self._made()

    def __call__(self, x: Tensor) -> Tensor:
        blocks, layer = self.current(x), self._layer
        found: Tensor = (
            type(layer).forward(layer, x) if blocks is None else _Product.apply(x, blocks, layer.bias)  # type: ignore[no-untyped-call]
        )
        return found

    def current(self, x: Tensor) -> Blocks | None:
        """The weight's layouts, made anew if it has changed; None where x is none for them."""
        weight = self._layer.weight
        if weight.requires_grad or x.dtype != weight.dtype or x.dtype not in TYPES or not x.numel():
            return None
        if self.blocks.source != _source(weight):
            self.blocks = self._made()
        return self.blocks

    def _made(self) -> Blocks:
        weight = self._layer.weight
        return Blocks.of(weight, weight.t() if isinstance(self._layer, Conv1D) else weight)


def prepack(model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Gives the linear layers of a model on the CPU that forward pass, but for those with a parameter of `trained`."""
    for layer in _frozen_layers(model, trained):
        layer.forward = _Prepacked(layer)


def blocks_of(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """W's and Wᵀ's layouts, for `times`, of a layer that has them."""
    own = vars(layer).get("forward")
    return (own.blocks.forward, own.blocks.backward) if isinstance(own, _Prepacked) else None


def usable_blocks(layer: nn.Module, x: Tensor) -> Blocks | None:
    """For who computes a layer's product with x inside a larger operation; None where the layer is to be called.

    That is: where it has no layouts, x is none for them, or something hooks into it.
    """
    own = vars(layer).get("forward")
    return own.current(x) if isinstance(own, _Prepacked) and not hooked(layer) else None


def hooked(module: Any) -> bool:
    """Whether something notes or changes what the module is given or gives."""
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(module._forward_hooks or module._forward_pre_hooks or backward)


def prepacked_bytes(model: nn.Module, trained: Iterable[nn.Parameter]) -> int:
    """Memory that `prepack` takes."""
    return sum(2 * layer.weight.numel() * layer.weight.element_size() for layer in _frozen_layers(model, trained))


def _frozen_layers(model: nn.Module, trained: Iterable[nn.Parameter]) -> list[Any]:
    own = {id(parameter) for parameter in trained}
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, Conv1D))
        and layer.weight.dtype in TYPES
        and not any(id(parameter) in own for parameter in layer.parameters(recurse=False))
    ]


def _source(weight: Tensor) -> tuple[int, int, torch.dtype]:
    return weight.data_ptr(), weight._version, weight.dtype
