"""The task seam. Local training, evaluation and export know a task only through this interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Encoded(Protocol):
    """Rows made ready once (tokenised, scaled), with random access by row number."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """The rows as one batch of tensors on the CPU, padded to the longest of them: row i is record i."""
        ...

    def compact(self, rows: Sequence[int]) -> Batch:
        """The same records for `losses`, `evaluate` and `logits`, with less padding where the task can.

        A row need not be a record then; what those three return still is one value, or one row, a record.
        """
        ...

    def dealt(self, parts: Sequence[Sequence[int]], *, level: bool = False) -> tuple[Batch, Sequence[int]]:
        """The records of several clients as one `compact` batch, part by part, and how many rows each part has in it.

        No row holds records of two parts. level: the parts are to have equally many rows, if empty ones are possible:
        on a GPU one product for all parts is faster than a few rows less.
        """
        ...


class Task(Protocol):
    """One kind of problem, bound to one model family and one label set.

    A task is made by `fedlora.tasks.registry.make_task(config, labels)`, which loads tokenizer or image processor but
    no weights.
    """

    name: str

    def load_base(self) -> nn.Module:
        """The base model with its head, from the configured source: a stock transformers class, in eval mode.

        The head's initial values come from the run's seed alone.
        """
        ...

    def load_skeleton(self) -> nn.Module:
        """The same model without values (meta device): names and shapes for `plan`, no weights read."""
        ...

    def head_parameters(self, model: nn.Module) -> list[str]:
        """The names in `model.named_parameters()` of the task's head; empty if the model has no new head."""
        ...

    def encode(self, rows: Dataset) -> Encoded:
        """All of `rows`, tokenised or scaled."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each record, shape [n]: a record's loss depends on no other record."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Per-record values, each of shape [n], whose means over all records are the metrics.

        Always has "loss"; classification has "accuracy", causal LM "token_accuracy". Called under `torch.no_grad`.
        """
        ...

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says of each record, shape [n, C]; what an exported adapter must reproduce."""
        ...

    @property
    def peft_task_type(self) -> str | None:
        """PEFT's name for the stock class that `load_base` uses, e.g. "TOKEN_CLS"; None where it has none (images)."""
        ...

    def card(self) -> Mapping[str, Any]:
        """What an export's model card says about use: `base`, `labels`, `snippet` and `merged_snippet`.

        The snippets are whole Python programs (`fedlora.tasks.cards.card`): base_dir, adapter_dir or model_dir, and
        optionally a JSON file with records, in; their logits as JSON out.
        """
        ...

    def save_processor(self, folder: str) -> None:
        """Writes tokenizer or image processor beside an exported adapter or merged model."""
        ...


_SMALL = 64 * 1024
"""Bytes up to which CUDA copies from ordinary memory without waiting (its documentation on synchronisation)."""


def move(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch on `device`; to a GPU without holding up what is computed.

    Large tensors go from page-locked memory. Small ones the driver copies aside by itself, in less time.
    """
    if device.type == "cuda":
        batch = {name: one.pin_memory() if one.nbytes > _SMALL else one for name, one in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
