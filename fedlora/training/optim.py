"""What turns gradients into steps: learning rate over the rounds, optimizer, and one step."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from fedlora.config.schema import TrainConfig
from fedlora.errors import RunError
from fedlora.tasks.base import Batch, Task


def learning_rate(config: TrainConfig, round: int, rounds: int) -> float:  # noqa: A002
    """The learning rate of `round` (1-based) out of `rounds`; it is constant within a round.

    With t = (round − 1) / rounds: constant lr; linear lr·(1 − t); cosine lr·(1 + cos πt)/2 (Loshchilov and Hutter,
    arXiv 1608.03983, eq. 5 with η_min = 0). Linear and cosine would reach 0 in the round after the last.

    Raises RunError if `round` is not in 1..rounds.
    """
    if not 1 <= round <= rounds:
        raise RunError(f"round {round} has no learning rate: the schedule covers rounds 1 to {rounds}")
    return config.lr * SCHEDULES[config.schedule]((round - 1) / rounds)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,  # noqa: ARG005
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """A fresh optimizer: AdamW (torch's β and ε; decoupled weight decay; fused: one kernel) or SGD (momentum, L2)."""
    return OPTIMIZERS[config.optimizer](config, list(parameters), lr)


OPTIMIZERS: dict[str, Callable[[TrainConfig, list[nn.Parameter], float], Optimizer]] = {
    "adamw": lambda config, parameters, lr: AdamW(parameters, lr=lr, weight_decay=config.weight_decay, fused=True),
    "sgd": lambda config, parameters, lr: SGD(
        parameters, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
    ),
}


class Step(Protocol):
    """One optimizer step on one batch. This is the seam at which another way to make a gradient (DP-SGD) goes in."""

    def __call__(self, model: nn.Module, task: Task, batch: Batch, optimizer: Optimizer) -> float:
        """Updates the parameters that `optimizer` holds; returns the batch's mean loss before the update."""
        ...


def plain_step(clip_norm: float | None) -> Step:
    """The usual step: mean loss, its gradient, clipped to a norm of `clip_norm` over all parameters, one update."""

    def step(model: nn.Module, task: Task, batch: Batch, optimizer: Optimizer) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = task.losses(model, batch).mean()
        torch.autograd.backward(loss)
        if clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step
