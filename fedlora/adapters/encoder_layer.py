"""BERT's transformer layer in few operations: frozen parts go forward and backward as one.

Attention's products, and each frozen product with the residual connection and the norm after it, are one operation with
a backward pass of its own: nothing is added, scaled or copied twice, and Python runs half as often. The adapted layers
inside are called as ever, whatever they compute. Outputs and gradients have the bits of transformers' eager layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.electra.modeling_electra import ElectraLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from fedlora.adapters.prepacked import Blocks, hooked, times, usable_blocks

KINDS = (BertLayer, RobertaLayer, XLMRobertaLayer, ElectraLayer)
"""The layers that are built alike and were compared."""


class Heads(Protocol):
    """How attention's inputs are laid out."""

    @property
    def scaling(self) -> float:
        """By what scores are multiplied."""
        ...

    def apart(self, x: Tensor) -> Tensor:
        """The heads' parts of queries, keys, values, or of the result's gradient: [rows and heads, W, size]."""
        ...

    def together(self, x: Tensor) -> Tensor:
        """The other way round."""
        ...

    def mask(self, scores: Tensor, mask: Tensor) -> None:
        """Adds mask [m or 1, 1, W or 1, W] to scores [rows and heads, W, W], in place."""
        ...


@dataclass(frozen=True)
class HeadsOfRows:
    """Of hidden states [m, W, count · size]."""

    count: int
    scaling: float

    def apart(self, x: Tensor) -> Tensor:
        """See `Heads`."""
        m, width, _ = x.shape
        return x.view(m, width, self.count, -1).transpose(1, 2).reshape(m * self.count, width, -1)

    def together(self, x: Tensor) -> Tensor:
        """See `Heads`."""
        by_row = x.view(-1, self.count, *x.shape[1:])
        return by_row.transpose(1, 2).reshape(len(by_row), x.shape[1], -1)

    def mask(self, scores: Tensor, mask: Tensor) -> None:
        """See `Heads`."""
        scores.view(-1, self.count, *scores.shape[1:]).add_(mask)


class Attention(torch.autograd.Function):
    """softmax(s·q·kᵀ + mask)·v of each head, heads side by side."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: Heads) -> Tensor:
        """query, key, value: hidden states as `heads` has them, and so is the result; mask additive."""
        q, k, v = (heads.apart(each) for each in (query, key, value))
        scores = torch.bmm(q, k.mT).mul_(heads.scaling)
        if mask is not None:
            heads.mask(scores, mask)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads = heads
        return heads.together(torch.bmm(weights, v))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        of_query, of_key, of_value, *_ = ctx.needs_input_grad
        g = ctx.heads.apart(grads[0])
        found: list[Tensor | None] = [None, None, torch.bmm(weights.mT, g) if of_value else None]
        if of_query or of_key:
            of_scores = torch._softmax_backward_data(torch.bmm(g, v.mT), weights, -1, weights.dtype)
            of_scores.mul_(ctx.heads.scaling)
            found[0] = torch.bmm(of_scores, k) if of_query else None
            found[1] = torch.bmm(of_scores.mT, q) if of_key else None
        return *(None if each is None else ctx.heads.together(each) for each in found), None, None


class _Dense:
    """A frozen linear layer's part in an operation."""

    def __init__(self, layer: Any, blocks: Blocks) -> None:
        self._blocks, self._bias = blocks, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ + c."""
        return times(x, self._blocks.forward, self._bias)

    def backward(self, g: Tensor) -> Tensor:
        """The gradient of x."""
        return times(g, self._blocks.backward)


class _Norm:
    """A frozen layer norm's."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._shape, self._weight, self._bias, self._eps = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """The normed x, and each row's mean and 1/deviation."""
        return torch.native_layer_norm(x, self._shape, self._weight, self._bias, self._eps)

    def backward(self, g: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        """The gradient of x."""
        back = torch.ops.aten.native_layer_norm_backward
        found: Tensor = back(g, x, self._shape, mean, inverse, self._weight, self._bias, [True, False, False])[0]
        return found


class AddNorm(torch.autograd.Function):
    """norm(x·Wᵀ + c + residual)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, dense: _Dense, norm: _Norm) -> Tensor:
        """x [m, T, k], residual [m, T, d] → [m, T, d]."""
        total = dense.forward(x).add_(residual)
        y, *scales = norm.forward(total)
        ctx.save_for_backward(total, *scales)
        ctx.dense, ctx.norm = dense, norm
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        of_total = ctx.norm.backward(grads[0], *ctx.saved_tensors)
        of_x, of_residual, *_ = ctx.needs_input_grad
        return (ctx.dense.backward(of_total) if of_x else None), (of_total if of_residual else None), None, None


