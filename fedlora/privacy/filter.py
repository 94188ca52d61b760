"""A ceiling that holds however what is asked next depends on what came out before.

PLD and PRV bound a schedule that was fixed beforehand. Across runs and servers nobody fixed one: what a server asks for
depends on what it saw. A Rényi filter of one order, chosen before anything is spent, bounds that too: the sum of the
releases' Rényi divergences of that order may never exceed the ceiling's (Feldman and Zrnic, arXiv 2008.11193). It is
looser than PLD by the distance from RDP to PLD, and by keeping to one order.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from opacus.accountants.analysis.rdp import compute_rdp

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release

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


def divergence(releases: Iterable[Release], order: float) -> float:
    """The Rényi divergence of `order` of all `releases` together: sums, as they compose.

    Mironov, Talwar and Zhang, arXiv 1908.10530.
    """
    return sum(_one(release, order) for release in releases if release.steps)


@lru_cache(maxsize=4096)
def _one(release: Release, order: float) -> float:
    found = compute_rdp(q=release.rate, noise_multiplier=release.noise_multiplier, steps=release.steps, orders=order)
    return float(np.asarray(found).item())
