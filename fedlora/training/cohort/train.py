"""Local training of several clients at once: the same as each alone, up to the rounding of other matrix shapes."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapters.adapted import AdaptedModel
from fedlora.adapters.manifest import Tensors
from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.tasks.base import Batch, Encoded, Task, move
from fedlora.tasks.packing import LENGTHS
from fedlora.training.cohort.stack import Stack
from fedlora.training.local import LocalResult, LocalRound, batches, diverged, trained_names
from fedlora.training.optim import learning_rate, make_optimizer


@dataclass(frozen=True)
class Member:
    """One client of a group. start: its values of the tensors that differ between clients; the same names for all."""

    client: int
    rows: NDArray[np.int64]
    start: Tensors


@dataclass
class _Book:
    """What is noted of one client while the group trains."""

    where: LocalRound
    losses: list[float] = field(default_factory=list)
    trouble: RunError | None = None

    def note(self, loss: float) -> None:
        """The loss of the next step; the first one that is not finite is the client's trouble, and nobody else's."""
        self.losses.append(loss)
        if self.trouble is None and not math.isfinite(loss):
            self.trouble = diverged(f"the loss became {loss} at step {len(self.losses)}", self.where)


def train_group(
    adapted: AdaptedModel,
    task: Task,
    encoded: Encoded,
    members: Sequence[Member],
    config: TrainConfig,
    *,
    round_number: int,
    rounds: int,
    seed: int,
) -> list[LocalResult | RunError]:
    """Trains each member for `config.steps` steps from its start, in one pass a step; in the members' order.

    Each gets what `train_client` would give it, or the error that it would raise: a client whose loss stops being
    finite costs the others nothing. Nothing of the members is left in `adapted`. There is no dropout: a client alone
    would draw other masks. seconds: each member's share of the group's time, by rows computed.

    Raises RunError if the model's layers do not allow it (see `Stack.in_place`).
    """
    began = time.perf_counter()
    lr = learning_rate(config, round_number, rounds)
    books = [_Book(LocalRound(seed, member.client, round_number, lr)) for member in members]
    names = trained_names(adapted.manifest)
    adapted.set_trained([])
    stack = Stack(adapted, [member.start for member in members], names)
    optimizer = make_optimizer(config, stack.trained, lr)
    with stack.in_place():
        streams = [batches(member.rows, config.batch, book.where) for member, book in zip(members, books, strict=True)]
        found: list[Tensor] = []
        for parts in islice(zip(*streams, strict=True), config.steps):
            optimizer.zero_grad(set_to_none=True)
            losses = group_losses(stack, task, encoded, parts)
            means = torch.stack([mine.mean() for mine in losses])
            torch.autograd.backward(means.sum())
            if config.clip_norm is not None:
                clip_each(stack.trained, config.clip_norm)
            optimizer.step()
            found.append(means.detach())
        for step in torch.stack(found).tolist():  # read once: on a GPU, each look would wait for the step's end
            for book, loss in zip(books, step, strict=True):
                book.note(loss)
    shares = _shares(members, config, time.perf_counter() - began)
    read = stack.read_each(stack.names)
    return [
        _result(tensors, member, book, names, share)
        for tensors, member, book, share in zip(read, members, books, shares, strict=True)
    ]


def group_losses(stack: Stack, task: Task, encoded: Encoded, parts: Sequence[list[int]]) -> Sequence[Tensor]:
    """Each client's losses, one a record, of its part of one batch."""
    batch, rows = encoded.dealt(parts, level=stack.adapted.device.type == "cuda")
    sizes = [len(part) for part in parts]
    stack.deal.begin(rows, sizes, *_tokens(batch, sizes))
    losses = task.losses(stack.adapted.model, move(batch, stack.adapted.device))
    return torch.split(losses, sizes)


def _tokens(batch: Batch, sizes: Sequence[int]) -> list[list[int]]:
    """How many tokens each client has in a packed batch, for layers that compute tokens alone."""
    if LENGTHS not in batch:
        return []
    return [[int(mine.sum()) for mine in torch.split(batch[LENGTHS], list(sizes))]]


def clip_each(parameters: Sequence[Tensor], bound: float) -> None:
    """Scales each client's gradient down to a norm of `bound` over all parameters [K, …], as torch's clip_grad_norm_.

    A client whose gradient is not finite keeps it so; the others are scaled by their own norms alone.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]
    norms = torch.linalg.vector_norm(torch.stack(squares), dim=0)
    scales = (bound / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scales.view(-1, *[1] * (grad.ndim - 1)))


def _result(
    tensors: Tensors, member: Member, book: _Book, names: Sequence[str], seconds: float
) -> LocalResult | RunError:
    odd = next((name for name in names if not np.isfinite(tensors[name]).all()), None)
    if book.trouble is None and odd is not None:
        book.trouble = diverged(f"the trained tensor {odd!r} is no longer finite", book.where)
    return book.trouble or LocalResult(
        tensors=tensors,
        loss=math.fsum(book.losses) / len(book.losses),
        first_loss=book.losses[0],
        last_loss=book.losses[-1],
        steps=len(book.losses),
        samples=len(member.rows),
        seconds=seconds,
    )


def _shares(members: Sequence[Member], config: TrainConfig, seconds: float) -> list[float]:
    sizes = [min(config.batch, len(member.rows)) for member in members]
    return [seconds * size / sum(sizes) for size in sizes]