class FeedForward(torch.autograd.Function):
    """norm(gelu(x·Vᵀ + b)·Wᵀ + c + x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wide: _Dense, dense: _Dense, norm: _Norm) -> Tensor:
        """x [m, T, d] → [m, T, d]."""
        entering = wide.forward(x)
        total = dense.forward(torch.ops.aten.gelu(entering)).add_(x)
        y, *scales = norm.forward(total)
        ctx.save_for_backward(entering, total, *scales)
        ctx.wide, ctx.dense, ctx.norm = wide, dense, norm
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        entering, *normed = ctx.saved_tensors
        of_total = ctx.norm.backward(grads[0], *normed)
        of_entering = torch.ops.aten.gelu_backward(ctx.dense.backward(of_total), entering)
        return ctx.wide.backward(of_entering).add_(of_total), None, None, None


class ShortLayer:
    """The layer's forward pass, in few operations; its own where it would do anything else."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        layer = self.layer
        if asks_more(*args, **kwargs) or drops(layer):
            own: Tensor = type(layer).forward(layer, hidden_states, attention_mask, *args, **kwargs)
            return own
        attended = attend(layer.attention.self, hidden_states, attention_mask, kwargs.get("position_ids"))
        return feed_forward(layer, add_norm(layer.attention.output, attended, hidden_states))


def shortened(model: nn.Module) -> bool:
    """Whether `shorten_layers` finds layers in a model whose attention is as `Attention` computes it."""
    config: Any = model.config
    return any(map(_may_be_short, model.modules())) and config._attn_implementation == "eager"


def _may_be_short(layer: Any) -> bool:
    return type(layer) in KINDS and not (layer.is_decoder or layer.chunk_size_feed_forward)


def asks_more(*args: Any, **kwargs: Any) -> bool:
    """Whether what a layer is given beside hidden states and mask asks for anything; positions are for fused kinds."""
    more = [*args, *(value for name, value in kwargs.items() if name != "position_ids")]
    return any(each is not None and each is not False for each in more)


def shorten_layers(model: nn.Module) -> None:
    """Gives the layers of KINDS in a model on the CPU that forward pass."""
    for layer in model.modules():
        if _may_be_short(layer):
            layer.forward = ShortLayer(layer)


def drops(layer: Any) -> bool:
    """Whether dropout is on somewhere in the layer outside its adapters."""
    chances = (layer.attention.self.dropout, layer.attention.output.dropout, layer.output.dropout)
    return any(each.training and each.p > 0 for each in chances)


def attend(own: Any, hidden: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
    """Self-attention without dropout, before its output layer: [m, T, d]. positions: for fused kinds that read them."""
    if not eager(own, hidden, mask):
        fused: Tensor = own(hidden, mask, position_ids=positions)[0]
        return fused
    return attend_with(own, hidden, mask, HeadsOfRows(own.num_attention_heads, own.scaling))


def eager(own: Any, hidden: Tensor, mask: Tensor | None) -> bool:
    """Whether `Attention` is what that self-attention computes."""
    odd = mask is not None and mask.dtype != hidden.dtype
    return own.config._attn_implementation == "eager" and not (odd or hooked(own))


def attend_with(own: Any, hidden: Tensor, mask: Tensor | None, heads: Heads) -> Tensor:
    """The same, where `eager`, of hidden states as `heads` has them."""
    parts = (own.query(hidden), own.key(hidden), own.value(hidden))
    found: Tensor = Attention.apply(*parts, mask, heads)  # type: ignore[no-untyped-call]
    return found


def add_norm(output: Any, x: Tensor, residual: Tensor) -> Tensor:
    """The output layer after attention, with norm and residual connection, without dropout."""
    blocks, norm = usable_blocks(output.dense, x), _frozen_norm(output)
    if blocks is None or norm is None:
        plain: Tensor = output(x, residual)
        return plain
    found: Tensor = AddNorm.apply(x, residual, _Dense(output.dense, blocks), norm)  # type: ignore[no-untyped-call]
    return found


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """What a layer does after its attention, without dropout."""
    wide, dense = layer.intermediate.dense, layer.output.dense
    inner, outer, norm = usable_blocks(wide, x), usable_blocks(dense, x), _frozen_norm(layer.output)
    if inner is None or outer is None or norm is None or not _gelu(layer.intermediate):
        plain: Tensor = layer.feed_forward_chunk(x)
        return plain
    found: Tensor = FeedForward.apply(x, _Dense(wide, inner), _Dense(dense, outer), norm)  # type: ignore[no-untyped-call]
    return found


def _gelu(intermediate: Any) -> bool:
    """Whether the activation is the exact one."""
    return getattr(intermediate.intermediate_act_fn, "act", None) is nn.functional.gelu and not hooked(intermediate)


def _frozen_norm(output: Any) -> _Norm | None:
    norm = output.LayerNorm
    usual = type(norm) is nn.LayerNorm and not (norm.weight.requires_grad or norm.bias.requires_grad)
    return _Norm(norm) if usual and not (hooked(norm) or hooked(output)) else None
