"""What a training step keeps in memory for its backward pass."""

from typing import Any

from fedlora.config.schema import RunConfig


def activation_bytes(config: RunConfig, shape: Any) -> float:
    """An upper estimate for one client's full-length batch; under local DP for a micro-batch. shape: a model's config.

    By Korthikanti et al. (arXiv 2205.05198, eq. 1): s·b·h·(34 + 5·a·s/h) bytes a layer in 16 bits, here in 32; s
    tokens, b records, h the width, a the heads. The logits come on top.
    """
    tokens = full_length(config, shape)
    records = _records(config)
    width, heads, layers = shape.hidden_size, shape.num_attention_heads, shape.num_hidden_layers
    layer = 2 * tokens * records * width * (34 + 5 * heads * tokens / width)
    outputs = getattr(shape, "vocab_size", 0) if config.task.name == "causal_lm" else 0
    return float(layers * layer + 3 * 4 * tokens * records * outputs)


def bytes_of_a_token(config: RunConfig, shape: Any) -> float:
    """The same for each token of such a batch."""
    return activation_bytes(config, shape) / (_records(config) * full_length(config, shape))


def _records(config: RunConfig) -> int:
    return config.privacy.micro_batch if config.privacy.local else config.train.batch


def full_length(config: RunConfig, shape: Any) -> int:
    """Tokens of a record, at most: a text's, or an image's patches."""
    if config.task.name == "image_classification":
        return int((shape.image_size // shape.patch_size) ** 2 + 1)
    return config.task.max_length
