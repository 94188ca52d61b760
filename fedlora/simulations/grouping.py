"""How many virtual clients train in one pass over the base model, where `engine.group` leaves it open.

A pass costs something whatever is in it: weights are read, operations are called. So clients are put together, but not
more than it is worth: together, texts of unequal lengths leave more gaps in rows of one width, and each client brings
its activations. Clients whose steps are large stay alone: then their bits are those of `engine=sequential`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedlora.client.worker import Worker
from fedlora.config.schema import RunConfig
from fedlora.simulations.activations import bytes_of_a_token, full_length
from fedlora.tasks.base import Batch, Encoded
from fedlora.tasks.packing import LENGTHS

OF_A_PASS = {"float32": 40, "bfloat16": 100}
"""How many tokens' time a pass on the CPU takes beside that of its tokens, by precision of the base: measured
(docs/decisions/0018-clients-in-groups.md)."""

WORTH = 1.02
"""Of the least time a client, what fewer clients in a pass may take: more groups are dealt out more evenly."""

LARGEST = {precision: 1.5 * tokens / (WORTH - 1) for precision, tokens in OF_A_PASS.items()}
"""Tokens of a pass of several clients on the CPU, at most: then more are not worth it; and half as many again, since
groups are made even."""

_DISTANCE = 0.2
"""What half or twice the clients in a pass weigh, where a group that is empty in all but one place weighs up to 1."""

MOST = {"cpu": 16, "cuda": 64}
"""Clients of a group, at most: each brings its own adapter, optimizer and activations."""

ROOM = 1 / 8
"""Of a GPU's memory, that the activations of a pass may take: there one launch for all clients is always best. Of all
of it, not of what is free just now: a resumed run is to have the same groups."""

_PASSES, _BATCHES = 4, 32
"""That are looked at, at least: so many passes, or so many clients' batches."""


def with_group(config: RunConfig, worker: Worker) -> RunConfig:
    """`config` with `engine.group` chosen, if it is open; worker: has the data. The same data give the same choice."""
    if config.engine.group is not None:
        return config
    most = MOST[worker.device.type]
    choose = _on_cpu if worker.device.type == "cpu" else _on_cuda
    group = even(choose(config, worker, most), math.ceil(config.federation.cohort / (config.engine.workers or 1)), most)
    return config.model_copy(update={"engine": config.engine.model_copy(update={"group": group})})


def _on_cpu(config: RunConfig, worker: Worker, most: int) -> int:
    tokens = [tokens_of_a_pass(config, worker, clients) for clients in range(1, most + 1)]
    return cheapest(tokens, OF_A_PASS[config.train.precision])


def cheapest(tokens: Sequence[float], of_a_pass: float) -> int:
    """Clients of a pass: the fewest that are WORTH it. tokens: of a pass of 1, 2, … clients."""
    costs = [(mine + of_a_pass) / clients for clients, mine in enumerate(tokens, 1)]
    return next(clients for clients, cost in enumerate(costs, 1) if cost <= WORTH * min(costs))


def _on_cuda(config: RunConfig, worker: Worker, most: int) -> int:
    return fitting(tokens_of_a_pass(config, worker, 1), tokens_that_fit(config, worker), most)


def tokens_that_fit(config: RunConfig, worker: Worker) -> float:
    """Tokens of a pass for which a GPU has ROOM."""
    _, memory = torch.cuda.mem_get_info(worker.device)
    return ROOM * memory / bytes_of_a_token(config, worker.skeleton.config)


def most_together(config: RunConfig) -> int:
    """Clients of a pass on the CPU, at most, before the data are looked at."""
    return min(MOST["cpu"], math.ceil(config.federation.cohort / (config.engine.workers or 1)))


def even(chosen: int, clients: int, most: int) -> int:
    """Near `chosen`, at most `most`, and so that a worker's `clients` make equal groups: ten in threes are five twos.

    Weighed is the share of a last group that is not full, for which the other workers wait, against the distance.
    """

    def loss(group: int) -> float:
        return (-clients % group) / clients + _DISTANCE * abs(math.log2(group / chosen))

    return min(range(1, min(most, clients) + 1), key=loss) if chosen > 1 else 1


def fitting(tokens: float, full: float, most: int) -> int:
    """Clients of `tokens` tokens a step that fill a pass of `full`; 1 where two would be more than it takes."""
    return max(1, min(most, int(full / tokens)))


def tokens_of_a_pass(config: RunConfig, worker: Worker, clients: int) -> float:
    """That a training step of so many clients computes, padding included: the mean of a few from all over the data."""
    encoded = worker.encoded("train")
    size, passes = min(config.train.batch, len(encoded)), max(_PASSES, _BATCHES // clients)
    starts = np.linspace(0, len(encoded) - size, passes * clients).astype(int)
    parts = [range(start, start + size) for start in starts]
    if "input_ids" not in encoded.compact(list(parts[0])):
        return float(clients * size * full_length(config, worker.skeleton.config))
    made = [_pass(config, encoded, [list(part) for part in parts[first::passes]]) for first in range(passes)]
    if worker.leaves_gaps and LENGTHS in made[0]:
        return float(np.mean([int(batch[LENGTHS].sum()) for batch in made]))
    return float(np.mean([batch["input_ids"].numel() for batch in made]))


def _pass(config: RunConfig, encoded: Encoded, parts: Sequence[list[int]]) -> Batch:
    """The clients' batches in one; with a privacy unit, rows are padded (docs/decisions/0010-packed-batches.md)."""
    if config.privacy.local:
        return encoded.batch([row for part in parts for row in part])
    return encoded.dealt(parts)[0]
