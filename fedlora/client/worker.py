"""The resident worker of a process: one base model, through which any number of clients swap their adapters."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlora.adapters.adapted import AdaptedModel, head_tensors
from fedlora.adapters.attach import attach
from fedlora.adapters.half import halve_base
from fedlora.adapters.init import derive_seeded
from fedlora.adapters.manifest import Manifest, Tensors, tensors_digest
from fedlora.adapters.modules import find_modules
from fedlora.client.holdout import ClientRows, split_holdout
from fedlora.client.prefix import kept_prefix
from fedlora.client.processor import processor_digest
from fedlora.config.schema import RunConfig
from fedlora.data.base import Partition, Splits
from fedlora.data.partition import make_partition
from fedlora.data.splits import load_splits
from fedlora.errors import RunError
from fedlora.seeding import stream
from fedlora.strategies.base import Setup, Strategy
from fedlora.tasks.base import Encoded, Task
from fedlora.tasks.packing import PackedTokenRows
from fedlora.tasks.registry import make_task
from fedlora.training.cohort.train import Member, train_group
from fedlora.training.evaluate import WHOLE, Shard, means, record_values
from fedlora.training.local import LocalResult, train_client
from fedlora.training.prepacking import leaves_gaps, prepack_frozen
from fedlora.training.settings import resolve_device, torch_settings

GRADIENT_ROWS = 64
"""Rows behind the first-step gradient of Fed-SB's `public` and `paper` initialisation (LoRA-SB: about |D|/1000)."""


