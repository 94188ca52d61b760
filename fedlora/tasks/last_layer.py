"""The last transformer layer at the positions that are read, and nowhere else.

A stock classification head reads one token of a text; a language model that learns answers has a loss at the answers'
tokens. What the last layer gives elsewhere is thrown away. So it computes keys and values of all tokens, but queries,
attention, norms and its MLP at the wanted positions only: the same numbers, and the same gradients, with fewer
operations (a test compares both with stock transformers).

The backbone runs as it is, except that its last layer, for the time of the call, only notes what it is given. The
layer is then computed here from its own modules, so adapters inside it are called as ever, with as many rows as the
batch has. Where dropout is on in that layer it computes all tokens, so that its masks are those of the stock model.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedlora.adapters.encoder_layer import add_norm, feed_forward
from fedlora.adapters.forwards import Forwards, instead
from fedlora.tasks.few_queries import few_queries, read_by

Entry = dict[str, Any]
"""What a layer is called with, by the names of its forward pass's parameters."""


@dataclass(frozen=True)
class Family:
    """What differs between the architectures that were compared (`FAMILIES`).

    stack: the layers' path in the backbone. after: what the backbone calls after them. norm: that of these which
    belongs to the hidden states, "" for none. compute: (layer, its entry, positions [m, P]) → [m, P, d]. plain: whether
    `compute` does all that a configuration asks for. reads_last: whether the stock class reads a text's last token,
    else its first. classify: (the stock class, hidden states [n, d]) → logits [n, C].
    """

    stack: str
    after: tuple[str, ...]
    norm: str
    compute: Callable[[Any, Entry, Tensor], Tensor]
    plain: Callable[[Any], bool]
    reads_last: bool
    classify: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class LastLayer:
    """A stock model of one of the families, for what is read at few positions."""

    model: Any
    family: Family

    @property
    def backbone(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    def hidden(self, inputs: Mapping[str, Tensor], positions: Tensor, *, share: float = 1.0) -> Tensor:
        """The last hidden states at `positions` [m, P] of the m rows of the model's `inputs`: [m, P, d].

        A position may be there several times; what nothing is computed from costs nothing backward. share: of the
        tokens, up to which computing few of them is worth it; above, the layer computes all, and P are taken of them.
        """
        layer, family = self.layers[-1], self.family
        few = positions.shape[1] <= share * inputs["input_ids"].shape[1] and self._narrow(layer)
        entry: Entry = {}
        found = self.before_norm(inputs, {layer: _put_off(layer, entry)} if few else {})
        chosen = family.compute(layer, entry, positions) if few else taken(found, positions)
        normed: Tensor = self._part(family.norm)(chosen) if family.norm else chosen
        return normed

    def before_norm(self, inputs: Mapping[str, Tensor], forwards: Forwards) -> Tensor:
        """What the last layer gives for all tokens, [m, T, d], with other forward passes for some of the layers."""
        skipped = {module: unchanged for module in map(self._part, self.family.after) if module is not None}
        with instead({**skipped, **forwards}):
            found: Tensor = self.backbone(**inputs, use_cache=False).last_hidden_state
        return found

    def classify(self, hidden: Tensor) -> Tensor:
        """The stock head's logits of each record, [n, C], from the hidden state of the token that it reads, [n, d]."""
        return self.family.classify(self.model, hidden)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """All transformer layers, from the input on."""
        stack: Any = self.backbone.get_submodule(self.family.stack)
        return list(stack[: self.backbone.config.num_hidden_layers])

    @property
    def padding(self) -> int:
        """The id that the stock class takes for padding; −1 if it has none."""
        found = self.model.config.pad_token_id
        return -1 if found is None else int(found)

    def _part(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def _narrow(self, layer: nn.Module) -> bool:
        config = self.backbone.config
        known = config._attn_implementation in ("eager", "sdpa") and self.family.plain(config)
        return known and not _drops(layer)


def last_layer(model: nn.Module) -> LastLayer | None:
    """`model`, stock or wrapped by PEFT, if its architecture is one of FAMILIES; None for anything else."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    family = FAMILIES.get(inner.config.model_type) if isinstance(inner, PreTrainedModel) else None
    return None if family is None else LastLayer(inner, family)


def taken(values: Tensor, positions: Tensor) -> Tensor:
    """Those at `positions` [m, P] of `values` [m, T, d]: [m, P, d]."""
    return values.gather(1, positions.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def unchanged(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """`hidden`: the forward pass of a module that is left out."""
    return hidden


def _put_off(layer: nn.Module, entry: Entry) -> Callable[..., Tensor]:
    parameters = signature(type(layer).forward)

    def note(*args: Any, **kwargs: Any) -> Tensor:
        entry.update(parameters.bind(layer, *args, **kwargs).arguments)
        hidden: Tensor = entry["hidden_states"]
        return hidden

    return note


def _drops(layer: nn.Module) -> bool:
    """Whether dropout is on; Llama's attention has a rate of its own and no module for it."""
    chances = (module for module in layer.modules() if isinstance(module, nn.Dropout))
    return layer.training or any(module.training and module.p > 0 for module in chances)


def _bert(layer: Any, entry: Entry, positions: Tensor) -> Tensor:
    own, hidden = layer.attention.self, entry["hidden_states"]
    few, size = taken(hidden, positions), own.attention_head_size
    if few_queries(own, hidden, positions):
        attended = read_by(own, own.query(few), hidden, _mask_of(entry, positions))
    else:
        query, key, value = (_heads(x, size) for x in (own.query(few), own.key(hidden), own.value(hidden)))
        attended = _attended(own, query, key, value, entry, positions)
    return feed_forward(layer, add_norm(layer.attention.output, attended, few))


def _gpt2(layer: Any, entry: Entry, positions: Tensor) -> Tensor:
    """One matrix gives queries, keys and values, so the queries of all tokens are computed, too."""
    own, hidden = layer.attn, entry["hidden_states"]
    query, key, value = own.c_attn(layer.ln_1(hidden)).split(own.split_size, dim=2)
    query, key, value = (_heads(x, own.head_dim) for x in (taken(query, positions), key, value))
    attended = own.resid_dropout(own.c_proj(_attended(own, query, key, value, entry, positions)))
    few = taken(hidden, positions) + attended
    found: Tensor = few + layer.mlp(layer.ln_2(few))
    return found


def _llama(layer: Any, entry: Entry, positions: Tensor) -> Tensor:
    own, hidden = layer.self_attn, entry["hidden_states"]
    normed = layer.input_layernorm(hidden)
    query = _heads(own.q_proj(taken(normed, positions)), own.head_dim)
    key, value = (_heads(x, own.head_dim) for x in (own.k_proj(normed), own.v_proj(normed)))
    angles = entry["position_embeddings"]
    few_angles = (taken(part.expand(len(hidden), -1, -1), positions) for part in angles)
    rotated = _source(own).apply_rotary_pos_emb
    query, _ = rotated(query, query[:, :0], *few_angles)
    _, key = rotated(key[:, :0], key, *angles)
    few = taken(hidden, positions) + own.o_proj(_attended(own, query, key, value, entry, positions))
    found: Tensor = few + layer.mlp(layer.post_attention_layernorm(few))
    return found


def _heads(values: Tensor, size: int) -> Tensor:
    """[m, T, heads · size] → [m, heads, T, size]."""
    return values.view(*values.shape[:2], -1, size).transpose(1, 2)


def _attended(own: Any, query: Tensor, key: Tensor, value: Tensor, entry: Entry, positions: Tensor) -> Tensor:
    """What the layer's own kind of attention gives the P queries of each row: [m, P, heads · size]."""
    way = ALL_ATTENTION_FUNCTIONS.get_interface(own.config._attn_implementation, _source(own).eager_attention_forward)
    mask = _mask_of(entry, positions)
    if mask is None and own.is_causal:  # fused attention would take the queries for the row's first tokens
        mask = _causal(positions, key)
    found, _ = way(own, query, key, value, mask, dropout=0.0, scaling=own.scaling)
    return torch.flatten(found, 2)


def _causal(positions: Tensor, key: Tensor) -> Tensor:
    """Additive mask [m, 1, P, T] of queries at `positions` that see no token after their own."""
    hidden = torch.arange(key.shape[2], device=key.device) > positions.unsqueeze(-1)
    zeros = torch.zeros(hidden.shape, dtype=key.dtype, device=key.device)
    return zeros.masked_fill_(hidden, torch.finfo(key.dtype).min).unsqueeze(1)


def _mask_of(entry: Entry, positions: Tensor) -> Tensor | None:
    """The layer's mask for the queries at `positions`: [m, 1, P or 1, T], or None."""
    mask = entry.get("attention_mask")
    return mask if mask is None or mask.shape[2] == 1 else _rows_of(mask, positions)


def _rows_of(mask: Tensor, positions: Tensor) -> Tensor:
    """Of a mask [m or 1, 1, T, T] the queries at `positions`: [m, 1, P, T]."""
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
    return mask.expand(len(positions), -1, -1, -1)[rows, :, positions].transpose(1, 2)


def _source(module: nn.Module) -> Any:
    """The file of transformers that the module's class is in, which has the architecture's own functions."""
    return sys.modules[type(module).__module__]


FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        stack="encoder.layer",
        after=("pooler",),
        norm="",
        compute=_bert,
        plain=lambda config: not (config.is_decoder or config.add_cross_attention),
        reads_last=False,
        classify=lambda model, hidden: model.classifier(model.dropout(model.bert.pooler(hidden.unsqueeze(1)))),
    ),
    "gpt2": Family(
        stack="h",
        after=("ln_f",),
        norm="ln_f",
        compute=_gpt2,
        plain=lambda config: not (config.add_cross_attention or config.reorder_and_upcast_attn),
        reads_last=True,
        classify=lambda model, hidden: model.score(hidden),
    ),
    "llama": Family(
        stack="layers",
        after=("norm",),
        norm="norm",
        compute=_llama,
        plain=lambda _: True,
        reads_last=True,
        classify=lambda model, hidden: model.score(hidden),
    ),
}
"""`model_type`s whose losses and gradients were compared with the stock model's, in float64 and float32."""
