"""Tiny models and data on disk, for tests that need real ones: real folders, real tokenizers, seconds of training."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.config.schema import RunConfig

DEVICE = os.environ.get("FEDLORA_TEST_DEVICE", "cpu")
"""Where tiny models train: `FEDLORA_TEST_DEVICE=cuda` runs the suite on a GPU (equal bits: on the CPU only)."""

LABELS = ("animal", "food", "tool")
IMAGE_LABELS = ("left", "right", "top", "bottom")
COLOURS = ("red", "green", "blue", "white", "black")

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru")
_WORDS = [a + b for a in _SYLLABLES for b in _SYLLABLES]  # 100 words without a meaning
_TOPICS = {label: [f"{label}{index}" for index in range(6)] for label in LABELS}
_QUESTION = ("what", "colour", "has", "the", "?", "is", "user", "assistant", *COLOURS)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def build_tokenizer(folder: Path, *, chat: bool = False) -> Any:
    """A word-level tokenizer of about 130 words, saved in `folder`; [CLS] … [SEP] around texts, or a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"] if chat else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = dict.fromkeys([*special, *_WORDS, *(word for topic in _TOPICS.values() for word in topic), *_QUESTION])
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=special[1]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, unk, first, last = special
    if chat:
        names = {"bos_token": first, "eos_token": last}
    else:
        names = {"cls_token": first, "sep_token": last}
        core.post_processor = processors.BertProcessing((last, 3), (first, 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        unk_token=unk,
        model_max_length=64,
        padding_side="right",
        model_input_names=["input_ids", *([] if chat else ["token_type_ids"]), "attention_mask"],
        **names,
    )
    if chat:
        tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_bert(folder: Path) -> Path:
    """A BERT of 2 layers of width 32 with random values, and its tokenizer."""
    tokenizer = build_tokenizer(folder)
    return _save(
        folder,
        "bert",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # large enough for random layers to tell words apart, so that adapters can learn
        pad_token_id=tokenizer.pad_token_id,
    )


def build_llama(folder: Path) -> Path:
    """A Llama of 2 layers of width 32 with random values, and its tokenizer with a chat template."""
    tokenizer = build_tokenizer(folder, chat=True)
    return _save(
        folder,
        "llama",
        auto="AutoModelForCausalLM",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )


def build_vit(folder: Path) -> Path:
    """A ViT of 2 layers of width 32 for grey images of 14 × 14 in patches of 7, with random values."""
    return _save(
        folder,
        "vit",
        auto="AutoModelForImageClassification",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=14,
        patch_size=7,
        num_channels=1,
        num_labels=2,
    )


def build_text_csv(path: Path, rows: int = 300) -> Path:
    """Unique texts of 4 to 9 words, 3 of which give one of three classes away; columns text, label, source."""
    draw = np.random.default_rng(7)
    lines: dict[str, str] = {}
    while len(lines) < rows:
        label = LABELS[len(lines) % len(LABELS)]
        topic = draw.choice(_TOPICS[label], 3, replace=False)
        words = draw.permutation([*topic, *draw.choice(_WORDS, draw.integers(1, 7), replace=False)])
        lines.setdefault(" ".join(words), label)
    sources = ("alpha", "beta", "gamma", "delta", "epsilon")
    body = [f"{text},{label},{sources[index % 5]}" for index, (text, label) in enumerate(lines.items())]
    path.write_text("\n".join(["text,label,source", *body]) + "\n", encoding="utf-8")
    return path


def build_qa_jsonl(path: Path, rows: int = 100) -> Path:
    """Questions for the colour of a word, which its last syllable decides; keys prompt, answer."""
    pairs = [(word, COLOURS[_SYLLABLES.index(word[2:]) % len(COLOURS)]) for word in _WORDS[:rows]]
    lines = [json.dumps({"prompt": f"what colour has the {word} ?", "answer": colour}) for word, colour in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build_images(folder: Path, rows: int = 200) -> Path:
    """Grey images of 14 × 14, brighter on the side that their label names: a saved `datasets` folder."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL.Image import fromarray

    draw = np.random.default_rng(7)
    labels = [index % len(IMAGE_LABELS) for index in range(rows)]
    halves = [np.s_[:, :7], np.s_[:, 7:], np.s_[:7], np.s_[7:]]
    images = draw.integers(0, 100, (rows, 14, 14), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[halves[label]] += 120
    columns = {"image": [fromarray(image) for image in images], "label": labels}
    features = Features({"image": Image(), "label": ClassLabel(names=list(IMAGE_LABELS))})
    Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder


def tiny_config(model: Path, data: Path, /, **updates: Any) -> RunConfig:
    """A configuration for one of the models and one of the data sets above, which decides the task.

    `updates` are sections (`federation={"rounds": 3}`), dotted keys (`**{"train.lr": 0.1}`) or plain values
    (`seed=1`); they are merged into the defaults below.
    """
    task = {".csv": "text_classification", ".jsonl": "causal_lm", "": "image_classification"}[data.suffix]
    columns = {
        ".csv": {"text": "text", "label": "label"},
        ".jsonl": {"prompt": "prompt", "answer": "answer"},
        "": {"image": "image", "label": "label"},
    }[data.suffix]
    settings: dict[str, Any] = {
        "model": {"source": "local", "name": model.name, "path": model},
        "task": {"name": task, "max_length": 16},
        "data": {"source": "local", "name": data.stem, "path": data, "partition": {"name": "iid"}, **columns},
        "adapter": {"r": 2, "targets": ["q_proj", "v_proj"] if task != "text_classification" else ["query", "value"]},
        "strategy": {"name": "fedavg"},
        "train": {"lr": 1e-2, "batch": 8, "steps": 2, "threads": 1, "device": DEVICE},
        "federation": {"clients": 4, "cohort": 2, "rounds": 2},
        "eval": {},
        "engine": {},
    }
    for key, value in updates.items():
        _merge(settings, key.split("."), value)
    return RunConfig(**settings)


def _merge(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    key, *rest = path
    if rest:
        _merge(settings.setdefault(key, {}), rest, value)
    elif isinstance(value, Mapping) and isinstance(settings.get(key), dict):
        settings[key] = settings[key] | value
    else:
        settings[key] = value


def _save(folder: Path, model_type: str, *, auto: str = "AutoModel", **settings: Any) -> Path:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder
