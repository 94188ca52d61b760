"""How many virtual clients train in one pass over the base model, where `engine.group` leaves it open.

A pass over few tokens reads all weights for little arithmetic: on the CPU, products of 32 rows run at half the speed of
products of some hundred. So clients are put together until a pass has enough tokens, and stay alone where each has
enough by itself: then every client's bits are those of `engine=sequential`.
"""

import math
from typing import Any

import numpy as np
import torch

from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.simulations.activations import bytes_of_a_token, full_length
from fedlora.tasks.base import Encoded

FULL = {"float32": 256, "bfloat16": 1024}
"""Tokens from which on a pass on the CPU gains little from more, by precision of the base: measured
(docs/decisions/0018-clients-in-groups.md)."""

MOST = {"cpu": 16, "cuda": 64}
"""Clients of a group, at most: each brings its own adapter, optimizer and activations."""

ROOM = 1 / 8
"""Of a GPU's memory, that the activations of a pass may take: there one launch for all clients is always best. Of all
of it, not of what is free just now: a resumed run is to have the same groups."""

_LOOKED_AT = 4


def with_group(config: RunConfig, worker: Worker) -> RunConfig:
    """`config` with `engine.group` chosen, if it is open; worker: has the data. The same data give the same choice."""
    if config.engine.group is not None:
        return config
    most = MOST[worker.device.type]
    chosen = fitting(tokens_of_a_step(config, worker), full_pass(config, worker), most)
    group = even(chosen, math.ceil(config.federation.cohort / (config.engine.workers or 1)), most)
    return config.model_copy(update={"engine": config.engine.model_copy(update={"group": group})})


def full_pass(config: RunConfig, worker: Worker) -> float:
    """Tokens of a pass that gains nothing from more: on a GPU, as many as its memory has room for."""
    if worker.device.type == "cpu":
        return FULL[config.train.precision]
    _, memory = torch.cuda.mem_get_info(worker.device)
    return ROOM * memory / bytes_of_a_token(config, worker.skeleton.config)


def even(chosen: int, clients: int, most: int) -> int:
    """Near `chosen`, and so that a worker's `clients` make equal groups: ten in eights are one group of ten."""
    groups = max(1, round(clients / chosen))
    return min(most, math.ceil(clients / groups)) if chosen > 1 else 1


def fitting(tokens: float, full: float, most: int) -> int:
    """Clients of `tokens` tokens a step that fill a pass of `full`; 1 where two would be more than it takes."""
    return max(1, min(most, int(full / tokens)))


def tokens_of_a_step(config: RunConfig, worker: Worker) -> float:
    """That one client's training step computes, padding included: the mean of a few batches from all over the data."""
    encoded = worker.encoded("train")
    size = min(config.train.batch, len(encoded))
    starts = np.linspace(0, len(encoded) - size, _LOOKED_AT).astype(int)
    architecture: Any = worker.skeleton.config
    return float(np.mean([_tokens(config, encoded, range(start, start + size), architecture) for start in starts]))


def _tokens(config: RunConfig, encoded: Encoded, rows: range, architecture: Any) -> int:
    batch = encoded.compact(list(rows))
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    return len(rows) * full_length(config, architecture)