class Worker:
    """Everything that stays loaded between tasks: data, partition, base model, and the adapter attached to it.

    Parts are loaded on first use. Not thread-safe: one worker serves one task at a time.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._attached: tuple[str, AdaptedModel] | None = None
        self._loaded_fixed = ""
        self._touched = False

    @cached_property
    def splits(self) -> Splits:
        """The data, split."""
        return load_splits(self.config.data)

    @cached_property
    def task(self) -> Task:
        """The task, bound to the data's labels."""
        return make_task(self.config, self.splits.labels)

    @cached_property
    def device(self) -> torch.device:
        """Where the model lives."""
        return resolve_device(self.config.train)

    @cached_property
    def base(self) -> nn.Module:
        """The base model with its head, before any adapter is attached."""
        base = self.task.load_base().to(self.device)
        if self.config.train.precision == "float32":  # before a fork, so that its children share it
            prepack_frozen(self.config.train, base, map(base.get_parameter, self.task.head_parameters(base)))
        return base

    @cached_property
    def skeleton(self) -> nn.Module:
        """The base model without values and without an adapter."""
        return self.task.load_skeleton()

    @cached_property
    def leaves_gaps(self) -> bool:
        """Whether the model computes the tokens of packed rows alone."""
        if self.device.type == "cuda" or self.config.model.dropout:
            return False
        head = map(self.skeleton.get_parameter, self.task.head_parameters(self.skeleton))
        return leaves_gaps(self.config.train, self.skeleton, head)

    @cached_property
    def base_digest(self) -> str:
        """SHA-256 of the base model's weights, without head and adapter: the same whether one is attached or not."""
        head = set(self.task.head_parameters(self.skeleton))
        named = ((name.replace(".base_layer", ""), p) for name, p in self.base.named_parameters())
        kept = {n: p.detach().cpu().numpy() for n, p in named if ".lora_" not in n and n not in head}
        return tensors_digest(kept)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer, or of the image processor's settings."""
        return processor_digest(self.task)

    @cached_property
    def partition(self) -> Partition:
        """Who holds which rows of the training split."""
        clients = self.config.federation.clients
        return make_partition(self.splits.train, self.config.data.partition, clients, self.config.seed)

    def check_partition(self) -> None:
        """Deals the rows out now. Raises DataError if they cannot be, which is better said before the first round."""
        _ = self.partition

    @cached_property
    def _encoded(self) -> dict[str, Encoded]:
        return {}

    def encoded(self, split: str) -> Encoded:
        """The rows of `split` ("train", "validation" or "test"), made ready once."""
        if split not in self._encoded:
            rows = self.task.encode(getattr(self.splits, split))
            if self.leaves_gaps and isinstance(rows, PackedTokenRows):
                rows = rows.with_free_gaps()
            keeps = self.config.train.keep_prefix
            self._encoded[split] = (
                kept_prefix(self.config, self.task, self.base, self.skeleton, rows) if keeps else rows
            )
        return self._encoded[split]

    def rows(self, client: int) -> ClientRows:
        """The rows of `client`, a fixed part of them held out by the run's seed."""
        return split_holdout(self.partition.rows(client), self.config.eval.holdout, self.config.seed, client)

    def record_names(self, rows: Sequence[int]) -> list[Hashable]:
        """What each of `rows` is called, whichever other rows there are."""
        return list(rows)

    def setup(self, method: Strategy) -> Setup:
        """What `method` may see at the start: sizes and the head now, base weights and gradients if it asks."""
        self._forget()  # an earlier run's head may be in it: start from the base model as it is
        with torch_settings(self.config.train):
            parameters = self.task.head_parameters(self.base)
            modules = find_modules(self.base, self.config.adapter.targets, head=parameters)
            head = head_tensors(self.base, parameters)
        setup = Setup(
            modules=modules,
            r=self.config.adapter.r,
            scaling=self.config.adapter.s,
            seed=self.config.seed,
            head=head,
            train_head=self.config.model.train_head,
            weight=lambda module: self.adapted(method.manifest(setup)).base_weight(module),
            gradient=lambda rows: self._gradient(self.adapted(method.manifest(setup)), rows),
        )
        return setup

    def _gradient(self, adapted: AdaptedModel, rows: str) -> Tensors:
        encoded = self.encoded({"public": "validation", "private": "train"}[rows])
        count = min(GRADIENT_ROWS, len(encoded))
        chosen = stream(self.config.seed, "gradient", rows).choice(len(encoded), size=count, replace=False)
        size = self.config.eval.batch
        batches = (encoded.batch([int(row) for row in chosen[at : at + size]]) for at in range(0, count, size))
        with torch_settings(self.config.train):
            return adapted.gradient(self.task, batches)

    def _forget(self) -> None:
        """The base model is to be loaded afresh if an adapter is attached to it."""
        if self._attached is not None:
            del self.base
        self._attached, self._loaded_fixed, self._touched = None, "", False

    def untouched(self, manifest: Manifest) -> AdaptedModel:
        """As `adapted`, with the head as it is at first: no task has loaded anything yet."""
        if self._touched:
            self._forget()
        return self.adapted(manifest)

    def adapted(self, manifest: Manifest) -> AdaptedModel:
        """The base model with the adapter of `manifest` attached (and its seed-derived factors in place)."""
        digest = manifest.digest()
        if self._attached is None or self._attached[0] != digest:
            self._attached, self._touched = (digest, self._attach(manifest)), False
            self._loaded_fixed = ""
        return self._attached[1]

    def _attach(self, manifest: Manifest) -> AdaptedModel:
        if self._attached is not None:
            del self.base  # an adapter is attached to it: load it afresh
        adapted = attach(
            self.base, manifest, dropout=self.config.adapter.dropout, base_dropout=self.config.model.dropout
        )
        if self.config.train.precision == "bfloat16":
            _ = self.base_digest  # of the values as they were loaded
            halve_base(adapted)
            prepack_frozen(self.config.train, adapted.model, adapted.parameters(manifest.tensors))
        adapted.load(derive_seeded(manifest))
        return adapted

    def holds_fixed(self, manifest: Manifest, fixed_digest: str) -> bool:
        """Whether the attached adapter already holds the fixed tensors with that digest."""
        self.adapted(manifest)
        return self._loaded_fixed == fixed_digest

    def load(self, manifest: Manifest, tensors: Tensors, fixed: Tensors, fixed_digest: str) -> AdaptedModel:
        """The adapted model holding `tensors`, and `fixed` if those are not in place already."""
        adapted = self.adapted(manifest)
        self._touched = True
        if fixed_digest != self._loaded_fixed:
            adapted.load(fixed)
            self._loaded_fixed = fixed_digest
        adapted.load(tensors)
        return adapted

    def train(self, adapted: AdaptedModel, client: int, round_number: int) -> LocalResult:
        """One client's local training from what `adapted` holds; the result is in `adapted` afterwards."""
        with torch_settings(self.config.train):
            return train_client(
                adapted,
                self.task,
                self.encoded("train"),
                self.rows(client).train,
                self.config.train,
                round_number=round_number,
                rounds=self.config.federation.rounds,
                seed=self.config.seed,
                client=client,
            )

    def train_group(
        self, adapted: AdaptedModel, members: Sequence[Member], round_number: int
    ) -> list[LocalResult | RunError]:
        """The local training of several clients at once, from what `adapted` holds and their own starts."""
        with torch_settings(self.config.train):
            return train_group(
                adapted,
                self.task,
                self.encoded("train"),
                members,
                self.config.train,
                round_number=round_number,
                rounds=self.config.federation.rounds,
                seed=self.config.seed,
            )

    def measure(self, adapted: AdaptedModel, split: str, rows: NDArray[np.int64] | None = None) -> Mapping[str, float]:
        """The task's metrics on `rows` of `split` (all of them, if None), for what `adapted` holds."""
        return means([self.values(adapted, split, rows)])

    def values(
        self, adapted: AdaptedModel, split: str, rows: NDArray[np.int64] | None = None, shard: Shard = WHOLE
    ) -> Mapping[str, NDArray[np.float64]]:
        """The task's metrics record by record, as `record_values` gives them."""
        encoded = self.encoded(split)
        chosen = np.arange(len(encoded)) if rows is None else rows
        with torch_settings(self.config.train):
            return record_values(adapted.model, self.task, encoded, chosen, self.config.eval.batch, shard)

    def load_all(self) -> None:
        """Loads everything that training and measuring need: what a fork has then, its children share."""
        _ = self.base
        self.check_partition()
        for split in ("train", "validation", *(["test"] if self.config.eval.test else [])):
            self.encoded(split)


_resident: dict[str, Worker] = {}


def worker_for(config: RunConfig) -> Worker:
    """This process's worker for `config`; there is one at a time, the last one asked for."""
    key = _key(config)
    if key not in _resident:
        _resident.clear()
        _resident[key] = Worker(config)
    return _resident[key]


_keys: dict[int, tuple[RunConfig, str]] = {}


def _key(config: RunConfig) -> str:
    """What tells workers apart. The same configuration, which cannot change, comes with every task of a run."""
    known = _keys.get(id(config))
    if known is None or known[0] is not config:
        _keys.clear()
        known = _keys[id(config)] = (config, _digest(config))
    return known[1]


def _digest(config: RunConfig) -> str:
    relevant = config.model_dump_json(exclude={"name", "store", "output", "engine", "track"})
    return hashlib.sha256(relevant.encode()).hexdigest()
