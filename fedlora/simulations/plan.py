"""The dry run: what an experiment would train, send, need and guarantee, without reading a weight or taking a step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fedlora.adapters.manifest import Delivery, Manifest, Role, head_name
from fedlora.adapters.modules import find_modules
from fedlora.adapters.prepacked import prepacked_bytes
from fedlora.config.schema import RunConfig
from fedlora.config.strategy import make_strategy
from fedlora.data.base import Splits
from fedlora.data.partition import make_partition
from fedlora.data.splits import load_splits
from fedlora.data.table import PartitionTable, describe
from fedlora.errors import StrategyError
from fedlora.privacy.schedule import settle_privacy
from fedlora.privacy.statement import Statement, statement
from fedlora.simulations.activations import activation_bytes, bytes_of_a_token
from fedlora.simulations.engines import settle
from fedlora.simulations.grouping import LARGEST, most_together
from fedlora.simulations.guarantees import Guarantee, guarantees
from fedlora.strategies.base import Setup
from fedlora.tasks.registry import make_task
from fedlora.training.prepacking import prepacks
from fedlora.training.settings import resolve_device
from fedlora.wire import predicted_bytes

OPTIMIZER_COPIES = {"adamw": 2, "sgd": 0}
"""Copies of the trained tensors that an optimizer keeps, beside values and gradients (SGD: one more with momentum)."""


@dataclass(frozen=True)
class Traffic:
    """Serialised bytes of one client in one round.

    up, down: all of it; up_head, down_head: the head's share of that; once: sent to each client the first time, on top.
    """

    up: int
    up_head: int
    down: int
    down_head: int
    once: int


@dataclass(frozen=True)
class Memory:
    """Estimated bytes: the base, with its copies for the processor (`train.prepack`), which workers share; adapter with
    gradients and optimizer, activations: of each."""

    base: int
    adapter: int
    activations: int
    workers: int

    @property
    def total(self) -> int:
        """All of it. Python, PyTorch and the data come on top (about 0.6 GB)."""
        return self.base + self.workers * (self.adapter + self.activations)


@dataclass(frozen=True)
class Plan:
    """What `fedlora plan` shows. steps: local optimizer steps in all; participations: expected rounds of one client."""

    config: RunConfig
    base_parameters: int
    trained_parameters: int
    trained_head_parameters: int
    modules: Mapping[str, tuple[int, int]]
    traffic: Traffic
    total_bytes: int
    memory: Memory
    steps: int
    participations: float
    rows: Mapping[str, int]
    holders: PartitionTable
    guarantees: tuple[Guarantee, ...]
    privacy: Statement
    cautions: tuple[str, ...]


def make_plan(config: RunConfig, shown: int = 20) -> Plan:
    """Plans `config`; the data are read, the model's weights are not. shown: clients in the table of holders.

    Raises what a run would raise before its first round: DataError, ModelError, StrategyError, AssetError.
    """
    config = settle_privacy(config)
    method = make_strategy(config.strategy)
    splits = load_splits(config.data)
    task = make_task(config, splits.labels)
    skeleton = task.load_skeleton()
    modules = find_modules(skeleton, config.adapter.targets, head=task.head_parameters(skeleton))
    manifest = method.manifest(_setup(config, modules, skeleton, task.head_parameters(skeleton)))
    federation = config.federation
    traffic = plan_traffic(manifest)
    clients = federation.rounds * federation.cohort
    ever = federation.clients * (1 - (1 - federation.cohort / federation.clients) ** federation.rounds)
    return Plan(
        config=config,
        base_parameters=sum(p.numel() for p in skeleton.parameters()),
        trained_parameters=_numbers(manifest, head=False),
        trained_head_parameters=_numbers(manifest, head=True),
        modules=modules,
        traffic=traffic,
        total_bytes=clients * (traffic.up + traffic.down) + round(ever) * traffic.once,
        memory=estimate_memory(settle(config), skeleton, manifest),
        steps=clients * config.train.steps,
        participations=federation.rounds * federation.cohort / federation.clients,
        rows={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        holders=_holders(config, splits, shown),
        guarantees=guarantees(config, method),
        privacy=statement(config, method),
        cautions=cautions(config, len(splits.train)),
    )


def cautions(config: RunConfig, rows: int) -> tuple[str, ...]:
    """What is allowed under DP and probably not meant; `rows` are all clients' together."""
    privacy, each = config.privacy, rows / config.federation.clients
    if privacy.name == "none":
        return ()
    units = each if privacy.local else config.federation.clients
    found = []
    if privacy.delta * units >= 1:
        found.append(f"privacy.delta = {privacy.delta:g} is not below one over the number of units ({units:.0f})")
    if privacy.local and not 0.5 <= privacy.rate * each / config.train.batch <= 2:
        found.append(
            f"a step draws about {privacy.rate * each:.0f} rows and divides by train.batch = {config.train.batch}: sums"
            " are scaled by the quotient; set train.batch near what is drawn"
        )
    return tuple(found)


def _setup(config: RunConfig, modules: Mapping[str, tuple[int, int]], skeleton: nn.Module, head: list[str]) -> Setup:
    """What a strategy needs for its manifest: sizes; asking for values is a mistake in the strategy."""

    def no_values(what: str) -> None:
        raise StrategyError(f"a strategy's manifest must not depend on values, but this one asked for {what!r}")

    shapes = {head_name(name): np.zeros(tuple(skeleton.get_parameter(name).shape), np.float32) for name in head}
    return Setup(
        modules=modules,
        r=config.adapter.r,
        scaling=config.adapter.s,
        seed=config.seed,
        head=shapes,
        train_head=config.model.train_head,
        weight=no_values,  # type: ignore[arg-type]
        gradient=no_values,  # type: ignore[arg-type]
    )


def plan_traffic(manifest: Manifest) -> Traffic:
    """The bytes that will be counted on the wire, from the manifest."""

    def count(names: list[str], *roles: Role) -> int:
        specs = [manifest.tensors[name] for name in names]
        return predicted_bytes(spec for spec in specs if spec.role in roles)

    down, up = manifest.names(Delivery.ROUND), manifest.uploaded()
    return Traffic(
        up=count(up, *Role),
        up_head=count(up, Role.HEAD),
        down=count(down, *Role),
        down_head=count(down, Role.HEAD),
        once=count(manifest.names(Delivery.ONCE, Delivery.LOCAL), *Role),
    )


def _numbers(manifest: Manifest, *, head: bool) -> int:
    specs = (spec for spec in manifest.tensors.values() if spec.trained)
    return sum(math.prod(spec.shape) for spec in specs if (spec.role is Role.HEAD) == head)


def estimate_memory(config: RunConfig, skeleton: nn.Module, manifest: Manifest) -> Memory:
    """An upper estimate for full-length batches; under local DP with a micro-batch's gradients, record by record."""
    private, group = config.privacy.local, config.engine.group or most_together(config)
    trained = sum(spec.nbytes for spec in manifest.tensors.values() if spec.trained)
    copies = 2 + OPTIMIZER_COPIES[config.train.optimizer] + (config.train.momentum > 0)
    half = 0.5 if config.train.precision == "bfloat16" else 1.0
    frozen = sum(spec.nbytes for spec in manifest.tensors.values() if not spec.trained)
    return Memory(
        base=int(half * (sum(p.nbytes for p in skeleton.parameters()) + _laid_out(config, skeleton, manifest))),
        adapter=frozen + group * (copies + (config.privacy.micro_batch if private else 0)) * trained,
        activations=int(_activations(config, skeleton.config)),
        workers=config.engine.workers or 1,
    )


def _activations(config: RunConfig, shape: Any) -> float:
    """Of a pass: of one client's full-length batch, or of the clients that are put together."""
    alone = activation_bytes(config, shape)
    if config.engine.group is not None:
        return config.engine.group * alone
    together = min(LARGEST[config.train.precision] * bytes_of_a_token(config, shape), most_together(config) * alone)
    return max(alone, together)


def _laid_out(config: RunConfig, skeleton: nn.Module, manifest: Manifest) -> int:
    """Bytes of the copies of frozen weights that are laid out for the processor; of float32 ones."""
    head = [parameter for name, parameter in skeleton.named_parameters() if head_name(name) in manifest.tensors]
    on_cpu = resolve_device(config.train).type == "cpu"
    return prepacked_bytes(skeleton, head) if on_cpu and prepacks(config.train, skeleton, head) else 0


def _holders(config: RunConfig, splits: Splits, shown: int) -> PartitionTable:
    federation = config.federation
    partition = make_partition(splits.train, config.data.partition, federation.clients, config.seed)
    column = None if splits.labels is None else np.asarray(splits.train["label"], dtype=np.int64)
    return describe(partition, column, splits.labels, shown)
