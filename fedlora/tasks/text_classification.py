"""Text classification, with one text or two.

The default head averages the tokens' logits. With a linear head W, b that is mean pooling followed by the head:
mean_t(W h_t + b) = W mean_t(h_t) + b. So the model is a stock token classifier, and an exported adapter loads in
transformers and PEFT with no code of ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from fedlora.config.schema import RunConfig
from fedlora.errors import DataError, ModelError
from fedlora.tasks.base import Batch
from fedlora.tasks.cards import TEXT_INPUTS, Recipe, card
from fedlora.tasks.classification import record_losses, record_metrics
from fedlora.tasks.gaps import without_gaps
from fedlora.tasks.heads import head_parameters
from fedlora.tasks.last_layer import last_layer
from fedlora.tasks.loading import ModelLoader, make_loader, require_labels
from fedlora.tasks.packing import LENGTHS, OWNERS, mean_of_records, model_inputs, token_rows
from fedlora.tasks.places import pooled
from fedlora.tasks.prefix import entering
from fedlora.tasks.rows import Ragged, TokenRows, chunks, class_ids, require_columns, texts
from fedlora.tasks.tokenizer import load_tokenizer, require_length

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class TextHead:
    """A way from the stock class `auto` to one row of logits a record.

    pool: (the class's logits, attention mask [n, T]) → [n, C]. pool_code: the same as Python for a model card.
    one_token: whether the class reads one token of a text, else all.
    """

    auto: Any
    peft_task_type: str
    pool: Callable[[Tensor, Tensor], Tensor]
    pool_code: str
    one_token: bool


def mean_of_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there: logits [n, T, C], mask [n, T] of 0 and 1 → [n, C]."""
    weights = mask.unsqueeze(-1).to(logits.dtype)
    return (logits * weights).sum(dim=1) / weights.sum(dim=1)


HEADS: Mapping[str, TextHead] = {
    "mean": TextHead(
        AutoModelForTokenClassification,
        "TOKEN_CLS",
        mean_of_tokens,
        '\nmask = inputs["attention_mask"].unsqueeze(-1)\nlogits = (logits * mask).sum(1) / mask.sum(1)',
        one_token=False,
    ),
    "stock": TextHead(
        AutoModelForSequenceClassification,
        "SEQ_CLS",
        lambda logits, _: logits,
        "",
        one_token=True,
    ),
}


@dataclass
class TextClassification:
    """The task `text_classification` (see `fedlora.tasks.base.Task`). Logits have the shape [n, labels]."""

    loader: ModelLoader
    tokenizer: Any
    head: TextHead
    labels: tuple[str, ...]
    max_length: int
    packing: bool = False
    name: str = "text_classification"

    @property
    def peft_task_type(self) -> str:
        return self.head.peft_task_type

    def load_base(self) -> nn.Module:
        model = self.loader.base()
        # Decoders' stock heads read the last token that is not padding, and learn from here which one that is.
        architecture: Any = model.config
        architecture.pad_token_id = self.tokenizer.pad_token_id
        return model

    def load_skeleton(self) -> nn.Module:
        return self.loader.skeleton()

    def head_parameters(self, model: nn.Module) -> list[str]:
        return head_parameters(model)

    def encode(self, rows: Dataset) -> TokenRows:
        """Tokenises `text` (and `text_pair`, if there is one), cut to `task.max_length` tokens.

        Raises DataError for a missing column, a value that is no text, a text without any token, or a bad label.
        """
        require_columns(rows, ["text", "label"])
        pair = "text_pair" in rows.column_names
        names = ("input_ids", "token_type_ids") if pair and self._has_token_types() else ("input_ids",)
        collected: dict[str, list[NDArray[np.int32]]] = {name: [] for name in names}
        for start, chunk in chunks(rows):
            encoded = self._tokenise(start, chunk, pair)
            for name in names:
                collected[name] += [np.asarray(ids, np.int32) for ids in encoded[name]]
        return token_rows(
            self.loader.config.model_type if self.packing else None,
            columns={name: Ragged.of(ids) for name, ids in collected.items()},
            fills={"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id},
            scalars={"labels": class_ids(rows, self.labels)},
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return record_losses(self.logits(model, batch), batch["labels"])

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return record_metrics(self.logits(model, batch), batch["labels"])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = model_inputs(model, batch, MODEL_INPUTS)
        with entering(model, batch), without_gaps(model, batch):
            return (self._of_one_token if self.head.one_token else self._of_all_tokens)(model, batch, inputs)

    def _of_all_tokens(self, model: nn.Module, batch: Batch, inputs: Mapping[str, Tensor]) -> Tensor:
        logits = model(**inputs).logits
        if OWNERS in batch:
            return mean_of_records(logits, batch[OWNERS], batch[LENGTHS])
        return self.head.pool(logits, batch["attention_mask"])

    def _of_one_token(self, model: nn.Module, batch: Batch, inputs: Mapping[str, Tensor]) -> Tensor:
        """As the stock class computes them, in the architectures that are known without what it throws away."""
        known = last_layer(model)
        if known is not None:
            places, owners = pooled(batch, last=known.family.reads_last, padding=known.padding)
            return known.classify(places.by_record(known.hidden(inputs, places.positions), owners))
        if OWNERS in batch:
            raise ModelError(
                f"model {self.loader.model.name!r} is a {type(model).__name__}, whose stock head cannot be told where"
                " each text of a packed row ends; set train.packing=false"
            )
        return self.head.pool(model(**inputs).logits, batch["attention_mask"])

    def card(self) -> Mapping[str, Any]:
        return card(
            self.loader,
            labels=self.labels,
            recipe=Recipe(
                auto=self.head.auto.__name__,
                processor="AutoTokenizer",
                example=[{"text": "What is the capital of Peru ?"}, {"text": "Who wrote Hamlet ?"}],
                code=TEXT_INPUTS.format(max_length=self.max_length, pool=self.head.pool_code),
                prepare="model.config.pad_token_id = processor.pad_token_id",
            ),
        )

    def save_processor(self, folder: str) -> None:
        self.tokenizer.save_pretrained(folder)

    def _has_token_types(self) -> bool:
        return "token_type_ids" in self.tokenizer.model_input_names

    def _tokenise(self, start: int, chunk: Mapping[str, Any], pair: bool) -> Mapping[str, Any]:
        first = texts(start, "text", chunk["text"])
        second = texts(start, "text_pair", chunk["text_pair"]) if pair else None
        encoded: Mapping[str, Any] = self.tokenizer(
            first, second, truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        for offset, ids in enumerate(encoded["input_ids"]):
            if not ids:
                raise DataError(f"row {start + offset} has no token in its text {first[offset]!r}; drop empty rows")
        return encoded


def make(config: RunConfig, labels: tuple[str, ...] | None) -> TextClassification:
    """The task for `config`. Raises ModelError if there are no labels, or tokenizer or configuration cannot be read."""
    named = require_labels("text_classification", labels)
    head = HEADS[config.model.head]
    loader = make_loader(config, head.auto, named)
    tokenizer = load_tokenizer(config.model)
    require_length(config.model, tokenizer, loader.config, config.task.max_length)
    return TextClassification(loader, tokenizer, head, named, config.task.max_length, config.train.packing)
