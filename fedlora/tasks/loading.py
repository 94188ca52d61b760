"""Loading stock transformers models: with values, or as a skeleton on the meta device."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from fedlora.config.schema import ModelConfig, RunConfig, TrainConfig
from fedlora.errors import ModelError
from fedlora.seeding import torch_seed
from fedlora.tasks.heads import head_parameters, initialise_head
from fedlora.tasks.sources import model_folder, named_errors, pretrained_options


@dataclass(frozen=True)
class ModelLoader:
    """Loads one stock class (`auto`, e.g. AutoModelForTokenClassification) of one model, in float32.

    model: where it comes from. config: its transformers configuration, with the task's labels. new_head: whether the
    class has a head that the checkpoint lacks. attention: transformers' name of the attention to use, None for its
    default.
    """

    model: ModelConfig
    auto: Any
    config: Any
    seed: int
    new_head: bool
    attention: str | None

    def base(self) -> nn.Module:
        """The model with values, in eval mode; the head's come from the seed. Leaves torch's global RNG as it was.

        Raises ModelError if the model cannot be loaded, its architecture has no such class, or its checkpoint lacks a
        parameter that is not the head's.
        """
        with torch.random.fork_rng(devices=[]), quiet(), named_errors(self.model):
            model, absent = self._random() if self.model.source == "config" else self._pretrained()
        if self.new_head:
            initialise_head(model, self.seed, absent)
        return model.eval()

    def skeleton(self) -> nn.Module:
        """The same model on the meta device. Reads the configuration only (of a GGUF file: its metadata)."""
        with torch.random.fork_rng(devices=[]), quiet(), named_errors(self.model), torch.device("meta"):
            return self._from_config().eval()

    def _from_config(self) -> nn.Module:
        model: nn.Module = self.auto.from_config(
            self.config, dtype=torch.float32, trust_remote_code=False, **self._attention()
        )
        return model

    def _random(self) -> tuple[nn.Module, set[str]]:
        torch.manual_seed(torch_seed(self.seed, "base"))
        model = self._from_config()
        return model, {name for name, _ in model.named_parameters()}

    def _pretrained(self) -> tuple[nn.Module, set[str]]:
        model, info = self.auto.from_pretrained(
            model_folder(self.model),
            config=self.config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **pretrained_options(self.model),
            **self._attention(),
        )
        absent = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
        self._require_only_head(model, absent)
        return model, absent

    def _require_only_head(self, model: nn.Module, absent: set[str]) -> None:
        head = set(head_parameters(model)) if self.new_head else set()
        lost = sorted(absent - head)
        if lost:
            shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            raise ModelError(
                f"model {self.model.name!r}: the checkpoint has no values of the right size for {shown}, which"
                f" {type(model).__name__} needs beside its new head; they would be random. Use a checkpoint of this"
                " architecture (for a missing pooler: model.head=mean needs none)"
            )

    def _attention(self) -> dict[str, str]:
        return {} if self.attention is None else {"attn_implementation": self.attention}


def make_loader(config: RunConfig, auto: Any, labels: tuple[str, ...] | None) -> ModelLoader:
    """The loader of `config.model` as class `auto`; with `labels`, the class has a new head for them.

    Reads the model's configuration, no weights. Raises ModelError if it cannot be read.
    """
    with quiet(), named_errors(config.model):
        architecture = _architecture(config.model)
    if labels is not None:
        architecture.num_labels = len(labels)
        architecture.id2label = dict(enumerate(labels))
        architecture.label2id = {label: index for index, label in enumerate(labels)}
    return ModelLoader(
        model=config.model,
        auto=auto,
        config=architecture,
        seed=config.seed,
        new_head=labels is not None,
        attention=attention(config.train),
    )


def require_labels(task: str, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """`labels`, if they are enough for a classifier; else ModelError."""
    if labels is None or len(labels) < 2:
        raise ModelError(
            f"task.name={task} needs a data set with at least two labels, but it has {labels!r}; set data.label to the"
            " column with the labels, or choose another task"
        )
    return labels


def attention(train: TrainConfig) -> str | None:
    """Plain matrix products on the CPU, where they beat fused attention for short texts; on CUDA the default (None)."""
    on_cuda = train.device == "cuda" or (train.device == "auto" and torch.cuda.is_available())
    return None if on_cuda else "eager"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' load report and progress bars off the console; afterwards they are as they were."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _architecture(model: ModelConfig) -> Any:
    if model.source != "config":
        return AutoConfig.from_pretrained(model_folder(model), **pretrained_options(model))
    settings: Mapping[str, Any] = model.architecture or {}
    if "model_type" not in settings:
        raise ModelError(
            f"model {model.name!r}: model.source=config needs model.architecture with a model_type, e.g."
            " {model_type: vit, hidden_size: 96}; there is none"
        )
    return AutoConfig.for_model(**settings)
