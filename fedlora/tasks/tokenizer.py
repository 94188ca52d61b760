"""Loading a tokenizer, with a padding token and a length that the model can take."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedlora.config.schema import ModelConfig
from fedlora.errors import ModelError
from fedlora.tasks.loading import quiet
from fedlora.tasks.sources import gguf_file, model_folder, named_errors, pretrained_options


def load_tokenizer(model: ModelConfig) -> Any:
    """The fast tokenizer of `model`, padding on the right.

    If it has no padding token, its end-of-text or unknown token stands in: padding is masked, so it never counts.

    Raises ModelError if there is no tokenizer or no token to pad with.
    """
    # A GGUF file says what its tokenizer is; AutoTokenizer would read all of it once more (11 s) to choose a class.
    kind = AutoTokenizer if gguf_file(model) is None else PreTrainedTokenizerFast
    with quiet(), named_errors(model):
        tokenizer = kind.from_pretrained(model_folder(model), **pretrained_options(model))
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"model {model.name!r}: its tokenizer has no padding, end-of-text or unknown token, so texts of different"
            " lengths cannot be batched; set pad_token in its tokenizer_config.json"
        )
    return tokenizer


def require_length(model: ModelConfig, tokenizer: Any, architecture: Any, max_length: int) -> None:
    """Raises ModelError if texts of `max_length` tokens are longer than the model can read."""
    positions = getattr(architecture, "max_position_embeddings", None)
    limit = min(limit for limit in (tokenizer.model_max_length, positions) if limit is not None)
    if max_length > limit:
        raise ModelError(
            f"task.max_length={max_length}, but model {model.name!r} reads at most {limit} tokens; set task.max_length"
            f" to {limit} or less"
        )
