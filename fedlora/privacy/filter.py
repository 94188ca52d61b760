"""A ceiling that holds however what is asked next depends on what came out before.

PLD and PRV bound a schedule that was fixed beforehand. Across runs and servers nobody fixed one: what a server asks for
depends on what it saw. A Rényi filter of one order, chosen before anything is spent, bounds that too: the sum of the
releases' Rényi divergences of that order may never exceed the ceiling's (Feldman and Zrnic, arXiv 2008.11193). It is
looser than PLD by the distance from RDP to PLD, and by keeping to one order.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from opacus.accountants.analysis.rdp import compute_rdp

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release

_ROUNDING = 1e-12
"""More than Opacus's figure for one step is off by. Without it, 10^15 steps of huge noise came out below zero."""

_HOPELESS = 1000.0
"""A step without sampling that costs this much is beyond every ceiling: its cost needs no better bound."""

ORDERS = tuple(float(order) for order in np.unique(np.round(np.geomspace(1.5, 512, 200), 2)))
"""Among these the order of a filter is chosen."""


@dataclass(frozen=True)
class Ceiling:
    """(ε, δ), and the Rényi order in which it is kept."""

    epsilon: float
    delta: float
    order: float

    @classmethod
    def of(cls, epsilon: float, delta: float) -> "Ceiling":
        """With the order that lets through the most Gaussian noise's worth (cost proportional to the order).

        Raises PrivacyError unless ε > 0 and 0 < δ < 1.
        """
        if not (epsilon > 0 and math.isfinite(epsilon) and 0 < delta < 1):
            raise PrivacyError(f"no ceiling has epsilon = {epsilon} and delta = {delta}: need > 0, and between 0 and 1")
        best = max(ORDERS, key=lambda order: cls(epsilon, delta, order).budget / order)
        ceiling = cls(epsilon, delta, best)
        if ceiling.budget <= 0:
            raise PrivacyError(
                f"epsilon = {epsilon} is too small for delta = {delta}: no Rényi order up to {ORDERS[-1]:g} leaves"
                " anything to spend; raise one of them"
            )
        return ceiling

    def at(self, epsilon: float, name: str) -> "Ceiling":
        """Another ε, called `name` in errors, at the same δ and order: the orders of one ledger's limits must agree.

        Raises PrivacyError if ε is not finite, or so small that the order leaves nothing to spend.
        """
        other = replace(self, epsilon=epsilon)
        if not (math.isfinite(epsilon) and other.budget > 0):
            raise PrivacyError(
                f"{name} = {epsilon} cannot be kept: all limits of a ledger are kept in one Rényi order, {self.order:g}"
                f" here, which at delta = {self.delta:g} leaves something to spend only above"
                f" {self.epsilon - self.budget:.3g}; choose more, or a new ledger with a lower ceiling"
            )
        return other

    @property
    def budget(self) -> float:
        """The Rényi divergence of `order` that may be spent in all: then ε at δ is not exceeded.

        Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12.
        """
        return self.epsilon - math.log1p(-1 / self.order) + math.log(self.delta * self.order) / (self.order - 1)

    def epsilon_of(self, spent: float) -> float:
        """The ε at `delta` that a Rényi divergence `spent` of `order` bounds; 0 for nothing."""
        slack = self.budget - self.epsilon
        return max(0.0, spent - slack) if spent > 0 else 0.0


@dataclass(frozen=True)
class Limits:
    """What a ledger keeps: the ceiling of all runs together, of one run, and of the runs of one calendar month (UTC).

    All have one δ and one Rényi order. None: no such limit.
    """

    total: Ceiling
    run: Ceiling | None = None
    month: Ceiling | None = None

    @classmethod
    def of(cls, total: Ceiling, run_epsilon: float | None, month_epsilon: float | None) -> "Limits":
        """Raises PrivacyError for an ε that cannot be kept in the order of `total`."""
        return cls(
            total,
            None if run_epsilon is None else total.at(run_epsilon, "run_epsilon"),
            None if month_epsilon is None else total.at(month_epsilon, "month_epsilon"),
        )


def divergence(releases: Iterable[Release], order: float) -> float:
    """The Rényi divergence of `order` of all `releases` together: sums, as they compose. Never below the truth.

    Mironov, Talwar and Zhang, arXiv 1908.10530.
    """
    return math.fsum(release.steps * _step(release.noise_multiplier, release.rate, order) for release in releases)


@lru_cache(maxsize=4096)
def _step(noise: float, rate: float, order: float) -> float:
    """One step's. A sample never costs more than all units do, order / 2σ²: that bounds what Opacus cannot compute."""
    unsampled = order / (2 * noise**2) if noise**2 > 0 else math.inf
    if rate == 1 or not unsampled < _HOPELESS:
        return unsampled
    try:
        found = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order)
    except ValueError:  # its series ends in the logarithm of a rounding error
        return unsampled
    sampled = max(0.0, float(np.asarray(found).item())) + _ROUNDING
    return min(unsampled, sampled) if math.isfinite(sampled) else unsampled
