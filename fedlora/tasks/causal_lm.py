"""Causal language modelling of answers to prompts. The loss is on the answers' tokens only.

A record is one user turn and one assistant turn in the tokenizer's chat template, if it has one; otherwise
"prompt\\nanswer" and the end-of-text token. Prompt and answer are tokenised apart, as at generation time.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from textwrap import indent
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from fedlora.config.schema import RunConfig
from fedlora.errors import DataError, ModelError
from fedlora.tasks.base import Batch
from fedlora.tasks.cards import ANSWER_INPUTS, CHAT_TOKENS, PLAIN_TOKENS, Recipe, card
from fedlora.tasks.last_layer import last_layer
from fedlora.tasks.loading import ModelLoader, make_loader
from fedlora.tasks.packing import LENGTHS, OWNERS, mean_of_records, model_inputs, token_rows
from fedlora.tasks.places import Places
from fedlora.tasks.prefix import entering
from fedlora.tasks.rows import Ragged, TokenRows, chunks, require_columns, texts
from fedlora.tasks.tokenizer import load_tokenizer, require_length

NO_LOSS = -100  # the label of a token without a loss, torch's `ignore_index`

MOST = 0.7
"""The share of a row's tokens with a target, above which the last layer computes all of them: then little is saved."""

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class _Answers:
    """Logits [m, P, V] and target tokens [m, P], NO_LOSS where there is none, at the places before answers' tokens.

    owners: the record of each place, [m, P], of packed rows; None: row i is record i. records: how many there are.
    """

    logits: Tensor
    targets: Tensor
    owners: Tensor | None
    records: int

    def __post_init__(self) -> None:
        """Of a bfloat16 model as float32: a softmax over a vocabulary, and a mean, want more than 8 bits."""
        object.__setattr__(self, "logits", self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` [m, P] or [m, P, V] over each record's own answer: [n] or [n, V]."""
        own = self.targets != NO_LOSS
        if self.owners is None:
            weights = own.to(values.dtype) / own.sum(dim=1, keepdim=True)
            return torch.einsum("np...,np->n...", values, weights)
        owners = self.owners.masked_fill(~own, self.records)
        counts = torch.bincount(owners.flatten(), minlength=self.records + 1)[:-1]
        return mean_of_records(values, owners, counts)


@dataclass
class CausalLM:
    """The task `causal_lm` (see `fedlora.tasks.base.Task`). The model has no new head.

    A record's loss is the mean cross-entropy over its own answer's tokens; exp of the mean loss over records is the
    perplexity. A record's logits, shape [n, vocabulary], are the mean over the places that predict its answer's tokens.
    """

    loader: ModelLoader
    tokenizer: Any
    max_length: int
    packing: bool = False
    name: str = "causal_lm"
    peft_task_type: str | None = "CAUSAL_LM"

    def load_base(self) -> nn.Module:
        return self.loader.base()

    def load_skeleton(self) -> nn.Module:
        return self.loader.skeleton()

    def head_parameters(self, model: nn.Module) -> list[str]:
        del model
        return []

    def encode(self, rows: Dataset) -> TokenRows:
        """Tokenises `prompt` and `answer`. A record that is too long loses the start of its prompt, never its answer;
        an answer of `task.max_length` tokens or more keeps its first `task.max_length − 1`.

        Raises DataError for a missing column, a value that is no text, or an answer without any token.
        """
        require_columns(rows, ["prompt", "answer"])
        inputs: list[list[int]] = []
        labels: list[list[int]] = []
        for start, chunk in chunks(rows):
            for prompt, answer in self._tokenise(start, chunk):
                inputs.append(prompt + answer)
                labels.append([NO_LOSS] * len(prompt) + answer)
        return token_rows(
            self.loader.config.model_type if self.packing else None,
            columns={"input_ids": Ragged.of(inputs), "labels": Ragged.of(labels)},
            fills={"input_ids": self.tokenizer.pad_token_id, "labels": NO_LOSS},
            scalars={},
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        found = self._answers(model, batch)
        return found.mean(_token_losses(found.logits, found.targets))

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        found = self._answers(model, batch)
        hits = (found.logits.argmax(dim=-1) == found.targets).to(found.logits.dtype)
        return {"loss": found.mean(_token_losses(found.logits, found.targets)), "token_accuracy": found.mean(hits)}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found = self._answers(model, batch)
        return found.mean(found.logits)

    def card(self) -> Mapping[str, Any]:
        return card(
            self.loader,
            labels=(),
            recipe=Recipe(
                auto="AutoModelForCausalLM",
                processor="AutoTokenizer",
                example=[{"prompt": "What is the capital of Peru?", "answer": "Lima"}],
                code=ANSWER_INPUTS.format(max_length=self.max_length, tokens=self._token_code()),
            ),
        )

    def save_processor(self, folder: str) -> None:
        self.tokenizer.save_pretrained(folder)

    def _answers(self, model: nn.Module, batch: Batch) -> "_Answers":
        """At P positions of each row: where the next token is its record's answer's, or some row's is.

        Only there are logits computed: with a large vocabulary they cost more than a layer.
        """
        targets, owners = batch["labels"][:, 1:], batch.get(OWNERS)
        if owners is not None:  # a text's first token follows from nothing, and least of all from the text before it
            targets = targets.masked_fill(batch["position_ids"][:, 1:] == 0, NO_LOSS)
        inputs = model_inputs(model, batch, MODEL_INPUTS)
        records = len(batch[LENGTHS]) if owners is not None else len(targets)
        known = last_layer(model)
        if known is None:
            return _of_columns(model, inputs, targets, owners, records)
        places = Places.of(targets != NO_LOSS)
        with entering(model, batch):
            hidden = known.hidden(inputs, places.positions, share=MOST)
        return _Answers(
            logits=known.model.lm_head(hidden),
            targets=places.read(targets, NO_LOSS),
            owners=None if owners is None else places.read(owners[:, :-1], records),
            records=records,
        )

    def _tokenise(self, start: int, chunk: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
        prompts = texts(start, "prompt", chunk["prompt"])
        answers = texts(start, "answer", chunk["answer"])
        pairs = self._ids([self._turns(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
        for offset, (_, answer) in enumerate(pairs):
            if not answer or not answers[offset].strip():
                raise DataError(
                    f"row {start + offset} has no token in its answer {answers[offset]!r}, so nothing could be learned"
                    " from it; drop such rows"
                )
        return [_cut(prompt, answer, self.max_length) for prompt, answer in pairs]

    def _turns(self, prompt: str, answer: str) -> tuple[str, str]:
        """The text up to the answer, and the answer with what ends it."""
        if self.tokenizer.chat_template is None:
            return f"{prompt}\n", answer + (self.tokenizer.eos_token or "")
        user = {"role": "user", "content": prompt}
        assistant = {"role": "assistant", "content": answer}
        before = str(self.tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False))
        whole = str(self.tokenizer.apply_chat_template([user, assistant], tokenize=False))
        if not whole.startswith(before):
            raise ModelError(
                f"model {self.loader.model.name!r}: its chat template does not put the answer right after the prompt"
                " that it gives for generation, so the answer's tokens cannot be told apart; use another model"
            )
        return before, whole[len(before) :]

    def _ids(self, turns: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        ids = self.tokenizer(list(chain.from_iterable(turns)), add_special_tokens=False)["input_ids"]
        first = self._first_tokens()
        return [
            (first + prompt, _until_end(answer, self.tokenizer.eos_token_id))
            for prompt, answer in zip(ids[::2], ids[1::2], strict=True)
        ]

    def _first_tokens(self) -> list[int]:
        """What the tokenizer puts before a text; a chat template brings its own."""
        if self.tokenizer.chat_template is not None:
            return []
        return [token for token in self.tokenizer("")["input_ids"] if token == self.tokenizer.bos_token_id]

    def _token_code(self) -> str:
        return indent(PLAIN_TOKENS if self.tokenizer.chat_template is None else CHAT_TOKENS, "    ")


def make(config: RunConfig, labels: tuple[str, ...] | None) -> CausalLM:
    """The task for `config`; `labels` are not used. Raises ModelError if tokenizer or configuration cannot be read."""
    del labels
    loader = make_loader(config, AutoModelForCausalLM, None)
    tokenizer = load_tokenizer(config.model)
    require_length(config.model, tokenizer, loader.config, config.task.max_length)
    if config.task.max_length < 2:
        raise ModelError("task.max_length=1 leaves no room for a prompt and an answer; set it to 2 or more")
    return CausalLM(loader, tokenizer, config.task.max_length, config.train.packing)


def _cut(prompt: list[int], answer: list[int], max_length: int) -> tuple[list[int], list[int]]:
    kept = answer[: max_length - 1]
    return prompt[-(max_length - len(kept)) :], kept


def _until_end(answer: list[int], eos: int | None) -> list[int]:
    """`answer` up to its last end-of-text token: what a template writes after it is not the model's to say."""
    if eos not in answer:
        return answer
    return answer[: len(answer) - answer[::-1].index(eos)]


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    flat = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="none")
    return flat.view(targets.shape)


def _of_columns(
    model: nn.Module, inputs: Mapping[str, Tensor], targets: Tensor, owners: Tensor | None, records: int
) -> _Answers:
    """The stock model's logits at the same positions of all rows: those where any row has a target."""
    positions = (targets != NO_LOSS).any(dim=0).nonzero().squeeze(-1)
    chosen = {"logits_to_keep": positions} if _selects_positions(model) else {}
    logits = model(**inputs, use_cache=False, **chosen).logits
    return _Answers(
        logits=logits if chosen else logits[:, positions],
        targets=targets[:, positions],
        owners=None if owners is None else owners[:, positions],
        records=records,
    )


def _selects_positions(model: nn.Module) -> bool:
    """Whether the architecture can compute logits at chosen positions only; PEFT's wrapper hides its signature."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters
