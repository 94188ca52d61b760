"""What a tokenizer or an image processor is, as one digest: two hosts with the same one make the same numbers."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedlora.tasks.base import Task

_USE = ("truncation", "padding")
"""What a call leaves in a fast tokenizer: not what it is."""
_ORIGIN = ("processor_class", "image_processor_type", "name_or_path", "_commit_hash", "transformers_version")
"""What an image processor's settings say of where it came from."""


def processor_digest(task: Task) -> str:
    """SHA-256, in hexadecimal digits, of what `task` makes its rows ready with, as loaded and not as stored."""
    return hashlib.sha256(json.dumps(_content(task), sort_keys=True, default=str).encode()).hexdigest()


def _content(task: Any) -> Mapping[str, Any]:
    if hasattr(task, "tokenizer"):
        return _tokenizer(task.tokenizer)
    return {name: value for name, value in task.processor.to_dict().items() if name not in _ORIGIN}


def _tokenizer(tokenizer: Any) -> Mapping[str, Any]:
    """Its pipeline and vocabulary, special tokens, chat template, and what it gives a model."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    whole = {"vocabulary": tokenizer.get_vocab()} if core is None else json.loads(core.to_str())
    return {
        "core": {name: value for name, value in whole.items() if name not in _USE},
        "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
        "inputs": tokenizer.model_input_names,
    }
