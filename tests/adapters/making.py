"""Adapters for tests: manifests of each form over real tiny models, and random values for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from fedlora.adapters.adapted import AdaptedModel, head_tensors
from fedlora.adapters.attach import attach
from fedlora.adapters.manifest import Delivery, Form, Manifest, Role, TensorSpec, factor_name
from fedlora.adapters.modules import find_modules
from fedlora.config.schema import RunConfig
from fedlora.tasks.base import Task
from fedlora.tasks.registry import make_task
from tests.tiny import IMAGE_LABELS, LABELS, build_tokenizer

TRAINED: Mapping[str, tuple[Form, set[Role]]] = {
    "lora": (Form.LORA, {Role.A, Role.B}),
    "ffa": (Form.LORA, {Role.B}),
    "sb": (Form.LORA_SB, {Role.R}),
}


def make_manifest(
    method: str,
    modules: Mapping[str, tuple[int, int]],
    *,
    r: int = 2,
    scaling: float = 1.5,
    head: Mapping[str, NDArray[Any]] | None = None,
    train_head: bool = True,
) -> Manifest:
    """The manifest of `lora`, `ffa` (A frozen) or `sb` (R trained)."""
    form, trained = TRAINED[method]
    specs = {}
    for module, (d, k) in modules.items():
        shapes = {Role.A: (r, k), Role.B: (d, r)} | ({Role.R: (r, r)} if form is Form.LORA_SB else {})
        for role, shape in shapes.items():
            name = factor_name(module, role)
            specs[name] = TensorSpec(shape, role, module, role in trained, Delivery.ROUND)
    for name, value in (head or {}).items():
        specs[name] = TensorSpec(value.shape, Role.HEAD, "", train_head, Delivery.ROUND)
    return Manifest(form, r, scaling, 0, specs)


def random_tensors(manifest: Manifest, seed: int = 0, size: float = 0.3) -> dict[str, NDArray[Any]]:
    """Normal values for each tensor of the manifest, large enough to move logits."""
    draw = np.random.default_rng(seed)
    return {n: (size * draw.standard_normal(s.shape)).astype(s.dtype) for n, s in manifest.tensors.items()}


def own_forwards(model: nn.Module) -> dict[str, Any]:
    """By module: the forward pass that is its own, not its class's."""
    return {name: vars(one)["forward"] for name, one in model.named_modules() if "forward" in vars(one)}


def task_of(config: RunConfig) -> Task:
    """The task of a tiny configuration, with its labels."""
    labels = {"text_classification": LABELS, "image_classification": IMAGE_LABELS, "causal_lm": None}
    return make_task(config, labels[config.task.name])


def adapted_task(config: RunConfig, method: str = "lora", **options: Any) -> tuple[Task, AdaptedModel]:
    """A task and its base model with zero factors attached and the model's own head."""
    task = task_of(config)
    base = task.load_base()
    head = head_tensors(base, task.head_parameters(base))
    modules = find_modules(base, config.adapter.targets, head=task.head_parameters(base))
    manifest = make_manifest(method, modules, r=config.adapter.r, scaling=config.adapter.s, head=head)
    return task, attach(base, manifest, **options)


def tiny_gpt2(folder: Path | None = None) -> nn.Module:
    """A GPT-2 classifier of 2 layers × 16 with random values: its attention has Conv1D layers."""
    vocabulary = 200 if folder is None else len(build_tokenizer(folder))
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=vocabulary, num_labels=3, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.GPT2ForSequenceClassification(config).eval()
    if folder is not None:
        model.save_pretrained(folder)
    return model


def token_batch(rows: int = 4, tokens: int = 6, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random token ids without padding."""
    draw = np.random.default_rng(seed)
    ids = torch.from_numpy(draw.integers(5, 100, (rows, tokens)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def dense(form: Form, s: float, tensors: Mapping[str, NDArray[Any]], module: str) -> NDArray[np.float64]:
    """s·B·A or s·B·R·A, multiplied out in float64."""
    roles: Sequence[Role] = (Role.B, Role.A) if form is Form.LORA else (Role.B, Role.R, Role.A)
    product = np.linalg.multi_dot([np.asarray(tensors[factor_name(module, role)], np.float64) for role in roles])
    return np.asarray(s * product)
