"""How many held-out units there are and how well a model does on them, with noise: what a client may report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import PrivacyError
from fedlora.privacy.accounting import Release
from fedlora.privacy.randomness import RandomSource

SENSITIVITY = math.sqrt(2.0)
"""A unit more or less moves (Σ score, Σ 1) by at most (1, 1)."""


@dataclass(frozen=True)
class NoisedCounts:
    """The Gaussian mechanism on (Σ score, number of units), every held-out unit's score lying in [0, 1].

    noise_multiplier: standard deviation of the noise of each number over the sensitivity, √2.
    """

    noise_multiplier: float

    def release(self) -> Release:
        """What one use costs: all held-out units are in it."""
        return Release(self.noise_multiplier, 1.0, 1)

    def noised(self, scores: Sequence[float] | NDArray[np.float64], source: RandomSource) -> tuple[float, float]:
        """(noised sum of scores, noised number of units); a score that is not finite counts as 0.

        Raises PrivacyError for a finite score outside [0, 1].
        """
        found = np.nan_to_num(np.asarray(scores, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if found.size and not (found.min() >= 0 and found.max() <= 1):
            raise PrivacyError("a unit's score lies outside 0 to 1: its influence would not be bounded")
        exact = np.array([found.sum(), float(len(found))])
        noise = self.noise_multiplier * SENSITIVITY * source.normal(2)
        total, count = (exact + noise).tolist()
        return float(total), float(count)
