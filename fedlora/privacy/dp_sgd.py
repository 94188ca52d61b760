"""DP-SGD at one client: Poisson samples of privacy units, clipped sums, Gaussian noise.

Abadi et al., arXiv 1607.00133, algorithm 1; the divisor is public, not the size of the sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from fedlora.adapters.adapted import AdaptedModel
from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release
from fedlora.privacy.layers import recorded
from fedlora.privacy.passes import longest_rows
from fedlora.privacy.randomness import RandomSource
from fedlora.privacy.rows import GradientRows, clipped_sum, split_like, sum_by_unit
from fedlora.tasks.base import Encoded, Task, move

ROUNDING = 1e-3
"""What float32 adds to the sensitivity, as a part of it; the noise covers it.

A clipped row's norm comes out up to 1e-6 too large, and when a record joins a batch, the other rows are padded and
rounded differently, by about 1e-6 each: room for 1,000 units in a step.
"""


@dataclass(frozen=True)
class DpSgd:
    """The mechanism of one round's local training, and the event it is accounted as.

    noise_multiplier: σ, of the noise over the sensitivity. bound: C, on the norm of a unit's gradient. rate: q, with
    which each unit is in a step's sample. expected: the public number by which sums are divided; it must not be
    computed from the private data. steps: how many steps are announced and paid for.
    """

    noise_multiplier: float
    bound: float
    rate: float
    expected: float
    steps: int

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {value} must be above 0"
            for name, value in (("bound", self.bound), ("expected", self.expected))
            if not value > 0
        ]
        if problems:
            raise PrivacyError(f"this mechanism cannot be used: {'; '.join(problems)}")
        self.release()

    @property
    def sensitivity(self) -> float:
        """How far one unit more or less moves a step's clipped sum, at most (Euclidean)."""
        return self.bound * (1 + ROUNDING)

    def release(self) -> Release:
        """What all steps cost. A step without a single sampled unit costs the same: who was sampled is not known."""
        return Release(self.noise_multiplier, self.rate, self.steps)

    def noised_mean(self, total: Tensor, source: RandomSource) -> Tensor:
        """(total + N(0, (σ·sensitivity)²)) / expected, added in float64 and rounded to `total`'s type; shape [P]."""
        noise = torch.from_numpy(self.noise_multiplier * self.sensitivity * source.normal(total.numel()))
        noised = total.double().cpu() + noise
        return (noised / self.expected).to(dtype=total.dtype, device=total.device)


@dataclass(frozen=True)
class Units:
    """The rows of each privacy unit of one client: a patient's, an author's, or one row each."""

    rows: Sequence[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of_records(cls, rows: NDArray[np.int64]) -> "Units":
        """Each row is a unit of its own."""
        return cls(list(rows.reshape(-1, 1)))

    @classmethod
    def by_key(cls, rows: NDArray[np.int64], keys: Sequence[object], cap: int, source: RandomSource) -> "Units":
        """Rows with the same key (one for each row) form a unit, in the order of first appearance.

        cap: rows of a unit beyond that many are left out, drawn by `source`: it bounds the work, the clip bounds the
        influence.
        """
        groups: dict[object, list[int]] = {}
        for row, key in zip(rows.tolist(), keys, strict=True):
            groups.setdefault(key, []).append(row)
        return cls([_capped(np.array(group, np.int64), cap, source) for group in groups.values()])

    def by_length(self, chosen: NDArray[np.int64], encoded: Encoded) -> NDArray[np.int64]:
        """The chosen units, those with the longest rows last where `encoded.lengths` exists: less padding."""
        longest = longest_rows([self.rows[unit] for unit in chosen.tolist()], encoded)
        return chosen[np.argsort(longest, kind="stable")]

    def parts(self, chosen: NDArray[np.int64], size: int) -> Iterator[list[NDArray[np.int64]]]:
        """The chosen units' rows, as many units at a time as fit into `size` rows, one at least."""
        part: list[NDArray[np.int64]] = []
        for unit in chosen.tolist():
            rows = self.rows[unit]
            if part and sum(map(len, part)) + len(rows) > size:
                yield part
                part = []
            part.append(rows)
        if part:
            yield part


def _capped(rows: NDArray[np.int64], cap: int, source: RandomSource) -> NDArray[np.int64]:
    if len(rows) <= cap:
        return rows
    return np.sort(rows[np.argsort(source.uniform(len(rows)), kind="stable")[:cap]])


@dataclass(frozen=True)
class Learner:
    """What private steps are taken with. micro_batch: rows in one forward pass, at most (or one unit's)."""

    adapted: AdaptedModel
    task: Task
    encoded: Encoded
    micro_batch: int


def private_steps(
    learner: Learner, names: Sequence[str], units: Units, mechanism: DpSgd, optimizer: Optimizer, source: RandomSource
) -> None:
    """Takes `mechanism.steps` noised steps on the tensors `names`, which `optimizer` holds and alone are trained.

    Nothing else about the units leaves: no loss, no count, no norm. An empty sample is a step of noise.

    Raises PrivacyError if a gradient cannot be told apart by record; no step that was taken before is undone.
    """
    parameters = learner.adapted.parameters(names)
    with recorded(learner.adapted, names) as rows:
        for _ in range(mechanism.steps):
            mean = noised_step(learner, rows, units, mechanism, source)
            for parameter, gradient in zip(parameters, split_like(mean, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()


def noised_step(learner: Learner, rows: GradientRows, units: Units, mechanism: DpSgd, source: RandomSource) -> Tensor:
    """One release: the noised mean of the clipped sums over a Poisson sample of `units`; shape [P], rows.width."""
    total = rows.zeros()
    chosen = units.by_length(source.chosen(len(units), mechanism.rate), learner.encoded)
    for part in units.parts(chosen, learner.micro_batch):
        total += clipped_part(learner, rows, part, mechanism.bound)
    return mechanism.noised_mean(total, source)


def clipped_part(learner: Learner, rows: GradientRows, part: list[NDArray[np.int64]], bound: float) -> Tensor:
    """The clipped sum over a few whole units."""
    records = np.concatenate(part).tolist()
    rows.begin(len(records))
    losses = learner.task.losses(learner.adapted.model, move(learner.encoded.batch(records), learner.adapted.device))
    check_losses(learner.task, losses, len(records))
    torch.autograd.backward(losses.sum())
    return clipped_units(rows.finish(), part, bound)


def check_losses(task: Task, losses: Tensor, records: int) -> None:
    """Raises PrivacyError unless there is one loss for each of `records` records."""
    if losses.shape != (records,):
        raise PrivacyError(
            f"the task {task.name!r} gave losses of shape {tuple(losses.shape)} for {records} records: DP needs one"
            " loss for each record, which depends on no other"
        )


def clipped_units(found: Tensor, part: Sequence[NDArray[np.int64]], bound: float) -> Tensor:
    """The clipped sum over whole units. found: the gradient of each record of `part`, unit by unit, shape [n, P]."""
    if len(part) == len(found):
        return clipped_sum(found, bound)
    owners = torch.repeat_interleave(torch.tensor([len(unit) for unit in part])).to(found.device)
    return clipped_sum(sum_by_unit(found, owners, len(part)), bound)
