"""DP-SGD of several clients at once: each by its own sample, its own clips and its own noise, as alone.

One forward and backward pass gives the gradient of each record of all clients; what is one client's is added up, noised
and accounted apart from the others. No client's noise, and no bound, depends on who else is in the group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedlora.privacy.dp_sgd import DpSgd, Learner, Units, check_losses, clipped_units
from fedlora.privacy.passes import Unit, passes
from fedlora.privacy.randomness import RandomSource
from fedlora.privacy.rows import GradientRows
from fedlora.tasks.base import move
from fedlora.training.cohort.stack import Stack


def private_group_steps(
    learner: Learner,
    stack: Stack,
    rows: GradientRows,
    units: Sequence[Units],
    mechanism: DpSgd,
    optimizer: Optimizer,
    sources: Sequence[RandomSource],
) -> None:
    """Takes `mechanism.steps` noised steps for each client of `stack`, which is in place; see `private_steps`.

    rows: what the stack records into. units, sources: one for each client. optimizer: of `stack.trained`.

    Raises PrivacyError if a gradient cannot be told apart by record.
    """
    for _ in range(mechanism.steps):
        totals = clipped_sums(learner, stack, rows, units, mechanism, sources)
        means = torch.stack(
            [mechanism.noised_mean(total, source) for total, source in zip(totals, sources, strict=True)]
        )
        columns = torch.split(means, [parameter[0].numel() for parameter in stack.trained], dim=1)
        for parameter, mine in zip(stack.trained, columns, strict=True):
            parameter.grad = mine.reshape(parameter.shape)
        optimizer.step()


def clipped_sums(
    learner: Learner,
    stack: Stack,
    rows: GradientRows,
    units: Sequence[Units],
    mechanism: DpSgd,
    sources: Sequence[RandomSource],
) -> list[Tensor]:
    """The clipped sum over a Poisson sample of each client's units: K of shape [P]."""
    totals = [rows.zeros() for _ in units]
    sampled = [
        [mine.rows[unit] for unit in source.chosen(len(mine), mechanism.rate).tolist()]
        for mine, source in zip(units, sources, strict=True)
    ]
    for parts in passes(sampled, learner.encoded, learner.micro_batch * len(units)):
        for total, found in zip(totals, _pass(learner, stack, rows, parts, mechanism.bound), strict=True):
            total += found
    return totals


def _pass(
    learner: Learner, stack: Stack, rows: GradientRows, parts: Sequence[Sequence[Unit]], bound: float
) -> list[Tensor]:
    """The clipped sums over a few whole units of each client; a client may have none."""
    counts = [sum(map(len, part)) for part in parts]
    records = [int(row) for part in parts for unit in part for row in unit]
    stack.deal.begin(counts)
    rows.begin(len(records))
    losses = learner.task.losses(learner.adapted.model, move(learner.encoded.batch(records), learner.adapted.device))
    check_losses(learner.task, losses, len(records))
    torch.autograd.backward(losses.sum())
    found = torch.split(rows.finish(), counts)
    return [clipped_units(mine, part, bound) for mine, part in zip(found, parts, strict=True)]
