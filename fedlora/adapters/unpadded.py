"""BERT's layers on the tokens of packed rows alone, without the gaps at the rows' ends.

All but attention treats each token by itself: so hidden states go from layer to layer as [T, 1, d], one row for each
token, and products, norms and adapters compute no gap. Attention lays its queries, keys and values out in the rows,
where gaps repeat a token of their row, which the mask hides from all others, and takes the tokens' results back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.adapters.encoder_layer import (
    ShortLayer,
    add_norm,
    asks_more,
    attend_with,
    drops,
    eager,
    feed_forward,
)
from fedlora.adapters.forwards import Forwards
from fedlora.adapters.prepacked import hooked


@dataclass(frozen=True)
class Tokens:
    """Where the T tokens of packed rows [m, W] are.

    places: int64 [T], in m · W, row by row. slots: int64 [m · W], for each place which token is there; in a gap, the
    one that is at its row's first place (no row is empty).
    """

    places: Tensor
    slots: Tensor
    rows: int

    @classmethod
    def of(cls, real: Tensor) -> "Tokens":
        """real: bool [m, W], where a token is; each row's first place has one, and W is at least 2."""
        numbers = real.flatten().cumsum(0).sub_(1).view_as(real)
        return cls(
            real.flatten().nonzero().squeeze(-1), torch.where(real, numbers, numbers[:, :1]).flatten(), len(real)
        )

    def taken(self, x: Tensor) -> Tensor:
        """[m, W, d] → [T, 1, d]; as it is, where it is that already."""
        return x if x.shape[1] == 1 else x.flatten(0, 1).index_select(0, self.places).unsqueeze(1)

    def spread(self, x: Tensor) -> Tensor:
        """[T, 1, d] → [m, W, d], with 0 in the gaps; as it is, where it is that already."""
        if x.shape[1] != 1:
            return x
        rows = x.new_zeros(len(self.slots), x.shape[-1]).index_copy_(0, self.places, x.squeeze(1))
        return rows.view(self.rows, -1, x.shape[-1])


@dataclass(frozen=True)
class HeadsOfTokens:
    """Of hidden states [T, 1, count · size] (see `fedlora.adapters.encoder_layer.Heads`)."""

    count: int
    scaling: float
    tokens: Tokens

    def apart(self, x: Tensor) -> Tensor:
        """See `Heads`; in gaps of a gradient there is something, but their queries look at gaps only."""
        by_head = x.view(len(x), self.count, -1).transpose(0, 1).index_select(1, self.tokens.slots)
        return by_head.view(self.count * self.tokens.rows, -1, by_head.shape[-1])

    def together(self, x: Tensor) -> Tensor:
        """See `Heads`."""
        by_place = x.view(self.count, -1, x.shape[-1]).transpose(0, 1)
        return by_place.index_select(0, self.tokens.places).view(len(self.tokens.places), 1, -1)

    def mask(self, scores: Tensor, mask: Tensor) -> None:
        """See `Heads`."""
        scores.view(self.count, self.tokens.rows, *scores.shape[1:]).add_(mask.transpose(0, 1))


class _OnTokens:
    """A short layer's forward pass, which takes hidden states of rows or tokens. It gives tokens to its like."""

    def __init__(self, short: ShortLayer, tokens: Tokens, following: nn.Module | None) -> None:
        self._short, self._tokens, self._following = short, tokens, following

    def __call__(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        layer, tokens = self._short.layer, self._tokens
        own = layer.attention.self
        if asks_more(*args, **kwargs) or attention_mask is None or not eager(own, hidden_states, attention_mask):
            return self._short(tokens.spread(hidden_states), attention_mask, *args, **kwargs)
        x = tokens.taken(hidden_states)
        attended = attend_with(own, x, attention_mask, HeadsOfTokens(own.num_attention_heads, own.scaling, tokens))
        found = feed_forward(layer, add_norm(layer.attention.output, attended, x))
        following = None if self._following is None else vars(self._following).get("forward")
        return found if isinstance(following, _OnTokens) else tokens.spread(found)


def on_tokens(layers: Sequence[nn.Module], tokens: Tokens) -> Forwards:
    """Other forward passes for those of a model's layers, in their order, that can do without the gaps."""
    return {
        layer: _OnTokens(short, tokens, following)
        for layer, following in zip(layers, [*layers[1:], None], strict=True)
        if isinstance(short := vars(layer).get("forward"), ShortLayer) and not (hooked(layer) or drops(layer))
    }
