"""Models whose losses can be had from stock transformers, too: scenes for comparisons with shortcuts."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from fedlora.adapters.adapted import AdaptedModel
from fedlora.client.worker import worker_for
from fedlora.tasks.base import Task
from fedlora.tasks.causal_lm import NO_LOSS
from tests.adapters.making import adapted_task, random_tensors, tiny_gpt2
from tests.tiny import tiny_config

KINDS = ["bert", "gpt2", "llama", "gpt2 that writes", "llama that writes"]
"""Classifiers with stock heads, and models that learn answers."""

RECORDS = list(range(0, 64, 4))

TARGETS: Mapping[str, list[str]] = {
    "bert": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""All linear layers of a layer."""

FIRST: Mapping[str, list[str]] = {
    "bert": ["attention.self.query", "attention.output.dense"],
    "gpt2": ["attn.c_attn", "mlp.c_proj"],
    "llama": ["self_attn.q_proj", "mlp.down_proj"],
}
"""Some of them, by their path in a layer."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class Scene:
    """A task, its model with an adapter of random values in every linear layer, and rows of unequal lengths."""

    kind: str
    task: Task
    adapted: AdaptedModel
    encoded: Any

    def to(self, dtype: torch.dtype) -> "Scene":
        """The same with all values in `dtype`."""
        self.adapted.model.to(dtype)
        return self

    def padded(self) -> dict[str, Tensor]:
        return dict(self.encoded.batch(RECORDS))

    def packed(self) -> dict[str, Tensor]:
        """The same records."""
        return dict(self.encoded.compact(RECORDS))


def make_scene(
    kind: str,
    folders: Mapping[str, Path],
    texts: Path,
    answers: Path,
    layers: Sequence[int] = (),
    *,
    head: str = "stock",
    **options: Any,
) -> Scene:
    """One of KINDS. folders: of bert, llama and gpt2, which is written.

    layers: the adapted ones, of a model of 4 that is written beside gpt2; none for all, of 2. options: of `attach`.
    """
    family, *writes = kind.split(" that ")
    if family == "gpt2":
        tiny_gpt2(folders[family])
    folder = deeper(folders[family], folders["gpt2"] / "deeper") if layers else folders[family]
    stack = {"bert": "encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}[family]
    targets = [f"{stack}.{layer}.{name}" for layer in layers for name in FIRST[family]] or TARGETS[family]
    data = ragged(answers, folders["gpt2"]) if writes else texts
    updates = {"model.head": "mean" if writes else head, "task.max_length": 40, "adapter.targets": targets}
    config = tiny_config(folder, data, **updates)
    task, adapted = adapted_task(config, **options)
    adapted.load(random_tensors(adapted.manifest, size=0.2))
    return Scene(kind, task, adapted, worker_for(config).encoded("train"))


def deeper(folder: Path, target: Path) -> Path:
    """A model of 4 layers with random values, and the tokenizer of the one in `folder`."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "deeper"))
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        getattr(transformers, config.architectures[0])(config).save_pretrained(target)
    return target


def of_stock(scene: Scene, batch: Mapping[str, Tensor]) -> Tensor:
    """The losses of a padded batch, from what the stock class itself gives: [n]."""
    logits = scene.adapted.model(**{name: batch[name] for name in INPUTS if name in batch}).logits
    if batch["labels"].ndim == 1:
        return cross_entropy(logits, batch["labels"], reduction="none")
    targets = batch["labels"][:, 1:]
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=NO_LOSS, reduction="none")
    return losses.sum(1) / (targets != NO_LOSS).sum(1)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of `wanted`."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def ragged(path: Path, folder: Path) -> Path:
    """The same questions, each asked one to four times over."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [{**line, "prompt": " ".join([line["prompt"]] * (1 + number % 4))} for number, line in enumerate(lines)]
    (folder / "ragged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return folder / "ragged.jsonl"
