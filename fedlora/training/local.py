"""One client's training in one round."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Manifest
from fedlora.config.schema import TrainConfig
from fedlora.errors import DataError, RunError
from fedlora.seeding import stream, torch_seed
from fedlora.tasks.base import Encoded, Task, move
from fedlora.training.optim import Step, learning_rate, make_optimizer, plain_step
from fedlora.training.settings import seeded_torch


@dataclass(frozen=True)
class LocalResult:
    """What local training gives.

    tensors: copies of the trained tensors, by manifest name. loss: mean over the steps of each batch's mean loss before
    its update; first_loss, last_loss: of the first and last step. samples: the client's rows (what sample weighting
    counts), not rows × epochs. seconds: wall time.
    """

    tensors: Mapping[str, NDArray[np.floating]]
    loss: float
    first_loss: float
    last_loss: float
    steps: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class LocalRound:
    """Which client trains in which round, under which run seed, and how fast: for random streams and errors."""

    seed: int
    client: int
    round: int
    lr: float


def train_client(
    adapted: AdaptedModel,
    task: Task,
    encoded: Encoded,
    rows: Sequence[int] | NDArray[np.int64],
    config: TrainConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
    client: int,
    step: Step | None = None,
) -> LocalResult:
    """Trains the adapter that is loaded in `adapted` for `config.steps` steps on the client's `rows` of `encoded`.

    The optimizer is fresh, the learning rate is the round's. The order of the rows and torch's dropout come from the
    run's seed, the client and the round alone; torch's global random state is left as it was. Trained are the
    tensors that the manifest says clients train. step: how one batch becomes one update; by default `plain_step`.

    round_number: 1-based, of `rounds`.

    Raises DataError if the client has no rows, RunError if the loss or a trained tensor stops being finite.
    """
    if len(rows) == 0:
        raise DataError(f"client {client} has no training rows: give it rows or leave it out of the partition")
    started = time.perf_counter()
    where = LocalRound(seed, client, round_number, learning_rate(config, round_number, rounds))
    names = trained_names(adapted.manifest)
    adapted.set_trained(names)
    optimizer = make_optimizer(config, adapted.parameters(names), where.lr)
    take = step or plain_step(config.clip_norm)
    losses = []
    with adapted.training(), seeded_torch(torch_seed(seed, "dropout", client, round_number), adapted.device):
        for number, part in enumerate(islice(batches(rows, config.batch, where), config.steps), start=1):
            loss = take(adapted.model, task, move(encoded.compact(part), adapted.device), optimizer)
            losses.append(_finite(loss, number, where))
    _check_trained(adapted, names, where)
    return LocalResult(
        tensors=adapted.read(names),
        loss=math.fsum(losses) / len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        steps=len(losses),
        samples=len(rows),
        seconds=time.perf_counter() - started,
    )


def trained_names(manifest: Manifest) -> list[str]:
    """The names of the tensors that clients train, in manifest order."""
    return [name for name, spec in manifest.tensors.items() if spec.trained]


def batches(rows: Sequence[int] | NDArray[np.int64], size: int, where: LocalRound) -> Iterator[list[int]]:
    """Endless batches of min(size, len(rows)) rows from shuffled epochs that follow one another without a gap.

    So every row is used equally often, give or take one, and a client with fewer rows than `size` uses all of them in
    every batch. The order depends on the run's seed, the client and the round alone.
    """
    order = stream(where.seed, "order", where.client, where.round)
    data = np.asarray(rows)
    size = min(size, len(data))
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting.extend(order.permutation(data).tolist())
        yield waiting[:size]
        waiting = waiting[size:]


def _finite(loss: float, step: int, where: LocalRound) -> float:
    if not math.isfinite(loss):
        raise diverged(f"the loss became {loss} at step {step}", where)
    return loss


def _check_trained(adapted: AdaptedModel, names: list[str], where: LocalRound) -> None:
    for name in adapted.not_finite(names):
        raise diverged(f"the trained tensor {name!r} is no longer finite", where)


def diverged(what: str, where: LocalRound) -> RunError:
    """The error of a client whose training stopped being finite; `what` did."""
    return RunError(
        f"client {where.client}, round {where.round}: {what} (learning rate {where.lr:g}). Lower train.lr, set"
        " train.clip_norm, or look for broken records in this client's data"
    )
