"""Where noise and sampling come from: the operating system's entropy, or for simulations a keyed stream."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.seeding import stream_key

Words = Callable[[int], NDArray[np.uint64]]
"""Gives that many independent uniform 64-bit words."""


@dataclass(frozen=True)
class RandomSource:
    """All draws of a private mechanism.

    private: whether nobody can know the draws. Only then does what is made of them carry a guarantee.
    """

    words: Words
    private: bool

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` numbers (k + ½)·2⁻⁵³ with k uniform in 0 … 2⁵³ − 1: never 0, never 1."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, count: int) -> NDArray[np.float64]:
        """`count` standard normal numbers, each the sum of four by Box and Muller, halved.

        One Box-Muller number betrays its mantissa's gaps, and with them what it was added to (Mironov, CCS 2012). The
        sum of four does so only with a work that grows too fast to be done (Holohan and Braghin, arXiv 2107.10138; the
        form that Opacus's secure mode has). The result is still a double: add it in double precision and round the sum
        to single before it is released. That is a hardening, not a proof.
        """
        four = self._box_muller(4 * count).reshape(4, count)
        total: NDArray[np.float64] = four.sum(axis=0) / 2.0
        return total

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        pairs = self.uniform(2 * ((count + 1) // 2)).reshape(2, -1)
        radius, angle = np.sqrt(-2.0 * np.log(pairs[0])), 2.0 * np.pi * pairs[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def chosen(self, count: int, rate: float) -> NDArray[np.int64]:
        """Poisson sampling: each of 0 … count − 1 by itself with probability `rate`, in increasing order."""
        return np.flatnonzero(self.uniform(count) < rate)


def _system_words(count: int) -> NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def system_source() -> RandomSource:
    """The operating system's cryptographic generator. Nothing about it is kept or logged."""
    return RandomSource(_system_words, private=True)


def seeded_source(seed: int, *purpose: str | int) -> RandomSource:
    """A stream that the run's seed and `purpose` decide: for simulations and tests, without any guarantee."""
    generator = np.random.Philox(key=stream_key(seed, *purpose))
    return RandomSource(lambda count: np.asarray(generator.random_raw(count), dtype=np.uint64), private=False)
