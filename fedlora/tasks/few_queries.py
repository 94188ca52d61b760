"""BERT's attention for few queries, without keys and values of all tokens.

A score is q·(W x + c), which is (Wᵀq)·x and a number that softmax ignores: one product for each query and head instead
of one for each token. And what a head reads, Σ p·(V x + d), is V·(Σ p·x) + d: the values' layer is asked for one mean
of tokens for each query and head. The same numbers up to rounding, in a twentieth of the operations where a text's
first token is all that is read.
"""

from typing import Any

import torch
from torch import Tensor, nn

WORTH = 0.5
"""Of the products of keys and values for all tokens: up to here, this way is taken."""


def few_queries(own: Any, hidden: Tensor, positions: Tensor) -> bool:
    """Whether it is worth it, and W can be had: the keys' layer is plain and frozen.

    own: transformers' self-attention; hidden [m, T, d], positions [m, P].
    """
    (tokens, width), queries, heads = hidden.shape[1:], positions.shape[1], own.num_attention_heads
    operations = queries * (width + heads * (2 * tokens + width))
    plain = type(own.key) is nn.Linear and own.key.weight.dtype == hidden.dtype
    return operations <= WORTH * 2 * tokens * width and plain and not own.key.weight.requires_grad


def read_by(own: Any, query: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """What the queries [m, P, heads · size] read of hidden [m, T, d]: [m, P, heads · size].

    mask [m or 1, 1, P or 1, T]: additive, or true where a token is seen.
    """
    (m, queries), heads, size = query.shape[:2], own.num_attention_heads, own.attention_head_size
    by_head = query.view(m * queries, heads, size).transpose(0, 1)
    asked = torch.bmm(by_head, own.key.weight.view(heads, size, -1)).view(heads, m, queries, -1)
    scores = torch.bmm(asked.permute(1, 0, 2, 3).reshape(m, heads * queries, -1), hidden.mT) * own.scaling
    weights = torch.softmax(_masked(scores.view(m, heads, queries, -1), mask), -1).to(hidden.dtype)
    means = torch.bmm(weights.view(m, heads * queries, -1), hidden)
    values: Tensor = own.value(means).view(m, heads, queries, heads, size)
    return values.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2).reshape(m, queries, heads * size)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.dtype is torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
